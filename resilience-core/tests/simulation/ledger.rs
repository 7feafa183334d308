//! What one circuit must be doing, by the rules alone: promises 1 and 2.
//!
//! An attempt that timed out was a failure, or neutral where this process was to blame; from
//! outside one cannot tell which, so such an end *may* open the circuit and need not. So it is with
//! slow answers, of whose time this process may have had its part, and after new rules.

use std::time::Duration;

use resilience_core::{CircuitSettings, CircuitState, SlidingWindow};

use crate::coverage::{Cell, Coverage};
use crate::laws::{Hand, longest_open};
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
    /// When it began its attempt.
    issued: Duration,
    expires: Duration,
    /// How much longer its lease may be, for this process stood still.
    excused: Duration,
    /// When it times out.
    until: Duration,
}

/// One circuit and those who have leave.
#[derive(Debug)]
pub(crate) struct Ledger {
    laws: CircuitSettings,
    /// Whether one sees all who have leave. Otherwise only the changes themselves are judged.
    watched: bool,
    state: CircuitState,
    generation: u32,
    since: Duration,
    /// Failures in a row: those that are certain, and those that may be.
    in_a_row: u32,
    perhaps_in_a_row: u32,
    /// Good probes: those that are certain, and those that may be.
    successes: u32,
    perhaps_successes: u32,
    failed: bool,
    perhaps_failed: bool,
    /// Ends of this generation that counted or may have, whether they failed or may have, and those
    /// that were slow or may have been.
    ends: Vec<bool>,
    slow: usize,
    /// Whether each of `ends` is certain.
    certain: bool,
    /// Whether the failure rate must have opened it.
    rate_due: bool,
    /// How often in a row it opened again.
    reopened: i32,
    /// The state that somebody is about to force.
    forcing: Option<CircuitState>,
    /// Whether there were other rules when this generation began.
    renewed: bool,
    /// When the first lease ran out that was found to, or may have been; and whether it is certain.
    lost: Option<Duration>,
    surely_lost: bool,
    out: Vec<Leave>,
}

impl Ledger {
    pub(crate) fn new(laws: CircuitSettings, watched: bool) -> Self {
        Self {
            laws,
            watched,
            state: CircuitState::Closed,
            generation: 0,
            since: Duration::ZERO,
            in_a_row: 0,
            perhaps_in_a_row: 0,
            successes: 0,
            perhaps_successes: 0,
            failed: false,
            perhaps_failed: false,
            ends: Vec::new(),
            slow: 0,
            certain: true,
            rate_due: false,
            reopened: 0,
            forcing: None,
            renewed: false,
            lost: None,
            surely_lost: false,
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
        if !self.watched && !matches!(holder, Holder::Permit(_)) {
            return Ok(());
        }
        let probe = self.state == CircuitState::HalfOpen;
        require(2, generation == self.generation, || {
            format!(
                "{holder:?} was admitted under generation {generation}, not {}",
                self.generation
            )
        })?;
        require(1, !self.state.is_open(), || format!("{holder:?} passed an open circuit"))?;
        if probe {
            let others = self.probes().count();
            let most = self.laws.half_open_max_calls as usize;
            require(1, others < most, || format!("{holder:?} is a probe beside {others} others"))?;
            reached.note(Cell::ProbeAdmitted);
            reached.note_if(others > 0, Cell::ProbesTogether);
            reached.note_if(matches!(holder, Holder::Queued(_)), Cell::ProbeQueued);
        }
        let forced = !matches!(self.state, CircuitState::Closed | CircuitState::HalfOpen);
        reached.note_if(forced, Cell::ForcedToPass);
        let (issued, expires) = (at, at + self.laws.probe_lease);
        let (excused, until) = (Duration::ZERO, Duration::MAX);
        self.out.push(Leave { holder, generation, probe, issued, expires, excused, until });
        Ok(())
    }

    /// This process stands still.
    pub(crate) fn stalled(&mut self, by: Duration) {
        self.out.iter_mut().for_each(|leave| leave.excused += by);
    }

    /// A call that waited for its place begins its attempt. If the circuit has changed meanwhile, it has
    /// asked again.
    pub(crate) fn begin(
        &mut self,
        at: Duration,
        (call, number): (usize, u32),
        generation: u32,
        reached: &mut Coverage,
    ) -> Result<(), Broken> {
        let waited = self.out.iter().position(|leave| leave.holder == Holder::Queued(call));
        let waited = waited.expect("it is asked of those that wait only");
        if self.out[waited].generation == generation {
            self.out[waited].holder = Holder::Attempt(call, number);
            self.out[waited].issued = at;
            return Ok(());
        }
        self.out.swap_remove(waited);
        reached.note(Cell::AskedAgain);
        self.admit(at, Holder::Attempt(call, number), generation, reached)
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
            let surely = self.probes().any(|leave| leave.expires + leave.excused <= at);
            self.surely_lost |= surely;
            reached.note_if(lost, Cell::AnswerAfterLease);
            reached.note_if(!lost && result == Effect::Neutral, Cell::ProbeFreed);
        }
        let leave = self.out.swap_remove(index);
        let slow = self.laws.slow_calls.is_some_and(|slow| at - leave.issued >= slow.slower_than);
        if result != Effect::Neutral {
            self.slow += usize::from(slow);
            self.ends.push(result != Effect::Success);
            self.certain &= result != Effect::Perhaps;
        }
        match result {
            Effect::Success => {
                (self.in_a_row, self.perhaps_in_a_row) = (0, 0);
                self.successes += u32::from(self.lost.is_none() && !slow);
                self.perhaps_successes += u32::from(!self.surely_lost);
            }
            Effect::Failure => {
                self.in_a_row += 1;
                self.perhaps_in_a_row += 1;
                self.failed = true;
                self.rate_due |= self.is_rate_reached();
            }
            Effect::Perhaps => {
                self.perhaps_in_a_row += 1;
                self.perhaps_failed = true;
            }
            Effect::Neutral => {}
        }
    }

