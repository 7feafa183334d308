//! Fear: time or blame that goes to the wrong one: a late hedge, a runtime at rest, a place given away too soon.

use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use resilience_core::{
    AnyError, Blame, Bulkhead, Call, CallError, CircuitBreaker, CircuitState, Deadline, Event,
    Hedge, Observe, Pipeline, SlidingWindow, Standstill, add_observer,
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
async fn a_hedge_has_its_whole_attempt_timeout() {
    let hedge = Hedge::builder().delay(2 * SECOND).build().unwrap();
    let pipeline = Pipeline::builder("p").attempt_timeout(3 * SECOND).hedge(hedge).build().unwrap();
    let calls = AtomicUsize::new(0);
    let given = Mutex::new(Vec::new());
    let _ = pipeline
        .run(Call::read(), &AnyError, |attempt| {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            given.lock().unwrap().push(attempt.deadline.remaining());
            async move {
                sleep(if first { 100 * SECOND } else { 2 * SECOND }).await;
                Ok::<_, io::Error>(())
            }
        })
        .await;
    assert_eq!(*given.lock().unwrap(), [3 * SECOND, 3 * SECOND]);
}

#[cfg(feature = "rate-limit")]
#[tokio::test(start_paused = true)]
async fn a_wait_for_ones_turn_takes_nothing_from_the_attempt() {
    let limiter = resilience_core::RateLimiter::builder("r", 1, 5 * SECOND).build().unwrap();
    let pipeline =
        Pipeline::builder("p").attempt_timeout(3 * SECOND).rate_limiter(limiter).build().unwrap();
    for _ in 0..2 {
        pipeline
            .run(Call::read(), &AnyError, |_| async {
                sleep(SECOND).await;
                Ok::<_, io::Error>(())
            })
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_scope_made_outside_gains_no_time_inside() {
    let inner = Deadline::within(9 * SECOND).scope(async { Deadline::current() });
    let outer = Deadline::within(SECOND);
    assert_eq!(outer.scope(inner).await, Some(outer));
}

#[tokio::test(start_paused = true)]
async fn a_time_without_end_is_refused() {
    let max = Duration::MAX;
    let breaker = || CircuitBreaker::builder("b");
    let refused = [
        breaker().reset_timeout(max).build().err(),
        breaker().probe_lease(max).build().err(),
        breaker().recovery(max).build().err(),
        breaker().slow_call_rate(0.5, max).build().err(),
        breaker().reset_timeout_growth(2.0, max).build().err(),
        Pipeline::builder("p").deadline(max).build().err(),
        Pipeline::builder("p").attempt_timeout(max).build().err(),
    ];
    let accepted: Vec<_> = refused.iter().map(Option::is_none).collect();
    assert!(!accepted.contains(&true), "{accepted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_place_is_not_given_away_while_its_attempt_still_exists() {
    struct Holds<'a>(&'a Bulkhead, &'a AtomicUsize);
    impl Drop for Holds<'_> {
        fn drop(&mut self) {
            self.1.store(self.0.available(), Ordering::Relaxed);
        }
    }
    let bulkhead = Bulkhead::new("b", 1, Duration::ZERO).unwrap();
    let pipeline =
        Pipeline::builder("p").attempt_timeout(SECOND).bulkhead(bulkhead.clone()).build().unwrap();
    let seen = AtomicUsize::new(99);
    let _ = pipeline
        .run(Call::read(), &AnyError, |_| async {
            let _holds = Holds(&bulkhead, &seen);
            pending::<Result<(), io::Error>>().await
        })
        .await;
    assert_eq!(seen.load(Ordering::Relaxed), 0);
    assert_eq!(bulkhead.available(), 1);
}

#[test]
fn a_runtime_that_was_not_driven_blames_a_service_all_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let breaker = CircuitBreaker::builder("b").fail_max(1).build().unwrap();
    let pipeline = Pipeline::builder("p").breaker(breaker.clone()).build().unwrap();
    runtime.block_on(async {
        let wait = |_| async {
            sleep(MS).await;
            Ok::<_, io::Error>(())
        };
        pipeline.run(Call::read(), &AnyError, wait).await.unwrap();
        // Nobody drives the runtime for a while: the next poll finds the heart late.
        advance(10 * SECOND).await;
        let fail = |_| async {
            // As little as a real clock shows between two reads.
            std::future::ready(()).await;
            advance_now(MS);
            Err::<(), _>(refused())
        };
        let error = pipeline.run(Call::read(), &AnyError, fail).await.unwrap_err();
        assert!(matches!(error, CallError::Inner(_)));
    });
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[test]
fn a_probe_on_a_runtime_that_nobody_drives_is_lost_in_the_end() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let builder = CircuitBreaker::builder("b").fail_max(1).probe_lease(SECOND);
    let breaker = builder.reset_timeout(SECOND).build().unwrap();
    let _probe = runtime.block_on(async {
        let _watched = Standstill::watch();
        breaker.try_acquire().unwrap().failure();
        sleep(SECOND).await;
        breaker.try_acquire().unwrap()
    });
    let asked = |_| {
        runtime.block_on(async {
            advance_now(100 * MS);
            breaker.try_acquire().is_ok()
        })
    };
    assert!((0..50).any(asked), "stuck in {:?}", breaker.state());
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_gives_up_for_want_of_time_says_nothing_of_the_service() {
    let breaker = CircuitBreaker::builder("hurried").fail_max(1).build().unwrap();
    let pipeline = Pipeline::builder("hurried").breaker(breaker.clone()).build().unwrap();
    let ask = |given: Duration, takes: Duration| {
        let call = Call::read().by(Deadline::within(given));
        let operation = move |_| async move {
            sleep(takes).await;
            Err::<(), _>(refused())
        };
        let (pipeline, breaker) = (&pipeline, &breaker);
        async move {
            let error = pipeline.run(call, &AnyError, operation).await.unwrap_err();
            let CallError::Inner(failed) = error else { panic!("{error}") };
            let state = breaker.state();
            breaker.reset();
            (failed.verdict.blame, state)
        }
    };
    assert_eq!(ask(9 * MS, 8 * MS).await, (Blame::Local, CircuitState::Closed));
    // What is refused at once is refused, however little time there was.
    assert_eq!(ask(9 * MS, MS).await, (Blame::Service, CircuitState::Open));
    assert_eq!(ask(10 * MS, 9 * MS).await, (Blame::Service, CircuitState::Open));
}

/// Moves the clock without a yield.
fn advance_now(time: Duration) {
    let mut advance = std::pin::pin!(advance(time));
    let waker = std::task::Waker::noop();
    let _ = std::future::Future::poll(advance.as_mut(), &mut std::task::Context::from_waker(waker));
}

#[tokio::test(start_paused = true)]
async fn a_recovery_that_is_switched_off_refuses_nobody() {
    let breaker = CircuitBreaker::builder("b")
        .fail_max(1)
        .reset_timeout(SECOND)
        .success_threshold(1)
        .recovery(3600 * SECOND)
        .build()
        .unwrap();
    breaker.try_acquire().unwrap().failure();
    advance(SECOND).await;
    breaker.try_acquire().unwrap().success();
    assert!(breaker.snapshot().recovering.is_some());
    let mut settings = breaker.settings();
    settings.recovery = None;
    breaker.reconfigure(settings).unwrap();
    let passed = (0..100).filter(|_| breaker.try_acquire().is_ok()).count();
    assert_eq!(passed, 100);
}

struct Bomb;
impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a payload");
    }
}
struct Throws;
impl Observe for Throws {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::CircuitTransition { name, .. } = event
            && &***name == "bomb"
        {
            std::panic::panic_any(Bomb);
        }
    }
}

