//! Something per name, read without a lock, for a bounded number of names; the rest share one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use resilience_core::Name;

use crate::names::{MAX_NAMES, OTHER};

/// A map that is copied when a name is new and only read after that. Each event is one look into it, hence its
/// quick hash: a flood of names that collide is bounded, as all names are.
#[derive(Debug)]
pub(crate) struct Capped<T> {
    entries: ArcSwap<HashMap<Name, Arc<T>, RandomState>>,
    other: OnceLock<T>,
    make: fn(&Name) -> T,
}

impl<T> Capped<T> {
    /// An empty map. `make` makes the entry of a name, or of [`OTHER`].
    pub(crate) fn new(make: fn(&Name) -> T) -> Self {
        Self { entries: ArcSwap::default(), other: OnceLock::new(), make }
    }

    /// Does something with the entry of `name`; the name's first time makes it.
    pub(crate) fn with<R>(&self, name: &Name, f: impl FnOnce(&T) -> R) -> R {
        let entries = self.entries.load();
        if let Some(entry) = entries.get(name) {
            return f(entry);
        }
        if entries.len() < MAX_NAMES
            && let Some(entry) = self.insert(name)
        {
            return f(&entry);
        }
        f(self.other.get_or_init(|| (self.make)(&Name::from(OTHER))))
    }

    /// The entry of `name`, if there is one.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<T>> {
        self.entries.load().get(name).cloned()
    }

    fn insert(&self, name: &Name) -> Option<Arc<T>> {
        let made = Arc::new((self.make)(name));
        self.entries.rcu(|current| {
            let mut entries = HashMap::clone(current);
            if entries.len() < MAX_NAMES {
                entries.entry(name.clone()).or_insert_with(|| Arc::clone(&made));
            }
            entries
        });
        self.get(name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn names_without_end_share_one_entry() {
        let map: Capped<AtomicU64> = Capped::new(|_| AtomicU64::new(0));
        for name in 0..10_000 {
            map.with(&Name::from(format!("tenant-{name}")), |entry| {
                entry.fetch_add(1, Ordering::Relaxed)
            });
        }
        assert_eq!(map.entries.load().len(), MAX_NAMES);
        assert_eq!(map.other.get().unwrap().load(Ordering::Relaxed), 10_000 - MAX_NAMES as u64);
    }

    #[test]
    fn two_threads_that_meet_a_new_name_get_one_entry() {
        let map: Arc<Capped<AtomicU64>> = Arc::new(Capped::new(|_| AtomicU64::new(0)));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let map = Arc::clone(&map);
                std::thread::spawn(move || {
                    for name in 0..100 {
                        let name = Name::from(format!("{name}"));
                        map.with(&name, |entry| entry.fetch_add(1, Ordering::Relaxed));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        for name in 0..100 {
            let entry = map.get(&name.to_string()).unwrap();
            assert_eq!(entry.load(Ordering::Relaxed), 8);
        }
    }
}
