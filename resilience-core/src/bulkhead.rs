//! How many calls may be in flight to one dependency, so that a slow one cannot take every task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

use crate::{BulkheadFull, Deadline, InvalidSetting};

/// A limit on calls in flight, with a bounded wait for a place. Cheap to clone; fair to those who wait.
#[derive(Clone, Debug)]
pub struct Bulkhead {
    name: Arc<str>,
    places: Arc<Semaphore>,
    limit: usize,
    wait: Duration,
    waiting: Arc<AtomicUsize>,
}

impl Bulkhead {
    /// A bulkhead of `limit` places (1 or more) for which a call waits `wait` at the most.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a limit of 0 or above tokio's [`Semaphore::MAX_PERMITS`].
    pub fn new(
        name: impl Into<Arc<str>>,
        limit: usize,
        wait: Duration,
    ) -> Result<Self, InvalidSetting> {
        if !(1..=Semaphore::MAX_PERMITS).contains(&limit) {
            return Err(InvalidSetting::new("bulkhead limit", limit, "1 or more"));
        }
        let places = Arc::new(Semaphore::new(limit));
        Ok(Self { name: name.into(), places, limit, wait, waiting: Arc::default() })
    }

    /// Takes a place, waiting no longer than the bulkhead and `deadline` allow.
    ///
    /// # Errors
    ///
    /// [`BulkheadFull`] when no place was freed in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the place in the queue and nothing else.
    pub async fn acquire(&self, deadline: Deadline) -> Result<OwnedSemaphorePermit, BulkheadFull> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place);
        }
        let _queued = Queued::new(&self.waiting);
        let until = Deadline::within(self.wait).min(deadline).instant();
        match timeout_at(until, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => {
                Err(BulkheadFull { name: Arc::clone(&self.name), limit: self.limit })
            }
        }
    }

    /// A place, if one is free.
    #[must_use]
    pub fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// How many calls may be in flight.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many places are free.
    #[must_use]
    pub fn available(&self) -> usize {
        self.places.available_permits()
    }

    /// How many calls wait for a place.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The longest wait for a place.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.wait
    }
}

/// One call in the queue; dropping it is leaving the queue.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_bulkhead_says_so_within_its_wait() {
        let bulkhead = Bulkhead::new("search", 1, Duration::from_secs(3)).unwrap();
        let endless = Deadline::within(Duration::MAX);
        let _held = bulkhead.acquire(endless).await.unwrap();
        let started = Instant::now();
        assert_eq!(bulkhead.acquire(endless).await.unwrap_err().limit, 1);
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        let soon = Deadline::within(Duration::from_secs(1));
        bulkhead.acquire(soon).await.unwrap_err();
        assert_eq!(started.elapsed(), Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_wait_loses_no_place() {
        let bulkhead = Bulkhead::new("search", 1, Duration::from_secs(3)).unwrap();
        let endless = Deadline::within(Duration::MAX);
        let held = bulkhead.acquire(endless).await.unwrap();
        let waiting = tokio::spawn({
            let bulkhead = bulkhead.clone();
            async move { bulkhead.acquire(endless).await.is_ok() }
        });
        tokio::task::yield_now().await;
        assert_eq!(bulkhead.waiting(), 1);
        waiting.abort();
        let _ = waiting.await;
        assert_eq!(bulkhead.waiting(), 0);
        drop(held);
        assert_eq!(bulkhead.available(), 1);
    }
}
