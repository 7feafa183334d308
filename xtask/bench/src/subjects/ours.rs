//! `resilience-core` at work: the only file that knows how its calls are made.

use std::time::Duration;

use resilience_core::{
    AnyError, Bulkhead, Call, CircuitBreaker, CircuitBreakerBuilder, CircuitState, Pipeline,
    RetryBudget, RetryPolicy, SlidingWindow,
};

use super::{HOUR, Refused, until};
use crate::case::{Subject, after_one_poll};

const NAME: &str = "ours";

/// A breaker whose settings are those of a case.
fn built(builder: CircuitBreakerBuilder) -> CircuitBreaker {
    builder.build().expect("the settings are valid")
}

/// Opened by half of its calls failing, however few in a row.
fn judged_by_rate() -> CircuitBreakerBuilder {
    CircuitBreaker::builder("bench").without_fail_max().failure_rate(0.5)
}

fn calls(breaker: CircuitBreaker) -> Subject {
    Subject::calls(NAME, move |i| breaker.call_blocking(|| Ok::<_, Refused>(i)))
}

/// Closed, opened by failures in a row, called without a future.
pub fn closed() -> Subject {
    calls(CircuitBreaker::new("bench"))
}

/// The same, around a ready future.
pub fn closed_async() -> Subject {
    let breaker = CircuitBreaker::new("bench");
    Subject::polls(NAME, async move |i| breaker.call(|| async { Ok::<_, Refused>(i) }).await)
}

/// Closed, with a window of 100 calls.
pub fn count_window() -> Subject {
    calls(built(judged_by_rate().window(SlidingWindow::Calls(100))))
}

/// Closed, with a window of ten seconds.
pub fn time_window() -> Subject {
    calls(built(judged_by_rate().window(SlidingWindow::Time(Duration::from_secs(10)))))
}

/// Closed, with a window of 100 calls, of which slow ones count too.
pub fn slow_calls() -> Subject {
    let builder = judged_by_rate().window(SlidingWindow::Calls(100));
    calls(built(builder.slow_call_rate(0.5, Duration::from_secs(1))))
}

/// Open for as long as it is measured.
pub fn open() -> Subject {
    let breaker = built(CircuitBreaker::builder("bench").fail_max(1).reset_timeout(HOUR));
    let _ = breaker.call_blocking(|| Err::<u64, _>(Refused));
    assert_eq!(breaker.state(), CircuitState::Open);
    calls(breaker)
}

/// Half-open for as long as it is measured.
pub fn half_open() -> Subject {
    let builder = CircuitBreaker::builder("bench").fail_max(1).success_threshold(u32::MAX);
    let breaker = built(builder.reset_timeout(Duration::from_millis(1)).probe_lease(HOUR));
    let _ = breaker.call_blocking(|| Err::<u64, _>(Refused));
    until(|| breaker.call_blocking(|| Ok::<_, Refused>(1)).is_ok());
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    calls(breaker)
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
