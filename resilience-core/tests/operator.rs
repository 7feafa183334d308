//! Fear: a switch thrown by hand that does something else, or rules changed while calls are in flight.

use std::time::Duration;

use resilience_core::{CircuitBreaker, CircuitSettings, CircuitState, SlidingWindow};
use tokio::time::advance;

const RESET: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

fn breaker() -> CircuitBreaker {
    CircuitBreaker::builder("payments").fail_max(2).success_threshold(1).build().unwrap()
}

fn fail(breaker: &CircuitBreaker, times: u32) {
    for _ in 0..times {
        breaker.try_acquire().unwrap().failure();
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_forced_open_stays_open_however_long_it_takes() {
    let breaker = breaker();
    breaker.force_open();
    advance(1000 * RESET).await;
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after, RESET);
    assert_eq!(breaker.state(), CircuitState::ForcedOpen);
    breaker.reset();
    breaker.try_acquire().unwrap().success();
}

#[tokio::test(start_paused = true)]
async fn no_failure_opens_a_circuit_that_passes_by_order() {
    for force in
        [CircuitBreaker::force_closed, CircuitBreaker::metrics_only, CircuitBreaker::disable]
    {
        let breaker = breaker();
        force(&breaker);
        let state = breaker.state();
        fail(&breaker, 100);
        assert_eq!(breaker.state(), state);
        let counted = if state == CircuitState::Disabled { 0 } else { 100 };
        assert_eq!(breaker.snapshot().calls.failure, counted, "{state:?}");
        breaker.reset();
        fail(&breaker, 1);
        assert_eq!(breaker.state(), CircuitState::Closed, "it begins with no failure to its name");
        fail(&breaker, 1);
        assert_eq!(breaker.state(), CircuitState::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_only_shows_what_the_rules_would_have_seen() {
    let breaker = CircuitBreaker::builder("b")
        .failure_rate(0.5)
        .window(SlidingWindow::Calls(10))
        .build()
        .unwrap();
    breaker.metrics_only();
    fail(&breaker, 7);
    for _ in 0..3 {
        breaker.try_acquire().unwrap().success();
    }
    assert_eq!(breaker.snapshot().failure_ratio, Some(0.7));
    assert_eq!(breaker.state(), CircuitState::MetricsOnly);
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_before_the_switch_decides_nothing_after_it() {
    let breaker = breaker();
    let late: Vec<_> = (0..5).map(|_| breaker.try_acquire().unwrap()).collect();
    breaker.metrics_only();
    breaker.reset();
    late.into_iter().for_each(resilience_core::Permit::failure);
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!(breaker.snapshot().consecutive_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn new_rules_keep_state_and_failures() {
    let breaker = breaker();
    fail(&breaker, 1);
    let generation = breaker.snapshot().generation;
    let mut settings = breaker.settings();
    settings.fail_max = Some(5);
    breaker.reconfigure(settings).unwrap();
    fail(&breaker, 3);
    assert_eq!(breaker.snapshot().consecutive_failures, 4);
    assert_eq!(
        (breaker.state(), breaker.snapshot().generation),
        (CircuitState::Closed, generation)
    );
    fail(&breaker, 1);
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_shorter_timeout_counts_from_when_the_circuit_opened() {
    let breaker = breaker();
    fail(&breaker, 2);
    advance(20 * SECOND).await;
    let mut settings = breaker.settings();
    settings.reset_timeout = 30 * SECOND;
    breaker.reconfigure(settings).unwrap();
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after, 10 * SECOND);
    advance(10 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn rules_with_a_window_hold_from_the_moment_they_are_set() {
    let breaker = breaker();
    let mut settings = breaker.settings();
    (settings.fail_max, settings.failure_rate) = (None, Some(0.5));
    settings.window = SlidingWindow::Time(10 * SECOND);
    breaker.reconfigure(settings).unwrap();
    fail(&breaker, 19);
    assert_eq!(breaker.state(), CircuitState::Closed);
    fail(&breaker, 1);
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn rules_that_make_no_sense_are_refused_and_the_old_ones_stay() {
    let breaker = breaker();
    let mut settings = breaker.settings();
    settings.failure_rate = Some(f64::NAN);
    let error = breaker.reconfigure(settings).unwrap_err();
    assert_eq!(error.to_string(), "failure_rate is NaN; allowed: above 0, up to 1");
    assert_eq!(breaker.settings().failure_rate, None);
}

#[test]
fn no_rule_out_of_range_can_be_built() {
    let b = || CircuitBreaker::builder("b");
    let endless = Duration::MAX;
    for (builder, field) in [
        (b().fail_max(0), "fail_max"),
        (b().fail_max(1 << 26), "fail_max"),
        (b().without_fail_max(), "fail_max"),
        (b().failure_rate(0.0), "failure_rate"),
        (b().failure_rate(1.1), "failure_rate"),
        (b().failure_rate(f64::NAN), "failure_rate"),
        (b().slow_call_rate(-1.0, SECOND), "slow_call_rate"),
        (b().slow_call_rate(0.5, Duration::ZERO), "slower_than"),
        (b().window(SlidingWindow::Calls(0)), "window"),
        (b().window(SlidingWindow::Time(Duration::ZERO)), "window"),
        (b().window(SlidingWindow::Time(endless)), "window"),
        (b().minimum_calls(0), "minimum_calls"),
        (b().minimum_calls(101), "minimum_calls"),
        (b().reset_timeout(Duration::ZERO), "reset_timeout"),
        (b().reset_timeout_growth(0.9, RESET), "reset_timeout_growth"),
        (b().reset_timeout_growth(f64::INFINITY, RESET), "reset_timeout_growth"),
        (b().reset_timeout_growth(2.0, SECOND), "reset_timeout_max"),
        (b().reset_timeout_jitter(f64::NAN), "reset_timeout_jitter"),
        (b().success_threshold(0), "success_threshold"),
        (b().half_open_max_calls(0), "half_open_max_calls"),
        (b().probe_lease(Duration::ZERO), "probe_lease"),
        (b().recovery(Duration::ZERO), "recovery"),
    ] {
        assert_eq!(builder.build().unwrap_err().field, field);
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_timeout_does_not_overflow_as_it_grows() {
    let longest = Duration::from_secs(30 * 365 * 24 * 3600);
    let breaker = CircuitBreaker::builder("b")
        .fail_max(1)
        .reset_timeout(longest)
        .reset_timeout_growth(2.0, longest)
        .reset_timeout_jitter(0.5)
        .build()
        .unwrap();
    fail(&breaker, 1);
    assert!(breaker.try_acquire().unwrap_err().retry_after > 1000 * RESET);
}

#[tokio::test(start_paused = true)]
async fn the_reset_timeout_grows_to_its_cap_and_starts_anew_after_recovery() {
    let breaker = CircuitBreaker::builder("b")
        .fail_max(1)
        .reset_timeout(10 * SECOND)
        .reset_timeout_growth(2.0, 35 * SECOND)
        .success_threshold(1)
        .build()
        .unwrap();
    fail(&breaker, 1);
    for seconds in [10, 20, 35, 35] {
        assert_eq!(breaker.try_acquire().unwrap_err().retry_after, seconds * SECOND);
        advance(seconds * SECOND).await;
        fail(&breaker, 1);
    }
    advance(35 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    fail(&breaker, 1);
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after, 10 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn jitter_shortens_the_reset_timeout_and_spreads_it() {
    fastrand::seed(11);
    let waits: Vec<_> = (0..1000)
        .map(|_| {
            let breaker =
                CircuitBreaker::builder("b").fail_max(1).reset_timeout_jitter(0.5).build().unwrap();
            fail(&breaker, 1);
            breaker.try_acquire().unwrap_err().retry_after
        })
        .collect();
    assert!(waits.iter().all(|wait| (RESET / 2..=RESET).contains(wait)));
    let early = waits.iter().filter(|wait| **wait < RESET * 3 / 4).count();
    assert!((450..550).contains(&early), "{early} of 1000 in the first half");
}

#[tokio::test(start_paused = true)]
async fn a_recovering_service_is_not_overrun() {
    let breaker = CircuitBreaker::builder("b")
        .fail_max(2)
        .success_threshold(1)
        .recovery(100 * SECOND)
        .build()
        .unwrap();
    fail(&breaker, 2);
    advance(RESET).await;
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!(breaker.snapshot().recovering, Some(0.1));
    let passed = |calls: usize| {
        (0..calls)
            .filter(|_| breaker.try_acquire().map(resilience_core::Permit::success).is_ok())
            .count()
    };
    assert_eq!(passed(100), 10);
    advance(50 * SECOND).await;
    assert_eq!(passed(100), 55);
    advance(50 * SECOND).await;
    assert_eq!(passed(100), 100);
    assert_eq!(breaker.snapshot().recovering, None);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_while_recovering_is_left_alone_again() {
    let breaker = CircuitBreaker::builder("b")
        .fail_max(2)
        .success_threshold(1)
        .recovery(100 * SECOND)
        .reset_timeout_growth(2.0, 1000 * SECOND)
        .build()
        .unwrap();
    fail(&breaker, 2);
    advance(RESET).await;
    breaker.try_acquire().unwrap().success();
    advance(90 * SECOND).await;
    while breaker.state() == CircuitState::Closed {
        if let Ok(permit) = breaker.try_acquire() {
            permit.failure();
        }
    }
    assert_eq!(breaker.snapshot().retry_after, Some(2 * RESET), "it had not recovered");
}

#[tokio::test(start_paused = true)]
async fn an_armed_circuit_refuses_nobody_and_opens_with_its_first_failure() {
    let breaker = CircuitBreaker::builder("b").fail_max(100).build().unwrap();
    breaker.arm(10 * SECOND);
    assert!(breaker.snapshot().armed);
    for _ in 0..1000 {
        breaker.try_acquire().unwrap().success();
    }
    fail(&breaker, 1);
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_is_old_or_taken_back_weighs_nothing() {
    let breaker = CircuitBreaker::builder("b").fail_max(3).build().unwrap();
    breaker.arm(10 * SECOND);
    advance(10 * SECOND).await;
    fail(&breaker, 1);
    breaker.arm(10 * SECOND);
    breaker.disarm();
    fail(&breaker, 1);
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[test]
fn default_settings_are_the_documented_ones() {
    let CircuitSettings { fail_max, window, minimum_calls, reset_timeout, .. } =
        CircuitSettings::default();
    assert_eq!((fail_max, minimum_calls, reset_timeout), (Some(5), 20, RESET));
    assert_eq!(window, SlidingWindow::Calls(100));
}
