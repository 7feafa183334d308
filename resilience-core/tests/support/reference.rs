//! The rules of the breaker in their plainest form: easy to believe, slow, and for one thread.

use std::collections::VecDeque;
use std::time::Duration;

use resilience_core::{CircuitBreaker, CircuitState, Outcome, SlidingWindow};

/// The settings, with time in whole units of `tick`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) tick: Duration,
    pub(crate) fail_max: u32,
    pub(crate) reset_timeout: u32,
    pub(crate) probe_lease: u32,
    pub(crate) success_threshold: u32,
    pub(crate) half_open_max_calls: u32,
    /// The percentage of failures among the last `window` calls that opens the circuit, from `minimum_calls` on.
    pub(crate) failure_percent: Option<u32>,
    pub(crate) window: u32,
    pub(crate) minimum_calls: u32,
}

impl Rules {
    /// The real breaker with these settings.
    pub(crate) fn breaker(&self) -> CircuitBreaker {
        let breaker = CircuitBreaker::builder("model")
            .fail_max(self.fail_max)
            .reset_timeout(self.tick * self.reset_timeout)
            .probe_lease(self.tick * self.probe_lease)
            .success_threshold(self.success_threshold)
            .half_open_max_calls(self.half_open_max_calls)
            .window(SlidingWindow::Calls(self.window))
            .minimum_calls(self.minimum_calls);
        let breaker = match self.failure_percent {
            Some(percent) => breaker.failure_rate(f64::from(percent) / 100.0),
            None => breaker,
        };
        breaker.build().expect("the rules are valid settings")
    }

    /// Whether a failure was one too many.
    fn are_broken(&self, in_a_row: u32, calls: &VecDeque<bool>) -> bool {
        let (all, failed) = (calls.len() as u32, calls.iter().filter(|failed| **failed).count());
        let rate = self.failure_percent.is_some_and(|percent| failed as u32 * 100 >= percent * all);
        in_a_row >= self.fail_max || (all >= self.minimum_calls && rate)
    }
}

#[derive(Debug)]
enum Model {
    /// Failures in a row, and of the last calls which failed.
    Closed {
        failures: u32,
        calls: VecDeque<bool>,
    },
    Open {
        since: u64,
        until: u64,
    },
    /// The leases are numbers of passes, and when they end.
    HalfOpen {
        successes: u32,
        leases: Vec<(u64, u64)>,
    },
    /// By hand.
    Forced(CircuitState),
}

const CLOSED: Model = Model::Closed { failures: 0, calls: VecDeque::new() };

/// What an admitted call must show when it settles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    id: u64,
    generation: u32,
}

/// The model. Times are in ticks from its beginning.
#[derive(Debug)]
pub(crate) struct Reference {
    rules: Rules,
    model: Model,
    generation: u32,
    admitted: u64,
}

impl Reference {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, model: CLOSED, generation: 0, admitted: 0 }
    }

    pub(crate) fn admit(&mut self, now: u64) -> Option<Pass> {
        self.expire(now);
        if matches!(self.model, Model::Open { until, .. } if until <= now) {
            self.enter(Model::HalfOpen { successes: 0, leases: Vec::new() });
        }
        self.admitted += 1;
        let pass = Pass { id: self.admitted, generation: self.generation };
        match &mut self.model {
            Model::Forced(CircuitState::ForcedOpen) => None,
            Model::Closed { .. } | Model::Forced(_) => Some(pass),
            Model::HalfOpen { leases, .. }
                if leases.len() < self.rules.half_open_max_calls as usize =>
            {
                leases.push((pass.id, now + u64::from(self.rules.probe_lease)));
                Some(pass)
            }
            Model::HalfOpen { .. } | Model::Open { .. } => None,
        }
    }

    pub(crate) fn settle(&mut self, pass: Pass, outcome: Outcome, now: u64) {
        if pass.generation != self.generation {
            return;
        }
        self.expire(now);
        if pass.generation != self.generation {
            return;
        }
        let Rules { success_threshold, .. } = self.rules;
        let open = self.open(now);
        match (&mut self.model, outcome) {
            (Model::Closed { failures, calls }, Outcome::Success | Outcome::Failure) => {
                let failed = outcome == Outcome::Failure;
                *failures = if failed { *failures + 1 } else { 0 };
                if self.rules.failure_percent.is_some() {
                    calls.push_back(failed);
                    while calls.len() > self.rules.window as usize {
                        calls.pop_front();
                    }
                }
                if failed && self.rules.are_broken(*failures, calls) {
                    self.enter(open);
                }
            }
            (Model::HalfOpen { successes, leases }, _) => {
                leases.retain(|(id, _)| *id != pass.id);
                match outcome {
                    Outcome::Success if *successes + 1 < success_threshold => *successes += 1,
                    Outcome::Success => self.enter(CLOSED),
                    Outcome::Failure => self.enter(open),
                    Outcome::Excluded | Outcome::Cancelled => {}
                }
            }
            (Model::Closed { .. }, Outcome::Excluded | Outcome::Cancelled)
            | (Model::Open { .. } | Model::Forced(_), _) => {}
        }
    }

    pub(crate) fn state(&self) -> (CircuitState, u32) {
        let state = match self.model {
            Model::Closed { .. } => CircuitState::Closed,
            Model::Open { .. } => CircuitState::Open,
            Model::HalfOpen { .. } => CircuitState::HalfOpen,
            Model::Forced(state) => state,
        };
        (state, self.generation)
    }

    /// By hand; Closed is where it began.
    pub(crate) fn force(&mut self, state: CircuitState) {
        self.enter(if state == CircuitState::Closed { CLOSED } else { Model::Forced(state) });
    }

    /// Other rules from now on.
    pub(crate) fn reconfigure(&mut self, rules: Rules) {
        let window = |rules: &Rules| (rules.window, rules.failure_percent.is_some());
        if let Model::Closed { calls, .. } = &mut self.model
            && window(&rules) != window(&self.rules)
        {
            calls.clear();
        }
        if let Model::Open { since, until } = &mut self.model {
            *until = *since + u64::from(rules.reset_timeout);
        }
        self.rules = rules;
    }

    fn open(&self, since: u64) -> Model {
        Model::Open { since, until: since + u64::from(self.rules.reset_timeout) }
    }

    fn enter(&mut self, model: Model) {
        self.model = model;
        self.generation += 1;
    }

    /// A lease that ran out opened the circuit when it did.
    fn expire(&mut self, now: u64) {
        if let Model::HalfOpen { leases, .. } = &self.model
            && let Some(first) = leases.iter().map(|(_, until)| *until).min()
            && first <= now
        {
            self.enter(self.open(first));
        }
    }
}

/// The states that a hand can put a breaker into.
pub(crate) const BY_HAND: [CircuitState; 5] = [
    CircuitState::Closed,
    CircuitState::ForcedOpen,
    CircuitState::ForcedClosed,
    CircuitState::Disabled,
    CircuitState::MetricsOnly,
];

/// Puts `breaker` into one of them.
pub(crate) fn force(breaker: &CircuitBreaker, state: CircuitState) {
    match state {
        CircuitState::Closed => breaker.reset(),
        CircuitState::ForcedOpen => breaker.force_open(),
        CircuitState::ForcedClosed => breaker.force_closed(),
        CircuitState::Disabled => breaker.disable(),
        CircuitState::MetricsOnly => breaker.metrics_only(),
        CircuitState::Open | CircuitState::HalfOpen => unreachable!("no hand puts it there"),
    }
}