    /// Whether a failure just now must have opened a closed circuit by the rate, as far as that is certain.
    fn is_rate_reached(&self) -> bool {
        let Some(rate) = self.laws.failure_rate.filter(|_| self.certain && !self.renewed) else {
            return false;
        };
        // What has left a window of time cannot be told here from what is still in it.
        let SlidingWindow::Calls(size) = self.laws.window else { return false };
        let last = &self.ends[self.ends.len().saturating_sub(size as usize)..];
        let failures = last.iter().filter(|failed| **failed).count();
        last.len() >= self.laws.minimum_calls as usize
            && failures as f64 / last.len() as f64 >= rate
    }

    /// Whether rates may have opened it, with so many more that are being cut off.
    fn may_open_by_rate(&self, timing_out: usize) -> bool {
        let most = |rate: f64, count: usize| {
            count > 0 && count as f64 >= (rate * f64::from(self.laws.minimum_calls)).floor()
        };
        let calls = self.ends.len() + timing_out;
        let failures = self.ends.iter().filter(|failed| **failed).count() + timing_out;
        let by_failure = self.laws.failure_rate.is_some_and(|rate| most(rate, failures));
        let slow = self.slow + timing_out;
        let by_slowness = self.laws.slow_calls.is_some_and(|law| most(law.rate, slow));
        calls >= self.laws.minimum_calls as usize && (by_failure || by_slowness)
    }

    /// The shortest that it may be open now.
    fn shortest_open(&self) -> Duration {
        let grown = self.laws.reset_timeout_growth.map_or(self.laws.reset_timeout, |growth| {
            self.laws.reset_timeout.mul_f64(growth.factor.powi(self.reopened)).min(growth.max)
        });
        // Less what is lost to rounding.
        grown.mul_f64(1.0 - self.laws.reset_timeout_jitter).saturating_sub(Duration::from_nanos(10))
    }

    /// Somebody is about to do something to it.
    pub(crate) fn handling(&mut self, hand: Hand, reached: &mut Coverage) {
        self.forcing = Some(match hand {
            Hand::ForceOpen => CircuitState::ForcedOpen,
            Hand::ForceClosed => CircuitState::ForcedClosed,
            Hand::Disable => CircuitState::Disabled,
            Hand::MetricsOnly => CircuitState::MetricsOnly,
            Hand::Reset => CircuitState::Closed,
            Hand::Reconfigure(laws) => {
                reached.note(match self.state {
                    CircuitState::Open => Cell::ReconfiguredOpen,
                    CircuitState::HalfOpen => Cell::ReconfiguredHalfOpen,
                    _ => Cell::Reconfigured,
                });
                self.laws = laws;
                self.renewed = true;
                return;
            }
        });
    }

    /// It is done. A state forced on a circuit that is in it begins a new generation, of which nobody is told.
    pub(crate) fn handled(&mut self, at: Duration, generation: u32) -> Result<(), Broken> {
        let Some(forced) = self.forcing.take() else {
            return require(2, generation == self.generation, || "new rules moved it".to_owned());
        };
        require(2, self.state == forced, || format!("{forced:?} was forced on {:?}", self.state))?;
        if generation != self.generation {
            require(2, generation == self.generation + 1, || {
                format!("{generation} is not the one after {}", self.generation)
            })?;
            self.begin_generation(at, forced, generation);
        }
        Ok(())
    }

    /// How long it says to wait.
    pub(crate) fn refused(&self, retry_after: Duration) -> Result<(), Broken> {
        let longest = match self.state {
            CircuitState::Open => longest_open(&self.laws),
            CircuitState::ForcedOpen => self.laws.reset_timeout,
            _ => Duration::from_secs(1),
        };
        require(4, retry_after <= longest, || {
            format!("it says to wait for {retry_after:?}, longer than {longest:?}")
        })
    }

