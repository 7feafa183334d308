//! The crates that are compared, a file each: how each of them does the same work.

pub mod backon;
pub mod circuitbreaker_rs;
pub mod failsafe;
pub mod ours;
pub mod recloser;
pub mod seatbelt;
pub mod tower;
pub mod tower_resilience;

use std::time::Duration;

use tokio::time::Instant;

/// Longer than anything here takes.
pub const HOUR: Duration = Duration::from_secs(3600);

/// The error of every operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}

/// Waits on the thread until `condition` holds: these peers read a clock that no test can turn.
pub fn until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(10), "what is waited for does not happen");
        std::thread::yield_now();
    }
}

/// Waits on the thread for so long.
pub fn pass(time: Duration) {
    let started = Instant::now();
    until(|| started.elapsed() > time);
}
