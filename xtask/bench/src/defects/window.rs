//! Windows that do not slide.

use futures::executor::block_on;
use resilience_core::{CircuitBreaker, CircuitState, SlidingWindow};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_resilience_circuitbreaker::{CircuitBreakerLayer, CircuitState as TowerState};

use super::{Scenario, Seen};
use crate::subjects::{HOUR, Refused};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "tower-resilience-circuitbreaker 0.14: its count window of 100 does not slide",
    right: "after 10,000 successes, 50 failures trip it at 50 %",
    ours,
    peer: Some(("tower-resilience", tower_resilience)),
}];

const SUCCESSES: u32 = 10_000;

/// Failures after which we stop counting.
const MOST: u32 = 100_000;

fn seen(failures: u32) -> Seen {
    Seen::new(format!("{failures} failures trip it"), failures == 50)
}

fn ours() -> Seen {
    let builder = CircuitBreaker::builder("window").without_fail_max().failure_rate(0.5);
    let breaker = builder.window(SlidingWindow::Calls(100)).reset_timeout(HOUR).build();
    let breaker = breaker.expect("the settings are valid");
    for _ in 0..SUCCESSES {
        let _ = breaker.call_blocking(|| Ok::<_, Refused>(()));
    }
    let mut failures = 0;
    while breaker.state() == CircuitState::Closed && failures < MOST {
        let _ = breaker.call_blocking(|| Err::<(), _>(Refused));
        failures += 1;
    }
    seen(failures)
}

fn tower_resilience() -> Seen {
    let builder = CircuitBreakerLayer::builder().failure_rate_threshold(0.5);
    let layer = builder.sliding_window_size(100).wait_duration_in_open(HOUR).build();
    let mut service = layer
        .expect("the settings are valid")
        .layer(service_fn(|fails: bool| async move { if fails { Err(Refused) } else { Ok(()) } }));
    block_on(async {
        for _ in 0..SUCCESSES {
            let _ = service.ready().await.expect("it is closed").call(false).await;
        }
        let mut failures = 0;
        while service.state_sync() == TowerState::Closed && failures < MOST {
            let _ = service.ready().await.expect("it is closed").call(true).await;
            failures += 1;
        }
        seen(failures)
    })
}
