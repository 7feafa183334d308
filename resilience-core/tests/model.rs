//! Fear: an interleaving nobody thought of. Random histories, beside a plain model that is easy to believe.

#[path = "support/reference.rs"]
mod reference;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use proptest::prelude::*;
use resilience_core::{CircuitState, Outcome, Permit};
use tokio::time::{Instant, advance};

use reference::{BY_HAND, Pass, Reference, Rules, force};

const RULES: Rules = Rules {
    tick: Duration::from_secs(1),
    fail_max: 3,
    reset_timeout: 10,
    probe_lease: 4,
    success_threshold: 2,
    half_open_max_calls: 2,
    failure_percent: None,
    window: 10,
    minimum_calls: 4,
};

#[derive(Clone, Debug)]
enum Step {
    Admit,
    Settle(usize, Outcome),
    Drop(usize),
    Panic,
    Wait(u64),
    Reconfigure(Rules),
    Force(CircuitState),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => Just(Step::Admit),
        20 => (0..8usize, 0..4usize).prop_map(|(which, how)| Step::Settle(which, Outcome::ALL[how])),
        2 => (0..8usize).prop_map(Step::Drop),
        1 => Just(Step::Panic),
        4 => (0..=u64::from(RULES.reset_timeout) + 1).prop_map(Step::Wait),
        1 => rules().prop_map(Step::Reconfigure),
        1 => prop::sample::select(BY_HAND.to_vec()).prop_map(Step::Force),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let percent = prop::option::of(prop::sample::select(vec![7, 30, 50, 100]));
    (1..6u32, 1..12u32, 1..6u32, 1..4u32, 1..4u32, percent, 4..12u32).prop_map(
        |(
            fail_max,
            reset_timeout,
            probe_lease,
            success_threshold,
            probes,
            failure_percent,
            window,
        )| Rules {
            fail_max,
            reset_timeout,
            probe_lease,
            success_threshold,
            half_open_max_calls: probes,
            failure_percent,
            window,
            ..RULES
        },
    )
}

async fn agree(rules: Rules, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (breaker, mut reference) = (rules.breaker(), Reference::new(rules));
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
            Step::Drop(which) => {
                if let Some((permit, pass)) = out.remove(which) {
                    drop(permit);
                    reference.settle(pass, Outcome::Cancelled, now);
                }
            }
            Step::Panic => {
                let panics =
                    || -> Result<(), ()> { resume_unwind(Box::new("as it should in this test")) };
                let panicked = catch_unwind(AssertUnwindSafe(|| breaker.call_blocking(panics)));
                let expected = reference.admit(now);
                prop_assert_eq!(panicked.is_err(), expected.is_some());
                if let Some(pass) = expected {
                    reference.settle(pass, Outcome::Failure, now);
                }
            }
            Step::Wait(seconds) => advance(Duration::from_secs(seconds)).await,
            Step::Reconfigure(rules) => {
                breaker.reconfigure(rules.breaker().settings()).unwrap();
                reference.reconfigure(rules);
            }
            Step::Force(state) => {
                force(&breaker, state);
                reference.force(state);
            }
        }
        let snapshot = breaker.snapshot();
        prop_assert_eq!((snapshot.state, snapshot.generation), reference.state());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_as_the_model_says(rules in rules(), steps in prop::collection::vec(step(), 1..100)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(agree(rules, steps))?;
    }
}
