//! `resilience-core` at work: the only file that knows how its calls are made.

use std::time::Duration;

use resilience_core::{
    AnyError, Bulkhead, Call, CircuitBreaker, CircuitOpen, CircuitState, Pipeline, RetryBudget,
    RetryPolicy,
};

use super::{HOUR, Refused, until};
use crate::case::{Subject, after_one_poll};

const NAME: &str = "ours";

fn call<T>(
    breaker: &CircuitBreaker,
    operation: impl FnOnce() -> Result<T, Refused>,
) -> Result<Result<T, Refused>, CircuitOpen> {
    let permit = breaker.try_acquire()?;
    let result = operation();
    match &result {
        Ok(_) => permit.success(),
        Err(_) => permit.failure(),
    }
    Ok(result)
}

/// Closed, opened by failures in a row, called without a future.
pub fn closed() -> Subject {
    let breaker = CircuitBreaker::new("bench");
    Subject::calls(NAME, move |i| call(&breaker, || Ok(i)))
}

/// The same, around a ready future.
pub fn closed_async() -> Subject {
    let breaker = CircuitBreaker::new("bench");
    Subject::polls(NAME, async move |i| breaker.call(|| async { Ok::<_, Refused>(i) }).await)
}

/// Open for as long as it is measured.
pub fn open() -> Subject {
    let breaker = CircuitBreaker::builder("bench").fail_max(1).reset_timeout(HOUR);
    let breaker = breaker.build().expect("the settings are valid");
    let _ = call(&breaker, || Err::<u64, _>(Refused));
    assert_eq!(breaker.state(), CircuitState::Open);
    Subject::calls(NAME, move |i| call(&breaker, || Ok(i)))
}

/// Half-open for as long as it is measured.
pub fn half_open() -> Subject {
    let breaker = CircuitBreaker::builder("bench")
        .fail_max(1)
        .success_threshold(u32::MAX)
        .reset_timeout(Duration::from_millis(1))
        .probe_lease(HOUR)
        .build()
        .expect("the settings are valid");
    let _ = call(&breaker, || Err::<u64, _>(Refused));
    until(|| call(&breaker, || Ok(1)).is_ok());
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    Subject::calls(NAME, move |i| call(&breaker, || Ok(i)))
}

/// Every layer that a connector puts around a call.
#[must_use]
pub fn whole_pipeline() -> Pipeline {
    let retry = RetryPolicy::builder().budget(RetryBudget::default()).build();
    let bulkhead = Bulkhead::new("bench", 64, Duration::from_secs(1));
    Pipeline::builder("bench")
        .deadline(Duration::from_secs(60))
        .attempt_timeout(Duration::from_secs(30))
        .retry(retry.expect("the settings are valid"))
        .breaker(CircuitBreaker::new("bench"))
        .bulkhead(bulkhead.expect("the settings are valid"))
        .build()
        .expect("the settings are valid")
}

/// Deadline, retry, budget, breaker, bulkhead and attempt timeout around a ready future.
pub fn pipeline_ready() -> Subject {
    let pipeline = whole_pipeline();
    Subject::polls(NAME, async move |i| {
        let call = Call::read();
        pipeline.run(call, &AnyError, |_| async move { Ok::<_, Refused>(i) }).await
    })
}

/// The same around a future that is pending once.
pub fn pipeline_pending_once() -> Subject {
    let pipeline = whole_pipeline();
    Subject::polls(NAME, async move |i| {
        let call = Call::read();
        pipeline
            .run(call, &AnyError, |_| async move { Ok::<_, Refused>(after_one_poll(i).await) })
            .await
    })
}

/// Only retry, around a ready future.
pub fn retry_ready() -> Subject {
    let policy = RetryPolicy::default();
    Subject::polls(NAME, async move |i| {
        policy.run(|| async move { Ok::<_, Refused>(i) }, |_| true).await
    })
}
