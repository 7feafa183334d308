//! A bulkhead that finds its limit by itself, from how the service answers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

pub use crate::limit_algorithm::LimitAlgorithm;
use crate::limit_algorithm::{Estimate, Sample};
use crate::observe::RefusingLayer;
use crate::places::{Home, Line, NamedPlaces};
use crate::{BulkheadFull, Deadline, InvalidSetting, Name, Outcome, Rejections, heartbeat};

/// A limit on calls in flight that follows what the service can take. Cheap to clone: clones share it.
///
/// It starts at `initial` and moves between `min` and `max`, as its [`LimitAlgorithm`] says. Calls
/// wait for a place as they do for one in a [`Bulkhead`](crate::Bulkhead): in order, in a bounded queue.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::{AdaptiveLimit, Deadline, LimitAlgorithm, Outcome};
/// use tokio::time::Instant;
///
/// let limit = AdaptiveLimit::builder("search").algorithm(LimitAlgorithm::Gradient).max(100).build()?;
/// let place = limit.acquire(Deadline::within(Duration::from_secs(2))).await?;
/// let started = Instant::now();
/// // … talk to the service …
/// place.settle(Outcome::Success, started.elapsed());
/// assert_eq!((limit.limit(), limit.in_flight()), (20, 0));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct AdaptiveLimit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    places: NamedPlaces,
    max: u32,
    /// That of the estimate, for those who are admitted.
    generation: AtomicU32,
    estimate: Mutex<Estimate>,
}

impl AdaptiveLimit {
    /// An AIMD limit from 20, between 1 and 200, with a queue of 1,024 and a wait of 5 s.
    pub fn builder(name: impl Into<Name>) -> AdaptiveLimitBuilder {
        AdaptiveLimitBuilder {
            name: name.into(),
            algorithm: LimitAlgorithm::default(),
            min: 1,
            max: 200,
            initial: None,
            line: Line::default(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.shared.places.name
    }

    /// Takes a place if one is free and nobody waits for it. Finding none counts as no rejection.
    #[inline]
    #[must_use]
    pub fn try_acquire(&self) -> Option<AdaptivePlace<'_>> {
        self.shared.places.try_take().then(|| AdaptivePlace::new(Home::Lent(&self.shared)))
    }

    /// Takes a place, waiting no longer than the limit's own wait and `deadline` allow. The clock is
    /// read only if it must wait.
    ///
    /// # Errors
    ///
    /// [`BulkheadFull`] when the queue is full, or no place came free in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the turn in the queue and nothing else: a place that had been handed
    /// to it goes to the next.
    #[inline]
    pub async fn acquire(&self, deadline: Deadline) -> Result<AdaptivePlace<'_>, BulkheadFull> {
        self.shared.places.acquire(deadline).await?;
        Ok(AdaptivePlace::new(Home::Lent(&self.shared)))
    }

    /// [`acquire`](Self::acquire) for what outlives a borrow: a stream, a lease, another task.
    ///
    /// # Errors
    ///
    /// Those of [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// That of [`acquire`](Self::acquire).
    pub async fn acquire_owned(
        &self,
        deadline: Deadline,
    ) -> Result<AdaptivePlace<'static>, BulkheadFull> {
        self.shared.places.acquire(deadline).await?;
        Ok(AdaptivePlace::new(Home::Shared(Arc::clone(&self.shared))))
    }

    /// How many calls may be in flight now. More are for a while after it has shrunk.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.shared.places.limit()
    }

    /// The highest that the limit may become.
    #[must_use]
    pub fn max(&self) -> usize {
        self.shared.max as usize
    }

    /// How many calls are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.places.in_flight()
    }

    /// How many calls wait for a place.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.places.waiting()
    }

    /// The longest wait for a place; zero where none may wait.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.shared.places.wait()
    }

    /// Calls turned away since it was made.
    #[must_use]
    pub fn rejected(&self) -> Rejections {
        self.shared.places.rejected()
    }
}

