//! What one circuit must be doing, by the rules alone: promises 1 and 2.
//!
//! An attempt that timed out was a failure, or neutral where this process was to blame; from
//! outside one cannot tell which, so such an end *may* open the circuit and need not.

use std::time::Duration;

use resilience_core::CircuitState;

use crate::coverage::{Cell, Coverage};
use crate::laws::BreakerLaws;
use crate::promises::{Broken, require};
use crate::trace::Look;

/// Who has leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Holder {
    /// A call that waits for a place.
    Queued(usize),
    /// An attempt of a call, by its number.
    Attempt(usize, u32),
    /// A permit by itself.
    Permit(usize),
}

/// How an attempt ended, as far as one can tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    Success,
    Failure,
    /// Failure or neutral.
    Perhaps,
    Neutral,
}

#[derive(Clone, Copy, Debug)]
struct Leave {
    holder: Holder,
    generation: u32,
    probe: bool,
    expires: Duration,
    /// When it times out.
    until: Duration,
}

/// One circuit and those who have leave.
#[derive(Debug)]
pub(crate) struct Ledger {
    laws: BreakerLaws,
    state: CircuitState,
    generation: u32,
    since: Duration,
    /// Failures in a row: those that are certain, and those that may be.
    in_a_row: u32,
    perhaps_in_a_row: u32,
    successes: u32,
    failed: bool,
    perhaps_failed: bool,
    /// When the first lease ran out that was found to.
    lost: Option<Duration>,
    out: Vec<Leave>,
}

impl Ledger {
    pub(crate) fn new(laws: BreakerLaws) -> Self {
        Self {
            laws,
            state: CircuitState::Closed,
            generation: 0,
            since: Duration::ZERO,
            in_a_row: 0,
            perhaps_in_a_row: 0,
            successes: 0,
            failed: false,
            perhaps_failed: false,
            lost: None,
            out: Vec::new(),
        }
    }

    pub(crate) fn state(&self) -> CircuitState {
        self.state
    }

    pub(crate) fn admit(
        &mut self,
        at: Duration,
        holder: Holder,
        generation: u32,
        reached: &mut Coverage,
    ) -> Result<(), Broken> {
        let probe = self.state == CircuitState::HalfOpen;
        require(2, generation == self.generation, || {
            format!(
                "{holder:?} was admitted under generation {generation}, not {}",
                self.generation
            )
        })?;
        require(1, self.state != CircuitState::Open, || {
            format!("{holder:?} passed an open circuit")
        })?;
        if probe {
            let others = self.probes().count();
            require(1, others < self.laws.half_open_max_calls, || {
                format!("{holder:?} is a probe beside {others} others")
            })?;
            reached.note(Cell::ProbeAdmitted);
            reached.note_if(others > 0, Cell::ProbesTogether);
            reached.note_if(matches!(holder, Holder::Queued(_)), Cell::ProbeQueued);
        }
        let expires = at + self.laws.probe_lease;
        self.out.push(Leave { holder, generation, probe, expires, until: Duration::MAX });
        Ok(())
    }

    /// A call that waited for its place begins its attempt.
    pub(crate) fn begin(&mut self, call: usize, number: u32) {
        let waited = self.out.iter_mut().find(|leave| leave.holder == Holder::Queued(call));
        if let Some(leave) = waited {
            leave.holder = Holder::Attempt(call, number);
        }
    }

    pub(crate) fn is_queued(&self, call: usize) -> bool {
        self.out.iter().any(|leave| leave.holder == Holder::Queued(call))
    }

    pub(crate) fn is_probing(&self, call: usize) -> bool {
        self.probes().any(|leave| matches!(leave.holder, Holder::Attempt(one, _) if one == call))
    }

    pub(crate) fn times_out(&mut self, holder: Holder, until: Duration) {
        if let Some(leave) = self.out.iter_mut().find(|leave| leave.holder == holder) {
            leave.until = until;
        }
    }

    pub(crate) fn settle(
        &mut self,
        at: Duration,
        holder: Holder,
        result: Effect,
        reached: &mut Coverage,
    ) {
        let Some(index) = self.out.iter().position(|leave| leave.holder == holder) else { return };
        if self.out[index].generation != self.generation {
            let leave = self.out.swap_remove(index);
            return self.note_late(leave, result, reached);
        }
        if self.state == CircuitState::HalfOpen {
            self.lost = self.probes().map(|leave| leave.expires).filter(|end| *end <= at).min();
            let lost = self.lost.is_some();
            reached.note_if(lost, Cell::AnswerAfterLease);
            reached.note_if(!lost && result == Effect::Neutral, Cell::ProbeFreed);
        }
        self.out.swap_remove(index);
        match result {
            Effect::Success => {
                (self.in_a_row, self.perhaps_in_a_row) = (0, 0);
                self.successes += u32::from(self.lost.is_none());
            }
            Effect::Failure => {
                self.in_a_row += 1;
                self.perhaps_in_a_row += 1;
                self.failed = true;
            }
            Effect::Perhaps => {
                self.perhaps_in_a_row += 1;
                self.perhaps_failed = true;
            }
            Effect::Neutral => {}
        }
    }

