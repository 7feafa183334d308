//! The last good answer, for when there is no new one.
//!
//! ```text
//!    stored           fresh_for              fresh_for + stale_for
//! ─────┼──────────────────┼──────────────────────────┼─────────▶ age
//!      │ served, no call  │ a call; served should    │ a call; no longer
//!      │                  │ the service be away      │ served at all
//! ```

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::{CallError, InvalidSetting, Name, SingleFlight};

/// The longest that a value may be kept: a duration meant as "for ever" is a mistake here.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Keeps what a service answered, and serves it again: while fresh, without a call; once stale, only
/// when the service cannot be had. Cheap to clone: clones share the values.
///
/// Concurrent callers of one key that is not fresh share one call ([`SingleFlight`]), so that an
/// empty cache asks the service once for each key.
///
/// `E` is the error of the operation that fetches. A value is cloned under a lock: make it cheap to
/// clone, for instance an [`Arc`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::io;
/// use std::time::Duration;
/// use resilience_core::{AnyError, Call, Pipeline, StaleCache};
///
/// let pipeline = Pipeline::builder("prices").build()?;
/// let prices: StaleCache<&str, u32, io::Error> = StaleCache::builder("prices")
///     .fresh_for(Duration::from_secs(60))
///     .stale_for(Duration::from_secs(3600))
///     .build()?;
///
/// let up = || pipeline.run(Call::read(), &AnyError, |_| async { Ok(999) });
/// let down = || pipeline.run(Call::read(), &AnyError, |_| async { Err(io::ErrorKind::ConnectionReset.into()) });
/// assert!(!prices.get_or("tea", up).await?.stale);
/// tokio::time::advance(Duration::from_secs(90)).await;
/// let price = prices.get_or("tea", down).await?;
/// assert!(price.stale && price.value == 999 && price.age == Duration::from_secs(90));
/// # Ok(()) }
/// ```
///
/// As the fallback of [`Pipeline::run_or`](crate::Pipeline::run_or), where the primary gets half of the time:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resilience_core::{AnyError, Call, CallError, Pipeline, StaleCache};
///
/// let pipeline = Pipeline::builder("prices").build()?;
/// let prices: StaleCache<&str, u32, std::io::Error> = StaleCache::builder("prices").build()?;
/// let price = pipeline
///     .run_or(
///         Call::read(),
///         &AnyError,
///         |_| async { Ok::<_, std::io::Error>(prices.insert("tea", 999)) },
///         |error| async { prices.get("tea").ok_or(error) },
///     )
///     .await?;
/// assert!(!price.stale);
/// # Ok(()) }
/// ```
pub struct StaleCache<K, V, E> {
    shared: Arc<Shared<K, V>>,
    flights: SingleFlight<K, Cached<V>, E>,
}

/// A value of a [`StaleCache`], and how old it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Cached<V> {
    /// The value.
    pub value: V,
    /// Time since it was stored.
    pub age: Duration,
    /// Whether it is older than it should be: say so to whoever sees it.
    pub stale: bool,
}

struct Shared<K, V> {
    name: Name,
    store: RwLock<Store<K, V>>,
}

impl<K: Clone + Eq + Hash, V: Clone, E> StaleCache<K, V, E> {
    /// An empty cache of up to 1,024 values that are fresh for 60 s and stale for one hour more.
    pub fn builder(name: impl Into<Name>) -> StaleCacheBuilder<K, V, E> {
        StaleCacheBuilder {
            name: name.into(),
            capacity: 1_024,
            fresh_for: Duration::from_secs(60),
            stale_for: Duration::from_secs(3600),
            of: PhantomData,
        }
    }