    fn begin_generation(&mut self, since: Duration, state: CircuitState, generation: u32) {
        let (laws, watched) = (self.laws, self.watched);
        let (reopened, forcing) = (self.reopened, self.forcing);
        let out = std::mem::take(&mut self.out);
        *self =
            Self { state, generation, since, out, reopened, forcing, ..Self::new(laws, watched) };
    }

    fn note_late(&self, leave: Leave, result: Effect, reached: &mut Coverage) {
        let cell = match (self.state, result) {
            (_, Effect::Neutral | Effect::Perhaps) => return,
            (state, _) if !is_own(state) => return,
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
        if self.forcing == Some(to) && from != to {
            reached.note_if(!is_own(from) && to == CircuitState::Closed, Cell::ForcedBack);
            reached.note_if(from.is_open() && is_own(from), Cell::ForcedWhileOpen);
            self.reopened = 0;
            self.begin_generation(at, to, generation);
            return Ok(());
        }
        let mine = self.out.iter().filter(|leave| leave.generation == self.generation);
        let timing_out = mine.filter(|leave| leave.until <= at).count();
        let lost = self.probes().map(|leave| leave.expires).filter(|end| *end <= at).min();
        let lost = lost.into_iter().chain(self.lost).min();
        let mut since = at;
        match (from, to) {
            (CircuitState::Closed, CircuitState::Open) => {
                let most = self.perhaps_in_a_row as usize + timing_out;
                let enough = self.laws.fail_max.is_some_and(|max| most >= max as usize);
                let may = !self.watched || enough || self.may_open_by_rate(timing_out);
                require(2, may, || {
                    format!("it opened after {most} failures of its generation in a row")
                })?;
                let failures = timing_out + self.ends.iter().filter(|failed| **failed).count();
                reached.note_if(enough, Cell::Opened);
                reached.note_if(self.watched && !enough && failures > 0, Cell::OpenedByRate);
                reached.note_if(self.watched && failures == 0, Cell::OpenedBySlowness);
                self.reopened = 0;
            }
            (CircuitState::Open, CircuitState::HalfOpen) => {
                let open = at.saturating_sub(self.since);
                // Unseen, it may have been open since a lease ended.
                let shortest = if self.watched { self.shortest_open() } else { Duration::ZERO };
                require(4, open >= shortest, || {
                    format!("it was open for {open:?} only, not for {shortest:?}")
                })?;
                reached.note_if(shortest > self.laws.reset_timeout, Cell::OpenForLonger);
                reached.note(Cell::HalfOpened);
            }
            (CircuitState::HalfOpen, CircuitState::Open) => {
                let failed = self.failed || self.perhaps_failed || timing_out > 0;
                let may = !self.watched || failed || lost.is_some() || self.slow > 0;
                require(2, may, || {
                    "it opened again, and no probe of its generation had failed".to_owned()
                })?;
                since = lost.unwrap_or(at);
                self.reopened = self.reopened.saturating_add(1);
                let slow = self.watched && !failed && lost.is_none();
                reached.note_if(slow, Cell::ReopenedBySlowness);
                reached.note_if(self.failed, Cell::ReopenedByFailure);
                reached.note_if(lost.is_some(), Cell::ReopenedByLease);
                reached.note_if(!self.failed && timing_out > 0, Cell::ReopenedByTimeout);
            }
            (CircuitState::HalfOpen, CircuitState::Closed) => {
                let most = self.perhaps_successes;
                let may = !self.watched || most >= self.laws.success_threshold;
                require(2, may, || format!("it closed after {most} successes of its generation"))?;
                self.reopened = 0;
                reached.note(Cell::Closed);
            }
            _ => require(2, false, || format!("{from:?} became {to:?}"))?,
        }
        self.begin_generation(since, to, generation);
        Ok(())
    }

    /// Compares what is seen between two steps with what must be.
    pub(crate) fn check(&self, at: Duration, look: &Look) -> Result<(), Broken> {
        require(2, (look.state, look.generation) == (self.state, self.generation), || {
            format!("it is {look:?}; it was to be {:?} {}", self.state, self.generation)
        })?;
        if self.renewed || !self.watched {
            // By new rules it is judged with the next end, not at once.
            return Ok(());
        }
        match self.state {
            CircuitState::Closed => {
                let least = self.laws.fail_max.unwrap_or(u32::MAX);
                require(2, self.in_a_row < least, || {
                    format!("it is closed after {} failures in a row", self.in_a_row)
                })?;
                require(2, !self.rate_due, || "it is closed, and too many failed".to_owned())
            }
            CircuitState::HalfOpen => {
                require(1, !self.failed, || "it is half-open after a failed probe".to_owned())?;
                require(1, self.successes < self.laws.success_threshold, || {
                    format!("it is half-open after {} successes", self.successes)
                })?;
                let out = self.probes().count();
                let free = out < self.laws.half_open_max_calls as usize;
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

/// Whether a circuit comes into this state by itself.
fn is_own(state: CircuitState) -> bool {
    matches!(state, CircuitState::Closed | CircuitState::Open | CircuitState::HalfOpen)
}
