//! `circuitbreaker-rs` at work. It knows no failures in a row without a rate.

use circuitbreaker_rs::{CircuitBreaker, DefaultPolicy};

use super::{HOUR, Refused};
use crate::case::Subject;

/// Closed.
pub fn closed() -> Subject {
    let breaker = CircuitBreaker::<DefaultPolicy, Refused>::builder();
    let breaker = breaker.failure_threshold(0.5).cooldown(HOUR).build();
    Subject::calls("circuitbreaker-rs", move |i| breaker.call(|| Ok::<_, Refused>(i)))
}
