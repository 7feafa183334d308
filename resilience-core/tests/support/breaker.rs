//! Fuzz target: bytes are settings and a history of a breaker, which must end as the plain model says.
//!
//! | bytes | |
//! |---|---|
//! | the first five | `fail_max`, reset timeout, probe lease, `success_threshold`, `half_open_max_calls` |
//! | then, by the lowest three bits: 0–2 | ask for leave |
//! | 3–5 | settle one: bits 3–4 are the outcome, the upper three say which |
//! | 6 | wait as many milliseconds as the next byte says, below 200; from there on, go by a failure rate of so many percent less 199, or by none |
//! | 7 | wait as many seconds as the next byte says, below 251; from there on, force a state |

#[path = "reference.rs"]
mod reference;

use std::collections::VecDeque;
use std::time::Duration;

use resilience_core::Outcome;
use tokio::runtime::Builder;
use tokio::time::{Instant, advance};

use reference::{BY_HAND, Reference, Rules, force};

const TICK: Duration = Duration::from_millis(1);
/// Permits out at once; more would say nothing new.
const MOST_OUT: usize = 64;

/// Plays the history that `bytes` tell.
///
/// # Panics
///
/// If the breaker and the model differ.
pub(crate) fn run(bytes: &[u8]) {
    let Some((rules, history)) = bytes.split_first_chunk::<5>() else { return };
    let small = |index: usize, most: u8| u32::from(rules[index] % most) + 1;
    let rules = Rules {
        tick: TICK,
        fail_max: small(0, 8),
        reset_timeout: small(1, 200),
        probe_lease: small(2, 200),
        success_threshold: small(3, 8),
        half_open_max_calls: small(4, 8),
        failure_percent: None,
        window: 8,
        minimum_calls: 4,
    };
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime needs no more than memory").block_on(play(rules, history));
}

async fn play(mut rules: Rules, history: &[u8]) {
    let (breaker, mut reference) = (rules.breaker(), Reference::new(rules));
    let (begun, mut out) = (Instant::now(), VecDeque::new());
    let mut bytes = history.iter().copied();
    while let Some(byte) = bytes.next() {
        let now = u64::try_from(begun.elapsed().as_millis()).expect("histories are short");
        match byte & 7 {
            0..3 => match (breaker.try_acquire(), reference.admit(now)) {
                (Ok(permit), Some(pass)) => out.push_back((permit, pass)),
                (Err(refused), None) => {
                    assert!(!refused.retry_after.is_zero(), "it says to come back at once");
                }
                (real, expected) => panic!("admitted {real:?}, the model {expected:?}"),
            },
            3..6 => {
                let (outcome, which) = (Outcome::ALL[usize::from(byte >> 3 & 3)], byte >> 5);
                if let Some((permit, pass)) = out.remove(usize::from(which)) {
                    permit.settle(outcome);
                    reference.settle(pass, outcome, now);
                }
            }
            6 => match bytes.next().unwrap_or_default() {
                percent @ 200.. => {
                    let failure_percent = (percent < 255).then(|| u32::from(percent - 199));
                    rules = Rules { failure_percent, ..rules };
                    let settings = rules.breaker().settings();
                    breaker.reconfigure(settings).expect("the rules are valid settings");
                    reference.reconfigure(rules);
                }
                ticks => advance(TICK * u32::from(ticks)).await,
            },
            _ => match bytes.next().unwrap_or_default() {
                hand @ 251.. => {
                    let state = BY_HAND[usize::from(hand - 251)];
                    force(&breaker, state);
                    reference.force(state);
                }
                seconds => advance(Duration::from_secs(seconds.into())).await,
            },
        }
        if out.len() > MOST_OUT {
            let (permit, pass) = out.pop_front().expect("it is not empty");
            let now = u64::try_from(begun.elapsed().as_millis()).expect("histories are short");
            drop(permit);
            reference.settle(pass, Outcome::Cancelled, now);
        }
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.state, snapshot.generation), reference.state(), "after {byte:#04x}");
    }
}
