//! `tower-resilience-circuitbreaker` at work.

use std::time::Duration;

use ::tower::{Layer, Service, ServiceExt, service_fn};
use tower_resilience_circuitbreaker::{CircuitBreakerLayer, SlidingWindowType};

use super::{HOUR, Refused};
use crate::case::Subject;

const NAME: &str = "tower-resilience";

macro_rules! subject {
    ($layer:expr) => {{
        let service = $layer.expect("the settings are valid");
        let service = service.layer(service_fn(|i: u64| async move { Ok::<_, Refused>(i) }));
        Subject::serves(NAME, service, async |service, i| service.ready().await?.call(i).await)
    }};
}

/// Closed, opened by failures in a row.
pub fn closed() -> Subject {
    subject!(
        CircuitBreakerLayer::builder().consecutive_failures(5).wait_duration_in_open(HOUR).build()
    )
}

/// Closed, with a window of 100 calls.
pub fn count_window() -> Subject {
    let builder = CircuitBreakerLayer::builder().failure_rate_threshold(0.5);
    subject!(builder.sliding_window_size(100).wait_duration_in_open(HOUR).build())
}

/// Closed, with a window of 100 calls, of which slow ones count too.
pub fn slow_calls() -> Subject {
    let builder = CircuitBreakerLayer::builder().failure_rate_threshold(0.5);
    let builder = builder.slow_call_duration_threshold(Duration::from_secs(1));
    subject!(builder.slow_call_rate_threshold(0.5).sliding_window_size(100).build())
}

/// Closed, with a window of 10 ms.
pub fn time_window() -> Subject {
    let builder = CircuitBreakerLayer::builder().failure_rate_threshold(0.5);
    let builder = builder.sliding_window_type(SlidingWindowType::TimeBased);
    subject!(builder.sliding_window_duration(Duration::from_millis(10)).build())
}
