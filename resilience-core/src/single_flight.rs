//! Concurrent callers of one key share one execution.
//!
//! ```text
//! the first caller of a key leads: it runs its operation ───▶ all who wait share what it brings
//!        │ it is dropped, panics, or runs out of its own time
//!        ▼
//! of those who wait, the first leads: it runs its own operation, in its own time
//! ```
//!
//! Each caller runs on its own task and under its own deadline. Nothing is spawned, boxed or
//! driven on behalf of another, so an operation may borrow, and a cancelled leader costs its
//! followers one more execution. One shared future would save that one, but would hold every
//! follower to the leader's deadline.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::{Blame, CallError, Deadline, DeadlineExceeded, InvalidSetting, Name, nesting};

/// Makes one call of the many that ask for the same at the same time. Cheap to clone: clones share
/// the flights.
///
/// The first caller of a key leads and runs its operation; those who come before it ends follow,
/// and get a clone of its value or the same error. Who comes after starts anew: this is no cache.
/// A leader that is dropped, panics, or fails with its own surrounding [`Deadline`] over fails
/// nobody else: the follower that waits longest leads in its place and runs its own operation.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resilience_core::{AnyError, Call, Pipeline, SingleFlight};
///
/// let pipeline = Pipeline::builder("prices").build()?;
/// let flights: SingleFlight<u32, String, std::io::Error> = SingleFlight::new("prices", 1_024)?;
/// let fetch = |_| async {
///     tokio::task::yield_now().await;
///     Ok("9.99".to_owned())
/// };
/// let price = || flights.run(7, || pipeline.run(Call::read(), &AnyError, fetch));
/// let (one, other) = tokio::join!(price(), price()); // one call
/// assert_eq!(one?, other?);
/// # Ok(()) }
/// ```
pub struct SingleFlight<K, V, E> {
    shared: Arc<Shared<K, V, E>>,
}

struct Shared<K, V, E> {
    name: Name,
    max_keys: usize,
    flights: Mutex<HashMap<K, Boarding<V, E>>>,
    uncoalesced: AtomicU64,
}

/// A flight that may still be joined.
struct Boarding<V, E> {
    flight: Arc<Flight<V, E>>,
    aboard: usize,
}

/// One execution: whoever holds the only permit of `lead` runs it. It closes once it has landed.
struct Flight<V, E> {
    lead: Semaphore,
    landed: OnceLock<Landed<V, E>>,
}

/// What everyone aboard gets.
struct Landed<V, E> {
    result: Result<V, Arc<CallError<E>>>,
    /// Whether a pipeline within has given up: those around the followers must not repeat it either.
    inner: Option<nesting::Inner>,
}

impl<K: Clone + Eq + Hash, V: Clone, E> SingleFlight<K, V, E> {
    /// Nothing in flight yet, and never more than `max_keys` (1 or more) keys at once. `name` is for
    /// logs and errors.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a bound of 0.
    pub fn new(name: impl Into<Name>, max_keys: usize) -> Result<Self, InvalidSetting> {
        if max_keys == 0 {
            return Err(InvalidSetting::new("max_keys", max_keys, "1 or more"));
        }
        let (name, flights, uncoalesced) = (name.into(), Mutex::default(), AtomicU64::new(0));
        Ok(Self { shared: Arc::new(Shared { name, max_keys, flights, uncoalesced }) })
    }

    /// Runs `operation`, or waits for the one that runs for `key` and shares its result.
    ///
    /// With as many keys in flight as there may be, a new key's operation runs by itself, and
    /// counts as [`uncoalesced`](Self::uncoalesced).
    ///
    /// An operation must not ask for its own key: it would wait for itself. A leader that is
    /// neither polled nor dropped keeps its followers waiting until their deadlines.
    ///
    /// # Errors
    ///
    /// The error of the operation that was run, shared; [`DeadlineExceeded`] where the surrounding
    /// [`Deadline`] passed while waiting for another's.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as the operation. A follower that is dropped leaves without a trace; a leader
    /// that is dropped hands its turn to the follower that waits longest.
    ///
    /// # Panics
    ///
    /// If the caller's own operation does. Followers are not told: one of them leads in its place.
    pub async fn run<F, Fut>(&self, key: K, operation: F) -> Result<V, Arc<CallError<E>>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, CallError<E>>>,
    {
        let Some(seat) = self.board(key) else {
            return operation().await.map_err(Arc::new);
        };
        let Some(_turn) = self.turn(&seat.flight).await? else {
            let Landed { result, inner } =
                seat.flight.landed.get().expect("a flight lands before it closes");
            nesting::pass_on(*inner);
            return result.clone();
        };
        let deadline = Deadline::current();
        let (result, inner) = nesting::listen(async { operation().await }).await;
        nesting::pass_on(inner);
        let result = result.map_err(Arc::new);
        // The others may have more time: an error for want of it is the leader's own.
        let out_of_time = || deadline.is_some_and(|deadline| deadline.has_passed(Instant::now()));
        if result.is_ok() || !out_of_time() {
            seat.land(Landed { result: result.clone(), inner });
        }
        result
    }

