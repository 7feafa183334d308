//! What calls pay for their retries and hedges, and what these may cost: promise 3.

use std::time::Duration;

use crate::coverage::Cell;
use crate::promises::{Broken, Judge, Spending, require};
use crate::trace::Kind;

/// A retry, in the unit of budgets.
const RETRY: u64 = 1_000_000;

impl Judge<'_> {
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
    pub(super) fn spend(
        &mut self,
        at: Duration,
        call: usize,
        count: impl FnOnce(&mut Spending),
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

    /// Whether a call may be in flight more than once.
    pub(crate) fn is_hedged(&self, call: usize) -> bool {
        let known = &self.calls[call];
        self.service_laws(known.service).hedge.is_some() && known.kind != Kind::Write
    }
}
