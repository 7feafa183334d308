//! How long to wait between attempts: growing, capped, and spread below the cap.

use std::time::Duration;

use crate::InvalidSetting;

/// The longest cap that a builder takes; more is a mistake in the unit.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// How waits grow, before jitter. `base` is the first wait, `n` counts from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum BackoffShape {
    /// `base`, always.
    Constant,
    /// `base · (n + 1)`.
    Linear,
    /// `base · factorⁿ`.
    Exponential {
        /// The growth from one wait to the next. 1 or more, finite.
        factor: f64,
    },
    /// `base` times 1, 1, 2, 3, 5 and on: each the sum of the two before, a growth of 1.6 in the long run.
    Fibonacci,
}

/// How a wait of `w` is spread, so that clients that failed together do not come back together.
///
/// The names and formulas are those of Brooker, *Exponential Backoff And Jitter*, AWS 2015;
/// `random(a, b)` is even over that range. None exceeds the cap, and all but `None` are still spread at it.
/// `true` and `false` are `Full` and `None`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Jitter {
    /// `w`.
    None,
    /// `random(0, w)`. It asks least of a service in trouble, and now and then hardly waits at all.
    #[default]
    Full,
    /// `w/2 + random(0, w/2)`. It never waits less than half.
    Equal,
    /// `w = random(base, 3 · w of the time before)`, from `base`; its own growth, so the shape must be
    /// exponential, whose factor it does not use. What is drawn past the cap would be the cap, for all
    /// clients alike: it is `random(cap/2, cap)` instead.
    Decorrelated,
}

impl From<bool> for Jitter {
    fn from(jitter: bool) -> Self {
        if jitter { Self::Full } else { Self::None }
    }
}

/// The waits of one call, first to last; without end. Making one costs nothing: no allocation, and no
/// random number before the first wait.
///
/// Wait number `n` is `min(shape(n), max_delay)`, spread by the [`Jitter`].
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Backoff, BackoffShape, Jitter};
///
/// let waits = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(5), 2.0);
/// assert_eq!(waits.take(4).collect::<Vec<_>>(), [1, 2, 4, 5].map(Duration::from_secs));
///
/// let waits = Backoff::builder().shape(BackoffShape::Fibonacci).jitter(Jitter::None).build()?;
/// assert_eq!(waits.take(5).collect::<Vec<_>>(), [1, 1, 2, 3, 5].map(Duration::from_secs));
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    /// In nanoseconds, as are the other waits: doubles, so that small ones grow by small factors.
    base: f64,
    max: Duration,
    shape: BackoffShape,
    jitter: Jitter,
    wait: f64,
    /// The one before, for Fibonacci.
    previous: f64,
    /// The thread's own where there is none.
    rng: Option<fastrand::Rng>,
}

impl Backoff {
    /// Waits with other settings than these.
    ///
    /// The defaults are exponential from 1 s up to 60 s by a factor of 2, with full jitter.
    pub fn builder() -> BackoffBuilder {
        BackoffBuilder {
            base_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            shape: BackoffShape::Exponential { factor: 2.0 },
            jitter: Jitter::Full,
            seed: None,
        }
    }

    /// Waits that begin with `base` and grow by `factor` up to `max`, without jitter; for settings that
    /// cannot be wrong.
    ///
    /// A `factor` below 1 or not a number counts as 1, a `base` above `max` as `max`.
    #[must_use]
    pub fn exponential(base: Duration, max: Duration, factor: f64) -> Self {
        // Not a number is not above 1; and without end, it would make no number of a base of zero.
        let factor = if factor > 1.0 { factor.min(f64::MAX) } else { 1.0 };
        Self::new(base, max, BackoffShape::Exponential { factor }, Jitter::None, None)
    }

    /// The same waits with [`Jitter::Full`], by the thread's random numbers.
    #[must_use]
    pub fn jittered(self) -> Self {
        Self { jitter: Jitter::Full, rng: None, ..self }
    }

    /// The same waits with [`Jitter::Full`], by random numbers that `seed` determines.
    #[must_use]
    pub fn jittered_with_seed(self, seed: u64) -> Self {
        Self { jitter: Jitter::Full, rng: Some(fastrand::Rng::with_seed(seed)), ..self }
    }

    /// Begins again with the first wait. The random numbers go on.
    pub fn reset(&mut self) {
        (self.wait, self.previous) = (self.base, 0.0);
    }

    fn new(
        base: Duration,
        max: Duration,
        shape: BackoffShape,
        jitter: Jitter,
        rng: Option<fastrand::Rng>,
    ) -> Self {
        let base = nanos(base.min(max));
        Self { base, max, shape, jitter, wait: base, previous: 0.0, rng }
    }

