//! What an attempt must be doing, from its beginning to its end.

use std::time::Duration;

use resilience_core::{Blame, Replay};

use super::{Last, Running};
use crate::coverage::Cell;
use crate::ledger::{Effect, Holder};
use crate::promises::{Broken, Judge, require};
use crate::service::{Answer, Fault};
use crate::trace::Kind;

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
        // Nor does the end of an attempt of a few milliseconds say much.
        let hurried = |running: &Running| {
            let limit = running.deadline - running.began;
            limit < Duration::from_millis(10) && at - running.began > limit / 2
        };
        let mut running = known.running.iter().filter(|running| running.number == number);
        let stalled = running.any(|running| running.stalled || hurried(running));
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
}
