//! What calls and their attempts must be doing: promises 3, 4, 7, 9, 11 and 12.

mod attempts;
mod budgets;

use std::time::Duration;

use resilience_core::{CallOutcome, CircuitState};

use crate::coverage::Cell;
use crate::ledger::{Effect, Holder, Ledger};
use crate::promises::{Broken, Judge, require};
use crate::trace::{End, Kind};

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
    pub(crate) draining: bool,
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
    /// Retries that were to be made.
    scheduled: u32,
    /// Whether an answer came that ends it.
    decided: bool,
    /// Whether this process was to blame for any of its failures, and the longest that it was asked to wait.
    any_own_trouble: bool,
    longest_asked: Duration,
}

/// An attempt in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) number: u32,
    pub(crate) began: Duration,
    pub(crate) deadline: Duration,
    pub(crate) stalled: bool,
}

/// What the last failed attempt came to.
#[derive(Clone, Copy, Debug)]
struct Last {
    /// Whether this process was, or may have been, to blame.
    own_trouble: bool,
    retry_after: Option<Duration>,
    /// Whether a fault was put in place of it.
    injected: bool,
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
            scheduled: 0,
            decided: false,
            any_own_trouble: false,
            longest_asked: Duration::ZERO,
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
    pub(crate) fn retry_due(
        &mut self,
        at: Duration,
        call: usize,
        attempts: u32,
        delay: Duration,
    ) -> Result<(), Broken> {
        let known = &mut self.calls[call];
        known.due = Some(at + delay);
        known.scheduled += 1;
        self.loads[known.service].scheduled += 1;
        if attempts > known.attempts && self.laws.services[known.service].chaos.is_some() {
            // An attempt that nobody saw: a fault was put in place of it, or it was cut off while it was delayed.
            let own_trouble = self.stalled_until.is_some();
            known.last = Some(Last { own_trouble, retry_after: None, injected: true });
            self.failures[known.service] += 1;
        }
        let known = &self.calls[call];
        let laws = self.service_laws(known.service);
        let unseen = attempts > known.attempts && laws.chaos.is_some();
        let hedged = self.is_hedged(call);
        let fewer = hedged && attempts < known.attempts;
        require(5, attempts == known.attempts || unseen || fewer, || {
            format!("{} were made", known.attempts)
        })?;
        let last = known.last;
        require(4, last.is_some(), || "there is nothing to repeat".to_owned())?;
        let retry_after = last.and_then(|last| last.retry_after).unwrap_or_default();
        // Spread, so that those who were told the same time do not all come at once.
        let (retry_after, asked) = match hedged {
            // It may be the retry of any of its attempts.
            true => (Duration::ZERO, known.longest_asked),
            false => (retry_after, retry_after),
        };
        let longest = laws.max_delay.max(asked + asked / 2);
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
        self.spend(at, call, |spending| {
            spending.scheduled += 1;
        })
    }

    pub(crate) fn ended(&mut self, at: Duration, call: usize, end: End) -> Result<(), Broken> {
        let known = &self.calls[call];
        let laws = self.service_laws(known.service);
        let refused = matches!(
            end,
            End::DeadlineExceeded
                | End::CircuitOpen
                | End::BulkheadFull
                | End::Throttled
                | End::Shed
        );
        let early = matches!(end, End::Shed | End::RateLimited);
        require(6, !early || known.attempts == 0, || "a shed call was made".to_owned())?;
        let failed_before = laws.chaos.is_some() || self.failures[known.service] > 0;
        require(12, end != End::Throttled || failed_before, || {
            "a service was spared that had not failed".to_owned()
        })?;
        let reported = known.reported.map_or(0, |(_, attempts)| attempts);
        require(7, end != End::Injected || known.attempts < reported, || {
            "a fault was injected in an attempt that was made".to_owned()
        })?;
        let real = known.last.is_some_and(|last| !last.injected);
        require(4, known.fell_back || !refused || !real, || {
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
            (End::DeadlineExceeded, Some(outcome)) if reported == 0 => {
                outcome == CallOutcome::LocalError
            }
            (End::AttemptTimeout | End::DeadlineExceeded, Some(outcome)) => {
                let ours = match end {
                    End::AttemptTimeout => known.last.is_some_and(|last| last.own_trouble),
                    _ => known.cut_unfairly,
                };
                let ours = ours || laws.chaos.is_some() || self.is_hedged(call);
                outcome == CallOutcome::Timeout || (ours && outcome == CallOutcome::LocalError)
            }
            (End::CircuitOpen, Some(outcome)) => outcome == CallOutcome::CircuitOpen,
            (
                End::BulkheadFull | End::Throttled | End::RateLimited | End::Shed | End::Draining,
                Some(outcome),
            ) => outcome == CallOutcome::Rejected,
            (End::Injected, Some(outcome)) => outcome == CallOutcome::ServiceError,
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
            (Cell::Throttled, end == End::Throttled),
            (
                Cell::ThrottledRetry,
                inner
                    && retries_left
                    && laws.throttle.is_some()
                    && known.due.is_some_and(|due| due <= at),
            ),
            (Cell::Injected, end == End::Injected),
            (Cell::Shed, end == End::Shed),
            (Cell::RateLimited, end == End::RateLimited),
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