    /// The next wait.
    pub(crate) fn wait(&mut self) -> Duration {
        let (base, max, wait) = (self.base, nanos(self.max), self.wait);
        let spread = match self.jitter {
            Jitter::None => wait,
            Jitter::Full => self.random(0.0, wait),
            Jitter::Equal => self.random(wait / 2.0, wait),
            Jitter::Decorrelated => {
                let drawn = self.random(base, wait * 3.0);
                self.wait = drawn.min(max);
                let beyond = drawn > max;
                let wait = if beyond { self.random(base.max(max / 2.0), max) } else { drawn };
                return self.bounded(wait);
            }
        };
        let next = match self.shape {
            BackoffShape::Constant => wait,
            BackoffShape::Linear => wait + base,
            BackoffShape::Exponential { factor } => wait * factor,
            BackoffShape::Fibonacci => wait + self.previous,
        };
        (self.previous, self.wait) = (wait, next.min(max));
        self.bounded(spread)
    }

    /// The next wait, where the service asked for `floor` at the least and the call has `room`.
    ///
    /// Clients that were all given the same time would all be back at the same time: with jitter, the floor
    /// is stretched by up to a half, as in Envoy's rate-limited back-off, but by no more than half of what
    /// the call has left after it.
    pub(crate) fn wait_at_least(&mut self, floor: Duration, room: Duration) -> Duration {
        let wait = self.wait();
        let stretch = floor.min(room.saturating_sub(floor)) / 2;
        let stretch = match self.jitter {
            Jitter::None => Duration::ZERO,
            _ => stretch.mul_f64(self.random(0.0, 1.0)),
        };
        wait.max(floor.saturating_add(stretch))
    }

    /// Even over `low` to `high`.
    fn random(&mut self, low: f64, high: f64) -> f64 {
        let share = self.rng.as_mut().map_or_else(fastrand::f64, fastrand::Rng::f64);
        low + (high - low) * share
    }

    /// As a duration; the cap is kept to the nanosecond, whatever the doubles make of it.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "no wait is negative, and one of 500 years is long enough"
    )]
    fn bounded(&self, wait: f64) -> Duration {
        Duration::from_nanos(wait.round() as u64).min(self.max)
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.wait())
    }
}

fn nanos(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

/// Settings of a [`Backoff`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct BackoffBuilder {
    base_delay: Duration,
    max_delay: Duration,
    shape: BackoffShape,
    jitter: Jitter,
    seed: Option<u64>,
}

impl BackoffBuilder {
    /// The first wait. Up to `max_delay`; default 1 s. Zero makes every wait zero, so it is refused
    /// where waits grow in steps of it: linear, Fibonacci, decorrelated.
    pub fn base_delay(self, base_delay: Duration) -> Self {
        Self { base_delay, ..self }
    }

    /// The longest wait, jitter included. Above 0, up to a year; default 60 s.
    pub fn max_delay(self, max_delay: Duration) -> Self {
        Self { max_delay, ..self }
    }

    /// How waits grow; default exponential, by a factor of 2.
    pub fn shape(self, shape: BackoffShape) -> Self {
        Self { shape, ..self }
    }

    /// How waits are spread; default [`Jitter::Full`], as `true` is.
    pub fn jitter(self, jitter: impl Into<Jitter>) -> Self {
        Self { jitter: jitter.into(), ..self }
    }

    /// Makes the jitter repeatable; default: the thread's random numbers.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// The waits.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a cap of zero or above a year, a base above the cap, a base of zero that
    /// could not grow, a factor below 1 or without end, and decorrelated jitter of another shape than
    /// exponential or with no room between base and cap.
    pub fn build(self) -> Result<Backoff, InvalidSetting> {
        let Self { base_delay, max_delay, shape, jitter, seed } = self;
        if max_delay.is_zero() || max_delay > YEAR {
            return Err(InvalidSetting::new("max_delay", max_delay, "above 0, up to a year"));
        }
        if base_delay > max_delay {
            return Err(InvalidSetting::new("base_delay", base_delay, "up to max_delay"));
        }
        if let BackoffShape::Exponential { factor } = shape
            && !(factor >= 1.0 && factor.is_finite())
        {
            return Err(InvalidSetting::new("exponential_base", factor, "1 or more, finite"));
        }
        let decorrelated = jitter == Jitter::Decorrelated;
        if decorrelated && !matches!(shape, BackoffShape::Exponential { .. }) {
            let allowed = "exponential with decorrelated jitter, which grows by itself";
            return Err(InvalidSetting::new("shape", shape, allowed));
        }
        if decorrelated && base_delay == max_delay {
            let allowed = "below max_delay with decorrelated jitter, which lies between them";
            return Err(InvalidSetting::new("base_delay", base_delay, allowed));
        }
        let stepwise = matches!(shape, BackoffShape::Linear | BackoffShape::Fibonacci);
        if base_delay.is_zero() && (stepwise || decorrelated) {
            let allowed = "above 0 where waits grow in steps of it";
            return Err(InvalidSetting::new("base_delay", base_delay, allowed));
        }
        let rng = seed.map(fastrand::Rng::with_seed);
        Ok(Backoff::new(base_delay, max_delay, shape, jitter, rng))
    }
}
