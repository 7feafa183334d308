//! What happened, told to whoever wants to know: after the state is committed, outside all locks.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::{CircuitState, Name};

/// The first of those who see every event. None ever leaves, so whoever tells them takes no lock and counts no
/// references; a process without any pays for one load.
static OBSERVERS: Seat = Seat::new();

/// How deep events may nest that observers cause.
const DEEPEST: u8 = 5;

thread_local! {
    static DEPTH: Cell<u8> = const { Cell::new(0) };
}

/// Sees every [`Event`] of this process.
///
/// It is called on the caller's thread: keep it short, allocate nothing, lock nothing per call.
/// One that panics or calls back changes nothing for the call it saw.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use resilience_core::{AnyError, Call, Event, Observe, Pipeline, add_observer};
///
/// #[derive(Default)]
/// struct Failures(AtomicU64);
///
/// impl Observe for Failures {
///     fn on_event(&self, event: &Event<'_>) {
///         if let Event::CallEnded { outcome, .. } = event
///             && outcome.is_error()
///         {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
///
/// let failures = Arc::new(Failures::default());
/// add_observer(failures.clone());
/// let pipeline = Pipeline::builder("payments").build()?;
/// for answer in [Ok("paid"), Err(std::fmt::Error)] {
///     let _ = pipeline.run(Call::read(), &AnyError, |_| async { answer }).await;
/// }
/// assert_eq!(failures.0.load(Ordering::Relaxed), 1);
/// # Ok(()) }
/// ```
pub trait Observe: Send + Sync {
    /// Takes note of `event`.
    fn on_event(&self, event: &Event<'_>);
}

/// Adds `observer` to those that see every event, for the life of the process.
pub fn add_observer(observer: Arc<dyn Observe>) {
    let mut next = Box::new(Seated { observer, behind: Seat::new() });
    let mut seat = &OBSERVERS;
    while let Err(refused) = seat.set(next) {
        next = refused;
        seat = &seat.get().expect("it was taken").behind;
    }
}

/// Whether anyone sees events. What is only for them need not be made ready if not.
#[inline]
pub(crate) fn is_observed() -> bool {
    OBSERVERS.get().is_some()
}

/// Tells every observer of `event`. What they themselves cause while they are told is told too, up to four
/// deep; what that causes is told to nobody.
pub fn emit(event: &Event<'_>) {
    if !is_observed() {
        return;
    }
    let Some(_telling) = Telling::begin() else { return };
    for Seated { observer, .. } in seated() {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| observer.on_event(event))) {
            // What it threw may throw once more as it is dropped.
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                std::mem::forget(again);
            }
            tracing::error!(target: "shared_external::observe", "an observer panicked; its event is lost");
        }
    }
}

/// Free until someone takes it, for good.
type Seat = OnceLock<Box<Seated>>;

struct Seated {
    observer: Arc<dyn Observe>,
    behind: Seat,
}

fn seated() -> impl Iterator<Item = &'static Seated> {
    std::iter::successors(OBSERVERS.get(), |seated| seated.behind.get()).map(|seated| &**seated)
}

/// What is being told on this thread.
struct Telling;

impl Telling {
    /// None if that goes too deep: an observer whose every word makes more to tell would never end.
    fn begin() -> Option<Self> {
        let deeper = DEPTH.get() + 1;
        (deeper <= DEEPEST).then(|| {
            DEPTH.set(deeper);
            Self
        })
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Something that happened to a call, a circuit or a pool. Names are those given at construction.
///
/// It borrows what it tells of: an observer copies out what it keeps. There may be more kinds of them in time.
///
/// ```
/// use resilience_core::{CircuitState, Event, Name};
///
/// fn line(event: &Event<'_>) -> Option<String> {
///     match event {
///         Event::CircuitTransition { name, to, .. } => Some(format!("{name} is {}", to.as_str())),
///         Event::RetryBudgetExhausted { name } => Some(format!("{name} may not repeat")),
///         _ => None,
///     }
/// }
///
/// let (from, to) = (CircuitState::Closed, CircuitState::Open);
/// let opened = Event::CircuitTransition { name: &Name::from("mail"), from, to, generation: 1 };
/// assert_eq!(line(&opened).unwrap(), "mail is open");
/// ```
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
    /// A layer refused a call or an attempt: nothing was sent.
    Refused {
        /// The layer's name.
        name: &'a Name,
        /// What it is.
        layer: RefusingLayer,
    },
    /// An answer was late, and the call was made once more beside it.
    HedgeStarted {
        /// The pipeline's or hedge's name.
        name: &'a Name,
    },
    /// Of all answers to a call, that of a hedge was the first.
    HedgeWon {
        /// The pipeline's or hedge's name.
        name: &'a Name,
    },
    /// An answer was late, but the budget had nothing left for a hedge.
    HedgeRefused {
        /// The pipeline's or hedge's name.
        name: &'a Name,
    },
    /// A quorum of processes has a circuit open: for a while, one failure opens it here too. Not told
    /// again while that is renewed.
    CircuitArmed {
        /// The breaker's name.
        name: &'a Name,
    },
    /// This process told others what it thinks of its circuits, and asked what they think.
    OpinionsExchanged {
        /// Whether the store answered.
        answered: bool,
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
    /// A borrower has held a connection for longer than its pool's leak threshold. Told once for each; it may
    /// still come back.
    ConnectionLeaked {
        /// The pool's name.
        pool: &'a Name,
        /// Time it has been borrowed so far.
        held: Duration,
    },
    /// A borrower waited as long as it may and got nothing.
    AcquireTimedOut {
        /// The pool's name.
        pool: &'a Name,
    },
}

/// A layer that may refuse a call or an attempt, in words fit for a label.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RefusingLayer {
    /// A [`LoadShedder`](crate::LoadShedder).
    Shed,
    /// A `RateLimiter`.
    RateLimit,
    /// A [`CircuitBreaker`](crate::CircuitBreaker).
    Breaker,
    /// A [`Throttle`](crate::Throttle).
    Throttle,
    /// A [`Bulkhead`](crate::Bulkhead).
    Bulkhead,
    /// An [`AdaptiveLimit`](crate::AdaptiveLimit).
    Adaptive,
}

impl RefusingLayer {
    /// Every one, the outermost first, in the order of the enum.
    pub const ALL: [Self; 6] = [
        Self::Shed,
        Self::RateLimit,
        Self::Breaker,
        Self::Throttle,
        Self::Bulkhead,
        Self::Adaptive,
    ];

    /// The word for it, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shed => "shed",
            Self::RateLimit => "rate_limit",
            Self::Breaker => "breaker",
            Self::Throttle => "throttle",
            Self::Bulkhead => "bulkhead",
            Self::Adaptive => "adaptive",
        }
    }
}

/// How a call ended, in words fit for a label.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CallOutcome {
    /// It has a value.
    Success,
    /// The service refused it: the caller's fault.
    CallerError,
    /// The service failed it, or the operation panicked: both are failures to a breaker.
    ServiceError,
    /// This process failed it.
    LocalError,
    /// It, or its last attempt, ran out of time.
    Timeout,
    /// The circuit was open.
    CircuitOpen,
    /// This process refused it: no place, too much load, too high a rate, or draining.
    Rejected,
    /// The caller dropped it, or a classifier panicked.
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
