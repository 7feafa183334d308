//! The one room that reads std's clock: xtask blocks, and has no runtime whose clock a test could pause.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "xtask waits for processes, outside any runtime"
)]

use std::time::{Duration, Instant};

/// The instant by which something must have happened.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// The instant `time` from now.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// How much time is left; zero once it has passed.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether no time is left.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.left().is_zero()
    }
}

/// Measures how long a step took.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts at zero.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Blocks this thread for `time`: between two looks at a condition, never instead of one.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
