//! How many calls may be in flight to one dependency, so that a slow one cannot take every task.

use std::sync::Arc;
use std::time::Duration;

use crate::observe::RefusingLayer;
use crate::places::{Home, Line, NamedPlaces};
use crate::{BulkheadFull, Deadline, InvalidSetting, Name};

/// A limit on calls in flight, with a bounded wait for a place. Cheap to clone: clones share the places.
///
/// Those who wait are served in the order they came; nobody overtakes them.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::{Bulkhead, Deadline};
///
/// let bulkhead = Bulkhead::builder("search").limit(1).queue(10).wait(Duration::from_millis(50)).build()?;
/// let place = bulkhead.acquire(Deadline::within(Duration::from_secs(2))).await?;
/// // … talk to the service; meanwhile others wait …
/// assert!(bulkhead.acquire(Deadline::within(Duration::from_secs(2))).await.is_err());
/// drop(place);
/// assert_eq!(bulkhead.available(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Bulkhead {
    places: Arc<NamedPlaces>,
}

impl Bulkhead {
    /// A bulkhead of `limit` places (1 or more), for which a call waits `wait` at the most, with the
    /// [default bound](BulkheadBuilder::queue) on the queue.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a limit of 0, or a wait above a day.
    pub fn new(name: impl Into<Name>, limit: u32, wait: Duration) -> Result<Self, InvalidSetting> {
        Self::builder(name).limit(limit).wait(wait).build()
    }

    /// A bulkhead of 64 places, with a queue of 1,024 and a wait of 5 s.
    pub fn builder(name: impl Into<Name>) -> BulkheadBuilder {
        BulkheadBuilder { name: name.into(), limit: 64, line: Line::default() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.places.name
    }

    /// Takes a place if one is free and nobody waits for it. Finding none counts as no rejection.
    #[inline]
    #[must_use]
    pub fn try_acquire(&self) -> Option<Place<'_>> {
        self.places.try_take().then(|| Place { home: Home::Lent(&self.places) })
    }

    /// Takes a place, waiting no longer than the bulkhead and `deadline` allow. The clock is read
    /// only if it must wait.
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
    pub async fn acquire(&self, deadline: Deadline) -> Result<Place<'_>, BulkheadFull> {
        self.places.acquire(deadline).await?;
        Ok(Place { home: Home::Lent(&self.places) })
    }

    /// [`try_acquire`](Self::try_acquire) for a pipeline.
    #[inline]
    pub(crate) fn try_lend(&self) -> Option<LentPlace<'_>> {
        self.places.try_take().then(|| LentPlace(&self.places))
    }

    /// [`acquire`](Self::acquire) for a pipeline.
    pub(crate) async fn lend(&self, deadline: Deadline) -> Result<LentPlace<'_>, BulkheadFull> {
        self.places.acquire(deadline).await?;
        Ok(LentPlace(&self.places))
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
    pub async fn acquire_owned(&self, deadline: Deadline) -> Result<Place<'static>, BulkheadFull> {
        self.places.acquire(deadline).await?;
        Ok(Place { home: Home::Shared(Arc::clone(&self.places)) })
    }

    /// How many calls may be in flight.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.places.limit()
    }

    /// How many places are free.
    #[must_use]
    pub fn available(&self) -> usize {
        self.limit().saturating_sub(self.places.in_flight())
    }

    /// How many calls wait for a place.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.places.waiting()
    }

    /// The longest wait for a place; zero where none may wait.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.places.wait()
    }

    /// Calls turned away since it was made.
    #[must_use]
    pub fn rejected(&self) -> Rejections {
        self.places.rejected()
    }
}

/// Settings of a [`Bulkhead`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct BulkheadBuilder {
    name: Name,
    limit: u32,
    line: Line,
}

impl BulkheadBuilder {
    /// Calls in flight at once. 1 or more; default 64.
    pub fn limit(self, calls: u32) -> Self {
        Self { limit: calls, ..self }
    }

    /// Calls that may wait for a place; one more is turned away at once. 0 means that none may wait.
    /// Default 1,024: the [`wait`](Self::wait) is what keeps a queue short, this only bounds the memory
    /// of those in it.
    pub fn queue(mut self, max_waiting: u32) -> Self {
        self.line.max_waiting = max_waiting;
        self
    }

    /// The longest wait for a place. Zero, for none, to a day; default 5 s.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.line.wait = wait;
        self
    }

    /// The empty bulkhead.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a value out of its range.
    pub fn build(self) -> Result<Bulkhead, InvalidSetting> {
        let Self { name, limit, line } = self;
        if limit == 0 {
            return Err(InvalidSetting::new("bulkhead limit", limit, "1 or more"));
        }
        let places = NamedPlaces::new(RefusingLayer::Bulkhead, name, limit, line.checked()?);
        Ok(Bulkhead { places: Arc::new(places) })
    }
}

/// A place in a [`Bulkhead`]. Dropping it gives it to the first in the queue, or frees it.
#[derive(Debug)]
#[must_use = "dropped at once, it holds nobody back"]
pub struct Place<'a> {
    home: Home<'a, NamedPlaces>,
}

impl Drop for Place<'_> {
    #[inline]
    fn drop(&mut self) {
        self.home.give_back();
    }
}

/// A [`Place`] that can only be lent: it costs less to give back.
pub(crate) struct LentPlace<'a>(&'a NamedPlaces);

impl Drop for LentPlace<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// Calls that got no place, by the reason.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Rejections {
    /// As many waited already as may.
    pub queue_full: u64,
    /// No place came free in time.
    pub timed_out: u64,
}