    /// The value of `key`: a fresh one that is there; else what `fetch` brings, which is stored;
    /// else, when the service is [unavailable](CallError::is_unavailable), a stale one that is there.
    ///
    /// A request that the service refused is no case for a stale value: its error comes back.
    /// `fetch` is meant to be a pipeline's run. Whatever time it takes to find the service
    /// unavailable is spent before a stale value is served: give it a deadline.
    ///
    /// # Errors
    ///
    /// The error of the call that was made for this key, shared by all who waited for it, where
    /// there is no value to serve in its place; [`DeadlineExceeded`](crate::DeadlineExceeded) where
    /// the surrounding [`Deadline`](crate::Deadline) passed while waiting for another's call.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `fetch`. Dropping the future fails nobody who waits for the same key.
    ///
    /// # Panics
    ///
    /// If the caller's own `fetch` does; the cache and those who wait are not touched by it.
    pub async fn get_or<F, Fut>(&self, key: K, fetch: F) -> Result<Cached<V>, Arc<CallError<E>>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, CallError<E>>>,
    {
        let fresh = || self.get(&key).filter(|cached| !cached.stale);
        if let Some(cached) = fresh() {
            return Ok(cached);
        }
        let fetching = self.flights.run(key.clone(), || async {
            // Another's call may have ended between the look and the start of this one.
            match fresh() {
                Some(cached) => Ok(cached),
                None => fetch().await.map(|value| self.insert(key.clone(), value)),
            }
        });
        let error = match fetching.await {
            Err(error) if error.is_unavailable() => error,
            result => return result,
        };
        let cached = self.get(&key).ok_or(error)?;
        tracing::debug!(target: "shared_external::cache", name = %self.shared.name, age = ?cached.age, stale = cached.stale, "serving what is there");
        Ok(cached)
    }

    /// The value of `key`, fresh or stale, if it is there and not too old to be served at all.
    #[must_use]
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<Cached<V>>
    where
        K: Borrow<Q>,
    {
        let now = Instant::now();
        self.read().get(key, now)
    }

    /// Stores `value` in place of one that `key` may have, and gives it back as a fresh one.
    pub fn insert(&self, key: K, value: V) -> Cached<V> {
        let cached = Cached { value: value.clone(), age: Duration::ZERO, stale: false };
        let now = Instant::now();
        let mut store = self.shared.store.write().unwrap_or_else(PoisonError::into_inner);
        let gone = store.insert(key, value, now);
        drop(store);
        // Values may be large: they are dropped with nobody waiting.
        drop(gone);
        cached
    }

    /// How many values it holds, those included that are too old but still there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().entries.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values that could still have been served and had to go because the cache was full, since it was made.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.read().evicted
    }

    /// Its calls in flight: as many keys at once as it may hold values.
    #[must_use]
    pub fn flights(&self) -> &SingleFlight<K, Cached<V>, E> {
        &self.flights
    }

    fn read(&self) -> RwLockReadGuard<'_, Store<K, V>> {
        // Only a key's own traits could panic in there; what they leave is bounded all the same.
        self.shared.store.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V, E> Clone for StaleCache<K, V, E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), flights: self.flights.clone() }
    }
}

impl<K, V, E> fmt::Debug for StaleCache<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither keys nor values: they are the application's.
        f.debug_struct("StaleCache").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// Settings of a [`StaleCache`] to be.
#[must_use]
pub struct StaleCacheBuilder<K, V, E> {
    name: Name,
    capacity: usize,
    fresh_for: Duration,
    stale_for: Duration,
    of: PhantomData<(K, V, E)>,
}

impl<K: Clone + Eq + Hash, V: Clone, E> StaleCacheBuilder<K, V, E> {
    /// Values it may hold; the one stored longest ago goes first. 1 or more; default 1,024.
    pub fn capacity(self, capacity: usize) -> Self {
        Self { capacity, ..self }
    }

    /// How long a value is served without a call. Up to 365 days; 0: never; default 60 s.
    pub fn fresh_for(self, fresh_for: Duration) -> Self {
        Self { fresh_for, ..self }
    }

    /// How long, from then on, it is served when the service is unavailable. Above 0, up to 365 days; default 1 h.
    pub fn stale_for(self, stale_for: Duration) -> Self {
        Self { stale_for, ..self }
    }

