//! The state machine of a breaker: pure but for its one packed word, told the time by its caller.
//!
//! ```text
//!              `fail_max` failures in a row
//!    ┌────────┐ ───────────────────────────────▶ ┌──────┐ ◀──────────────┐
//!    │ Closed │                                  │ Open │                │ a probe failed,
//!    └────────┘ ◀──────────────┐                 └──────┘                │ or its lease expired
//!                              │ `success_threshold`   │ `reset_timeout` │
//!                              │ probes succeeded      ▼ is over         │
//!                              │                ┌──────────┐             │
//!                              └─────────────── │ HalfOpen │ ────────────┘
//!                                               └──────────┘
//! ```
//!
//! | state    | Success                         | Failure                   | Excluded, Cancelled |
//! |----------|---------------------------------|---------------------------|---------------------|
//! | Closed   | failures := 0                   | failures + 1, maybe Open  | –                   |
//! | HalfOpen | successes + 1, maybe Closed     | Open                      | frees its slot      |
//! | Open     | – (no permit has its generation)| –                         | –                   |
//!
//! The word holds state, generation and consecutive failures. While Closed it is all there is: a
//! call costs one load, and a store only after a failure. Every transition takes the lock, and
//! raises the generation, so that an answer counts only in the state that admitted it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::breaker::CircuitSettings;
use crate::deadline::later;
use crate::permit::Outcome;

/// The state of a circuit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Calls pass.
    Closed,
    /// Calls are refused until the reset timeout is over.
    Open,
    /// A few calls pass as probes; their outcome decides.
    HalfOpen,
}

impl CircuitState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The word for it, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A change of state, to be told to observers once the lock is released.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Transition {
    pub(crate) from: CircuitState,
    pub(crate) to: CircuitState,
    pub(crate) generation: u32,
}

/// What an admitted call must show when it settles.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Pass {
    pub(crate) generation: u32,
    probe: Option<u64>,
}

/// What `admit` decided, and the transitions that led to it: an open circuit may become half-open,
/// and a half-open one whose probe vanished may open and become half-open again.
pub(crate) struct Admission {
    pub(crate) decision: Result<Pass, Duration>,
    pub(crate) transitions: Vec<Transition>,
}

#[derive(Debug)]
pub(crate) struct Circuit {
    word: AtomicU64,
    slow: Mutex<Slow>,
}

/// A probe may end at any moment: who is refused because of one need not stay away for its whole lease.
const PROBE_ENDS_SOON: Duration = Duration::from_secs(1);

/// What only Open and HalfOpen need, and when the current state began.
#[derive(Debug)]
struct Slow {
    since: Instant,
    open_until: Instant,
    probes: Vec<Probe>,
    probes_issued: u64,
    successes: u32,
}

#[derive(Debug)]
struct Probe {
    id: u64,
    expires: Instant,
}

impl Circuit {
    pub(crate) fn new(now: Instant) -> Self {
        let slow = Slow {
            since: now,
            open_until: now,
            probes: Vec::new(),
            probes_issued: 0,
            successes: 0,
        };
        Self {
            word: AtomicU64::new(Word::new(CircuitState::Closed, 0, 0).0),
            slow: Mutex::new(slow),
        }
    }