#[test]
fn an_observer_whose_panic_panics_changes_nothing() {
    add_observer(Arc::new(Throws));
    let breaker = CircuitBreaker::builder("bomb").fail_max(1).build().unwrap();
    breaker.try_acquire().unwrap().failure();
    assert_eq!(breaker.state(), CircuitState::Open);
}

struct Drains(OnceLock<Pipeline>, AtomicUsize);
impl Observe for Drains {
    fn on_event(&self, event: &Event<'_>) {
        if let (Event::CallEnded { name, .. }, Some(pipeline)) = (event, self.0.get())
            && &***name == "drains"
        {
            let mut drain = std::pin::pin!(pipeline.drain(Deadline::at(Instant::now())));
            let waker = std::task::Waker::noop();
            let mut cx = std::task::Context::from_waker(waker);
            if let std::task::Poll::Ready(drained) =
                std::future::Future::poll(drain.as_mut(), &mut cx)
            {
                self.1.store(drained.abandoned, Ordering::Relaxed);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_is_not_out_before_its_end_was_told() {
    let drains = Arc::new(Drains(OnceLock::new(), AtomicUsize::new(99)));
    add_observer(drains.clone());
    let pipeline = Pipeline::builder("drains").build().unwrap();
    drains.0.set(pipeline.clone()).unwrap();
    pipeline.run(Call::read(), &AnyError, |_| async { Ok::<_, io::Error>(()) }).await.unwrap();
    assert_eq!(drains.1.load(Ordering::Relaxed), 1);
}

#[test]
fn a_runtime_without_timers_blames_a_service_all_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let breaker = CircuitBreaker::builder("b").fail_max(2).build().unwrap();
    let pipeline = Pipeline::builder("p").breaker(breaker.clone()).build().unwrap();
    let run = || {
        runtime.block_on(async {
            let fail = |_| async { Err::<(), _>(refused()) };
            let _ = pipeline.run(Call::read(), &AnyError, fail).await;
            tokio::task::yield_now().await;
        });
    };
    run();
    let begun = Instant::now();
    while begun.elapsed() < 200 * MS {
        std::thread::yield_now();
    }
    run();
    assert_eq!(breaker.state(), CircuitState::Open);
}