    /// Keys in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.lock().len()
    }

    /// Calls that ran by themselves because `max_keys` were in flight, since it was made.
    #[must_use]
    pub fn uncoalesced(&self) -> u64 {
        self.shared.uncoalesced.load(Ordering::Relaxed)
    }

    /// A seat on the flight for `key`, a new one where there is none; none if no flight may be added.
    fn board(&self, key: K) -> Option<Seat<'_, K, V, E>> {
        let shared = &*self.shared;
        let mut flights = shared.lock();
        let full = flights.len() >= shared.max_keys;
        let flight = match flights.entry(key.clone()) {
            Entry::Occupied(mut boarding) => {
                boarding.get_mut().aboard += 1;
                Arc::clone(&boarding.get().flight)
            }
            Entry::Vacant(_) if full => {
                drop(flights);
                shared.uncoalesced.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(target: "shared_external::single_flight", name = %shared.name, "too many keys in flight; this one runs by itself");
                return None;
            }
            Entry::Vacant(vacant) => {
                let flight = Arc::new(Flight { lead: Semaphore::new(1), landed: OnceLock::new() });
                vacant.insert(Boarding { flight: Arc::clone(&flight), aboard: 1 });
                flight
            }
        };
        Some(Seat { shared, key, flight })
    }

    /// The turn to lead; none once the flight has landed.
    async fn turn<'a>(
        &self,
        flight: &'a Flight<V, E>,
    ) -> Result<Option<SemaphorePermit<'a>>, Arc<CallError<E>>> {
        if let Ok(turn) = flight.lead.try_acquire() {
            return Ok(Some(turn));
        }
        // Fair: the turn goes to whoever has waited longest. An `Err` is a closed, landed flight.
        let turn = flight.lead.acquire();
        let Some(deadline) = Deadline::current() else {
            return Ok(turn.await.ok());
        };
        let started = Instant::now();
        timeout_at(deadline.instant(), turn).await.map(Result::ok).map_err(|_| {
            let name = self.shared.name.clone();
            let elapsed = started.elapsed();
            Arc::new(DeadlineExceeded { name, attempts: 0, elapsed, blame: Blame::Service }.into())
        })
    }
}

impl<K, V, E> Clone for SingleFlight<K, V, E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K, V, E> fmt::Debug for SingleFlight<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither keys nor values: they are the application's.
        let Shared { name, max_keys, .. } = &*self.shared;
        f.debug_struct("SingleFlight")
            .field("name", name)
            .field("max_keys", max_keys)
            .finish_non_exhaustive()
    }
}

impl<K, V, E> Shared<K, V, E> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Boarding<V, E>>> {
        // Only a key's own `Hash` or `Eq` could panic in here, before anything is changed.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One caller aboard a flight; dropping it is leaving, and the last to leave ends the flight.
struct Seat<'a, K: Eq + Hash, V, E> {
    shared: &'a Shared<K, V, E>,
    key: K,
    flight: Arc<Flight<V, E>>,
}

impl<K: Eq + Hash, V, E> Seat<'_, K, V, E> {
    /// Ends the flight with `landed` for everyone aboard.
    fn land(&self, landed: Landed<V, E>) {
        // Nobody may board what is over: who comes now starts anew.
        let boarding = self.shared.lock().remove(&self.key);
        let unset = self.flight.landed.set(landed).is_ok();
        debug_assert!(unset && boarding.is_some(), "a flight has one leader and lands once");
        self.flight.lead.close();
    }
}

impl<K: Eq + Hash, V, E> Drop for Seat<'_, K, V, E> {
    fn drop(&mut self) {
        if self.flight.landed.get().is_some() {
            return;
        }
        let mut flights = self.shared.lock();
        // By now the key may be that of a later flight.
        let boarding = flights.get_mut(&self.key);
        let Some(ours) = boarding.filter(|other| Arc::ptr_eq(&other.flight, &self.flight)) else {
            return;
        };
        ours.aboard -= 1;
        if ours.aboard == 0 {
            flights.remove(&self.key);
        }
    }
}
