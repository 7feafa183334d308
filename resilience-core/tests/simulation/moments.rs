//! What must hold between the steps: of those who wait, of the layers as they look, of the time, and at the end.

use std::time::Duration;

use crate::calls::CallLedger;
use crate::coverage::Cell;
use crate::ledger::Holder;
use crate::promises::{Broken, Judge, Load, require};
use crate::trace::Look;

/// Tokio's timers keep whole milliseconds: none fires more than one late.
const TICK: Duration = Duration::from_millis(1);

impl Judge<'_> {
    pub(crate) fn dropped(&mut self, task: usize) {
        self.dropped.push(task);
        for (call, known) in self.calls.iter().enumerate() {
            if !known.open || known.task != task {
                continue;
            }
            let circuit = self.circuits[known.service].as_ref();
            let probing = circuit.is_some_and(|circuit| circuit.is_probing(call));
            let queued = circuit.is_some_and(|circuit| circuit.is_queued(call));
            for (cell, reached) in [
                (Cell::DroppedInAttempt, !known.running.is_empty()),
                (Cell::DroppedInProbe, probing),
                (Cell::DroppedInBackoff, known.waits_to_retry() && !queued),
                (Cell::DroppedInQueue, queued),
                (Cell::DroppedInFallback, known.fell_back),
            ] {
                self.reached.note_if(reached, cell);
            }
        }
    }

    pub(crate) fn stalled(&mut self) {
        self.reached.note_if(self.laws.innocent, Cell::StalledInnocently);
        let draining = self.drains.iter().any(|(_, _, runs)| *runs);
        self.reached.note_if(draining, Cell::StalledInDrain);
        for (call, known) in self.calls.iter_mut().enumerate().filter(|(_, known)| known.open) {
            let circuit = self.circuits[known.service].as_ref();
            let probing = circuit.is_some_and(|circuit| circuit.is_probing(call));
            let queued = circuit.is_some_and(|circuit| circuit.is_queued(call));
            for (cell, reached) in [
                (Cell::StalledInAttempt, !known.running.is_empty()),
                (Cell::StalledInProbe, probing),
                (Cell::StalledInBackoff, known.waits_to_retry() && !queued),
                (Cell::StalledInQueue, queued),
            ] {
                self.reached.note_if(reached, cell);
            }
            for running in &mut known.running {
                running.stalled = true;
            }
        }
    }

    pub(crate) fn seen(
        &mut self,
        at: Duration,
        task: usize,
        service: usize,
        look: &Look,
    ) -> Result<(), Broken> {
        if look.waiting > 0 {
            self.queue(at, task, service, look.generation)?;
        }
        if let Some(circuit) = &self.circuits[service] {
            circuit.check(at, look)?;
        }
        let laws = self.service_laws(service);
        if let Some(hedge) = &laws.hedge {
            let load = &mut self.loads[service];
            let started = look.hedges - load.hedges;
            load.hedges = look.hedges;
            let Load { more, scheduled, hedges, .. } = *load;
            require(3, more <= scheduled + hedges, || {
                format!("{more} attempts more than calls: {scheduled} retries, {hedges} hedges")
            })?;
            if started > 0 {
                self.budgets[hedge.budget][0].hedges += started;
                self.reached.note(Cell::HedgePaid);
                self.check_budget(at, hedge.budget, None)?;
            }
        }
        if let (Some(adaptive), Some((most, _))) = (&laws.adaptive, laws.bulkhead) {
            require(11, (adaptive.min..=most).contains(&look.limit), || {
                format!("the limit is not within {} and {most}", adaptive.min)
            })?;
            self.reached.note_if(look.limit > adaptive.initial, Cell::LimitRaised);
            self.reached.note_if(look.limit < adaptive.initial, Cell::LimitCut);
        }
        if let (Some((places, _)), 0) = (self.service_laws(service).bulkhead, look.waiting) {
            let in_flight = self.in_flight(service);
            // While tasks are ready, a place may have been handed to one that has not run yet.
            let accounted = look.places + in_flight;
            // An attempt that is delayed on purpose has its place, and nobody sees it.
            let whole = if task == crate::trace::NOBODY && laws.chaos.is_none() {
                accounted == places
            } else {
                accounted <= places
            };
            require(6, whole, || {
                format!("{} of {places} places are free with {in_flight} taken", look.places)
            })?;
        }
        Ok(())
    }

    /// A call that has been polled, has leave, and makes no attempt, waits for its place.
    fn queue(
        &mut self,
        at: Duration,
        task: usize,
        service: usize,
        generation: u32,
    ) -> Result<(), Broken> {
        let Some(circuit) = &mut self.circuits[service] else { return Ok(()) };
        let here =
            |known: &CallLedger| known.open && known.task == task && known.service == service;
        let Some(call) = self.calls.iter().rposition(here) else { return Ok(()) };
        let known = &self.calls[call];
        let idle = known.running.is_empty() && known.reported.is_none();
        if idle && known.due.is_none_or(|due| due <= at) && !circuit.is_queued(call) {
            circuit.admit(at, Holder::Queued(call), generation, &mut self.reached)?;
        }
        Ok(())
    }

    pub(crate) fn idle(&self, at: Duration) -> Result<(), Broken> {
        for (call, known) in self.calls.iter().enumerate().filter(|(_, known)| known.open) {
            require(9, at <= known.deadline + TICK, || {
                format!("call {call} was to end by {:?}", known.deadline)
            })?;
        }
        for (service, deadline, _) in self.drains.iter().filter(|(_, _, runs)| *runs) {
            require(9, at <= *deadline + TICK, || {
                format!("the drain of service {service} was to end by {deadline:?}")
            })?;
        }
        Ok(())
    }

    pub(crate) fn finish(&self) -> Result<(), Broken> {
        for (call, known) in self.calls.iter().enumerate() {
            require(9, !known.open, || format!("call {call} has not ended"))?;
            require(5, known.reported.is_some(), || format!("call {call} was not reported"))?;
        }
        Ok(())
    }
}
