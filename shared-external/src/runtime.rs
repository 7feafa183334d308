//! The runtime of what belongs to the process: it outlives whichever runtime first asked for it.

use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// A handle to this process's own runtime, of one thread, started when first needed.
///
/// Tests make a runtime each, and a socket dies with the runtime that opened it; the process-wide
/// managers therefore open theirs here.
pub(crate) fn background() -> io::Result<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = &*runtime {
        return Ok(runtime.handle().clone());
    }
    let started = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("shared-external")
        .enable_all()
        .build()?;
    Ok(runtime.insert(started).handle().clone())
}
