//! `failsafe` at work.

use failsafe::failure_policy::{ConsecutiveFailures, consecutive_failures};
use failsafe::{CircuitBreaker as _, Config, StateMachine, backoff};

use super::{HOUR, Refused};
use crate::case::Subject;

const NAME: &str = "failsafe";

fn breaker(failures: u32) -> StateMachine<ConsecutiveFailures<backoff::Constant>, ()> {
    let policy = consecutive_failures(failures, backoff::constant(HOUR));
    Config::new().failure_policy(policy).build()
}

/// Closed, opened by failures in a row.
pub fn closed() -> Subject {
    let breaker = breaker(5);
    Subject::calls(NAME, move |i| breaker.call(|| Ok::<_, Refused>(i)))
}

/// Open.
pub fn open() -> Subject {
    let breaker = breaker(1);
    let _ = breaker.call(|| Err::<u64, _>(Refused));
    assert!(!breaker.is_call_permitted());
    Subject::calls(NAME, move |i| breaker.call(|| Ok::<_, Refused>(i)))
}
