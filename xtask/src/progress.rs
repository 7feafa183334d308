//! What long steps tell the one who waits: one line a step, on standard error, so that output can be piped.

use std::fmt::Display;
use std::time::Duration;

/// Prints `name: what`.
pub fn say(name: impl Display, what: impl Display) {
    eprintln!("{name}: {what}");
}

/// A duration for humans: `0.4 s`, `12.3 s`.
#[must_use]
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
