//! Refuse a growing share of the calls to a service that refuses a growing share of ours.
//!
//! The soft alternative to a breaker: Google SRE, ch. 21, "client-side throttling". Over a sliding
//! window it keeps how many requests the callers made and how many of them the service accepted,
//! and refuses each new one with the probability
//!
//! ```text
//! max(0, (requests − K · accepts) / (requests + 1))
//! ```
//!
//! so that about `K` times as much reaches the service as it accepts: enough to see it recover.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::observe::{Event, RefusingLayer, emit};
use crate::{InvalidSetting, Name, Outcome};

/// The window is as many buckets, and slides by one of them.
const BUCKETS: usize = 60;

/// Adaptive throttling in front of one dependency. Cheap to clone: clones share the window.
///
/// What it refuses counts as a request that was not accepted, as in the book, so that callers who
/// keep trying are refused more. It never refuses all: at `max_rejection` it stops.
///
/// After an overload it is back to zero in about one window (0.7 at five times the capacity, 1.1 at
/// ten times), after a total outage in about two.
///
/// ```
/// use resilience_core::Throttle;
///
/// let throttle = Throttle::builder("search").multiplier(1.5).build()?;
/// let permit = throttle.try_acquire()?;
/// // … talk to the service …
/// permit.success();
/// assert_eq!(throttle.snapshot().accepts, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Throttle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: Name,
    multiplier: f64,
    max_rejection: f64,
    window: Window,
    rolls: Mutex<fastrand::Rng>,
    refused: AtomicU64,
}

impl Throttle {
    /// A throttle with the default settings.
    #[must_use]
    pub fn new(name: impl Into<Name>) -> Self {
        Self::builder(name).build().expect("the defaults are valid")
    }

    /// A throttle with other settings.
    pub fn builder(name: impl Into<Name>) -> ThrottleBuilder {
        ThrottleBuilder {
            name: name.into(),
            window: Duration::from_secs(120),
            multiplier: 2.0,
            max_rejection: 0.9,
            seed: None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.shared.name
    }

    /// Leave to make one request.
    ///
    /// # Errors
    ///
    /// [`Throttled`] for the share of the requests that the service would not accept.
    pub fn try_acquire(&self) -> Result<ThrottlePermit<'_>, Throttled> {
        // While nothing but accepts is in the window, none of it can age into a refusal: no clock.
        if self.shared.window.all_accepted() {
            return Ok(ThrottlePermit::new(self));
        }
        self.acquire_at(Instant::now())
    }

    /// The share of requests that it refuses now: 0 to `max_rejection`.
    #[must_use]
    pub fn rejection_probability(&self) -> f64 {
        self.probability(self.shared.window.at(Instant::now()))
    }

    /// Its figures now.
    #[must_use]
    pub fn snapshot(&self) -> ThrottleSnapshot {
        let Shared { name, window, refused, .. } = &*self.shared;
        let sums = window.at(Instant::now());
        ThrottleSnapshot {
            name: name.clone(),
            requests: sums.requests(),
            accepts: sums.accepted,
            refused: refused.load(Ordering::Relaxed),
            rejection_probability: self.probability(sums),
        }
    }

    fn acquire_at(&self, now: Instant) -> Result<ThrottlePermit<'_>, Throttled> {
        let Shared { name, window, rolls, refused, .. } = &*self.shared;
        let probability = self.probability(window.at(now));
        if probability > 0.0
            && rolls.lock().unwrap_or_else(PoisonError::into_inner).f64() < probability
        {
            window.add(now, false);
            refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(target: "shared_external::throttle", %name, probability, "request throttled");
            emit(&Event::Refused { name, layer: RefusingLayer::Throttle });
            return Err(Throttled { name: name.clone() });
        }
        Ok(ThrottlePermit::new(self))
    }

    fn settle_at(&self, outcome: Outcome, now: impl FnOnce() -> Instant) {
        match outcome {
            Outcome::Success => self.shared.window.add(now(), true),
            Outcome::Failure => self.shared.window.add(now(), false),
            Outcome::Excluded | Outcome::Cancelled => {}
        }
    }

    fn probability(&self, sums: Sums) -> f64 {
        let Shared { multiplier, max_rejection, .. } = *self.shared;
        let requests = sums.requests() as f64;
        let excess = requests - multiplier * sums.accepted as f64;
        (excess / (requests + 1.0)).clamp(0.0, max_rejection)
    }
}

