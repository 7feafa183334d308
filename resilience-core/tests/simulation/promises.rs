//! The promises as assertions on a trace: each fact in turn, beside what it may be by the rules alone.

use std::time::Duration;

use resilience_core::{CallOutcome, CircuitState, Outcome};

use crate::calls::{CallLedger, Running};
use crate::coverage::{Cell, Coverage};
use crate::laws::{Laws, ServiceLaws};
use crate::ledger::{Effect, Holder, Ledger};
use crate::trace::{Fact, Trace};

/// For as long after a standstill this process may still count itself as standing: its heart beats ten times a second.
const AFTERMATH: Duration = Duration::from_millis(200);

/// A promise that was not kept, by its number in the list of promises.
#[derive(Debug)]
pub(crate) struct Broken {
    promise: u8,
    what: String,
}

pub(crate) fn require(
    promise: u8,
    kept: bool,
    what: impl FnOnce() -> String,
) -> Result<(), Broken> {
    if kept { Ok(()) } else { Err(Broken { promise, what: what() }) }
}

/// Reads a trace to its end, or to the first promise that it breaks.
pub(crate) fn judge(trace: &Trace, laws: &Laws) -> Result<Coverage, String> {
    let mut judge = Judge::new(laws);
    for (index, (at, fact)) in trace.facts.iter().enumerate() {
        judge.hear(*at, *fact).map_err(|Broken { promise, what }| {
            format!("promise {promise} broken at {at:?} (fact {index}: {fact:?}): {what}")
        })?;
    }
    judge
        .finish()
        .map_err(|Broken { promise, what }| format!("promise {promise} broken: {what}"))?;
    Ok(judge.reached)
}

/// What is known so far.
pub(crate) struct Judge<'a> {
    pub(crate) laws: &'a Laws,
    pub(crate) calls: Vec<CallLedger>,
    pub(crate) circuits: Vec<Option<Ledger>>,
    /// What each budget gave, and what the share of throttled calls in it did.
    pub(crate) budgets: Vec<[Spending; 2]>,
    /// Each drain that has begun: its service, its deadline, and whether it still runs.
    pub(crate) drains: Vec<(usize, Duration, bool)>,
    pub(crate) dropped: Vec<usize>,
    /// Until when this process last stood still.
    pub(crate) stalled_until: Option<Duration>,
    /// Attempts of each service that failed, or may have.
    pub(crate) failures: Vec<u64>,
    /// What is known of the load on each service.
    pub(crate) loads: Vec<Load>,
    pub(crate) reached: Coverage,
}

/// The calls that came to an attempt, the attempts beyond one for each, and what they are owed to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) calls: u64,
    pub(crate) more: u64,
    pub(crate) scheduled: u64,
    pub(crate) hedges: u64,
}

/// What a budget was paid for, and what it gave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spending {
    pub(crate) calls: u64,
    /// Retries that were to be made, and those that were.
    pub(crate) scheduled: u64,
    pub(crate) made: u64,
    pub(crate) hedges: u64,
}

impl<'a> Judge<'a> {
    fn new(laws: &'a Laws) -> Self {
        let circuits = laws.services.iter().map(|laws| {
            let watched = laws.is_watched();
            laws.breaker.as_ref().map(|laws| Ledger::new(laws.settings, watched))
        });
        Self {
            laws,
            calls: Vec::new(),
            circuits: circuits.collect(),
            budgets: vec![[Spending::default(); 2]; laws.budgets.len()],
            drains: Vec::new(),
            dropped: Vec::new(),
            stalled_until: None,
            failures: vec![0; laws.services.len()],
            loads: vec![Load::default(); laws.services.len()],
            reached: Coverage::default(),
        }
    }