    /// The empty cache.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a capacity of 0, no time to be stale, or a time above 365 days.
    pub fn build(self) -> Result<StaleCache<K, V, E>, InvalidSetting> {
        let Self { name, capacity, fresh_for, stale_for, of: _ } = self;
        if capacity == 0 {
            return Err(InvalidSetting::new("capacity", capacity, "1 or more"));
        }
        if fresh_for > YEAR {
            return Err(InvalidSetting::new("fresh_for", fresh_for, "up to 365 days"));
        }
        if stale_for.is_zero() || stale_for > YEAR {
            return Err(InvalidSetting::new("stale_for", stale_for, "above 0, up to 365 days"));
        }
        let flights = SingleFlight::new(name.clone(), capacity)?;
        let store = RwLock::new(Store {
            capacity,
            fresh_for,
            stale_for,
            entries: HashMap::new(),
            by_age: BTreeMap::new(),
            stored: 0,
            evicted: 0,
        });
        Ok(StaleCache { shared: Arc::new(Shared { name, store }), flights })
    }
}

impl<K, V, E> fmt::Debug for StaleCacheBuilder<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, capacity, fresh_for, stale_for, of: _ } = self;
        f.debug_struct("StaleCacheBuilder")
            .field("name", name)
            .field("capacity", capacity)
            .field("fresh_for", fresh_for)
            .field("stale_for", stale_for)
            .finish()
    }
}

/// Too-old values that each new one clears away: more than one, so that they cannot gather.
const CLEARED_BY_EACH: usize = 2;

/// The values themselves: pure, told the time by its caller.
///
/// Reading changes nothing, so readers share the lock. The order of storing stands in for that of
/// use: what is in use is stored anew each time it ceases to be fresh.
struct Store<K, V> {
    capacity: usize,
    fresh_for: Duration,
    stale_for: Duration,
    entries: HashMap<K, Entry<V>>,
    /// Keys by number of storing, the oldest first.
    by_age: BTreeMap<u64, K>,
    stored: u64,
    evicted: u64,
}

struct Entry<V> {
    value: V,
    at: Instant,
    number: u64,
}

impl<K: Clone + Eq + Hash, V: Clone> Store<K, V> {
    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: Instant) -> Option<Cached<V>>
    where
        K: Borrow<Q>,
    {
        let entry = self.entries.get(key)?;
        let age = now.saturating_duration_since(entry.at);
        let stale = age >= self.fresh_for;
        self.may_serve(entry, now).then(|| Cached { value: entry.value.clone(), age, stale })
    }

    /// Returns what had to make room, for its caller to drop.
    fn insert(&mut self, key: K, value: V, now: Instant) -> Vec<(K, Entry<V>)> {
        let number = self.stored;
        self.stored += 1;
        let mut gone = Vec::new();
        if let Some(before) = self.entries.remove(&key) {
            gone.extend(self.by_age.remove(&before.number).map(|key| (key, before)));
        }
        for _ in 0..CLEARED_BY_EACH {
            let Some(oldest) = self.oldest() else { break };
            let over = !self.may_serve(oldest, now);
            if !over && self.entries.len() < self.capacity {
                break;
            }
            self.evicted += u64::from(!over);
            gone.extend(self.remove_oldest());
        }
        self.by_age.insert(number, key.clone());
        self.entries.insert(key, Entry { value, at: now, number });
        gone
    }

    fn may_serve(&self, entry: &Entry<V>, now: Instant) -> bool {
        now.saturating_duration_since(entry.at) < self.fresh_for + self.stale_for
    }

    fn oldest(&self) -> Option<&Entry<V>> {
        let (_, key) = self.by_age.first_key_value()?;
        self.entries.get(key)
    }

    fn remove_oldest(&mut self) -> Option<(K, Entry<V>)> {
        let (_, key) = self.by_age.pop_first()?;
        self.entries.remove_entry(&key)
    }
}
