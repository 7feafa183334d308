//! The breakers of this process by name: for the attribute macros, and for whoever lists them.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hash;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::{
    CircuitBreaker, CircuitBreakerBuilder, CircuitState, InvalidSetting, KeyedBreakers, Name,
};

static GLOBAL: LazyLock<CircuitRegistry> = LazyLock::new(CircuitRegistry::default);

/// Breakers by name, one per name, in the order of their names.
///
/// The list is bounded. Where it is full, the breaker asked for the longest ago that is closed and
/// that nobody holds makes room for a new one. Where there is no such breaker, the new one works
/// all the same but is not listed: whoever asks for its name again gets another circuit, and
/// [`unlisted`](Self::unlisted) counts it. Names made of keys, such as tenants, belong into
/// [`KeyedBreakers`], not here.
///
/// ```
/// use resilience_core::{CircuitBreaker, CircuitRegistry};
///
/// let breaker = CircuitRegistry::global().get_or_create(CircuitBreaker::builder("mail").fail_max(2))?;
/// assert_eq!(CircuitRegistry::global().get("mail").unwrap().settings().fail_max, Some(2));
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[derive(Debug)]
pub struct CircuitRegistry {
    capacity: usize,
    entries: Mutex<Entries>,
    evicted: AtomicU64,
    unlisted: AtomicU64,
}

#[derive(Debug, Default)]
struct Entries {
    named: BTreeMap<Name, Entry>,
    families: BTreeMap<Name, Family>,
    /// Rises with each question; the order of questions stands in for their time.
    asked: u64,
}

#[derive(Debug)]
struct Entry {
    breaker: CircuitBreaker,
    place: &'static Location<'static>,
    warned: bool,
    asked: u64,
}

/// Lists the breakers of one [`KeyedBreakers`], whatever its keys are.
#[derive(Clone)]
struct Family(Arc<dyn Fn() -> Vec<CircuitBreaker> + Send + Sync>);

