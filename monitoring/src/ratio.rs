//! The share of a breaker's attempts that failed within the last minute, from samples of its counts.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use resilience_core::{CircuitSnapshot, Name, OutcomeCounts};
use tokio::time::Instant;

use crate::defaults::{MIN_SAMPLES, WINDOW};
use crate::names::MAX_NAMES;

/// Time between two samples.
const STEP: Duration = Duration::from_secs(5);

/// Samples of up to [`MAX_NAMES`] breakers, each of up to 13 moments.
#[derive(Debug, Default)]
pub(crate) struct FailureRatios {
    samples: HashMap<Name, VecDeque<(Instant, OutcomeCounts)>>,
}

impl FailureRatios {
    /// Remembers the counts of `circuit` at `now`, if it is time.
    pub(crate) fn sample(&mut self, circuit: &CircuitSnapshot, now: Instant) {
        if self.samples.len() >= MAX_NAMES && !self.samples.contains_key(&circuit.name) {
            return;
        }
        let samples = self.samples.entry(circuit.name.clone()).or_default();
        if samples.back().is_none_or(|(last, _)| now.saturating_duration_since(*last) >= STEP) {
            samples.push_back((now, circuit.calls));
        }
        while samples
            .front()
            .is_some_and(|(first, _)| now.saturating_duration_since(*first) > WINDOW)
        {
            samples.pop_front();
        }
    }

    /// The ratio, 0 to 1; `None` below 20 attempts.
    pub(crate) fn of(&self, circuit: &CircuitSnapshot) -> Option<f64> {
        let (_, then) = self.samples.get(&circuit.name)?.front()?;
        let failed = circuit.calls.failure.saturating_sub(then.failure);
        let all = failed + circuit.calls.success.saturating_sub(then.success);
        #[expect(clippy::cast_precision_loss, reason = "a ratio needs no 53 bits")]
        (all >= MIN_SAMPLES).then(|| failed as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use resilience_core::CircuitBreaker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_older_than_a_minute_are_forgotten() {
        let breaker = CircuitBreaker::builder("ratio").fail_max(1000).build().unwrap();
        let mut ratios = FailureRatios::default();
        ratios.sample(&breaker.snapshot(), Instant::now());
        for failed in 0..20 {
            assert_eq!(ratios.of(&breaker.snapshot()), None, "{failed} attempts say nothing");
            breaker.try_acquire().unwrap().failure();
        }
        assert_eq!(ratios.of(&breaker.snapshot()), Some(1.0));
        for _ in 0..14 {
            tokio::time::advance(STEP).await;
            ratios.sample(&breaker.snapshot(), Instant::now());
        }
        assert!(ratios.samples["ratio"].len() <= 13);
        for _ in 0..20 {
            breaker.try_acquire().unwrap().success();
        }
        assert_eq!(ratios.of(&breaker.snapshot()), Some(0.0));
    }
}