    fn hear(&mut self, at: Duration, fact: Fact) -> Result<(), Broken> {
        match fact {
            Fact::Began { call, task, service, kind, deadline, fallback, around } => {
                let draining = self.drains.iter().any(|(drained, ..)| *drained == service);
                // Where faults are injected, the first attempt may be one that nobody sees.
                if self.service_laws(service).chaos.is_some() && !draining {
                    self.deposit(service);
                }
                if let Some(outer) = around {
                    self.calls[outer].has_inner = true;
                }
                require(5, call == self.calls.len(), || {
                    "a call's beginning is missing".to_owned()
                })?;
                let at = (at, deadline);
                self.calls
                    .push(CallLedger::new(task, service, kind, at, fallback, around, draining));
                Ok(())
            }
            Fact::Attempted { call, number, deadline, generation } => {
                let stalled = self.stalled_until.is_some_and(|until| at < until + AFTERMATH);
                let attempt = Running { number, began: at, deadline, stalled };
                self.attempted(at, call, attempt, generation)
            }
            Fact::Executed { call } => self.executed(call),
            Fact::Answered { call, number, answer } => {
                self.answered(at, call, number, answer);
                Ok(())
            }
            Fact::Panicked { call, number } => {
                let probing = self.is_half_open(self.calls[call].service);
                self.reached.note(Cell::OperationPanicked);
                self.reached.note_if(probing, Cell::ProbePanicked);
                // Where it is hedged, another attempt may be to blame.
                let hedged = self.is_hedged(call);
                let effect = if hedged { Effect::Perhaps } else { Effect::Failure };
                self.attempt_ended(at, call, number, effect);
                Ok(())
            }
            Fact::Cut { call, number } => self.cut(at, call, number),
            Fact::RetryDue { call, attempts, delay } => self.retry_due(at, call, attempts, delay),
            Fact::BudgetEmpty { .. } => {
                self.reached.note(Cell::BudgetEmpty);
                require(12, !self.laws.innocent, || "a budget was spent on healthy services".into())
            }
            Fact::Reported { call, outcome, attempts } => {
                let known = &mut self.calls[call];
                require(5, known.reported.is_none(), || "a call was reported twice".to_owned())?;
                let unseen =
                    attempts > known.attempts && self.laws.services[known.service].chaos.is_some();
                require(5, attempts == known.attempts || unseen, || {
                    format!("{attempts} attempts were reported, {} were made", known.attempts)
                })?;
                known.reported = Some((outcome, attempts));
                self.leave_queue(at, call);
                Ok(())
            }
            Fact::FellBack { call } => {
                let known = &mut self.calls[call];
                known.fell_back = true;
                let laws = &self.laws.services[known.service];
                let refused = known.reported == Some((CallOutcome::Rejected, 0));
                let shed =
                    laws.shed.is_some() && laws.bulkhead.is_none() && laws.throttle.is_none();
                self.reached.note_if(refused && shed, Cell::ShedWithFallback);
                self.reached.note(Cell::FellBack);
                Ok(())
            }
            Fact::Ended { call, end } => self.ended(at, call, end),
            Fact::Gone { call } => {
                self.close(at, call);
                Ok(())
            }
            Fact::Dropped { task } => {
                self.dropped(task);
                Ok(())
            }
            Fact::Crashed { .. } => Ok(()),
            Fact::Changed { service, from, to, generation, committed } => {
                require(5, committed, || "observers were told before it was so".to_owned())?;
                require(12, !self.laws.innocent || from != CircuitState::Closed, || {
                    "the circuit of a healthy service opened".to_owned()
                })?;
                let circuit = self.circuits[service].as_mut().expect("it has a breaker");
                circuit.change(at, (from, to), generation, &mut self.reached)
            }
            Fact::Held { service, permit, generation } => {
                let circuit = self.circuits[service].as_mut().expect("it has a breaker");
                circuit.admit(at, Holder::Permit(permit), generation, &mut self.reached)
            }
            Fact::Settled { service, permit, outcome } => {
                let effect = match outcome {
                    Outcome::Success => Effect::Success,
                    Outcome::Failure => Effect::Failure,
                    Outcome::Excluded | Outcome::Cancelled => Effect::Neutral,
                };
                let circuit = self.circuits[service].as_mut().expect("it has a breaker");
                circuit.settle(at, Holder::Permit(permit), effect, &mut self.reached);
                Ok(())
            }
            Fact::Handling { service, hand } => {
                let circuit = self.circuits[service].as_mut().expect("it has a breaker");
                circuit.handling(hand, &mut self.reached);
                Ok(())
            }
            Fact::Handled { service, generation } => {
                let circuit = self.circuits[service].as_mut().expect("it has a breaker");
                circuit.handled(at, generation)
            }
            Fact::Refused { service, state, retry_after } => {
                let circuit = self.circuits[service].as_ref().expect("it has a breaker");
                circuit.refused(retry_after)?;
                self.reached.note_if(state == CircuitState::ForcedOpen, Cell::ForcedOpen);
                self.reached.note_if(state == CircuitState::Closed, Cell::RefusedRecovering);
                self.reached.note_if(state == CircuitState::Open, Cell::RefusedOpen);
                self.reached.note_if(state == CircuitState::HalfOpen, Cell::RefusedHalfOpen);
                Ok(())
            }
            Fact::Stalled { by } => {
                self.stalled_until = Some(at + by);
                for circuit in self.circuits.iter_mut().flatten() {
                    circuit.stalled(by);
                }
                self.stalled();
                Ok(())
            }
            Fact::DrainBegan { service, deadline } => {
                self.drains.push((service, deadline, true));
                Ok(())
            }
            Fact::DrainEnded { service, abandoned } => {
                let inside = self.calls.iter().filter(|call| call.open && call.service == service);
                let falls_back = |call: &CallLedger| call.fell_back && !call.draining;
                let inside =
                    inside.filter(|call| call.reported.is_none() || falls_back(call)).count();
                for (_, _, runs) in self.drains.iter_mut().filter(|drain| drain.0 == service) {
                    *runs = false;
                }
                self.reached.note_if(abandoned > 0, Cell::DrainAbandoned);
                self.reached.note_if(abandoned == 0, Cell::DrainedEmpty);
                require(9, abandoned == inside, || {
                    format!("{abandoned} calls were said to be abandoned, {inside} run")
                })
            }
            Fact::Seen { task, service, look } => self.seen(at, task, service, &look),
            Fact::Idle => self.idle(at),
            Fact::Stuck => require(9, false, || "somebody waits for what never comes".to_owned()),
            Fact::Recovered { service, state } => {
                let circuit = self.circuits[service].as_ref();
                let forgotten = circuit.is_some_and(Ledger::has_any_out);
                self.reached.note_if(forgotten, Cell::ForgottenPermit);
                let open = state.is_some_and(|state| state != CircuitState::Closed);
                require(1, !open, || format!("it is stuck in {state:?}"))
            }
        }
    }

    pub(crate) fn service_laws(&self, service: usize) -> &'a ServiceLaws {
        &self.laws.services[service]
    }

    pub(crate) fn is_half_open(&self, service: usize) -> bool {
        let circuit = self.circuits[service].as_ref();
        circuit.is_some_and(|circuit| circuit.state() == CircuitState::HalfOpen)
    }
}