/// Leave to make one request. Dropped unsettled it is [`Outcome::Cancelled`]: as if never made.
///
/// The request counts when it settles, at that instant.
#[derive(Debug)]
#[must_use = "settle it, or the request counts as never made"]
pub struct ThrottlePermit<'a> {
    throttle: &'a Throttle,
}

impl<'a> ThrottlePermit<'a> {
    fn new(throttle: &'a Throttle) -> Self {
        Self { throttle }
    }

    /// The service accepted the request.
    pub fn success(self) {
        self.settle(Outcome::Success);
    }

    /// The service rejected it, or failed.
    pub fn failure(self) {
        self.settle(Outcome::Failure);
    }

    /// Settles as `outcome`; what says nothing about the service counts as no request.
    pub fn settle(self, outcome: Outcome) {
        self.throttle.settle_at(outcome, Instant::now);
    }
}

/// The service accepts too few requests as it is; it was not called. Another try may pass at any
/// time, by chance, so there is no instant to wait for; the caller's own backoff is the best guess.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("request to {name:?} throttled: the service accepts too few")]
#[non_exhaustive]
pub struct Throttled {
    /// The throttle's name.
    pub name: Name,
}

/// Settings of a [`Throttle`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct ThrottleBuilder {
    name: Name,
    window: Duration,
    multiplier: f64,
    max_rejection: f64,
    seed: Option<u64>,
}

impl ThrottleBuilder {
    /// How far back it looks. It slides by a sixtieth, so it holds the last 59 to 60 sixtieths.
    /// 60 ms to a day; default 2 min, which slides by 2 s.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// `K`, how many times as much as it accepts the service is sent. 1 or more, finite; default 2, as
    /// in the book: less spares the service, more sees its recovery sooner. At 1 the throttle refuses
    /// some for every failure.
    pub fn multiplier(mut self, multiplier: f64) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// The most it refuses, as a share. Above 0 and below 1; default 0.9: one request in ten is let
    /// through even if none was accepted for a whole window, or nobody would see it recover.
    /// (The book has no such bound; Envoy's admission control stops at 0.8, failsafe-go at 0.9.)
    pub fn max_rejection(mut self, share: f64) -> Self {
        self.max_rejection = share;
        self
    }

    /// Makes its chances repeatable. For tests.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The throttle, with an empty window.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a value out of its range.
    pub fn build(self) -> Result<Throttle, InvalidSetting> {
        let Self { name, window, multiplier, max_rejection, seed } = self;
        if !(Duration::from_millis(60)..=Duration::from_secs(24 * 3600)).contains(&window) {
            return Err(InvalidSetting::new("throttle window", window, "60 ms to a day"));
        }
        if !(multiplier >= 1.0 && multiplier.is_finite()) {
            return Err(InvalidSetting::new("throttle multiplier", multiplier, "1 or more"));
        }
        if !(max_rejection > 0.0 && max_rejection < 1.0) {
            return Err(InvalidSetting::new("max_rejection", max_rejection, "above 0, below 1"));
        }
        let rolls = Mutex::new(seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed));
        let window = Window::new(window, Instant::now());
        let refused = AtomicU64::new(0);
        let shared = Shared { name, multiplier, max_rejection, window, rolls, refused };
        Ok(Throttle { shared: Arc::new(shared) })
    }
}

/// A throttle at one moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ThrottleSnapshot {
    /// The throttle's name.
    pub name: Name,
    /// Requests in the window: those the service answered, and those refused here.
    pub requests: u64,
    /// Those of them that the service accepted.
    pub accepts: u64,
    /// Requests refused here, since the throttle was made.
    pub refused: u64,
    /// The share of requests that it refuses.
    pub rejection_probability: f64,
}