impl Shared {
    /// Learns from an attempt that still has its place.
    fn add(&self, sample: Sample) {
        let mut estimate = match self.estimate.try_lock() {
            Ok(estimate) => estimate,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // A good answer less moves nothing; nobody waits to have it counted.
            Err(TryLockError::WouldBlock) if !sample.overload => return,
            Err(TryLockError::WouldBlock) => {
                self.estimate.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        if !estimate.add(sample) {
            return;
        }
        let limit = estimate.in_force();
        self.places.set_limit(limit);
        self.generation.store(estimate.generation(), Ordering::Relaxed);
        drop(estimate);
        tracing::debug!(target: "shared_external::adaptive", name = %self.places.name, limit, "limit changed");
    }
}

/// Settings of an [`AdaptiveLimit`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct AdaptiveLimitBuilder {
    name: Name,
    algorithm: LimitAlgorithm,
    min: u32,
    max: u32,
    initial: Option<u32>,
    line: Line,
}

impl AdaptiveLimitBuilder {
    /// How it finds its limit; default [`LimitAlgorithm::Aimd`].
    pub fn algorithm(self, algorithm: LimitAlgorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// The lowest limit. 1 or more; default 1.
    pub fn min(self, calls: u32) -> Self {
        Self { min: calls, ..self }
    }

    /// The highest limit. The lowest or more; default 200.
    pub fn max(self, calls: u32) -> Self {
        Self { max: calls, ..self }
    }

    /// The first limit. Between the lowest and the highest; default 20, or the nearest that is.
    pub fn initial(self, calls: u32) -> Self {
        Self { initial: Some(calls), ..self }
    }

    /// Calls that may wait for a place; one more is turned away at once. 0 means that none may wait.
    /// Default 1,024.
    pub fn queue(mut self, max_waiting: u32) -> Self {
        self.line.max_waiting = max_waiting;
        self
    }

    /// The longest wait for a place. Zero, for none, to a day; default 5 s.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.line.wait = wait;
        self
    }

    /// The limit, with nobody in flight.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a value out of its range.
    pub fn build(self) -> Result<AdaptiveLimit, InvalidSetting> {
        let Self { name, algorithm, min, max, initial, line } = self;
        if min == 0 {
            return Err(InvalidSetting::new("min", min, "1 or more"));
        }
        if max < min {
            return Err(InvalidSetting::new("max", max, "min or more"));
        }
        let initial = initial.unwrap_or(20.clamp(min, max));
        if !(min..=max).contains(&initial) {
            return Err(InvalidSetting::new("initial", initial, "min to max"));
        }
        let places = NamedPlaces::new(RefusingLayer::Adaptive, name, initial, line.checked()?);
        let estimate = Mutex::new(Estimate::new(algorithm, min, max, initial));
        let generation = AtomicU32::new(0);
        Ok(AdaptiveLimit { shared: Arc::new(Shared { places, max, generation, estimate }) })
    }
}

/// A place under an [`AdaptiveLimit`]. Dropped unsettled it is [`Outcome::Cancelled`]: the limit
/// learns nothing from it.
#[derive(Debug)]
#[must_use = "settle it, or the limit learns nothing"]
pub struct AdaptivePlace<'a> {
    home: Home<'a, Shared>,
    generation: u32,
}

impl<'a> AdaptivePlace<'a> {
    #[inline]
    fn new(home: Home<'a, Shared>) -> Self {
        let generation = home.generation.load(Ordering::Relaxed);
        Self { home, generation }
    }

    /// Gives the place back, and tells how the attempt ended and how long it took from place to end.
    ///
    /// [`Failure`](Outcome::Failure) is overload: a timeout, or an answer that asks for less. Faults of
    /// the caller, and of the service where they say nothing of its load, are
    /// [`Excluded`](Outcome::Excluded): neutral, as is [`Cancelled`](Outcome::Cancelled), and whatever took
    /// long because this process [stood still](crate::Standstill).
    pub fn settle(self, outcome: Outcome, elapsed: Duration) {
        let overload = match outcome {
            Outcome::Success => false,
            Outcome::Failure => true,
            Outcome::Excluded | Outcome::Cancelled => return,
        };
        if heartbeat::explains(elapsed) {
            return;
        }
        let in_flight = u32::try_from(self.home.places.in_flight()).unwrap_or(u32::MAX);
        self.home.add(Sample { generation: self.generation, in_flight, elapsed, overload });
    }
}

impl Drop for AdaptivePlace<'_> {
    #[inline]
    fn drop(&mut self) {
        self.home.places.give_back();
    }
}
