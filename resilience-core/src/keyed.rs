//! One circuit for each key of a dependency: each tenant, each host.
//!
//! What a key's circuit knows is worth keeping while somebody uses it or while it is open. So an idle
//! closed one goes, and what is held, or open, stays:
//!
//! | at the bound, a new key takes the place of | |
//! |---|---|
//! | the longest idle of the closed ones that nobody holds | nothing is lost but a count of failures |
//! | else the longest idle of those whose time to be asked again has come, and nobody did | it would have been probed; it is called |
//! | else of none: it shares the overflow circuit | counted |

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::{CircuitBreaker, CircuitBreakerBuilder, CircuitState, InvalidSetting, Name};

/// The label of keys that have no name of their own.
const OTHER: &str = "_OTHER";

/// How long no room is looked for after none was found: looking visits every key.
const CROWDED: Duration = Duration::from_millis(100);

/// Sweeps per idle time, at the most: a sweep visits every key.
const SWEEPS: u32 = 16;

/// The longest idle time.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A breaker for each key of one dependency, all with the same settings. Cheap to clone: clones
/// share the breakers.
///
/// The number of keys is bounded. One that was not asked for during `idle` goes with the next new
/// key or listing, if its circuit is closed and nobody holds its breaker or a permit of it; at the
/// bound, one goes earlier. So at no time do two circuits exist for one key, the overflow aside.
///
/// A breaker is named `family/key`, as the key displays, for logs, errors and labels; keys must be fit to
/// be seen. Names are for life in most systems of metrics, so only the first `max_keys` keys ever have
/// one, and keys after those are `family/_OTHER`.
///
/// ```
/// use resilience_core::{CircuitBreaker, KeyedBreakers};
///
/// let tenants: KeyedBreakers<String> =
///     KeyedBreakers::builder(CircuitBreaker::builder("billing").fail_max(1)).max_keys(500).build()?;
/// tenants.breaker("acme").try_acquire()?.failure();
/// assert!(tenants.breaker("acme").try_acquire().is_err());
/// assert!(tenants.breaker("initech").try_acquire().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct KeyedBreakers<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    family: Name,
    template: CircuitBreakerBuilder,
    overflow: CircuitBreaker,
    table: RwLock<Table<K>>,
    evicted: AtomicU64,
    overflowed: AtomicU64,
}

impl<K: Clone + Eq + fmt::Display + Hash> KeyedBreakers<K> {
    /// Breakers with the settings of `template`, whose name becomes the family's. Up to 1,024 keys,
    /// idle for 10 min.
    pub fn builder(template: CircuitBreakerBuilder) -> KeyedBreakersBuilder<K> {
        let idle = Duration::from_secs(600);
        KeyedBreakersBuilder { template, max_keys: 1_024, idle, of: PhantomData }
    }

    /// The breaker of `key`; a closed one where there is none yet. Where no room can be made, the
    /// [`overflow`](Self::overflow).
    ///
    /// Hold it for as long as a call takes, not longer: what is held is never evicted.
    pub fn breaker<Q>(&self, key: &Q) -> CircuitBreaker
    where
        K: Borrow<Q>,
        Q: Eq + fmt::Display + Hash + ToOwned<Owned = K> + ?Sized,
    {
        let shared = &*self.shared;
        let now = Instant::now();
        let table = shared.read();
        if let Some(found) = table.get(key, now) {
            return found;
        }
        let crowded = table.is_crowded(now);
        drop(table);
        if crowded {
            return shared.overflow();
        }
        let own = format!("{}/{key}", shared.family);
        let mut gone = Vec::new();
        let mut table = shared.write();
        let found = table.get(key, now).or_else(|| {
            table.sweep(now, &mut gone);
            table.make_room(now, &mut gone).then(|| {
                let named = table.name(key.to_owned());
                let name = if named { own.into() } else { shared.overflow.name().clone() };
                let breaker = shared.template.clone().named(name).build();
                table.add(key.to_owned(), breaker.expect("the overflow is built of the same"), now)
            })
        });
        drop(table);
        shared.note(gone);
        found.unwrap_or_else(|| shared.overflow())
    }

    /// Every key that has a breaker, in no order. It has let go of those that were idle.
    #[must_use]
    pub fn all(&self) -> Vec<(K, CircuitBreaker)> {
        let mut gone = Vec::new();
        let mut table = self.shared.write();
        table.sweep(Instant::now(), &mut gone);
        let all = table.slots.iter();
        let all = all.map(|(key, slot)| (key.clone(), slot.breaker.clone())).collect();
        drop(table);
        self.shared.note(gone);
        all
    }

    /// Keys that have a breaker.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.read().slots.len()
    }

    /// Whether no key has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K> KeyedBreakers<K> {
    /// The family's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.shared.family
    }

    /// The one circuit of all keys for which there is no room, `family/_OTHER`.
    #[must_use]
    pub fn overflow(&self) -> &CircuitBreaker {
        &self.shared.overflow
    }

    /// Breakers let go, idle or to make room, since it was made.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.shared.evicted.load(Ordering::Relaxed)
    }

    /// How often a key was given the overflow, since it was made.
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.shared.overflowed.load(Ordering::Relaxed)
    }
}

impl<K> Clone for KeyedBreakers<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K> fmt::Debug for KeyedBreakers<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBreakers").field("name", &self.shared.family).finish_non_exhaustive()
    }
}

/// Settings of [`KeyedBreakers`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct KeyedBreakersBuilder<K> {
    template: CircuitBreakerBuilder,
    max_keys: usize,
    idle: Duration,
    of: PhantomData<K>,
}

