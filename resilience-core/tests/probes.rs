//! Fear: a circuit that stays open for ever, lets a herd through, or believes old news.

use std::time::Duration;

use resilience_core::{CallError, CircuitBreaker, CircuitState};
use tokio::time::{Instant, advance};

const RESET: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);

fn breaker() -> CircuitBreaker {
    CircuitBreaker::builder("payments")
        .fail_max(2)
        .reset_timeout(RESET)
        .success_threshold(2)
        .build()
        .unwrap()
}

fn tripped() -> CircuitBreaker {
    let breaker = breaker();
    for _ in 0..2 {
        breaker.try_acquire().unwrap().failure();
    }
    assert_eq!(breaker.state(), CircuitState::Open);
    breaker
}

async fn half_open() -> CircuitBreaker {
    let breaker = tripped();
    advance(RESET).await;
    breaker
}

#[tokio::test(start_paused = true)]
async fn it_opens_for_exactly_the_reset_timeout() {
    let breaker = tripped();
    advance(RESET - TICK).await;
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after, TICK);
    advance(TICK).await;
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn only_failures_in_a_row_count() {
    let breaker = breaker();
    for _ in 0..10 {
        breaker.try_acquire().unwrap().failure();
        breaker.try_acquire().unwrap().exclude();
        drop(breaker.try_acquire().unwrap());
        breaker.try_acquire().unwrap().success();
    }
    assert_eq!(breaker.state(), CircuitState::Closed);
    breaker.try_acquire().unwrap().failure();
    breaker.try_acquire().unwrap().exclude();
    breaker.try_acquire().unwrap().failure();
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn no_more_probes_are_out_than_allowed() {
    let breaker = CircuitBreaker::builder("b").fail_max(1).half_open_max_calls(3).build().unwrap();
    breaker.try_acquire().unwrap().failure();
    advance(RESET).await;
    let out: Vec<_> = (0..3).map(|_| breaker.try_acquire().unwrap()).collect();
    for _ in 0..50 {
        breaker.try_acquire().unwrap_err();
    }
    drop(out);
    breaker.try_acquire().unwrap().success();
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_hands_its_turn_to_the_next_call() {
    let breaker = half_open().await;
    for _ in 0..100 {
        drop(breaker.try_acquire().unwrap());
        breaker.try_acquire().unwrap().exclude();
    }
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_future_frees_its_probe() {
    let breaker = half_open().await;
    let hanging = tokio::spawn({
        let breaker = breaker.clone();
        async move { breaker.call(std::future::pending::<Result<(), std::io::Error>>).await }
    });
    tokio::task::yield_now().await;
    breaker.try_acquire().unwrap_err();
    hanging.abort();
    let _ = hanging.await;
    breaker.try_acquire().unwrap().success();
}

#[tokio::test(start_paused = true)]
async fn a_panicking_probe_is_a_failure_and_not_the_end() {
    let breaker = half_open().await;
    for round in 0..3 {
        let panicked = tokio::spawn({
            let breaker = breaker.clone();
            async move {
                breaker
                    .call(|| async {
                        panic!("a probe panics, as it should in this test")
                            as Result<(), std::io::Error>
                    })
                    .await
            }
        });
        assert!(panicked.await.unwrap_err().is_panic());
        assert_eq!(breaker.state(), CircuitState::Open, "round {round}");
        advance(RESET).await;
    }
    breaker.try_acquire().unwrap().success();
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_panics_does_not_blame_the_service() {
    let breaker = CircuitBreaker::builder("b").fail_max(1).build().unwrap();
    let caller = tokio::spawn({
        let breaker = breaker.clone();
        async move {
            let mut call =
                std::pin::pin!(breaker.call(std::future::pending::<Result<(), std::io::Error>>));
            std::future::poll_fn(|cx| {
                assert!(call.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            panic!("the caller panics, as it should in this test");
        }
    });
    assert!(caller.await.unwrap_err().is_panic());
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!(breaker.snapshot().calls.cancelled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_probe_loses_its_lease_and_reopens_the_circuit() {
    let lease = Duration::from_secs(5);
    let builder = CircuitBreaker::builder("b").fail_max(1).reset_timeout(RESET).probe_lease(lease);
    let breaker = builder.build().unwrap();
    breaker.try_acquire().unwrap().failure();
    advance(RESET).await;
    let hanging = breaker.try_acquire().unwrap();
    advance(lease - TICK).await;
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after, TICK);
    advance(TICK).await;
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after, RESET);
    assert_eq!(breaker.state(), CircuitState::Open);
    advance(RESET).await;
    let second = breaker.try_acquire().unwrap();
    hanging.success(); // Of a generation that is gone.
    breaker.try_acquire().unwrap_err();
    second.success();
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn an_answer_after_its_lease_is_a_failure_even_if_nobody_looked() {
    let builder = CircuitBreaker::builder("b").fail_max(1).success_threshold(1).probe_lease(TICK);
    let breaker = builder.build().unwrap();
    breaker.try_acquire().unwrap().failure();
    advance(RESET).await;
    let late = breaker.try_acquire().unwrap();
    advance(TICK).await;
    late.success();
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_decides_nothing_in_any_later_state() {
    let breaker = breaker();
    let admitted_closed: Vec<_> = (0..6).map(|_| breaker.try_acquire().unwrap()).collect();
    let mut late = admitted_closed.into_iter();
    breaker.try_acquire().unwrap().failure();
    breaker.try_acquire().unwrap().failure();
    late.next().unwrap().success();
    late.next().unwrap().failure();
    assert_eq!(breaker.state(), CircuitState::Open);
    advance(RESET).await;
    let probe = breaker.try_acquire().unwrap();
    late.next().unwrap().success();
    late.next().unwrap().failure();
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    probe.success();
    let probe_of_the_cycle = breaker.try_acquire().unwrap();
    probe_of_the_cycle.success();
    assert_eq!(breaker.state(), CircuitState::Closed);
    late.next().unwrap().failure();
    late.next().unwrap().failure();
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!(breaker.snapshot().consecutive_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_probe_of_an_earlier_cycle_cannot_close_the_circuit() {
    let builder =
        CircuitBreaker::builder("b").fail_max(1).success_threshold(1).half_open_max_calls(2);
    let breaker = builder.build().unwrap();
    breaker.try_acquire().unwrap().failure();
    advance(RESET).await;
    let (old, failing) = (breaker.try_acquire().unwrap(), breaker.try_acquire().unwrap());
    failing.failure();
    advance(RESET).await;
    let _current = breaker.try_acquire().unwrap();
    old.success();
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn the_longest_timeout_does_not_overflow() {
    let longest = Duration::from_secs(30 * 365 * 24 * 3600);
    let builder = CircuitBreaker::builder("b")
        .fail_max(1)
        .reset_timeout(longest)
        .reset_timeout_jitter(f64::MIN_POSITIVE);
    let breaker = builder.build().unwrap();
    breaker.try_acquire().unwrap().failure();
    assert!(breaker.try_acquire().unwrap_err().retry_after > RESET);
}

#[tokio::test(start_paused = true)]
async fn what_a_call_gets_says_when_to_come_back() {
    let breaker = tripped();
    let started = Instant::now();
    let error = breaker.call(|| async { Ok::<_, std::io::Error>(()) }).await.unwrap_err();
    assert!(matches!(&error, CallError::CircuitOpen(open) if &*open.name == "payments"));
    assert_eq!(error.retry_after(), Some(RESET));
    assert_eq!(started.elapsed(), Duration::ZERO);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.not_permitted, snapshot.calls.failure), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn every_refusal_is_counted_whatever_refuses() {
    let breaker = tripped();
    let refused = || {
        assert!(breaker.try_acquire().is_err());
        breaker.snapshot().not_permitted
    };
    assert_eq!(refused(), 1, "open");
    advance(RESET).await;
    let probe = breaker.try_acquire().unwrap();
    assert_eq!(refused(), 2, "its probe is out");
    drop(probe);
    breaker.force_open();
    assert_eq!(refused(), 3, "forced open");
}

#[test]
fn threads_that_fail_together_open_it_once() {
    for _ in 0..200 {
        let breaker = CircuitBreaker::builder("b").fail_max(8).build().unwrap();
        let permits: Vec<_> = (0..16).map(|_| breaker.try_acquire().unwrap()).collect();
        std::thread::scope(|scope| {
            for permit in permits {
                scope.spawn(|| permit.failure());
            }
        });
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.state, snapshot.generation), (CircuitState::Open, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_in_flight_does_not_send_everyone_away_for_its_whole_lease() {
    let breaker = half_open().await;
    let _probe = breaker.try_acquire().unwrap();
    let refused = breaker.try_acquire().unwrap_err();
    assert_eq!(refused.retry_after, Duration::from_secs(1), "it may end at any moment");
    assert_eq!(breaker.snapshot().retry_after, Some(Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn a_half_open_circuit_with_a_free_probe_sends_nobody_away() {
    let builder = CircuitBreaker::builder("b").fail_max(1).half_open_max_calls(2);
    let breaker = builder.build().unwrap();
    breaker.try_acquire().unwrap().failure();
    advance(RESET).await;
    assert_eq!(breaker.snapshot().retry_after, None, "the next call is a probe");
    let _probe = breaker.try_acquire().unwrap();
    assert_eq!(breaker.snapshot().retry_after, None);
    let _other = breaker.try_acquire().unwrap();
    assert!(breaker.snapshot().retry_after.is_some());
}
