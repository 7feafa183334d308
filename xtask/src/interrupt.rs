//! Ctrl-C and SIGTERM as a question that long steps ask themselves, so that they end what they started.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::bail;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on, SIGINT, SIGTERM and SIGHUP no longer end this process: they make [`check`] fail.
///
/// Calling it twice is harmless.
///
/// # Errors
///
/// If the system refuses the handler.
pub fn catch() -> io::Result<()> {
    let mut first = false;
    let flag = INTERRUPTED.get_or_init(|| {
        first = true;
        Arc::default()
    });
    if first {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(flag))?;
        }
    }
    Ok(())
}

/// Whether this process was asked to end since [`catch`].
#[must_use]
pub fn requested() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails once this process was asked to end.
///
/// # Errors
///
/// "interrupted", after SIGINT, SIGTERM or SIGHUP.
pub fn check() -> anyhow::Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}
