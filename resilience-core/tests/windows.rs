//! Fear: a window that does not slide, judges too early, too late, or what belongs to another time.

use std::time::Duration;

use resilience_core::{CircuitBreaker, CircuitBreakerBuilder, CircuitState, SlidingWindow};
use tokio::time::{advance, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn by_rate(rate: f64, window: SlidingWindow) -> CircuitBreakerBuilder {
    CircuitBreaker::builder("payments").without_fail_max().failure_rate(rate).window(window)
}

fn succeed(breaker: &CircuitBreaker, times: u32) {
    for _ in 0..times {
        breaker.try_acquire().unwrap().success();
    }
}

fn fail(breaker: &CircuitBreaker, times: u32) {
    for _ in 0..times {
        breaker.try_acquire().unwrap().failure();
    }
}

/// Failures in a row until it opens.
fn failures_to_open(breaker: &CircuitBreaker) -> u32 {
    let mut failures = 0;
    while breaker.state() == CircuitState::Closed {
        fail(breaker, 1);
        failures += 1;
    }
    failures
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_successes_do_not_buy_ten_thousand_failures() {
    let breaker = by_rate(0.5, SlidingWindow::Calls(100)).build().unwrap();
    succeed(&breaker, 10_000);
    assert_eq!(failures_to_open(&breaker), 50);
}

#[tokio::test(start_paused = true)]
async fn a_count_window_holds_the_last_calls_and_no_others() {
    let breaker = by_rate(0.5, SlidingWindow::Calls(10)).minimum_calls(10).build().unwrap();
    fail(&breaker, 4);
    succeed(&breaker, 6);
    assert_eq!(breaker.snapshot().failure_ratio, Some(0.4));
    // Each success pushes one of the four failures out.
    for left in [0.3, 0.2, 0.1, 0.0] {
        succeed(&breaker, 1);
        assert_eq!(breaker.snapshot().failure_ratio, Some(left));
    }
    assert_eq!(failures_to_open(&breaker), 5);
}

#[tokio::test(start_paused = true)]
async fn a_share_is_exact_where_doubles_are_not() {
    for (rate, failures) in [(0.07, 7), (0.29, 29), (0.57, 57), (0.1, 10), (1.0, 100)] {
        let window = SlidingWindow::Calls(100);
        let breaker = by_rate(rate, window).minimum_calls(100).build().unwrap();
        succeed(&breaker, 100);
        assert_eq!(failures_to_open(&breaker), failures, "{rate}");
    }
}

#[tokio::test(start_paused = true)]
async fn too_few_calls_are_not_judged() {
    let breaker = by_rate(0.5, SlidingWindow::Calls(100)).minimum_calls(10).build().unwrap();
    fail(&breaker, 9);
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!(breaker.snapshot().failure_ratio, None);
    fail(&breaker, 1);
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_success_opens_nothing() {
    let breaker = by_rate(0.5, SlidingWindow::Calls(100)).minimum_calls(10).build().unwrap();
    fail(&breaker, 9);
    succeed(&breaker, 1);
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!(breaker.snapshot().failure_ratio, Some(0.9));
    fail(&breaker, 1);
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_time_window_forgets_what_is_older_than_itself() {
    let breaker = by_rate(0.5, SlidingWindow::Time(32 * SECOND)).build().unwrap();
    fail(&breaker, 19);
    advance(33 * SECOND).await;
    succeed(&breaker, 19);
    fail(&breaker, 18);
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!(breaker.snapshot().failure_ratio, Some(18.0 / 37.0));
    assert_eq!(failures_to_open(&breaker), 1);
}

#[tokio::test(start_paused = true)]
async fn a_time_window_slides_and_does_not_tumble() {
    let breaker = by_rate(0.5, SlidingWindow::Time(32 * SECOND)).minimum_calls(1).build().unwrap();
    succeed(&breaker, 64);
    // One failure a second: what is remembered never drops to nothing at a boundary.
    for second in 0..32 {
        fail(&breaker, 1);
        assert_eq!(breaker.state(), CircuitState::Closed, "after {second} s");
        let expected = f64::from(second + 1) / f64::from(65 + second);
        assert_eq!(breaker.snapshot().failure_ratio, Some(expected), "after {second} s");
        advance(SECOND).await;
    }
    // The 64 successes of the first second are gone now, the failures after it are not.
    fail(&breaker, 1);
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn after_a_long_silence_a_time_window_is_empty() {
    let breaker = by_rate(0.5, SlidingWindow::Time(SECOND)).build().unwrap();
    fail(&breaker, 19);
    advance(1_000_000 * SECOND).await;
    fail(&breaker, 19);
    assert_eq!(breaker.state(), CircuitState::Closed);
    fail(&breaker, 1);
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_window_remembers_nothing_from_before_the_circuit_opened() {
    for window in [SlidingWindow::Calls(10), SlidingWindow::Time(3600 * SECOND)] {
        let breaker = by_rate(0.5, window).minimum_calls(10).success_threshold(1).build().unwrap();
        let late = breaker.try_acquire().unwrap();
        fail(&breaker, 10);
        advance(60 * SECOND).await;
        succeed(&breaker, 1);
        assert_eq!(breaker.state(), CircuitState::Closed);
        late.failure();
        fail(&breaker, 9);
        assert_eq!(breaker.state(), CircuitState::Closed, "{window:?}");
        fail(&breaker, 1);
        assert_eq!(breaker.state(), CircuitState::Open, "{window:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn slow_calls_open_a_circuit_that_never_fails() {
    let breaker = CircuitBreaker::builder("search")
        .without_fail_max()
        .slow_call_rate(0.5, SECOND)
        .window(SlidingWindow::Calls(10))
        .build()
        .unwrap();
    for (call, time) in [900, 1000, 900, 1100, 900, 2000, 900, 1000, 900].into_iter().enumerate() {
        let permit = breaker.try_acquire().unwrap();
        sleep(Duration::from_millis(time)).await;
        permit.success();
        assert_eq!(breaker.state(), CircuitState::Closed, "call {call}");
    }
    let permit = breaker.try_acquire().unwrap();
    sleep(SECOND).await;
    permit.success();
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_probe_as_slow_as_what_opened_the_circuit_does_not_close_it() {
    let breaker = CircuitBreaker::builder("search")
        .fail_max(1)
        .slow_call_rate(0.5, SECOND)
        .success_threshold(1)
        .build()
        .unwrap();
    fail(&breaker, 1);
    advance(60 * SECOND).await;
    let probe = breaker.try_acquire().unwrap();
    sleep(SECOND).await;
    probe.success();
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn both_rules_hold_at_once() {
    let breaker = CircuitBreaker::builder("payments")
        .fail_max(3)
        .failure_rate(0.2)
        .window(SlidingWindow::Calls(20))
        .build()
        .unwrap();
    succeed(&breaker, 20);
    assert_eq!(failures_to_open(&breaker), 3);
    breaker.reset();
    for _ in 0..4 {
        assert_eq!(breaker.state(), CircuitState::Closed);
        succeed(&breaker, 4);
        fail(&breaker, 1);
    }
    assert_eq!(breaker.state(), CircuitState::Open, "4 of 20, never 3 in a row");
}

#[test]
fn no_success_is_lost_among_threads() {
    for window in [SlidingWindow::Calls(100_000), SlidingWindow::Time(3600 * SECOND)] {
        let breaker = by_rate(1.0, window).minimum_calls(1).build().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        succeed(&breaker, 99);
                        fail(&breaker, 1);
                    }
                });
            }
        });
        assert_eq!(breaker.snapshot().failure_ratio, Some(0.01), "{window:?}");
    }
}
