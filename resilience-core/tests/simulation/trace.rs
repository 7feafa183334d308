//! What happened in one run, in order. Whoever runs on this thread records it; the promises read it afterwards.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::resume_unwind;
use std::sync::{Arc, Once};
use std::time::Duration;

use resilience_core::{
    CallOutcome, CircuitBreaker, CircuitState, Event, Observe, Outcome, add_observer,
};
use tokio::time::Instant;

use crate::laws::Hand;
use crate::service::Answer;

/// How often a call may be made.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Kind {
    Read,
    Write,
    WriteIdempotent,
}

/// What the caller of a pipeline got.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum End {
    Value,
    /// The operation's own error; whether it says that the operation was not executed.
    Inner {
        not_executed: bool,
    },
    AttemptTimeout,
    DeadlineExceeded,
    CircuitOpen,
    BulkheadFull,
    Throttled,
    RateLimited,
    Shed,
    Injected,
    Draining,
    OtherRefusal,
    FallbackError,
}

/// A service's layers as one sees them from outside, between two steps.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Look {
    pub(crate) state: CircuitState,
    pub(crate) generation: u32,
    /// Whether a half-open circuit says that all its probes are out.
    pub(crate) probes_out: bool,
    pub(crate) places: usize,
    pub(crate) waiting: usize,
    /// The limit now, where it moves.
    pub(crate) limit: usize,
    /// Hedges that were started.
    pub(crate) hedges: u64,
}

/// One thing that happened. Times count from the start of the run.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) enum Fact {
    Began {
        call: usize,
        task: usize,
        service: usize,
        kind: Kind,
        deadline: Duration,
        fallback: bool,
        around: Option<usize>,
    },
    /// `generation` is the circuit's as the attempt begins.
    Attempted {
        call: usize,
        number: u32,
        deadline: Duration,
        generation: Option<u32>,
    },
    /// The service did what it was asked for, whether or not anybody still waits for the answer.
    Executed {
        call: usize,
    },
    Answered {
        call: usize,
        number: u32,
        answer: Answer,
    },
    Panicked {
        call: usize,
        number: u32,
    },
    /// An attempt was dropped before its answer.
    Cut {
        call: usize,
        number: u32,
    },
    RetryDue {
        call: usize,
        attempts: u32,
        delay: Duration,
    },
    BudgetEmpty {
        call: usize,
    },
    /// What observers were told.
    Reported {
        call: usize,
        outcome: CallOutcome,
        attempts: u32,
    },
    FellBack {
        call: usize,
    },
    Ended {
        call: usize,
        end: End,
    },
    /// The call's future is gone, without an end.
    Gone {
        call: usize,
    },
    /// The scheduler drops a task.
    Dropped {
        task: usize,
    },
    /// A planned panic reached the task's edge.
    Crashed {
        task: usize,
    },
    Changed {
        service: usize,
        from: CircuitState,
        to: CircuitState,
        generation: u32,
        committed: bool,
    },
    Held {
        service: usize,
        permit: usize,
        generation: u32,
    },
    Settled {
        service: usize,
        permit: usize,
        outcome: Outcome,
    },
    Refused {
        service: usize,
        state: CircuitState,
        retry_after: Duration,
    },
    /// Somebody is about to do something to a breaker.
    Handling {
        service: usize,
        hand: Hand,
    },
    /// It is done; the circuit's generation since then.
    Handled {
        service: usize,
        generation: u32,
    },
    Stalled {
        by: Duration,
    },
    DrainBegan {
        service: usize,
        deadline: Duration,
    },
    DrainEnded {
        service: usize,
        abandoned: usize,
    },
    /// A service after a step of `task`.
    Seen {
        task: usize,
        service: usize,
        look: Look,
    },
    /// Nothing is ready, and all due timers have fired.
    Idle,
    /// Somebody waits for what never comes.
    Stuck,
    /// The storm is over and the circuit has been given time and good answers.
    Recovered {
        service: usize,
        state: Option<CircuitState>,
    },
}

/// The facts of one run with their times.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) facts: Vec<(Duration, Fact)>,
}

impl Trace {
    /// Two runs are the same if and, chances of 2⁻⁶⁴ aside, only if their hashes are.
    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.facts.hash(&mut hasher);
        hasher.finish()
    }
}

