//! How long to wait between attempts: exponential, capped, and spread below the cap.

use std::time::Duration;

/// The waits of one call, first to last; without end.
///
/// Wait number `n` (from 0) is `min(base · factorⁿ, max)`. With jitter it is spread evenly over
/// zero to that ("full jitter": Brooker, *Exponential Backoff And Jitter*, AWS 2015), so that no
/// wait exceeds `max` and waits at the cap stay spread.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::Backoff;
///
/// let waits: Vec<_> = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(5), 2.0).take(4).collect();
/// assert_eq!(waits, [1, 2, 4, 5].map(Duration::from_secs));
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    next: f64,
    max: f64,
    factor: f64,
    rng: Option<fastrand::Rng>,
}

impl Backoff {
    /// Waits that begin with `base` and grow by `factor` up to `max`, without jitter.
    ///
    /// A `factor` below 1 or not a number counts as 1.
    #[must_use]
    pub fn exponential(base: Duration, max: Duration, factor: f64) -> Self {
        Self {
            next: base.as_secs_f64(),
            max: max.as_secs_f64(),
            factor: factor.max(1.0),
            rng: None,
        }
    }

    /// The same waits, spread by the thread's random numbers.
    #[must_use]
    pub fn jittered(self) -> Self {
        Self { rng: Some(fastrand::Rng::new()), ..self }
    }

    /// The same waits, spread by random numbers that `seed` determines.
    #[must_use]
    pub fn jittered_with_seed(self, seed: u64) -> Self {
        Self { rng: Some(fastrand::Rng::with_seed(seed)), ..self }
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let capped = self.next.min(self.max);
        self.next = (capped * self.factor).min(self.max);
        let share = self.rng.as_mut().map_or(1.0, fastrand::Rng::f64);
        let cap = Duration::try_from_secs_f64(self.max).unwrap_or(Duration::MAX);
        Some(Duration::try_from_secs_f64(capped * share).map_or(cap, |wait| wait.min(cap)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_wait_exceeds_the_cap(base in 0u64..u64::MAX, max in 0u64..u64::MAX, factor: f64, seed: u64) {
            let (base, max) = (Duration::from_nanos(base), Duration::from_nanos(max));
            // Doubles hold 53 bits: a cap of centuries is kept to within its own rounding.
            let rounding = max / (1 << 30);
            for wait in Backoff::exponential(base, max, factor).jittered_with_seed(seed).take(40) {
                prop_assert!(wait <= max + rounding);
            }
        }
    }

    #[test]
    fn waits_at_the_cap_are_still_spread() {
        let second = Duration::from_secs(1);
        let waits: Vec<_> =
            Backoff::exponential(second, second, 2.0).jittered_with_seed(7).take(1000).collect();
        let below = waits.iter().filter(|wait| **wait < second / 2).count();
        assert!((400..600).contains(&below), "{below} of 1000 in the lower half");
    }

    #[test]
    fn endless_settings_do_not_panic() {
        let mut waits = Backoff::exponential(Duration::MAX, Duration::MAX, f64::INFINITY);
        assert_eq!(waits.next(), Some(Duration::MAX));
        assert_eq!(waits.next(), Some(Duration::MAX));
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let waits = |seed| -> Vec<_> {
            let b = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(60), 2.0);
            b.jittered_with_seed(seed).take(8).collect()
        };
        assert_eq!(waits(3), waits(3));
        assert_ne!(waits(3), waits(4));
    }
}
