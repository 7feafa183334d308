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
        let most = laws.learned_up_to.unwrap_or(laws.attempt_timeout);
        let latest = until.min(at + most);
        require(4, attempt.deadline <= latest, || {
            format!("an attempt may last beyond {latest:?}")
        })?;
        // What delays it on purpose takes of its time.
        let soonest = until.min(at + laws.attempt_timeout);
        require(4, attempt.deadline >= soonest || laws.chaos.is_some(), || {
            format!("an attempt is to be cut off before {soonest:?}")
        })?;
        let attempts = known.attempts + 1;
        let in_turn = number == attempts || (laws.chaos.is_some() && number > attempts);
        let hedges = laws.hedge.as_ref().filter(|_| known.kind != Kind::Write);
        let hedges = hedges.map(|hedge| hedge.max_hedges);
        let allowed = match hedges {
            // Each has retries of its own.
            Some(hedges) => 1 + hedges + known.scheduled,
            None => laws.max_retries + 1,
        };
        require(3, in_turn && number <= allowed, || {
            format!("attempt {number} of {} after {attempts}", laws.max_retries + 1)
        })?;
        require(7, known.running.is_empty() || hedges.is_some(), || {
            "it runs twice at once".to_owned()
        })?;
        let learned = attempt.deadline < latest;
        require(9, !known.draining, || "an attempt began after the drain".to_owned())?;
        if number > 1 {
            let due = known.due.unwrap_or(Duration::MAX);
            require(4, at >= due || hedges.is_some(), || format!("a retry began before {due:?}"))?;
            require(7, known.kind != Kind::Write || !known.may_have_run, || {
                "a write was sent again that may have run".to_owned()
            })?;
            require(3, !known.inner_spent, || {
                "the outer pipeline repeats what the inner one gave up".to_owned()
            })?;
            let injected = known.attempts + 1 < number;
            self.reached.note_if(injected, Cell::InjectedThenRetried);
            self.reached.note(Cell::Retried);
            self.reached.note_if(known.kind == Kind::Write, Cell::RetriedWrite);
            self.reached.note_if(known.has_inner, Cell::OuterRepeated);
            let own_trouble = known.last.is_some_and(|last| last.own_trouble);
            self.reached.note_if(own_trouble, Cell::RetriedOwnTrouble);
            if hedges.is_none() {
                self.spend(at, call, |spending| {
                    spending.made += 1;
                })?;
            }
        }
        self.reached.note_if(!self.calls[call].running.is_empty(), Cell::Hedged);
        let probing = self.is_half_open(service) && !self.calls[call].running.is_empty();
        self.reached.note_if(probing, Cell::HedgeProbe);
        let first = self.calls[call].attempts == 0;
        let load = &mut self.loads[service];
        load.calls += u64::from(first);
        load.more += u64::from(!first);
        if let (Some(rate), true) = (&laws.rate, first) {
            let interval = rate.time.as_secs_f64() / f64::from(rate.calls);
            let most = f64::from(rate.burst) + at.as_secs_f64() / interval + 1e-6;
            let calls = self.loads[service].calls;
            require(3, calls as f64 <= most, || {
                format!("{calls} calls came, of {most} at the most")
            })?;
            let waited = laws.shed.is_none() && at > self.calls[call].began;
            self.reached.note_if(waited && laws.bulkhead.is_none(), Cell::RateAwaited);
        }
        if number == 1 && laws.chaos.is_none() {
            self.deposit(service);
        }
        self.reached.note_if(learned && laws.chaos.is_none(), Cell::LimitLearned);
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
                circuit.begin(at, (call, number), generation, &mut self.reached)?;
                self.reached.note(Cell::PlaceAwaited);
            } else {
                circuit.admit(at, holder, generation, &mut self.reached)?;
            }
            circuit.times_out(holder, attempt.deadline);
        }
        Ok(())
    }

    /// Counts a call for what pays for the retries of its service.
    pub(crate) fn deposit(&mut self, service: usize) {
        let laws = self.service_laws(service);
        let hedges = laws.hedge.as_ref().map(|hedge| hedge.budget);
        let hedges = hedges.filter(|budget| Some(*budget) != laws.budget);
        for budget in laws.budget.into_iter().chain(hedges) {
            self.budgets[budget].iter_mut().for_each(|spending| spending.calls += 1);
        }
    }

    /// Counts a retry of `call` on its budget, unless it is free.
    fn spend(
        &mut self,
        at: Duration,
        call: usize,
        count: impl FnOnce(&mut crate::promises::Spending),
    ) -> Result<(), Broken> {
        let known = &self.calls[call];
        let free = known.last.is_some_and(|last| last.own_trouble);
        let budget = self.service_laws(known.service).budget.filter(|_| !free);
        let Some(budget) = budget else { return Ok(()) };
        let hedged = self.is_hedged(call);
        let laws = &self.laws.budgets[budget];
        if hedged && (known.any_own_trouble || laws.throttling.is_some()) {
            // It may be the retry of another attempt, that is free, or paid from another share.
            return Ok(());
        }
        let throttled = known.last.is_some_and(|last| last.retry_after.is_some());
        let own_share = laws.throttling.filter(|_| throttled);
        count(&mut self.budgets[budget][usize::from(own_share.is_some())]);
        self.reached.note_if(own_share.is_some(), Cell::ThrottlingPaid);
        self.check_budget(at, budget, own_share)
    }

    /// Whether a call may be in flight more than once.
    pub(crate) fn is_hedged(&self, call: usize) -> bool {
        let known = &self.calls[call];
        self.service_laws(known.service).hedge.is_some() && known.kind != Kind::Write
    }

    /// Compares what a budget, or the share of throttled calls in it, gave with what it was paid.
    pub(crate) fn check_budget(
        &mut self,
        at: Duration,
        budget: usize,
        own_share: Option<(f64, u32)>,
    ) -> Result<(), Broken> {
        let laws = &self.laws.budgets[budget];
        let (ratio, burst) = own_share.unwrap_or((laws.ratio, laws.burst));
        let floor_rate = if own_share.is_some() { 0.0 } else { laws.floor_rate };
        let spending = &self.budgets[budget][usize::from(own_share.is_some())];
        let spent = (spending.made.max(spending.scheduled) + spending.hedges) * RETRY;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1,000,000"
        )]
        let (share, floor) = {
            let in_units = |retries: f64| (retries * RETRY as f64).round() as u64;
            (in_units(ratio), in_units(floor_rate * at.as_secs_f64()))
        };
        let without_floor = spending.calls * share + u64::from(burst) * RETRY;
        let owed = without_floor + floor;
        self.reached.note_if(spent > without_floor, Cell::FloorPaid);
        require(3, spent <= owed, || format!("{spent} of {owed} millionths of a retry are spent"))
    }

    pub(crate) fn in_flight(&self, service: usize) -> usize {
        let here = self.calls.iter().filter(|call| call.open && call.service == service);
        here.map(|call| call.running.len()).sum()
    }

    pub(crate) fn executed(&mut self, call: usize) -> Result<(), Broken> {
        require(7, self.calls[call].attempts > 0, || "it was executed unasked".to_owned())?;
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
        known.decided |= verdict.is_none_or(|verdict| verdict.replay == Replay::Never);
        if let Some(verdict) = verdict {
            known.any_own_trouble |= verdict.blame == Blame::Local || stalled;
            known.longest_asked = known.longest_asked.max(verdict.retry_after.unwrap_or_default());
            let own_trouble = verdict.blame == Blame::Local || stalled;
            let retry_after = verdict.retry_after;
            known.last = Some(Last { own_trouble, retry_after, injected: false });
        }
        let poisoned = answer.0.is_some_and(|fault| fault.poisoned);
        self.reached.note_if(poisoned, Cell::ClassifierPanicked);
        self.attempt_ended(at, call, number, effect);
    }

    pub(crate) fn cut(&mut self, at: Duration, call: usize, number: u32) -> Result<(), Broken> {
        let hedged = self.is_hedged(call);
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
        if known.decided && at < cut.deadline {
            require(9, hedged, || "an attempt was dropped after its answer".to_owned())?;
            self.reached.note(Cell::HedgeLost);
            self.attempt_ended(at, call, number, Effect::Neutral);
            return Ok(());
        }
        known.cut_unfairly = cut.stalled;
        known.any_own_trouble |= cut.stalled;
        require(9, at >= cut.deadline, || format!("an attempt was cut before {:?}", cut.deadline))?;
        if at < known.primary_deadline() {
            let (own_trouble, retry_after) = (cut.stalled, None);
            known.last = Some(Last { own_trouble, retry_after, injected: false });
            let laws = &self.laws.services[known.service];
            let below = laws.learned_up_to.is_some_and(|most| cut.deadline < cut.began + most);
            self.reached.note_if(below, Cell::CutByLearned);
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
        let outlived = !known.running.is_empty() && effect == Effect::Failure;
        self.reached.note_if(outlived, Cell::HedgeOutlived);
        self.failures[known.service] +=
            u64::from(matches!(effect, Effect::Failure | Effect::Perhaps));
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
