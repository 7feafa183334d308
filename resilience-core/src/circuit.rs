//! The state machine of a breaker: pure but for its atomics, told the time by its caller. Only before
//! it takes a call for slow, it asks whether this process stood still.
//!
//! ```text
//!              too many failures
//!    ┌────────┐ ───────────────────────────────▶ ┌──────┐ ◀──────────────┐
//!    │ Closed │                                  │ Open │                │ a probe failed,
//!    └────────┘ ◀──────────────┐                 └──────┘                │ or its lease expired
//!                              │ `success_threshold`   │ `reset_timeout` │
//!                              │ probes succeeded      ▼ is over         │
//!                              │                ┌──────────┐             │
//!                              └─────────────── │ HalfOpen │ ────────────┘
//!                                               └──────────┘
//!    by hand, from any state to any: ForcedOpen, ForcedClosed, Disabled, MetricsOnly, Closed
//! ```
//!
//! | state        | Success                         | Failure                   | Excluded, Cancelled |
//! |--------------|---------------------------------|---------------------------|---------------------|
//! | Closed       | counted, failures in a row := 0 | counted, maybe Open       | –                   |
//! | HalfOpen     | successes + 1, maybe Closed     | Open                      | frees its slot      |
//! | MetricsOnly  | as Closed                       | as Closed, but never Open | –                   |
//! | ForcedClosed | –                               | –                         | –                   |
//! | Disabled     | –                               | –                         | –                   |
//! | Open, ForcedOpen | – (no permit has its generation) | –                    | –                   |
//!
//! Of the two ways to open a closed circuit, failures in a row are counted in the [`Word`] itself,
//! and rates in a [`Window`]. A healthy circuit costs a call two loads of the word, and a
//! compare-and-swap where there is a window. Every transition takes the lock and raises the
//! generation, so that an answer counts only in the state that admitted it.

#[cfg(all(test, circuit_models))]
mod models;
mod pass;
mod recovery;
mod rules;
mod settle;
mod window;
mod word;

use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::CircuitSettings;
use crate::deadline::later;
use crate::heartbeat::stood_still;
use crate::permit::Outcome;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, update};

use pass::Kind;
pub(crate) use pass::Pass;
use recovery::Recovery;
use rules::share;
pub use window::SlidingWindow;
use window::{Marks, Window, nanos};
pub use word::CircuitState;
pub(crate) use word::{Flags, MOST_FAILURES, Word};

/// A change of state, to be told to observers once the lock is released.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Transition {
    pub(crate) from: CircuitState,
    pub(crate) to: CircuitState,
    pub(crate) generation: u32,
}

/// What `admit` decided, and the transitions that led to it: a half-open circuit whose probe vanished
/// opens, and an open one may become half-open.
pub(crate) struct Admission {
    pub(crate) decision: Result<Pass, Duration>,
    pub(crate) transitions: [Option<Transition>; 2],
}

/// A circuit as it is at one moment.
pub(crate) struct Glance {
    pub(crate) word: Word,
    pub(crate) since: Instant,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) failure_ratio: Option<f64>,
    pub(crate) slow_call_ratio: Option<f64>,
    pub(crate) recovering: Option<f64>,
    pub(crate) armed: bool,
}

#[derive(Debug)]
pub(crate) struct Circuit {
    word: AtomicU64,
    /// The time from `origin` until which an open circuit refuses, packed; written before the word says Open.
    open_until: AtomicU64,
    /// Nanoseconds from which a call is slow.
    slow_from: AtomicU64,
    origin: Instant,
    window: Window,
    slow: Mutex<Slow>,
}

/// A probe may end at any moment: who is refused because of one need not stay away for its whole lease.
const PROBE_ENDS_SOON: Duration = Duration::from_secs(1);

const NANOS_BITS: u32 = 30;

/// What a healthy call does not need.
#[derive(Debug)]
struct Slow {
    settings: CircuitSettings,
    since: Instant,
    open_until: Instant,
    /// Times in a row that it opened without having recovered in between.
    reopened: u32,
    probes: Vec<Probe>,
    probes_issued: u64,
    successes: u32,
    recovery: Option<Recovery>,
    armed_until: Option<Instant>,
    marks: Marks,
}

