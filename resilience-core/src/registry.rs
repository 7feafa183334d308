//! The breakers of this process by name: for the attribute macros, and for whoever lists them.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::{CircuitBreaker, CircuitBreakerBuilder, InvalidSetting};

static GLOBAL: LazyLock<CircuitRegistry> = LazyLock::new(CircuitRegistry::default);

/// Breakers by name, one per name, in the order of their names.
///
/// ```
/// use resilience_core::{CircuitBreaker, CircuitRegistry};
///
/// let breaker = CircuitRegistry::global().get_or_create(CircuitBreaker::builder("mail").fail_max(2))?;
/// assert_eq!(CircuitRegistry::global().get("mail").unwrap().settings().fail_max, Some(2));
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[derive(Debug, Default)]
pub struct CircuitRegistry {
    entries: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    breaker: CircuitBreaker,
    place: &'static Location<'static>,
    warned: bool,
}

impl CircuitRegistry {
    /// The registry of this process.
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
        let entry = entries.entry(breaker.name().to_string()).or_insert_with(|| Entry {
            breaker: breaker.clone(),
            place,
            warned: false,
        });
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
        let entry = Entry { breaker: breaker.clone(), place: Location::caller(), warned: false };
        self.lock().insert(breaker.name().to_string(), entry);
    }

    /// The breaker of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<CircuitBreaker> {
        self.lock().get(name).map(|entry| entry.breaker.clone())
    }

    /// All breakers, in the order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<CircuitBreaker> {
        self.lock().values().map(|entry| entry.breaker.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
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
}
