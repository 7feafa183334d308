//! How a circuit that has just closed lets its traffic rise, so that a service that comes back is not overrun.

use std::time::Duration;

use tokio::time::Instant;

/// The share of calls that passes at first (Envoy's slow start: 10 %).
const FIRST_SHARE: f64 = 0.1;

/// A share of the calls that rises evenly to all of them.
#[derive(Debug)]
pub(super) struct Recovery {
    since: Instant,
    time: Duration,
    /// What the calls so far have earned; a whole one lets a call through.
    credit: f64,
}

impl Recovery {
    /// One that begins `now` and takes `time`; its first call passes.
    pub(super) fn new(now: Instant, time: Duration) -> Self {
        Self { since: now, time, credit: 1.0 - FIRST_SHARE }
    }

    /// The same one, taking another time since it began.
    pub(super) fn lasting(self, time: Duration) -> Self {
        Self { time, ..self }
    }

    /// The share of calls that passes at `now`; `None` once it is all of them.
    pub(super) fn share(&self, now: Instant) -> Option<f64> {
        let passed = now.saturating_duration_since(self.since);
        let done = passed.as_secs_f64() / self.time.as_secs_f64();
        (passed < self.time).then_some(FIRST_SHARE + (1.0 - FIRST_SHARE) * done)
    }

    /// Whether one more call passes; `None` once all do.
    pub(super) fn admit(&mut self, now: Instant) -> Option<bool> {
        self.credit += self.share(now)?;
        // The first share is no sum of powers of two: 0.9 + 0.1 must be enough.
        let passes = self.credit >= 1.0 - f64::EPSILON;
        if passes {
            self.credit -= 1.0;
        }
        Some(passes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn traffic_rises_evenly_from_a_tenth_to_all_of_it() {
        let now = Instant::now();
        let mut recovery = Recovery::new(now, Duration::from_secs(100));
        let shares: Vec<_> = [0, 50, 99]
            .map(|second| {
                let now = now + Duration::from_secs(second);
                (0..1000).filter(|_| recovery.admit(now) == Some(true)).count()
            })
            .into();
        assert!(shares[0].abs_diff(100) <= 1, "{shares:?}");
        assert!(shares[1].abs_diff(550) <= 1, "{shares:?}");
        assert!(shares[2].abs_diff(991) <= 1, "{shares:?}");
        assert_eq!(recovery.admit(now + Duration::from_secs(100)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_call_after_closing_passes() {
        let now = Instant::now();
        assert_eq!(Recovery::new(now, Duration::from_secs(1)).admit(now), Some(true));
    }
}