#[derive(Debug)]
struct Probe {
    id: u64,
    granted: Instant,
    /// When its lease is over: later once it was `excused`.
    expires: Instant,
    excused: bool,
    /// When its attempt began: it may have waited for a place of ours.
    begun: Instant,
}

impl Circuit {
    pub(crate) fn new(settings: CircuitSettings, now: Instant) -> Self {
        let (window, marks) = Window::new();
        let circuit = Self {
            word: AtomicU64::new(Word::new(CircuitState::Closed, settings.flags(), 0).0),
            open_until: AtomicU64::new(0),
            slow_from: AtomicU64::new(settings.slow_from()),
            origin: now,
            window,
            slow: Mutex::new(Slow {
                settings,
                since: now,
                open_until: now,
                reopened: 0,
                probes: Vec::new(),
                probes_issued: 0,
                successes: 0,
                recovery: None,
                armed_until: None,
                marks,
            }),
        };
        circuit.window.reset(&mut circuit.lock().marks, settings.window, 0, 0);
        circuit
    }

    #[inline]
    pub(crate) fn load(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    pub(crate) fn settings(&self) -> CircuitSettings {
        self.lock().settings
    }

    /// The pass of a closed circuit that needs no clock: the whole fast path.
    #[inline]
    pub(crate) fn admit_fast(&self) -> Option<Pass> {
        let word = self.load();
        let generation = word.generation();
        word.is_plain().then_some(Pass::new(generation, Kind::Plain, 0))
    }

    /// How long an open circuit refuses yet at `now`, read without the lock.
    #[inline]
    pub(crate) fn refuse_fast(&self, now: Instant) -> Option<Duration> {
        let word = self.load();
        let until = unpacked(self.open_until.load(Ordering::Acquire));
        let wait = until.checked_sub(now.saturating_duration_since(self.origin))?;
        (word.state() == CircuitState::Open && !wait.is_zero()).then_some(wait)
    }

    pub(crate) fn admit(&self, now: Instant) -> Admission {
        let word = self.load();
        if word.passes() {
            return Admission { decision: Ok(self.pass(word, now)), transitions: [None; 2] };
        }
        let mut slow = self.lock();
        let mut transitions = [None; 2];
        let decision = loop {
            let word = self.load();
            match word.state() {
                CircuitState::Closed => {
                    break self.admit_recovering(&mut slow, now).map(|()| self.pass(word, now));
                }
                CircuitState::ForcedClosed | CircuitState::Disabled | CircuitState::MetricsOnly => {
                    break Ok(self.pass(word, now));
                }
                CircuitState::ForcedOpen => break Err(slow.settings.reset_timeout),
                CircuitState::Open if now < slow.open_until => break Err(slow.open_until - now),
                CircuitState::Open => {
                    transitions[1] = Some(self.enter(&mut slow, CircuitState::HalfOpen, now));
                }
                CircuitState::HalfOpen => {
                    if let Some(lost) = slow.first_lost(now) {
                        transitions[0] = Some(self.enter(&mut slow, CircuitState::Open, lost));
                    } else if slow.probes.len() < slow.settings.half_open_max_calls as usize {
                        let mark = slow.issue_probe(now);
                        break Ok(Pass::new(word.generation(), Kind::Probe, mark));
                    } else {
                        let expiry = slow.first_expiry().expect("half_open_max_calls is 1 or more");
                        break Err((expiry - now).min(PROBE_ENDS_SOON));
                    }
                }
            }
        };
        Admission { decision, transitions }
    }

    /// Whether a success of the call with `pass` changes nothing: the whole fast path.
    #[inline]
    pub(crate) fn is_untroubled(&self, pass: Pass) -> bool {
        self.load().is_untroubled(pass.generation())
    }

    #[inline]
    pub(crate) fn settle(
        &self,
        pass: Pass,
        outcome: Outcome,
        now: impl Fn() -> Instant,
    ) -> Option<Transition> {
        let word = self.load();
        if outcome == Outcome::Success
            && word.only_counts(pass.generation())
            && self.window.count_success(pass.generation(), || self.nanos(now()))
        {
            return None;
        }
        self.settle_in(word, pass, outcome, now)
    }

    /// Leaves the automatic states for `to`, or comes back to Closed with all counts at zero.
    pub(crate) fn force(&self, to: CircuitState, now: Instant) -> Option<Transition> {
        let mut slow = self.lock();
        slow.reopened = 0;
        let stays = self.load().state() == to;
        let transition = self.enter(&mut slow, to, now);
        slow.recovery = None;
        self.set_recovering(false);
        (!stays).then_some(transition)
    }

    /// Until `until`, one failure is enough to open.
    pub(crate) fn arm(&self, until: Option<Instant>) {
        self.lock().armed_until = until;
    }

    /// Other rules from now on; state, generation and failures in a row stay. A window of another
    /// kind or size begins empty, and a recovery takes the new time, or none.
    pub(crate) fn reconfigure(&self, settings: CircuitSettings, now: Instant) {
        let mut slow = self.lock();
        let word = self.load();
        if settings.window != slow.settings.window
            || settings.flags().counted != slow.settings.flags().counted
        {
            let now = self.nanos(now);
            self.window.reset(&mut slow.marks, settings.window, word.generation(), now);
        }
        let timeouts = |settings: &CircuitSettings| {
            (settings.reset_timeout, settings.reset_timeout_growth, settings.reset_timeout_jitter)
        };
        if word.state() == CircuitState::Open && timeouts(&settings) != timeouts(&slow.settings) {
            let (since, time) = (slow.since, settings.open_time(slow.reopened));
            self.open_for(&mut slow, since, time);
        }
        let recovery = slow.recovery.take().zip(settings.recovery);
        slow.recovery = recovery.map(|(recovery, time)| recovery.lasting(time));
        let recovering = slow.recovery.is_some();
        slow.settings = settings;
        self.slow_from.store(settings.slow_from(), Ordering::Relaxed);
        let flags = settings.flags_in(word.state());
        update(&self.word, |word| Some(Word(word).with_flags(Flags { recovering, ..flags }).0));
    }

    /// Everything there is to know at `now`.
    pub(crate) fn glance(&self, now: Instant) -> Glance {
        let mut slow = self.lock();
        let word = self.load();
        let retry_after = match word.state() {
            CircuitState::Open => Some(slow.open_until.saturating_duration_since(now)),
            CircuitState::ForcedOpen => Some(slow.settings.reset_timeout),
            CircuitState::HalfOpen => slow
                .first_expiry()
                .filter(|_| slow.probes.len() >= slow.settings.half_open_max_calls as usize)
                .map(|expiry| expiry.saturating_duration_since(now).min(PROBE_ENDS_SOON)),
            CircuitState::Closed
            | CircuitState::ForcedClosed
            | CircuitState::Disabled
            | CircuitState::MetricsOnly => None,
        };
        let tally = word.flags().counted.then(|| {
            let now = self.nanos(now);
            self.window.tally(&mut slow.marks, word.generation(), now)
        });
        let tally = tally.filter(|tally| tally.calls >= slow.settings.minimum_calls.into());
        Glance {
            word,
            since: slow.since,
            retry_after: retry_after.filter(|wait| !wait.is_zero()),
            failure_ratio: tally.map(|tally| share(tally.failures, tally.calls)),
            slow_call_ratio: tally
                .filter(|_| slow.settings.slow_calls.is_some())
                .map(|tally| share(tally.slow, tally.calls)),
            recovering: slow.recovery.as_ref().and_then(|recovery| recovery.share(now)),
            armed: slow.armed_until.is_some_and(|until| now < until),
        }
    }

    /// Whether a closed circuit lets a call through: all of them, but for one that has just closed.
    fn admit_recovering(&self, slow: &mut Slow, now: Instant) -> Result<(), Duration> {
        let over = match &mut slow.recovery {
            None => false,
            Some(recovery) => match recovery.admit(now) {
                Some(true) => return Ok(()),
                Some(false) => return Err(PROBE_ENDS_SOON),
                None => true,
            },
        };
        if over {
            slow.recovery = None;
            slow.reopened = 0;
            self.set_recovering(false);
        }
        Ok(())
    }

    /// Enters `to` at `now` under a new generation. The caller holds the lock; without it the word
    /// is written only by a success that clears failures, which does not survive the new generation.
    fn enter(&self, slow: &mut Slow, to: CircuitState, now: Instant) -> Transition {
        let word = self.load();
        let from = word.state();
        let generation = word.generation().wrapping_add(1);
        if to == CircuitState::Open {
            let again = from == CircuitState::HalfOpen || slow.recovery.is_some();
            slow.reopened = if again { slow.reopened.saturating_add(1) } else { 0 };
            let time = slow.settings.open_time(slow.reopened);
            self.open_for(slow, now, time);
        }
        let recovers = from == CircuitState::HalfOpen && to == CircuitState::Closed;
        slow.recovery =
            slow.settings.recovery.filter(|_| recovers).map(|time| Recovery::new(now, time));
        slow.since = now;
        slow.probes.clear();
        slow.successes = 0;
        self.window.reset(&mut slow.marks, slow.settings.window, generation, self.nanos(now));
        let recovering = slow.recovery.is_some();
        let flags = Flags { recovering, ..slow.settings.flags_in(to) };
        self.word.store(Word::new(to, flags, generation).0, Ordering::Release);
        Transition { from, to, generation }
    }

    fn open_for(&self, slow: &mut Slow, since: Instant, time: Duration) {
        slow.open_until = later(since, time);
        let until = slow.open_until.saturating_duration_since(self.origin);
        self.open_until.store(packed(until), Ordering::Release);
    }

    fn set_recovering(&self, recovering: bool) {
        update(&self.word, |word| {
            let flags = Flags { recovering, ..Word(word).flags() };
            Some(Word(word).with_flags(flags).0)
        });
    }

    /// The pass of a circuit that lets everyone through.
    fn pass(&self, word: Word, now: Instant) -> Pass {
        let (kind, mark) = match word.state() {
            CircuitState::Disabled => (Kind::Uncounted, 0),
            _ if word.flags().timed => (Kind::Timed, self.nanos(now)),
            _ => (Kind::Plain, 0),
        };
        Pass::new(word.generation(), kind, mark)
    }

    /// Lets the time of a call that is judged by it begin `now`: until then it waited in a queue of ours.
    /// The lease of a probe goes on.
    pub(crate) fn restart(&self, pass: &mut Pass, now: Instant) {
        if pass.is(Kind::Timed) {
            pass.mark = self.nanos(now);
        } else if pass.is(Kind::Probe) {
            let mut slow = self.lock();
            if let Some(probe) = slow.probes.iter_mut().find(|probe| probe.id == pass.mark) {
                probe.begun = now;
            }
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.origin))
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

    /// When the first lease ran out that has run out by `now`. Time in which this process stood still, as the
    /// asker's runtime knows it, is added to each: nobody could have given it back. It is added once, for to a
    /// runtime that is driven by fits and starts the standstill has no end.
    fn first_lost(&mut self, now: Instant) -> Option<Instant> {
        for probe in self.probes.iter_mut().filter(|probe| !probe.excused && probe.expires <= now) {
            let more = stood_still(probe.granted, now);
            probe.expires = later(probe.expires, more);
            probe.excused = !more.is_zero();
        }
        self.first_expiry().filter(|expires| *expires <= now)
    }

    fn issue_probe(&mut self, now: Instant) -> u64 {
        let id = self.probes_issued;
        self.probes_issued += 1;
        let expires = later(now, self.settings.probe_lease);
        self.probes.push(Probe { id, granted: now, expires, excused: false, begun: now });
        id
    }
}

/// A time in one word, of which neither making nor reading divides: whole seconds, up to 544 years,
/// above 30 bits of nanoseconds.
fn packed(time: Duration) -> u64 {
    time.as_secs() << NANOS_BITS | u64::from(time.subsec_nanos())
}

fn unpacked(time: u64) -> Duration {
    Duration::new(time >> NANOS_BITS, (time & ((1 << NANOS_BITS) - 1)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_lost_in_the_packing() {
        let one_less = Duration::from_nanos(1_999_999_999);
        for time in [Duration::ZERO, Duration::from_nanos(1), one_less, 2 * crate::deadline::FAR] {
            assert_eq!(unpacked(packed(time)), time);
        }
    }
}