impl CircuitRegistry {
    /// An empty registry that lists up to `capacity` (1 or more) breakers and families.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a capacity of 0.
    pub fn bounded(capacity: usize) -> Result<Self, InvalidSetting> {
        if capacity == 0 {
            return Err(InvalidSetting::new("registry capacity", capacity, "1 or more"));
        }
        let (evicted, unlisted) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { capacity, entries: Mutex::default(), evicted, unlisted })
    }

    /// The registry of this process. It lists up to 1,024 breakers and families.
    #[must_use]
    pub fn global() -> &'static Self {
        &GLOBAL
    }

    /// The breaker of the builder's name: the one that is there, else the builder's. Where the one
    /// that is there has other settings, it wins, and one WARN names both places.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if the builder's settings are invalid, whether or not they are used.
    #[track_caller]
    pub fn get_or_create(
        &self,
        builder: CircuitBreakerBuilder,
    ) -> Result<CircuitBreaker, InvalidSetting> {
        self.get_or_create_at(builder, Location::caller())
    }

    /// [`get_or_create`](Self::get_or_create) for whoever asks on behalf of another place.
    pub(crate) fn get_or_create_at(
        &self,
        builder: CircuitBreakerBuilder,
        place: &'static Location<'static>,
    ) -> Result<CircuitBreaker, InvalidSetting> {
        let breaker = builder.build()?;
        let mut entries = self.lock();
        let Some(entry) = entries.ask(breaker.name()) else {
            self.list(entries, breaker.clone(), place);
            return Ok(breaker);
        };
        let found = entry.breaker.clone();
        let conflict =
            (found.settings() != breaker.settings() && !entry.warned).then_some(entry.place);
        entry.warned |= conflict.is_some();
        drop(entries);
        if let Some(first) = conflict {
            tracing::warn!(
                target: "shared_external::breaker",
                name = %found.name(), %first, second = %place,
                "one name, two settings: the first keeps its own, the second is ignored",
            );
        }
        Ok(found)
    }

    /// Lists `breaker` under its name, in place of one that had it.
    #[track_caller]
    pub fn insert(&self, breaker: CircuitBreaker) {
        self.list(self.lock(), breaker, Location::caller());
    }

    /// Lists the breakers of `keyed` with all others, in place of a family that had its name; counts as one.
    /// They are listed as they are when [`all`](Self::all) asks; [`get`](Self::get) does not know them.
    pub fn insert_keyed<K>(&self, keyed: KeyedBreakers<K>)
    where
        K: Clone + Eq + fmt::Display + Hash + Send + Sync + 'static,
    {
        let name = keyed.name().clone();
        let family = Family(Arc::new(move || {
            let overflow = (keyed.overflowed() > 0).then(|| keyed.overflow().clone());
            keyed.all().into_iter().map(|(_, breaker)| breaker).chain(overflow).collect()
        }));
        let mut entries = self.lock();
        let known = entries.families.contains_key(&name);
        let (room, gone) = if known { (true, None) } else { entries.make_room(self.capacity) };
        let before = room.then(|| entries.families.insert(name.clone(), family));
        drop(entries);
        self.note(&name, room, gone);
        drop(before);
    }

    /// The breaker of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<CircuitBreaker> {
        self.lock().ask(name).map(|entry| entry.breaker.clone())
    }

    /// All breakers, in the order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<CircuitBreaker> {
        let entries = self.lock();
        let mut all: Vec<_> = entries.named.values().map(|entry| entry.breaker.clone()).collect();
        let families: Vec<_> = entries.families.values().cloned().collect();
        drop(entries);
        if !families.is_empty() {
            all.extend(families.iter().flat_map(|Family(list)| list()));
            all.sort_by(|one, other| one.name().cmp(other.name()));
        }
        all
    }

    /// Breakers that nobody held and that made room for others, since it was made.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Breakers and families that work but are not listed, for want of room, since it was made.
    #[must_use]
    pub fn unlisted(&self) -> u64 {
        self.unlisted.load(Ordering::Relaxed)
    }

    fn list(
        &self,
        mut entries: MutexGuard<'_, Entries>,
        breaker: CircuitBreaker,
        place: &'static Location<'static>,
    ) {
        let name = breaker.name().clone();
        let known = entries.named.contains_key(&name);
        let (room, gone) = if known { (true, None) } else { entries.make_room(self.capacity) };
        let before = room.then(|| {
            let asked = entries.asked;
            let entry = Entry { breaker, place, warned: false, asked };
            entries.named.insert(name.clone(), entry)
        });
        drop(entries);
        self.note(&name, room, gone);
        drop(before);
    }

    /// Counts what the bound did, and says it, outside the lock.
    fn note(&self, name: &str, listed: bool, gone: Option<Entry>) {
        if let Some(gone) = gone {
            self.evicted.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(target: "shared_external::breaker", name = %gone.breaker.name(), "the registry is full: a breaker that nobody holds makes room");
        }
        if !listed && self.unlisted.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                target: "shared_external::breaker",
                name, capacity = self.capacity,
                "the registry is full: this breaker works, but is not listed; nor are others to come",
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for CircuitRegistry {
    /// Lists up to 1,024 breakers and families: more names than a process has dependencies.
    fn default() -> Self {
        Self::bounded(1_024).expect("it is above 0")
    }
}

impl Entries {
    fn ask(&mut self, name: &str) -> Option<&mut Entry> {
        self.asked += 1;
        let entry = self.named.get_mut(name)?;
        entry.asked = self.asked;
        Some(entry)
    }

    /// Whether one more may be listed, and what made room for it.
    fn make_room(&mut self, capacity: usize) -> (bool, Option<Entry>) {
        if self.named.len() + self.families.len() < capacity {
            return (true, None);
        }
        let free = self.named.iter().filter(|(_, entry)| entry.is_free());
        let longest_ago = free.min_by_key(|(_, entry)| entry.asked);
        let gone = longest_ago.map(|(name, _)| name.clone());
        let gone = gone.and_then(|name| self.named.remove(&name));
        (gone.is_some(), gone)
    }
}

impl Entry {
    /// Whether nothing is lost with it but a count of failures.
    fn is_free(&self) -> bool {
        !self.breaker.is_held() && self.breaker.state() == CircuitState::Closed
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Family")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CircuitState;

    #[test]
    fn one_name_is_one_circuit_and_the_first_settings_win() {
        let registry = CircuitRegistry::default();
        let first = registry.get_or_create(CircuitBreaker::builder("a").fail_max(1)).unwrap();
        let second = registry.get_or_create(CircuitBreaker::builder("a").fail_max(9)).unwrap();
        first.try_acquire().unwrap().failure();
        assert_eq!(second.state(), CircuitState::Open);
        assert_eq!(second.settings().fail_max, Some(1));
        assert_eq!(registry.all().len(), 1);
    }

    #[test]
    fn settings_that_cannot_be_are_refused_even_for_a_known_name() {
        let registry = CircuitRegistry::default();
        registry.insert(CircuitBreaker::new("a"));
        let error = registry.get_or_create(CircuitBreaker::builder("a").fail_max(0)).unwrap_err();
        assert_eq!(error.to_string(), "fail_max is 0; allowed: 1 to 67108863");
    }

    #[test]
    fn a_full_registry_forgets_only_what_nobody_holds_and_what_is_closed() {
        let registry = CircuitRegistry::bounded(3).unwrap();
        let create = |name: &'static str| {
            registry.get_or_create(CircuitBreaker::builder(name).fail_max(1)).unwrap()
        };
        let names = || registry.all().iter().map(|b| b.name().to_string()).collect::<Vec<_>>();
        create("open").try_acquire().unwrap().failure();
        let held = create("held");
        create("a");
        create("b");
        assert_eq!(names(), ["b", "held", "open"]);
        assert_eq!((registry.evicted(), registry.unlisted()), (1, 0));
        assert_eq!(create("open").state(), CircuitState::Open);
        drop((create("b"), held));
        create("c");
        assert_eq!(names(), ["b", "c", "open"], "the one asked for the longest ago goes");
    }

    #[test]
    fn a_breaker_that_cannot_be_listed_works_and_is_counted() {
        let registry = CircuitRegistry::bounded(1).unwrap();
        let _listed = registry.get_or_create(CircuitBreaker::builder("a")).unwrap();
        let other = registry.get_or_create(CircuitBreaker::builder("b").fail_max(1)).unwrap();
        other.try_acquire().unwrap().failure();
        assert!(other.try_acquire().is_err());
        registry.insert(CircuitBreaker::new("c"));
        assert_eq!((registry.all().len(), registry.unlisted()), (1, 2));
        assert!(registry.get("b").is_none());
        registry.insert(CircuitBreaker::new("a"));
        assert_eq!(
            (registry.all().len(), registry.unlisted()),
            (1, 2),
            "a known name needs no room"
        );
    }

    #[test]
    fn names_without_end_do_not_fill_the_memory() {
        let registry = CircuitRegistry::bounded(16).unwrap();
        for n in 0..1_000 {
            registry.get_or_create(CircuitBreaker::builder(format!("tenant-{n}"))).unwrap();
        }
        assert_eq!((registry.all().len(), registry.evicted()), (16, 984));
        assert_eq!(CircuitRegistry::bounded(0).unwrap_err().field, "registry capacity");
    }
}
