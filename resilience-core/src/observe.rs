//! What happened, told to whoever wants to know: after the state is committed, outside all locks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::{CircuitState, Name};

static OBSERVERS: LazyLock<ArcSwap<Vec<Arc<dyn Observe>>>> = LazyLock::new(ArcSwap::default);

/// How many there are, so that a process without any pays for one load.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Sees every [`Event`] of this process.
///
/// It is called on the caller's thread: keep it short, allocate nothing, lock nothing per call.
/// One that panics or calls back changes nothing for the call it saw.
pub trait Observe: Send + Sync {
    /// Takes note of `event`.
    fn on_event(&self, event: &Event<'_>);
}

/// Adds `observer` to those that see every event, for the life of the process.
pub fn add_observer(observer: Arc<dyn Observe>) {
    OBSERVERS.rcu(|current| {
        let mut observers = Vec::clone(current);
        observers.push(Arc::clone(&observer));
        observers
    });
    COUNT.fetch_add(1, Ordering::Release);
}

/// Whether anyone sees events. What is only for them need not be made ready if not.
pub(crate) fn is_observed() -> bool {
    COUNT.load(Ordering::Acquire) > 0
}

/// Tells every observer of `event`.
pub fn emit(event: &Event<'_>) {
    if !is_observed() {
        return;
    }
    let observers = OBSERVERS.load();
    for observer in observers.iter() {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| observer.on_event(event))) {
            // What it threw may throw once more as it is dropped.
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                std::mem::forget(again);
            }
            tracing::error!(target: "shared_external::observe", "an observer panicked; its event is lost");
        }
    }
}

/// Something that happened to a call, a circuit or a pool. Names are those given at construction.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A circuit changed its state.
    CircuitTransition {
        /// The breaker's name.
        name: &'a Name,
        /// The state it left.
        from: CircuitState,
        /// The state it is in.
        to: CircuitState,
        /// The number of the new state, rising with each.
        generation: u32,
    },
    /// An attempt failed and another is due after `delay`.
    RetryScheduled {
        /// The pipeline's or policy's name.
        name: &'a Name,
        /// Attempts made so far, 1 or more.
        attempts: u32,
        /// Time until the next.
        delay: Duration,
    },
    /// A retry was due but the budget had nothing left.
    RetryBudgetExhausted {
        /// The pipeline's or policy's name.
        name: &'a Name,
    },
    /// A call through a pipeline ended, or its future was dropped.
    CallEnded {
        /// The pipeline's name.
        name: &'a Name,
        /// What was asked: a fixed word such as `read` or `write`.
        operation: &'static str,
        /// How it ended.
        outcome: CallOutcome,
        /// Attempts made; 0 if the service was never asked.
        attempts: u32,
        /// Time from first to last.
        elapsed: Duration,
    },
    /// A pool opened a connection.
    ConnectionCreated {
        /// The pool's name.
        pool: &'a Name,
        /// Time it took.
        elapsed: Duration,
    },
    /// A pool lent a connection.
    ConnectionAcquired {
        /// The pool's name.
        pool: &'a Name,
        /// Time the borrower waited.
        waited: Duration,
    },
    /// A borrowed connection came back, or was given up.
    ConnectionReleased {
        /// The pool's name.
        pool: &'a Name,
        /// Time it was borrowed.
        used: Duration,
    },
    /// A borrower waited as long as it may and got nothing.
    AcquireTimedOut {
        /// The pool's name.
        pool: &'a Name,
    },
}

/// How a call ended, in words fit for a label.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CallOutcome {
    /// It has a value.
    Success,
    /// The service refused it: the caller's fault.
    CallerError,
    /// The service failed it.
    ServiceError,
    /// This process failed it.
    LocalError,
    /// It, or its last attempt, ran out of time.
    Timeout,
    /// The circuit was open.
    CircuitOpen,
    /// This process refused it: no place, too much load, too high a rate, or draining.
    Rejected,
    /// The caller dropped it, or it panicked.
    Cancelled,
}

impl CallOutcome {
    /// Every outcome, in the order of the enum.
    pub const ALL: [Self; 8] = [
        Self::Success,
        Self::CallerError,
        Self::ServiceError,
        Self::LocalError,
        Self::Timeout,
        Self::CircuitOpen,
        Self::Rejected,
        Self::Cancelled,
    ];

    /// The word for it, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::CallerError => "caller_error",
            Self::ServiceError => "service_error",
            Self::LocalError => "local_error",
            Self::Timeout => "timeout",
            Self::CircuitOpen => "circuit_open",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it speaks against the service.
    #[must_use]
    pub const fn is_error(self) -> bool {
        matches!(self, Self::ServiceError | Self::Timeout | Self::CircuitOpen)
    }
}
