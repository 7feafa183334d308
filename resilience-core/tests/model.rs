//! Fear: an interleaving nobody thought of. Random histories, beside a plain model that is easy to believe.

#[path = "support/reference.rs"]
mod reference;

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use resilience_core::{Outcome, Permit};
use tokio::time::{Instant, advance};

use reference::{Pass, Reference, Rules};

const RULES: Rules = Rules {
    tick: Duration::from_secs(1),
    fail_max: 3,
    reset_timeout: 10,
    probe_lease: 4,
    success_threshold: 2,
    half_open_max_calls: 2,
};

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
        1 => (0..=u64::from(RULES.reset_timeout) + 1).prop_map(Step::Wait),
    ]
}

async fn agree(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (breaker, mut reference) = (RULES.breaker(), Reference::new(RULES));
    let mut out: VecDeque<(Permit, Pass)> = VecDeque::new();
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
        prop_assert_eq!((snapshot.state, snapshot.generation), reference.state());
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
