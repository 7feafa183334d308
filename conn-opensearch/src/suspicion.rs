//! What is remembered of a node that failed: pass it over for a while, longer each time.
//!
//! ```text
//!   trusted ──failed──▶ passed over ──(while is over)──▶ on trial: the next call, alone
//!     ▲                   ▲    │                            │ │
//!     │                   └────┼───────── failed ───────────┘ │
//!     └───── succeeded ────────┴──────────────────────────────┘
//! ```
//!
//! Passed over is a preference, not a ban: where every node is, each is tried as if none were.

use std::time::Duration;

use tokio::time::Instant;

use crate::defaults::PASS_OVER;

/// The memory of one node. Reads no clock: callers hand it `now`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Suspicion {
    failed: Option<Failed>,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    last: Instant,
    for_how_long: Duration,
    until: Instant,
}

impl Suspicion {
    /// Whether a call should rather go elsewhere.
    pub(crate) fn passed_over(&self, now: Instant) -> bool {
        self.failed.is_some_and(|failed| now < failed.until)
    }

    /// An attempt goes there. If it is the one that tries the node again, others stay away until
    /// it is known how it ended, or for another while.
    pub(crate) fn tried(&mut self, now: Instant) {
        if let Some(failed) = self.failed.as_mut().filter(|failed| failed.until <= now) {
            failed.until = now + failed.for_how_long;
        }
    }

    /// An attempt that began at `started` failed. Of all that one outage fails at once, only the
    /// first counts.
    pub(crate) fn failed(&mut self, started: Instant, now: Instant) {
        let (shortest, longest) = PASS_OVER;
        let for_how_long = match self.failed {
            None => shortest,
            Some(failed) if started < failed.last => return,
            Some(failed) => (failed.for_how_long * 2).min(longest),
        };
        self.failed = Some(Failed { last: now, for_how_long, until: now + for_how_long });
    }

    /// An attempt that began at `started` had an answer: what failed before it began is forgiven.
    pub(crate) fn succeeded(&mut self, started: Instant) {
        self.failed = self.failed.filter(|failed| started < failed.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_node_that_keeps_failing_is_tried_less_and_less() {
        let mut now = Instant::now();
        let mut node = Suspicion::default();
        assert!(!node.passed_over(now));
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            node.failed(now, now);
            assert!(node.passed_over(now + seconds * S - MS), "{seconds} s");
            now += seconds * S;
            assert!(!node.passed_over(now), "{seconds} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_outage_that_fails_many_calls_counts_once() {
        let began = Instant::now();
        let mut node = Suspicion::default();
        for call in 1..=64 {
            node.failed(began, began + call * MS);
        }
        assert!(!node.passed_over(began + MS + S));
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_at_a_time_tries_a_node_again() {
        let now = Instant::now();
        let mut node = Suspicion::default();
        node.failed(now, now);
        node.tried(now + S);
        assert!(node.passed_over(now + S + MS));
        node.succeeded(now + S);
        assert!(!node.passed_over(now + S + MS));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_from_before_the_failure_forgives_nothing() {
        let began = Instant::now();
        let mut node = Suspicion::default();
        node.failed(began + S, began + 2 * S);
        node.succeeded(began);
        assert!(node.passed_over(began + 2 * S));
    }
}
