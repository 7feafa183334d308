//! Which interesting states the runs have in fact reached: a promise kept where nothing happened is no promise.

use std::fmt;

macro_rules! cells {
    ($($cell:ident: $what:literal,)*) => {
        /// A state worth reaching.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Cell { $($cell),* }

        const WHAT: &[&str] = &[$($what),*];
    };
}

cells! {
    Opened: "circuit: closed → open by failures in a row",
    OpenedByRate: "circuit: closed → open by a rate, short of the failures in a row",
    OpenedBySlowness: "circuit: closed → open, and nothing had failed: too many were slow",
    ReopenedBySlowness: "circuit: half-open → open, and nothing had failed: a probe was slow",
    OpenForLonger: "circuit: open for longer than the time before",
    ForcedOpen: "circuit: forced open, and calls refused",
    ForcedToPass: "circuit: forced to let calls pass, and they did",
    ForcedBack: "circuit: reset from a forced state",
    ForcedWhileOpen: "circuit: reset while open",
    Reconfigured: "circuit: other rules while closed",
    ReconfiguredOpen: "circuit: other rules while open",
    ReconfiguredHalfOpen: "circuit: other rules while half-open",
    RefusedRecovering: "permit: refused while closed, on the way back to all traffic",
    HalfOpened: "circuit: open → half-open",
    Closed: "circuit: half-open → closed by good probes",
    ReopenedByFailure: "circuit: half-open → open by a failed probe",
    ReopenedByTimeout: "circuit: half-open → open by a probe that timed out",
    ReopenedByLease: "circuit: half-open → open by a lost lease",
    ProbeAdmitted: "probe: admitted",
    ProbesTogether: "probe: beside another one",
    ProbeQueued: "probe: waiting for a place in the bulkhead",
    ProbeFreed: "probe: dropped or excluded, its turn free again",
    ProbePanicked: "probe: panicked",
    AnswerAfterLease: "probe: answered after its lease",
    ProbeOfAnEarlierCycle: "late answer: of a probe, while half-open again",
    LateSuccessWhileOpen: "late answer: success while open",
    LateFailureWhileOpen: "late answer: failure while open",
    LateSuccessWhileHalfOpen: "late answer: success while half-open",
    LateFailureWhileHalfOpen: "late answer: failure while half-open",
    LateSuccessWhileClosed: "late answer: success while closed again",
    LateFailureWhileClosed: "late answer: failure while closed again",
    RefusedOpen: "permit: refused while open",
    RefusedHalfOpen: "permit: refused, all probes out",
    ForgottenPermit: "permit: forgotten until after the run",
    Retried: "retry: another attempt",
    RetriedWrite: "retry: a write that was proven not to have run",
    RetriedOwnTrouble: "retry: trouble of this process, free of budget",
    BudgetEmpty: "retry: budget exhausted",
    FloorPaid: "retry: paid for by time alone",
    ThrottlingPaid: "retry: of a throttled call, paid for from a share of its own",
    Throttled: "throttle: refused",
    ThrottledRetry: "throttle: refused a retry, the last real error came back",
    Injected: "chaos: a fault in place of an answer",
    InjectedThenRetried: "chaos: a fault, and another attempt",
    LimitRaised: "adaptive limit: above where it began",
    LimitCut: "adaptive limit: below where it began",
    Shed: "shed: refused",
    ShedWithFallback: "shed: refused, and a fallback took over",
    LimitLearned: "learned timeout: below the most",
    CutByLearned: "learned timeout: an attempt cut off below the most",
    Hedged: "hedge: an attempt beside another of the same call",
    HedgeLost: "hedge: an attempt dropped, for another had the answer",
    HedgeOutlived: "hedge: an attempt that went on when another had failed",
    HedgePaid: "hedge: paid for from a budget",
    HedgeProbe: "hedge: a probe",
    RateLimited: "rate limit: refused",
    RateAwaited: "rate limit: waited for a turn and got it",
    RetryAfterBeyondCap: "retry: the service asked for more than max_delay",
    UncertainWrite: "retry: a write that may have run, not repeated",
    OpenEndedRetries: "retry: the circuit opened, the last real error came back",
    LastErrorAtDeadline: "deadline: an attempt cut off, an earlier error came back",
    DeadlineBeforeAttempt: "deadline: passed before the first attempt",
    AttemptTimedOut: "deadline: an attempt timed out by its own limit",
    AttemptCutByDeadline: "deadline: an attempt timed out by the call's",
    PlaceAwaited: "bulkhead: waited for a place and got it",
    AskedAgain: "bulkhead: a place awaited while the circuit changed",
    BulkheadFull: "bulkhead: full",
    CircuitOpen: "call: refused by an open circuit",
    FellBack: "fallback: took over",
    FallbackError: "fallback: failed",
    FallbackCutOff: "fallback: cut off by the deadline",
    RefusedWithFallback: "fallback: not asked, the service refused the request",
    InnerSpent: "nested: the inner one gave up, the outer one did not repeat",
    OuterRepeated: "nested: the outer one repeated",
    DroppedInAttempt: "drop: within an attempt",
    DroppedInProbe: "drop: within a probe",
    DroppedInBackoff: "drop: between two attempts",
    DroppedInQueue: "drop: waiting for a place",
    DroppedInFallback: "drop: within a fallback",
    ExecutedForNobody: "drop: the service went on with what nobody waited for",
    OperationPanicked: "panic: in the operation",
    ClassifierPanicked: "panic: in the classifier",
    ObserverPanicked: "panic: in an observer, and nothing changed",
    DrainedEmpty: "drain: waited until all were out",
    DrainAbandoned: "drain: its deadline came first",
    RefusedDraining: "drain: a call refused",
    StalledInAttempt: "stall: within an attempt",
    StalledInBackoff: "stall: between two attempts",
    StalledInQueue: "stall: of one who waits for a place",
    StalledInProbe: "stall: within a probe",
    StalledInDrain: "stall: while draining",
    StalledInnocently: "stall: of a process whose services are all well",
}

/// How often each state was reached.
#[derive(Clone, Debug)]
pub(crate) struct Coverage(Vec<u64>);

impl Default for Coverage {
    fn default() -> Self {
        Self(vec![0; WHAT.len()])
    }
}

impl Coverage {
    pub(crate) fn note(&mut self, cell: Cell) {
        self.0[cell as usize] += 1;
    }

    pub(crate) fn note_if(&mut self, condition: bool, cell: Cell) {
        self.0[cell as usize] += u64::from(condition);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(&other.0) {
            *sum += more;
        }
    }

    /// The states that were never reached.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let reached = WHAT.iter().zip(&self.0);
        let features =
            [("chaos:", cfg!(feature = "chaos")), ("rate limit:", cfg!(feature = "rate-limit"))];
        let possible =
            |what: &str| features.iter().all(|(room, there)| *there || !what.starts_with(room));
        reached
            .filter(|(what, times)| **times == 0 && possible(what))
            .map(|(what, _)| *what)
            .collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, times) in WHAT.iter().zip(&self.0) {
            writeln!(f, "{times:>10}  {what}")?;
        }
        Ok(())
    }
}