impl<K> KeyedBreakersBuilder<K> {
    /// Keys that may have a breaker of their own at once. 1 or more; default 1,024.
    pub fn max_keys(self, max_keys: usize) -> Self {
        Self { max_keys, ..self }
    }

    /// How long a key is kept that nobody asks for. Above 0, up to 365 days; default 10 min.
    pub fn idle(self, idle: Duration) -> Self {
        Self { idle, ..self }
    }

    /// The breakers, none of them made yet but the overflow.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a bound of 0, an idle time out of range, or what the template's own
    /// [`build`](CircuitBreakerBuilder::build) refuses.
    pub fn build(self) -> Result<KeyedBreakers<K>, InvalidSetting> {
        let Self { template, max_keys, idle, of: _ } = self;
        if max_keys == 0 {
            return Err(InvalidSetting::new("max_keys", max_keys, "1 or more"));
        }
        if idle.is_zero() || idle > YEAR {
            return Err(InvalidSetting::new("idle", idle, "above 0, up to 365 days"));
        }
        let family = template.clone().build()?.name().clone();
        let overflow = template.clone().named(format!("{family}/{OTHER}").into()).build()?;
        let table = RwLock::new(Table::new(max_keys, idle, Instant::now()));
        let (evicted, overflowed) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Shared { family, template, overflow, table, evicted, overflowed };
        Ok(KeyedBreakers { shared: Arc::new(shared) })
    }
}

impl<K> Shared<K> {
    fn overflow(&self) -> CircuitBreaker {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        self.overflow.clone()
    }

    /// Counts what was evicted and drops it, both outside the lock.
    fn note(&self, gone: Vec<(K, Slot)>) {
        if !gone.is_empty() {
            self.evicted.fetch_add(gone.len() as u64, Ordering::Relaxed);
            tracing::debug!(target: "shared_external::breaker", name = %self.family, evicted = gone.len(), "let go of idle keys");
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table<K>> {
        // Only a key's own traits could panic in there, and each change is whole without the next.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table<K>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys and their breakers: pure, told the time by its caller.
struct Table<K> {
    max_keys: usize,
    idle: Duration,
    born: Instant,
    slots: HashMap<K, Slot>,
    /// Every key that ever had a name of its own, `max_keys` at the most.
    named: HashSet<K>,
    next_sweep: Instant,
    crowded_until: Instant,
}

struct Slot {
    breaker: CircuitBreaker,
    /// When it was last asked for, in nanoseconds since the table was born: written under a shared lock.
    used: AtomicU64,
}

impl<K> Table<K> {
    fn new(max_keys: usize, idle: Duration, now: Instant) -> Self {
        let (slots, named) = (HashMap::new(), HashSet::new());
        Self { max_keys, idle, born: now, slots, named, next_sweep: now, crowded_until: now }
    }

    /// Whether no room was found a moment ago.
    fn is_crowded(&self, now: Instant) -> bool {
        now < self.crowded_until
    }

    fn age(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl<K: Eq + Hash> Table<K> {
    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: Instant) -> Option<CircuitBreaker>
    where
        K: Borrow<Q>,
    {
        let slot = self.slots.get(key)?;
        slot.used.store(self.age(now), Ordering::Relaxed);
        Some(slot.breaker.clone())
    }

    /// Evicts, into `gone`, every key that has been idle for long enough; rarely, for its cost.
    fn sweep(&mut self, now: Instant, gone: &mut Vec<(K, Slot)>) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + self.idle / SWEEPS;
        let (age, idle) = (self.age(now), self.idle);
        gone.extend(self.slots.extract_if(|_, slot| {
            if slot.breaker.is_held() {
                // In use: its idle time is yet to begin.
                *slot.used.get_mut() = age;
            }
            let unused = Duration::from_nanos(age.saturating_sub(*slot.used.get_mut()));
            unused >= idle && slot.breaker.state() == CircuitState::Closed
        }));
    }

    /// Whether there is room for one more key, after evicting one into `gone` if need be.
    fn make_room(&mut self, now: Instant, gone: &mut Vec<(K, Slot)>) -> bool
    where
        K: Clone,
    {
        if self.slots.len() < self.max_keys {
            return true;
        }
        let free = self.slots.iter().filter(|(_, slot)| !slot.breaker.is_held());
        let longest_idle = free
            .filter_map(|(key, slot)| {
                let rank = slot.worth()?;
                Some(((rank, slot.used.load(Ordering::Relaxed)), key))
            })
            .min_by_key(|(order, _)| *order)
            .map(|(_, key)| key.clone());
        match longest_idle {
            Some(key) => gone.extend(self.slots.remove_entry(&key)),
            None => self.crowded_until = now + CROWDED,
        }
        self.slots.len() < self.max_keys
    }

    /// Whether `key` has, or now gets, a name of its own.
    fn name(&mut self, key: K) -> bool {
        self.named.contains(&key) || self.named.len() < self.max_keys && self.named.insert(key)
    }

    fn add(&mut self, key: K, breaker: CircuitBreaker, now: Instant) -> CircuitBreaker {
        let used = AtomicU64::new(self.age(now));
        self.slots.insert(key, Slot { breaker: breaker.clone(), used });
        breaker
    }
}

impl Slot {
    /// What would be lost with it: the less, the sooner it goes; none if it must stay. A state that
    /// somebody set by hand is theirs to end.
    fn worth(&self) -> Option<u8> {
        let state = self.breaker.state();
        let forgotten = || self.breaker.snapshot().retry_after.is_none();
        match state == CircuitState::Closed {
            true => Some(0),
            false => (matches!(state, CircuitState::Open | CircuitState::HalfOpen) && forgotten())
                .then_some(1),
        }
    }
}
