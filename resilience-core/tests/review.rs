//! Fear: time or blame that goes to the wrong one: a late hedge, a runtime at rest, a place given away too soon.

use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use resilience_core::{
    AnyError, Bulkhead, Call, CallError, CircuitBreaker, CircuitState, Deadline, Event, Hedge,
    Observe, Pipeline, SlidingWindow, add_observer,
};
use tokio::time::{Instant, advance, sleep};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn refused() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionRefused)
}

#[tokio::test(start_paused = true)]
async fn recent_successes_are_not_forgotten_with_an_old_bucket() {
    let breaker = CircuitBreaker::builder("b")
        .without_fail_max()
        .failure_rate(0.5)
        .window(SlidingWindow::Time(32 * SECOND))
        .minimum_calls(10)
        .build()
        .unwrap();
    advance(31 * SECOND).await;
    for _ in 0..1000 {
        breaker.try_acquire().unwrap().success();
    }
    advance(2 * SECOND).await;
    // One thousand successes two seconds ago: ten failures are one in a hundred.
    for _ in 0..10 {
        breaker.try_acquire().unwrap().failure();
    }
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_scope_made_outside_gains_no_time_inside() {
    let inner = Deadline::within(9 * SECOND).scope(async { Deadline::current() });
    let outer = Deadline::within(SECOND);
    assert_eq!(outer.scope(inner).await, Some(outer));
}