    fn note_late(&self, leave: Leave, result: Effect, reached: &mut Coverage) {
        let cell = match (self.state, result) {
            (_, Effect::Neutral | Effect::Perhaps) => return,
            (CircuitState::Open, Effect::Success) => Cell::LateSuccessWhileOpen,
            (CircuitState::Open, Effect::Failure) => Cell::LateFailureWhileOpen,
            (CircuitState::HalfOpen, Effect::Success) => Cell::LateSuccessWhileHalfOpen,
            (CircuitState::HalfOpen, Effect::Failure) => Cell::LateFailureWhileHalfOpen,
            (_, Effect::Success) => Cell::LateSuccessWhileClosed,
            (_, Effect::Failure) => Cell::LateFailureWhileClosed,
        };
        reached.note(cell);
        let earlier_probe = leave.probe && self.state == CircuitState::HalfOpen;
        reached.note_if(earlier_probe, Cell::ProbeOfAnEarlierCycle);
    }

    pub(crate) fn change(
        &mut self,
        at: Duration,
        (from, to): (CircuitState, CircuitState),
        generation: u32,
        reached: &mut Coverage,
    ) -> Result<(), Broken> {
        require(2, from == self.state && generation == self.generation + 1, || {
            format!(
                "{from:?} became {to:?} under {generation} in {:?} {}",
                self.state, self.generation
            )
        })?;
        let mine = self.out.iter().filter(|leave| leave.generation == self.generation);
        let timing_out = mine.filter(|leave| leave.until <= at).count();
        let lost = self.probes().map(|leave| leave.expires).filter(|end| *end <= at).min();
        let lost = lost.into_iter().chain(self.lost).min();
        let mut since = at;
        match (from, to) {
            (CircuitState::Closed, CircuitState::Open) => {
                let most = self.perhaps_in_a_row as usize + timing_out;
                require(2, most >= self.laws.fail_max as usize, || {
                    format!("it opened after {most} failures of its generation in a row")
                })?;
                reached.note(Cell::Opened);
            }
            (CircuitState::Open, CircuitState::HalfOpen) => {
                let open = at.saturating_sub(self.since);
                require(4, open >= self.laws.reset_timeout, || {
                    format!("it was open for {open:?} only")
                })?;
                reached.note(Cell::HalfOpened);
            }
            (CircuitState::HalfOpen, CircuitState::Open) => {
                let failed = self.failed || self.perhaps_failed || timing_out > 0;
                require(2, failed || lost.is_some(), || {
                    "it opened again, and no probe of its generation had failed".to_owned()
                })?;
                since = lost.unwrap_or(at);
                reached.note_if(self.failed, Cell::ReopenedByFailure);
                reached.note_if(lost.is_some(), Cell::ReopenedByLease);
                reached.note_if(!self.failed && timing_out > 0, Cell::ReopenedByTimeout);
            }
            (CircuitState::HalfOpen, CircuitState::Closed) => {
                require(2, self.successes >= self.laws.success_threshold, || {
                    format!("it closed after {} successes of its generation", self.successes)
                })?;
                reached.note(Cell::Closed);
            }
            _ => require(2, false, || format!("{from:?} became {to:?}"))?,
        }
        let laws = self.laws.clone();
        let out = std::mem::take(&mut self.out);
        *self = Self { state: to, generation, since, out, ..Self::new(laws) };
        Ok(())
    }

    /// Compares what is seen between two steps with what must be.
    pub(crate) fn check(&self, at: Duration, look: &Look) -> Result<(), Broken> {
        require(2, (look.state, look.generation) == (self.state, self.generation), || {
            format!("it is {look:?}; it was to be {:?} {}", self.state, self.generation)
        })?;
        match self.state {
            CircuitState::Closed => require(2, self.in_a_row < self.laws.fail_max, || {
                format!("it is closed after {} failures in a row", self.in_a_row)
            }),
            CircuitState::HalfOpen => {
                require(1, !self.failed, || "it is half-open after a failed probe".to_owned())?;
                require(1, self.successes < self.laws.success_threshold, || {
                    format!("it is half-open after {} successes", self.successes)
                })?;
                let out = self.probes().count();
                let free = out < self.laws.half_open_max_calls;
                let expired = self.probes().any(|probe| probe.expires <= at);
                require(6, expired || free != look.probes_out, || {
                    format!("{out} probes are out, and it says all out: {}", look.probes_out)
                })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn has_any_out(&self) -> bool {
        !self.out.is_empty()
    }

    fn probes(&self) -> impl Iterator<Item = &Leave> {
        let half_open = self.state == CircuitState::HalfOpen;
        self.out.iter().filter(move |leave| half_open && leave.generation == self.generation)
    }
}