struct Recorder {
    begun: Instant,
    trace: Trace,
    task: usize,
    calls: usize,
    live: Vec<Live>,
    breakers: Vec<Option<CircuitBreaker>>,
    hostile: bool,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    task: usize,
    service: usize,
    call: usize,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Begins a new trace on this thread. A `hostile` observer does its worst; it must change nothing.
pub(crate) fn begin(breakers: Vec<Option<CircuitBreaker>>, hostile: bool) {
    static OBSERVED: Once = Once::new();
    OBSERVED.call_once(|| {
        add_observer(Arc::new(Hostile));
        add_observer(Arc::new(Watcher));
    });
    let recorder = Recorder {
        begun: Instant::now(),
        trace: Trace::default(),
        task: 0,
        calls: 0,
        live: Vec::new(),
        breakers,
        hostile,
    };
    RECORDER.set(Some(recorder));
}

/// Ends this thread's trace.
pub(crate) fn end() -> Trace {
    RECORDER.take().map(|recorder| recorder.trace).unwrap_or_default()
}

/// `None` outside a run: an observer sees the events of the whole process.
fn with<T>(f: impl FnOnce(&mut Recorder) -> T) -> Option<T> {
    RECORDER.with_borrow_mut(|recorder| recorder.as_mut().map(f))
}

pub(crate) fn record(fact: Fact) {
    let now = Instant::now();
    with(|recorder| recorder.trace.facts.push((now - recorder.begun, fact)));
}

/// How many facts there are so far.
pub(crate) fn len() -> usize {
    with(|recorder| recorder.trace.facts.len()).unwrap_or_default()
}

/// The task that runs, or ran last.
pub(crate) fn task() -> usize {
    with(|recorder| recorder.task).unwrap_or_default()
}

/// The time of `instant` in this trace.
pub(crate) fn time_of(instant: Instant) -> Duration {
    with(|recorder| instant.saturating_duration_since(recorder.begun)).unwrap_or_default()
}

/// The task that looks while none is ready.
pub(crate) const NOBODY: usize = usize::MAX;

/// Says which task runs from here on.
pub(crate) fn enter_task(task: usize) {
    with(|recorder| recorder.task = task);
}

/// A call from its start to its end; dropped before that, it is gone.
pub(crate) struct OpenCall {
    pub(crate) id: usize,
    ended: bool,
}

impl OpenCall {
    pub(crate) fn begin(
        service: usize,
        kind: Kind,
        deadline: Instant,
        fallback: bool,
        around: Option<usize>,
    ) -> Self {
        let deadline = time_of(deadline);
        let begun = with(|recorder| {
            let (task, call) = (recorder.task, recorder.calls);
            recorder.calls += 1;
            recorder.live.push(Live { task, service, call });
            (task, call)
        });
        let (task, call) = begun.expect("calls are made within a run");
        record(Fact::Began { call, task, service, kind, deadline, fallback, around });
        Self { id: call, ended: false }
    }

    pub(crate) fn end(mut self, end: End) {
        self.ended = true;
        record(Fact::Ended { call: self.id, end });
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if !self.ended {
            record(Fact::Gone { call: self.id });
        }
        with(|recorder| recorder.live.retain(|live| live.call != self.id));
    }
}

/// The service that goes by `name`, and the call on it within this task, if there is one.
fn attribute(name: &str) -> Option<(usize, Option<usize>)> {
    let service = name.strip_prefix("service-")?.parse().ok()?;
    with(|recorder| {
        let here = |live: &&Live| live.task == recorder.task && live.service == service;
        (service, recorder.live.iter().rev().find(here).map(|live| live.call))
    })
}

fn breaker(service: usize) -> Option<CircuitBreaker> {
    with(|recorder| recorder.breakers.get(service).cloned().flatten()).flatten()
}

/// Records what observers are told.
struct Watcher;

impl Observe for Watcher {
    fn on_event(&self, event: &Event<'_>) {
        match *event {
            Event::CircuitTransition { name, from, to, generation } => {
                let Some((service, _)) = attribute(name) else { return };
                // Takes the circuit's lock: were it still held, this run would never end.
                let committed = breaker(service).is_some_and(|breaker| {
                    let snapshot = breaker.snapshot();
                    // One call may find two changes due: the first is told when both are done.
                    snapshot.generation > generation
                        || (snapshot.state, snapshot.generation) == (to, generation)
                });
                record(Fact::Changed { service, from, to, generation, committed });
            }
            Event::RetryScheduled { name, attempts, delay } => {
                if let Some((_, Some(call))) = attribute(name) {
                    record(Fact::RetryDue { call, attempts, delay });
                }
            }
            Event::RetryBudgetExhausted { name } => {
                if let Some((_, Some(call))) = attribute(name) {
                    record(Fact::BudgetEmpty { call });
                }
            }
            Event::CallEnded { name, outcome, attempts, .. } => {
                if let Some((_, Some(call))) = attribute(name) {
                    record(Fact::Reported { call, outcome, attempts });
                }
            }
            _ => {}
        }
    }
}

/// Calls back into what it watches, and panics.
struct Hostile;

/// A panic that belongs to the play. It is raised without the panic hook: no message, no backtrace.
pub(crate) struct Planned;

impl Observe for Hostile {
    fn on_event(&self, event: &Event<'_>) {
        if !with(|recorder| recorder.hostile).unwrap_or_default() {
            return;
        }
        let (Event::CircuitTransition { name, .. } | Event::CallEnded { name, .. }) = *event else {
            return;
        };
        if let Some(breaker) = attribute(name).and_then(|(service, _)| breaker(service)) {
            let snapshot = breaker.snapshot();
            // On its way back to all traffic a circuit counts who asks.
            if snapshot.state == CircuitState::Closed && snapshot.settings.recovery.is_none() {
                drop(breaker.try_acquire());
            }
        }
        resume_unwind(Box::new(Planned));
    }
}
