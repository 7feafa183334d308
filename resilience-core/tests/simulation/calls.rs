//! What calls and their attempts must be doing: promises 3, 4, 7, 9, 11 and 12.

use std::time::Duration;

use resilience_core::{Blame, CallOutcome, CircuitState, Replay};

use crate::coverage::Cell;
use crate::ledger::{Effect, Holder, Ledger};
use crate::promises::{Broken, Judge, require};
use crate::service::{Answer, Fault};
use crate::trace::{End, Kind};

/// A retry, in the unit of budgets.
const RETRY: u64 = 1_000_000;

/// What is known of a call.
#[derive(Debug)]
pub(crate) struct CallLedger {
    pub(crate) task: usize,
    pub(crate) service: usize,
    kind: Kind,
    began: Duration,
    pub(crate) deadline: Duration,
    has_fallback: bool,
    around: Option<usize>,
    pub(crate) has_inner: bool,
    draining: bool,
    pub(crate) open: bool,
    pub(crate) attempts: u32,
    pub(crate) running: Vec<Running>,
    last: Option<Last>,
    /// When the wait for the next attempt is over.
    pub(crate) due: Option<Duration>,
    pub(crate) reported: Option<(CallOutcome, u32)>,
    /// Whether an attempt that has ended may have been executed.
    may_have_run: bool,
    executed: u32,
    /// Whether this process stood still within the attempt that was cut off last.
    cut_unfairly: bool,
    pub(crate) fell_back: bool,
    /// Whether a pipeline within the last attempt spent all its attempts and failed.
    inner_spent: bool,
}

/// An attempt in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) number: u32,
    pub(crate) deadline: Duration,
    pub(crate) stalled: bool,
}

/// What the last failed attempt came to.
#[derive(Clone, Copy, Debug)]
struct Last {
    /// Whether this process was, or may have been, to blame.
    own_trouble: bool,
    retry_after: Duration,
}

impl CallLedger {
    pub(crate) fn new(
        task: usize,
        service: usize,
        kind: Kind,
        (began, deadline): (Duration, Duration),
        has_fallback: bool,
        around: Option<usize>,
        draining: bool,
    ) -> Self {
        Self {
            task,
            service,
            kind,
            began,
            deadline,
            has_fallback,
            around,
            has_inner: false,
            draining,
            open: true,
            attempts: 0,
            running: Vec::new(),
            last: None,
            due: None,
            reported: None,
            may_have_run: false,
            executed: 0,
            cut_unfairly: false,
            fell_back: false,
            inner_spent: false,
        }
    }

    /// When the primary must have ended.
    fn primary_deadline(&self) -> Duration {
        match self.has_fallback {
            true => self.began + self.deadline.saturating_sub(self.began) / 2,
            false => self.deadline,
        }
    }

    pub(crate) fn waits_to_retry(&self) -> bool {
        self.due.is_some() && self.running.is_empty() && !self.fell_back
    }
}

