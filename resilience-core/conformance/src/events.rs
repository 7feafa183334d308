//! What the managers under test tell of themselves, kept by name until somebody asks.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use resilience_core::{CallOutcome, CircuitState, Event, Name, Observe, add_observer};

/// The most that is kept of one manager.
const MOST: usize = 10_000;

static SEEN: LazyLock<Arc<Seen>> = LazyLock::new(|| {
    let seen = Arc::<Seen>::default();
    // An observer is for the life of the process: one sees for all.
    add_observer(seen.clone());
    seen
});

/// What happened to a manager.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Happened {
    Created,
    Acquired,
    Released,
    Leaked,
    AcquireTimedOut,
    Circuit(CircuitState),
    Retry,
    Call { operation: &'static str, outcome: CallOutcome, attempts: u32 },
}

#[derive(Default)]
struct Seen {
    by_name: Mutex<HashMap<Name, Vec<Happened>>>,
}

impl Seen {
    fn by_name(&self) -> MutexGuard<'_, HashMap<Name, Vec<Happened>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observe for Seen {
    fn on_event(&self, event: &Event<'_>) {
        let (name, happened) = match *event {
            Event::ConnectionCreated { pool, .. } => (pool, Happened::Created),
            Event::ConnectionAcquired { pool, .. } => (pool, Happened::Acquired),
            Event::ConnectionReleased { pool, .. } => (pool, Happened::Released),
            Event::ConnectionLeaked { pool, .. } => (pool, Happened::Leaked),
            Event::AcquireTimedOut { pool } => (pool, Happened::AcquireTimedOut),
            Event::CircuitTransition { name, to, .. } => (name, Happened::Circuit(to)),
            Event::RetryScheduled { name, .. } => (name, Happened::Retry),
            Event::CallEnded { name, operation, outcome, attempts, .. } => {
                (name, Happened::Call { operation, outcome, attempts })
            }
            _ => return,
        };
        if let Some(events) = self.by_name().get_mut(name)
            && events.len() < MOST
        {
            events.push(happened);
        }
    }
}

/// Keeps what is told of `name` until this is dropped.
#[derive(Debug)]
pub(crate) struct Watching(Name);

impl Watching {
    pub(crate) fn begin(name: Name) -> Self {
        SEEN.by_name().insert(name.clone(), Vec::new());
        Self(name)
    }

    pub(crate) fn all(&self) -> Vec<Happened> {
        SEEN.by_name().get(&self.0).cloned().unwrap_or_default()
    }

    pub(crate) fn count(&self, wanted: Happened) -> usize {
        self.all().into_iter().filter(|happened| *happened == wanted).count()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        SEEN.by_name().remove(&self.0);
    }
}