/// Counts over the last buckets, with their sums at hand.
///
/// A count enters the sum before its bucket, and leaves the bucket before the sum: the sums never
/// fall below what the buckets hold. The ring is turned under the lock, and `tick` moves when that
/// is done, so that nobody counts in a bucket that is still to be emptied.
#[derive(Debug)]
struct Window {
    origin: Instant,
    bucket_nanos: u64,
    tick: AtomicU64,
    turning: Mutex<()>,
    sums: Counts,
    buckets: [Counts; BUCKETS],
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    unaccepted: AtomicU64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Sums {
    accepted: u64,
    unaccepted: u64,
}

impl Sums {
    fn requests(self) -> u64 {
        self.accepted + self.unaccepted
    }
}

impl Window {
    fn new(length: Duration, now: Instant) -> Self {
        Self {
            origin: now,
            bucket_nanos: nanos(length) / BUCKETS as u64,
            tick: AtomicU64::new(0),
            turning: Mutex::new(()),
            sums: Counts::default(),
            buckets: std::array::from_fn(|_| Counts::default()),
        }
    }

    /// Whether no request in it, as last turned, went unaccepted.
    fn all_accepted(&self) -> bool {
        self.sums.unaccepted.load(Ordering::Relaxed) == 0
    }

    fn at(&self, now: Instant) -> Sums {
        self.turn(now);
        Sums {
            accepted: self.sums.accepted.load(Ordering::Relaxed),
            unaccepted: self.sums.unaccepted.load(Ordering::Relaxed),
        }
    }

    fn add(&self, now: Instant, accepted: bool) {
        let bucket = &self.buckets[index(self.turn(now))];
        if accepted {
            self.sums.accepted.fetch_add(1, Ordering::Relaxed);
            bucket.accepted.fetch_add(1, Ordering::Release);
        } else {
            self.sums.unaccepted.fetch_add(1, Ordering::Relaxed);
            bucket.unaccepted.fetch_add(1, Ordering::Release);
        }
    }

    /// Turns the ring on to `now` and says how far it is. It never turns back: who read the clock
    /// a little earlier counts with those who read it later.
    fn turn(&self, now: Instant) -> u64 {
        let target = nanos(now.saturating_duration_since(self.origin)) / self.bucket_nanos;
        let tick = self.tick.load(Ordering::Acquire);
        if target <= tick {
            return tick;
        }
        // Nothing in the section can panic, so a poisoned ring is still whole.
        let _turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let tick = self.tick.load(Ordering::Acquire);
        if target <= tick {
            return tick;
        }
        let passed = (target - tick).min(BUCKETS as u64);
        for stale in target + 1 - passed..=target {
            let bucket = &self.buckets[index(stale)];
            let accepted = bucket.accepted.swap(0, Ordering::Acquire);
            self.sums.accepted.fetch_sub(accepted, Ordering::Relaxed);
            let unaccepted = bucket.unaccepted.swap(0, Ordering::Acquire);
            self.sums.unaccepted.fetch_sub(unaccepted, Ordering::Relaxed);
        }
        self.tick.store(target, Ordering::Release);
        target
    }
}

fn index(tick: u64) -> usize {
    (tick % BUCKETS as u64) as usize
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_count_is_lost_while_the_window_turns_under_it() {
        let start = Instant::now();
        let window = Window::new(Duration::from_millis(60), start);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let window = &window;
                scope.spawn(move || {
                    for step in 0..20_000_u64 {
                        // A bucket turns at every fourth step of the fastest thread.
                        let now = start + Duration::from_micros(step * 250 + thread * 90);
                        window.add(now, step % 3 > 0);
                        window.at(now);
                    }
                });
            }
        });
        let held = |count: fn(&Counts) -> &AtomicU64| {
            window.buckets.iter().map(|bucket| count(bucket).load(Ordering::Relaxed)).sum::<u64>()
        };
        let sums = window.at(start);
        assert_eq!(sums.accepted, held(|bucket| &bucket.accepted));
        assert_eq!(sums.unaccepted, held(|bucket| &bucket.unaccepted));
        assert!(sums.requests() > 0);
        let gone = Sums { accepted: 0, unaccepted: 0 };
        assert_eq!(window.at(start + Duration::from_secs(60)), gone);
    }
}
