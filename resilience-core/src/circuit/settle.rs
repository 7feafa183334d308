//! How a call's end moves the circuit that admitted it.

use std::time::Duration;

use tokio::time::Instant;

use super::pass::Kind;
use super::window::{Ended, Tally, nanos};
use super::word::{Flags, MOST_FAILURES, Word};
use super::{Circuit, CircuitState, Pass, Probe, Transition};
use crate::heartbeat;
use crate::permit::Outcome;
use crate::sync::{Ordering, update};

impl Circuit {
    pub(super) fn settle_in(
        &self,
        word: Word,
        pass: Pass,
        outcome: Outcome,
        now: impl Fn() -> Instant,
    ) -> Option<Transition> {
        if word.generation() != pass.generation() {
            return None; // Admitted under a state that is gone: a late answer decides nothing.
        }
        match word.state() {
            CircuitState::Closed | CircuitState::MetricsOnly => match outcome {
                Outcome::Success => self.succeed(word, pass, now),
                Outcome::Failure => self.judge(pass, true, now()),
                Outcome::Excluded | Outcome::Cancelled => None,
            },
            CircuitState::HalfOpen => self.settle_probe(pass, outcome, now()),
            CircuitState::Open
            | CircuitState::ForcedOpen
            | CircuitState::ForcedClosed
            | CircuitState::Disabled => None,
        }
    }

    /// A success while closed: failures are no longer in a row, and the window has one more call.
    fn succeed(&self, word: Word, pass: Pass, now: impl Fn() -> Instant) -> Option<Transition> {
        if word.failures() > 0 {
            update(&self.word, |word| {
                let word = Word(word);
                let mine = word.state().judges() && word.generation() == pass.generation();
                (mine && word.failures() > 0).then_some(word.with_failures(0).0)
            });
        }
        let Flags { counted, timed, .. } = word.flags();
        if !counted {
            return None;
        }
        let ended = timed.then(&now);
        let now = || ended.unwrap_or_else(&now);
        let slow = timed && self.was_slow(pass, now());
        if !slow && self.window.count_success(pass.generation(), || self.nanos(now())) {
            return None;
        }
        self.judge(pass, false, now())
    }

    /// The end of a call that takes the lock while closed: it failed, was slow, or the window turns.
    /// Only what went badly can open the circuit.
    fn judge(&self, pass: Pass, failed: bool, now: Instant) -> Option<Transition> {
        let mut guard = self.lock();
        let slow = &mut *guard;
        let word = self.load();
        let generation = pass.generation();
        if word.generation() != generation || !word.state().judges() {
            return None;
        }
        let ended = Ended { failed, slow: self.was_slow(pass, now) };
        let in_a_row = if failed { self.count_failure() } else { 0 };
        let mut tally = Tally::default();
        if word.flags().counted {
            self.window.count(&mut slow.marks, generation, self.nanos(now), ended);
            tally = self.window.tally(&mut slow.marks, generation, self.nanos(now));
        }
        let armed = failed && slow.armed_until.is_some_and(|until| now < until);
        let too_many = armed || slow.settings.is_too_many(ended, in_a_row, tally);
        let opens = too_many && word.state() == CircuitState::Closed;
        opens.then(|| self.enter(slow, CircuitState::Open, now))
    }

    /// One failure more in a row; how many there are. A success may clear them at any moment.
    fn count_failure(&self) -> u32 {
        let mut failures = 0;
        update(&self.word, |word| {
            failures = Word(word).failures().saturating_add(1).min(MOST_FAILURES);
            Some(Word(word).with_failures(failures).0)
        });
        failures
    }

    fn settle_probe(&self, pass: Pass, outcome: Outcome, now: Instant) -> Option<Transition> {
        let mut slow = self.lock();
        if self.load().generation() != pass.generation() {
            return None;
        }
        if let Some(lost) = slow.first_lost(now) {
            // A lease that ran out is a failure even if the answer comes before anyone noticed.
            return Some(self.enter(&mut slow, CircuitState::Open, lost));
        }
        let probe = slow.probes.iter().position(|probe| probe.id == pass.mark)?;
        let Probe { begun, .. } = slow.probes.swap_remove(probe);
        match outcome {
            Outcome::Success if self.is_slow(self.nanos(begun), now) => {
                Some(self.enter(&mut slow, CircuitState::Open, now))
            }
            Outcome::Success => {
                slow.successes += 1;
                let enough = slow.successes >= slow.settings.success_threshold;
                enough.then(|| self.enter(&mut slow, CircuitState::Closed, now))
            }
            Outcome::Failure => Some(self.enter(&mut slow, CircuitState::Open, now)),
            Outcome::Excluded | Outcome::Cancelled => None,
        }
    }

    fn was_slow(&self, pass: Pass, ended: Instant) -> bool {
        pass.is(Kind::Timed) && self.is_slow(pass.mark, ended)
    }

    /// Whether a call took too long, the time that this process stood still not counted.
    fn is_slow(&self, started: u64, ended: Instant) -> bool {
        let took = self.nanos(ended).saturating_sub(started);
        let slow_from = self.slow_from.load(Ordering::Relaxed);
        let ours = || {
            let started = self.origin + Duration::from_nanos(started);
            nanos(heartbeat::stood_still(started, ended))
        };
        took >= slow_from && took.saturating_sub(ours()) >= slow_from
    }
}