    pub(crate) fn load(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// The pass of a closed circuit: the whole fast path.
    pub(crate) fn admit_closed(&self) -> Option<Pass> {
        let word = self.load();
        (word.state() == CircuitState::Closed)
            .then(|| Pass { generation: word.generation(), probe: None })
    }

    pub(crate) fn admit(&self, settings: &CircuitSettings, now: Instant) -> Admission {
        let mut slow = self.lock();
        let mut transitions = Vec::new();
        let decision = loop {
            let word = self.load();
            match word.state() {
                CircuitState::Closed => {
                    break Ok(Pass { generation: word.generation(), probe: None });
                }
                CircuitState::Open if now < slow.open_until => break Err(slow.open_until - now),
                CircuitState::Open => {
                    transitions.push(self.enter(&mut slow, CircuitState::HalfOpen, now, settings));
                }
                CircuitState::HalfOpen => {
                    if let Some(lost) = slow.first_expiry().filter(|expires| *expires <= now) {
                        transitions.push(self.enter(&mut slow, CircuitState::Open, lost, settings));
                    } else if slow.probes.len() < settings.half_open_max_calls as usize {
                        let id = slow.probes_issued;
                        slow.probes_issued += 1;
                        slow.probes.push(Probe { id, expires: later(now, settings.probe_lease) });
                        break Ok(Pass { generation: word.generation(), probe: Some(id) });
                    } else {
                        let expiry = slow.first_expiry().expect("half_open_max_calls is 1 or more");
                        break Err((expiry - now).min(PROBE_ENDS_SOON));
                    }
                }
            }
        };
        Admission { decision, transitions }
    }

    pub(crate) fn settle(
        &self,
        settings: &CircuitSettings,
        pass: Pass,
        outcome: Outcome,
        now: impl FnOnce() -> Instant,
    ) -> Option<Transition> {
        let word = self.load();
        if word.generation() != pass.generation {
            return None; // Admitted under a state that is gone: a late answer decides nothing.
        }
        match (word.state(), outcome) {
            (CircuitState::Closed, Outcome::Success) => {
                self.forgive(pass.generation);
                None
            }
            (CircuitState::Closed, Outcome::Failure) => self.blame(settings, pass.generation, now),
            (CircuitState::HalfOpen, _) => self.settle_probe(settings, pass, outcome, now()),
            (CircuitState::Closed, Outcome::Excluded | Outcome::Cancelled)
            | (CircuitState::Open, _) => None,
        }
    }

    /// When the current state began, when an open one ends, and how long until another try is worth making.
    pub(crate) fn times(
        &self,
        settings: &CircuitSettings,
        now: Instant,
    ) -> (Word, Instant, Option<Duration>) {
        let slow = self.lock();
        let word = self.load();
        let retry_after = match word.state() {
            CircuitState::Closed => None,
            CircuitState::Open => Some(slow.open_until.saturating_duration_since(now)),
            CircuitState::HalfOpen => slow
                .first_expiry()
                .filter(|_| slow.probes.len() >= settings.half_open_max_calls as usize)
                .map(|expiry| expiry.saturating_duration_since(now).min(PROBE_ENDS_SOON)),
        };
        let retry_after = retry_after.filter(|wait| !wait.is_zero());
        (word, slow.since, retry_after)
    }

    /// A success while closed: failures are no longer consecutive.
    fn forgive(&self, generation: u32) {
        let clear = |word: u64| {
            let word = Word(word);
            (word.is_closed(generation) && word.failures() > 0).then_some(word.with_failures(0).0)
        };
        // An `Err` is a word with nothing to clear.
        let _ = self.word.try_update(Ordering::AcqRel, Ordering::Acquire, clear);
    }

    /// A failure while closed: one more, and the circuit opens with the last that it may take.
    fn blame(
        &self,
        settings: &CircuitSettings,
        generation: u32,
        now: impl FnOnce() -> Instant,
    ) -> Option<Transition> {
        let last = settings.fail_max - 1;
        let count = |word: u64| {
            let word = Word(word);
            (word.is_closed(generation) && word.failures() < last)
                .then_some(word.with_failures(word.failures() + 1).0)
        };
        if self.word.try_update(Ordering::AcqRel, Ordering::Acquire, count).is_ok() {
            return None;
        }
        let mut slow = self.lock();
        // A success may have come between: then this failure is the first of a new row.
        if self.word.try_update(Ordering::AcqRel, Ordering::Acquire, count).is_ok() {
            return None;
        }
        self.load()
            .is_closed(generation)
            .then(|| self.enter(&mut slow, CircuitState::Open, now(), settings))
    }

    fn settle_probe(
        &self,
        settings: &CircuitSettings,
        pass: Pass,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Transition> {
        let mut slow = self.lock();
        if self.load().generation() != pass.generation {
            return None;
        }
        if let Some(lost) = slow.first_expiry().filter(|expires| *expires <= now) {
            // A lease that ran out is a failure even if the answer comes before anyone noticed.
            return Some(self.enter(&mut slow, CircuitState::Open, lost, settings));
        }
        slow.probes.retain(|probe| Some(probe.id) != pass.probe);
        match outcome {
            Outcome::Success => {
                slow.successes += 1;
                let enough = slow.successes >= settings.success_threshold;
                enough.then(|| self.enter(&mut slow, CircuitState::Closed, now, settings))
            }
            Outcome::Failure => Some(self.enter(&mut slow, CircuitState::Open, now, settings)),
            Outcome::Excluded | Outcome::Cancelled => None,
        }
    }

    /// Enters `to` at `now` under a new generation. The caller holds the lock; only `forgive` and
    /// the first half of `blame` write without it, and neither survives the new generation.
    fn enter(
        &self,
        slow: &mut Slow,
        to: CircuitState,
        now: Instant,
        settings: &CircuitSettings,
    ) -> Transition {
        let word = self.load();
        let next = Word::new(to, word.generation().wrapping_add(1), 0);
        slow.since = now;
        slow.probes.clear();
        slow.successes = 0;
        if to == CircuitState::Open {
            slow.open_until = later(now, settings.reset_timeout);
        }
        self.word.store(next.0, Ordering::Release);
        Transition { from: word.state(), to, generation: next.generation() }
    }

    fn lock(&self) -> MutexGuard<'_, Slow> {
        // No section can panic half-way through a change, so a poisoned circuit is still whole.
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slow {
    fn first_expiry(&self) -> Option<Instant> {
        self.probes.iter().map(|probe| probe.expires).min()
    }
}

/// State (2 bits), generation (30 bits, wrapping) and consecutive failures (32 bits).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Word(u64);

const GENERATIONS: u32 = (1 << 30) - 1;

impl Word {
    fn new(state: CircuitState, generation: u32, failures: u32) -> Self {
        let state = match state {
            CircuitState::Closed => 0,
            CircuitState::Open => 1,
            CircuitState::HalfOpen => 2,
        };
        Self(state << 62 | u64::from(generation & GENERATIONS) << 32 | u64::from(failures))
    }

    pub(crate) fn state(self) -> CircuitState {
        match self.0 >> 62 {
            0 => CircuitState::Closed,
            1 => CircuitState::Open,
            _ => CircuitState::HalfOpen,
        }
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & GENERATIONS
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the count")]
    pub(crate) fn failures(self) -> u32 {
        self.0 as u32
    }

    fn with_failures(self, failures: u32) -> Self {
        Self(self.0 & !u64::from(u32::MAX) | u64::from(failures))
    }

    fn is_closed(self, generation: u32) -> bool {
        self.state() == CircuitState::Closed && self.generation() == generation
    }
}