impl Judge<'_> {
    pub(crate) fn attempted(
        &mut self,
        at: Duration,
        call: usize,
        attempt: Running,
        generation: Option<u32>,
    ) -> Result<(), Broken> {
        let known = &self.calls[call];
        let (service, number, until) = (known.service, attempt.number, known.primary_deadline());
        let laws = self.service_laws(service);
        require(4, at < until, || format!("an attempt began past {until:?}"))?;
        let latest = until.min(at + laws.attempt_timeout);
        require(4, attempt.deadline <= latest, || {
            format!("an attempt may last beyond {latest:?}")
        })?;
        let attempts = known.attempts + 1;
        require(3, number == attempts && number <= laws.max_retries + 1, || {
            format!("attempt {number} of {} after {attempts}", laws.max_retries + 1)
        })?;
        require(9, !known.draining, || "an attempt began after the drain".to_owned())?;
        if number > 1 {
            let due = known.due.unwrap_or(Duration::MAX);
            require(4, at >= due, || format!("a retry began before {due:?}"))?;
            require(7, known.kind != Kind::Write || !known.may_have_run, || {
                "a write was sent again that may have run".to_owned()
            })?;
            require(3, !known.inner_spent, || {
                "the outer pipeline repeats what the inner one gave up".to_owned()
            })?;
            self.reached.note(Cell::Retried);
            self.reached.note_if(known.kind == Kind::Write, Cell::RetriedWrite);
            self.reached.note_if(known.has_inner, Cell::OuterRepeated);
            let own_trouble = known.last.is_some_and(|last| last.own_trouble);
            self.reached.note_if(own_trouble, Cell::RetriedOwnTrouble);
            self.spend(call, |spending| {
                spending.made += 1;
                spending.made
            })?;
        }
        let in_flight = self.in_flight(service) + 1;
        if let Some((places, _)) = laws.bulkhead {
            require(11, in_flight <= places, || {
                format!("{in_flight} attempts in {places} places")
            })?;
        }
        let known = &mut self.calls[call];
        known.attempts = number;
        known.running.push(attempt);
        known.inner_spent = false;
        known.due = None;
        if let (Some(circuit), Some(generation)) = (&mut self.circuits[service], generation) {
            let holder = Holder::Attempt(call, number);
            if circuit.is_queued(call) {
                circuit.begin(at, call, number);
                self.reached.note(Cell::PlaceAwaited);
            } else {
                circuit.admit(at, holder, generation, &mut self.reached)?;
            }
            circuit.times_out(holder, attempt.deadline);
        }
        Ok(())
    }

    /// Counts a retry of `call` on its budget, unless it is free.
    fn spend(
        &mut self,
        call: usize,
        count: impl FnOnce(&mut crate::promises::Spending) -> u64,
    ) -> Result<(), Broken> {
        let known = &self.calls[call];
        let free = known.last.is_some_and(|last| last.own_trouble);
        let budget = self.service_laws(known.service).budget.filter(|_| !free);
        let Some(budget) = budget else { return Ok(()) };
        let (ratio, burst) = self.laws.budgets[budget];
        let spending = &mut self.budgets[budget];
        let spent = count(spending) * RETRY;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1,000,000"
        )]
        let share = (ratio * RETRY as f64) as u64;
        let owed = spending.calls * share + u64::from(burst) * RETRY;
        require(3, spent <= owed, || format!("{spent} of {owed} millionths of a retry are spent"))
    }

    pub(crate) fn in_flight(&self, service: usize) -> usize {
        let here = self.calls.iter().filter(|call| call.open && call.service == service);
        here.map(|call| call.running.len()).sum()
    }

    pub(crate) fn executed(&mut self, call: usize) -> Result<(), Broken> {
        self.reached.note_if(!self.calls[call].open, Cell::ExecutedForNobody);
        let mut next = Some(call);
        while let Some(call) = next {
            let known = &mut self.calls[call];
            known.executed += 1;
            require(7, known.kind != Kind::Write || known.executed == 1, || {
                format!("the write of call {call} was executed {} times", known.executed)
            })?;
            next = known.around;
        }
        Ok(())
    }

    pub(crate) fn answered(&mut self, at: Duration, call: usize, number: u32, answer: Answer) {
        let effect = match answer.0 {
            None => Effect::Success,
            Some(Fault { poisoned: true, .. }) => Effect::Perhaps,
            Some(Fault { verdict, .. }) => match verdict.blame {
                Blame::Caller => Effect::Success,
                Blame::Service => Effect::Failure,
                Blame::Local => Effect::Neutral,
            },
        };
        let known = &mut self.calls[call];
        let stalled =
            known.running.iter().any(|running| running.number == number && running.stalled);
        let effect = if stalled && effect == Effect::Failure { Effect::Perhaps } else { effect };
        let verdict = answer.0.map(|fault| fault.verdict);
        let proven = |replay| matches!(replay, Replay::Safe | Replay::Transaction);
        known.may_have_run |= !verdict.is_some_and(|verdict| proven(verdict.replay));
        if let Some(verdict) = verdict {
            let own_trouble = verdict.blame == Blame::Local || stalled;
            let retry_after = verdict.retry_after.unwrap_or_default();
            known.last = Some(Last { own_trouble, retry_after });
        }
        let poisoned = answer.0.is_some_and(|fault| fault.poisoned);
        self.reached.note_if(poisoned, Cell::ClassifierPanicked);
        self.attempt_ended(at, call, number, effect);
    }

    pub(crate) fn cut(&mut self, at: Duration, call: usize, number: u32) -> Result<(), Broken> {
        let known = &mut self.calls[call];
        known.may_have_run = true;
        if self.dropped.contains(&known.task) {
            self.attempt_ended(at, call, number, Effect::Neutral);
            return Ok(());
        }
        let cut = known.running.iter().find(|running| running.number == number);
        let Some(cut) = cut.copied() else {
            return require(9, false, || "an attempt ended twice".to_owned());
        };
        known.cut_unfairly = cut.stalled;
        require(9, at >= cut.deadline, || format!("an attempt was cut before {:?}", cut.deadline))?;
        if at < known.primary_deadline() {
            let (own_trouble, retry_after) = (cut.stalled, Duration::ZERO);
            known.last = Some(Last { own_trouble, retry_after });
            self.reached.note(Cell::AttemptTimedOut);
        } else {
            self.reached.note(Cell::AttemptCutByDeadline);
        }
        self.attempt_ended(at, call, number, Effect::Perhaps);
        Ok(())
    }

    pub(crate) fn attempt_ended(&mut self, at: Duration, call: usize, number: u32, effect: Effect) {
        let known = &mut self.calls[call];
        known.running.retain(|running| running.number != number);
        if let Some(circuit) = &mut self.circuits[known.service] {
            circuit.settle(at, Holder::Attempt(call, number), effect, &mut self.reached);
        }
    }

    pub(crate) fn retry_due(
        &mut self,
        at: Duration,
        call: usize,
        attempts: u32,
        delay: Duration,
    ) -> Result<(), Broken> {
        let known = &mut self.calls[call];
        known.due = Some(at + delay);
        let known = &self.calls[call];
        let laws = self.service_laws(known.service);
        require(5, attempts == known.attempts, || format!("{} were made", known.attempts))?;
        let last = known.last;
        require(4, last.is_some(), || "there is nothing to repeat".to_owned())?;
        let retry_after = last.map(|last| last.retry_after).unwrap_or_default();
        // Spread, so that those who were told the same time do not all come at once.
        let longest = laws.max_delay.max(retry_after + retry_after / 2);
        require(4, (retry_after..=longest).contains(&delay), || {
            format!("the wait is not within {retry_after:?} and {longest:?}")
        })?;
        let until = known.primary_deadline();
        require(4, at + delay < until, || format!("the wait reaches past {until:?}"))?;
        let circuit = self.circuits[known.service].as_ref().map(Ledger::state);
        require(3, !circuit.is_some_and(CircuitState::is_open), || {
            "a retry waits for an open circuit".to_owned()
        })?;
        require(12, !self.laws.innocent || last.is_some_and(|last| last.own_trouble), || {
            "a call to a healthy service is repeated".to_owned()
        })?;
        self.reached.note_if(delay > laws.max_delay, Cell::RetryAfterBeyondCap);
        self.spend(call, |spending| {
            spending.scheduled += 1;
            spending.scheduled
        })
    }

    pub(crate) fn ended(&mut self, at: Duration, call: usize, end: End) -> Result<(), Broken> {
        let known = &self.calls[call];
        let laws = self.service_laws(known.service);
        let refused = matches!(end, End::DeadlineExceeded | End::CircuitOpen | End::BulkheadFull);
        require(4, known.fell_back || !refused || known.last.is_none(), || {
            "the last real error is forgotten".to_owned()
        })?;
        require(9, known.fell_back || (end == End::Draining) == known.draining, || {
            format!("draining: {}, and the call came to {end:?}", known.draining)
        })?;
        let says_not_executed = end == End::Inner { not_executed: true };
        let write = known.kind == Kind::Write;
        require(7, !(says_not_executed && write && known.executed > 0), || {
            "the error says that the write was not executed, but it was".to_owned()
        })?;
        let outcome = known.reported.map(|(outcome, _)| outcome);
        let agrees = match (end, outcome) {
            (_, None) => false,
            (_, Some(outcome)) if known.fell_back => outcome != CallOutcome::Success,
            (End::Value, Some(outcome)) => outcome == CallOutcome::Success,
            (End::Inner { .. }, Some(outcome)) => matches!(
                outcome,
                CallOutcome::CallerError | CallOutcome::ServiceError | CallOutcome::LocalError
            ),
            // A service that was not asked is not late.
            (End::DeadlineExceeded, Some(outcome)) if known.attempts == 0 => {
                outcome == CallOutcome::LocalError
            }
            (End::AttemptTimeout | End::DeadlineExceeded, Some(outcome)) => {
                let ours = match end {
                    End::AttemptTimeout => known.last.is_some_and(|last| last.own_trouble),
                    _ => known.cut_unfairly,
                };
                outcome == CallOutcome::Timeout || (ours && outcome == CallOutcome::LocalError)
            }
            (End::CircuitOpen, Some(outcome)) => outcome == CallOutcome::CircuitOpen,
            (End::BulkheadFull | End::Draining, Some(outcome)) => outcome == CallOutcome::Rejected,
            (End::OtherRefusal | End::FallbackError, Some(_)) => true,
        };
        require(5, agrees, || format!("observers were told of {outcome:?}"))?;

        let failed = end != End::Value;
        let spent = failed && laws.max_retries > 0 && known.attempts > laws.max_retries;
        if let Some(outer) = known.around {
            self.calls[outer].inner_spent |= spent;
        }
        let known = &self.calls[call];
        let inner = matches!(end, End::Inner { .. });
        let open = self.circuits[known.service].as_ref().map(Ledger::state);
        let retries_left = known.attempts <= laws.max_retries;
        for (cell, reached) in [
            (Cell::CircuitOpen, end == End::CircuitOpen),
            (Cell::BulkheadFull, end == End::BulkheadFull),
            (Cell::RefusedDraining, end == End::Draining),
            (Cell::DeadlineBeforeAttempt, end == End::DeadlineExceeded && known.attempts == 0),
            (Cell::LastErrorAtDeadline, inner && at >= known.primary_deadline()),
            (Cell::OpenEndedRetries, inner && retries_left && open == Some(CircuitState::Open)),
            (Cell::FallbackError, end == End::FallbackError),
            (Cell::FallbackCutOff, end == End::DeadlineExceeded && known.fell_back),
            (Cell::RefusedWithFallback, inner && known.has_fallback && !known.fell_back),
            (Cell::InnerSpent, known.inner_spent && failed && retries_left),
            (
                Cell::UncertainWrite,
                inner && known.kind == Kind::Write && known.may_have_run && retries_left,
            ),
        ] {
            self.reached.note_if(reached, cell);
        }
        self.close(at, call);
        Ok(())
    }

    pub(crate) fn close(&mut self, at: Duration, call: usize) {
        self.calls[call].open = false;
        self.leave_queue(at, call);
    }

    /// A call that was refused a place, or did not wait for it, gives back its leave.
    pub(crate) fn leave_queue(&mut self, at: Duration, call: usize) {
        if let Some(circuit) = &mut self.circuits[self.calls[call].service] {
            circuit.settle(at, Holder::Queued(call), Effect::Neutral, &mut self.reached);
        }
    }
}
