//! The rules of the breaker in their plainest form: easy to believe, slow, and for one thread.

use resilience_core::{CircuitBreaker, CircuitState, Outcome};
use std::time::Duration;

/// The settings, with time in whole units of `tick`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) tick: Duration,
    pub(crate) fail_max: u32,
    pub(crate) reset_timeout: u32,
    pub(crate) probe_lease: u32,
    pub(crate) success_threshold: u32,
    pub(crate) half_open_max_calls: u32,
}

impl Rules {
    /// The real breaker with these settings.
    pub(crate) fn breaker(&self) -> CircuitBreaker {
        CircuitBreaker::builder("model")
            .fail_max(self.fail_max)
            .reset_timeout(self.tick * self.reset_timeout)
            .probe_lease(self.tick * self.probe_lease)
            .success_threshold(self.success_threshold)
            .half_open_max_calls(self.half_open_max_calls)
            .build()
            .expect("the rules are valid settings")
    }
}

#[derive(Debug)]
enum Model {
    Closed {
        failures: u32,
    },
    Open {
        until: u64,
    },
    /// The leases are numbers of passes, and when they end.
    HalfOpen {
        successes: u32,
        leases: Vec<(u64, u64)>,
    },
}

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
        Self { rules, model: Model::Closed { failures: 0 }, generation: 0, admitted: 0 }
    }

    pub(crate) fn admit(&mut self, now: u64) -> Option<Pass> {
        self.expire(now);
        if matches!(self.model, Model::Open { until } if until <= now) {
            self.enter(Model::HalfOpen { successes: 0, leases: Vec::new() });
        }
        self.admitted += 1;
        let pass = Pass { id: self.admitted, generation: self.generation };
        match &mut self.model {
            Model::Closed { .. } => Some(pass),
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
        let Rules { fail_max, success_threshold, .. } = self.rules;
        let open = Model::Open { until: now + u64::from(self.rules.reset_timeout) };
        match (&mut self.model, outcome) {
            (Model::Closed { failures }, Outcome::Success) => *failures = 0,
            (Model::Closed { failures }, Outcome::Failure) if *failures + 1 < fail_max => {
                *failures += 1;
            }
            (Model::Closed { .. }, Outcome::Failure) => self.enter(open),
            (Model::HalfOpen { successes, leases }, _) => {
                leases.retain(|(id, _)| *id != pass.id);
                match outcome {
                    Outcome::Success if *successes + 1 < success_threshold => *successes += 1,
                    Outcome::Success => self.enter(Model::Closed { failures: 0 }),
                    Outcome::Failure => self.enter(open),
                    Outcome::Excluded | Outcome::Cancelled => {}
                }
            }
            (Model::Closed { .. }, Outcome::Excluded | Outcome::Cancelled)
            | (Model::Open { .. }, _) => {}
        }
    }

    pub(crate) fn state(&self) -> (CircuitState, u32) {
        let state = match self.model {
            Model::Closed { .. } => CircuitState::Closed,
            Model::Open { .. } => CircuitState::Open,
            Model::HalfOpen { .. } => CircuitState::HalfOpen,
        };
        (state, self.generation)
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
            self.enter(Model::Open { until: first + u64::from(self.rules.reset_timeout) });
        }
    }
}
