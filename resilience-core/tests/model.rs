//! Fear: an interleaving nobody thought of. Random histories, beside a plain model that is easy to believe.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use resilience_core::{CircuitBreaker, CircuitState, Outcome, Permit};
use tokio::time::{Instant, advance};

const FAIL_MAX: u32 = 3;
const RESET: u64 = 10;
const LEASE: u64 = 4;
const SUCCESSES: u32 = 2;
const PROBES: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Admit,
    Settle(usize, Outcome),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Admit),
        5 => (0..8usize, 0..4usize).prop_map(|(which, how)| Step::Settle(which, Outcome::ALL[how])),
        1 => (0..=RESET + 1).prop_map(Step::Wait),
    ]
}

/// The rules of the breaker in their plainest form; time in whole seconds.
#[derive(Debug)]
enum Model {
    Closed { failures: u32 },
    Open { until: u64 },
    HalfOpen { successes: u32, leases: Vec<(u64, u64)> },
}

#[derive(Debug)]
struct Reference {
    state: Model,
    generation: u32,
    admitted: u64,
}

impl Reference {
    fn enter(&mut self, state: Model) {
        self.state = state;
        self.generation += 1;
    }

    fn expire(&mut self, now: u64) {
        if let Model::HalfOpen { leases, .. } = &self.state
            && let Some(first) = leases.iter().map(|(_, until)| *until).min()
            && first <= now
        {
            self.enter(Model::Open { until: first + RESET });
        }
    }

    fn admit(&mut self, now: u64) -> Option<(u64, u32)> {
        self.expire(now);
        if matches!(self.state, Model::Open { until } if until <= now) {
            self.enter(Model::HalfOpen { successes: 0, leases: Vec::new() });
        }
        self.admitted += 1;
        let id = self.admitted;
        match &mut self.state {
            Model::Closed { .. } => Some((id, self.generation)),
            Model::HalfOpen { leases, .. } if leases.len() < PROBES => {
                leases.push((id, now + LEASE));
                Some((id, self.generation))
            }
            Model::HalfOpen { .. } | Model::Open { .. } => None,
        }
    }

    fn settle(&mut self, (id, generation): (u64, u32), outcome: Outcome, now: u64) {
        if generation != self.generation {
            return;
        }
        self.expire(now);
        if generation != self.generation {
            return;
        }
        match (&mut self.state, outcome) {
            (Model::Closed { failures }, Outcome::Success) => *failures = 0,
            (Model::Closed { failures }, Outcome::Failure) if *failures + 1 < FAIL_MAX => {
                *failures += 1;
            }
            (Model::Closed { .. }, Outcome::Failure) => {
                self.enter(Model::Open { until: now + RESET });
            }
            (Model::HalfOpen { successes, leases }, _) => {
                leases.retain(|(lease, _)| *lease != id);
                match outcome {
                    Outcome::Success if *successes + 1 < SUCCESSES => *successes += 1,
                    Outcome::Success => self.enter(Model::Closed { failures: 0 }),
                    Outcome::Failure => self.enter(Model::Open { until: now + RESET }),
                    Outcome::Excluded | Outcome::Cancelled => {}
                }
            }
            (Model::Closed { .. }, Outcome::Excluded | Outcome::Cancelled)
            | (Model::Open { .. }, _) => {}
        }
    }

    fn state(&self) -> CircuitState {
        match self.state {
            Model::Closed { .. } => CircuitState::Closed,
            Model::Open { .. } => CircuitState::Open,
            Model::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }
}

async fn agree(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let breaker = CircuitBreaker::builder("model")
        .fail_max(FAIL_MAX)
        .reset_timeout(Duration::from_secs(RESET))
        .probe_lease(Duration::from_secs(LEASE))
        .success_threshold(SUCCESSES)
        .half_open_max_calls(PROBES as u32)
        .build()
        .unwrap();
    let mut reference =
        Reference { state: Model::Closed { failures: 0 }, generation: 0, admitted: 0 };
    let mut out: VecDeque<(Permit, (u64, u32))> = VecDeque::new();
    let begun = Instant::now();
    for step in steps {
        let now = begun.elapsed().as_secs();
        match step {
            Step::Admit => match (breaker.try_acquire(), reference.admit(now)) {
                (Ok(permit), Some(pass)) => out.push_back((permit, pass)),
                (Err(_), None) => {}
                (real, expected) => prop_assert!(false, "admitted {real:?}, expected {expected:?}"),
            },
            Step::Settle(which, outcome) => {
                if let Some((permit, pass)) = out.remove(which) {
                    permit.settle(outcome);
                    reference.settle(pass, outcome, now);
                }
            }
            Step::Wait(seconds) => advance(Duration::from_secs(seconds)).await,
        }
        let snapshot = breaker.snapshot();
        prop_assert_eq!(
            (snapshot.state, snapshot.generation),
            (reference.state(), reference.generation)
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_as_the_model_says(steps in prop::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(agree(steps))?;
    }
}
