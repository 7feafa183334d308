//! Fear: layers that are right alone and wrong together, and observers that break what they watch.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use resilience_core::{
    AnyError, Bulkhead, Call, CallError, CallOutcome, CircuitBreaker, CircuitState, Deadline,
    Drained, Event, Observe, Pipeline, Replay, Verdict, add_observer,
};

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

async fn fail() -> Result<(), Refused> {
    Err(Refused)
}

async fn hang() -> Result<(), Refused> {
    std::future::pending().await
}

fn guarded(name: &'static str) -> (Pipeline, CircuitBreaker) {
    let breaker = CircuitBreaker::builder(name).fail_max(1).build().unwrap();
    let bulkhead = Bulkhead::new(name, 1, Duration::from_secs(1)).unwrap();
    (Pipeline::builder(name).breaker(breaker.clone()).bulkhead(bulkhead).build().unwrap(), breaker)
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_is_not_the_services_fault() {
    let (pipeline, breaker) = guarded("full");
    let holder = tokio::spawn({
        let pipeline = pipeline.clone();
        async move { pipeline.run(Call::read(), &AnyError, |_| hang()).await }
    });
    tokio::task::yield_now().await;
    let error = pipeline.run(Call::read(), &AnyError, |_| hang()).await.unwrap_err();
    assert!(matches!(error, CallError::BulkheadFull(_)));
    assert_eq!((breaker.state(), breaker.snapshot().calls.cancelled), (CircuitState::Closed, 1));
    holder.abort();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_gives_back_its_place_and_blames_nobody() {
    let (pipeline, breaker) = guarded("dropped");
    for _ in 0..100 {
        let running = tokio::spawn({
            let pipeline = pipeline.clone();
            async move { pipeline.run(Call::write(), &AnyError, |_| hang()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(pipeline.bulkhead().unwrap().available(), 0);
        running.abort();
        let _ = running.await;
        assert_eq!(pipeline.bulkhead().unwrap().available(), 1);
    }
    assert_eq!((breaker.state(), breaker.snapshot().calls.cancelled), (CircuitState::Closed, 100));
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_making_the_attempt_is_a_failure_like_any_other() {
    let (pipeline, breaker) = guarded("panics");
    let panicked = tokio::spawn({
        let pipeline = pipeline.clone();
        async move {
            let operation = |_| -> std::future::Ready<Result<(), Refused>> {
                panic!("as it should in this test")
            };
            pipeline.run(Call::read(), &AnyError, operation).await
        }
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!(breaker.state(), CircuitState::Open);
    assert_eq!(pipeline.bulkhead().unwrap().available(), 1);
}

#[tokio::test(start_paused = true)]
async fn trouble_of_our_own_opens_no_circuit_and_a_refused_request_counts_as_an_answer() {
    let (pipeline, breaker) = guarded("blame");
    let local = |_: &Refused| Verdict::local(Replay::Never);
    let caller = |_: &Refused| Verdict::caller(Replay::Never);
    pipeline.run(Call::read(), &local, |_| fail()).await.unwrap_err();
    pipeline.run(Call::read(), &caller, |_| fail()).await.unwrap_err();
    let calls = breaker.snapshot().calls;
    assert_eq!((calls.excluded, calls.success, calls.failure), (1, 1, 0));
    pipeline.run(Call::read(), &AnyError, |_| fail()).await.unwrap_err();
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_what_runs_and_refuses_what_comes() {
    let (pipeline, _) = guarded("drain");
    let running = tokio::spawn({
        let pipeline = pipeline.clone();
        async move {
            let slow = |_| async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok::<_, Refused>("done")
            };
            pipeline.run(Call::read(), &AnyError, slow).await
        }
    });
    tokio::task::yield_now().await;
    assert_eq!(
        pipeline.drain(Deadline::within(Duration::from_secs(1))).await,
        Drained { abandoned: 1 }
    );
    let refused = pipeline.run(Call::read(), &AnyError, |_| fail()).await.unwrap_err();
    assert!(matches!(refused, CallError::Draining(_)));
    assert_eq!(
        pipeline.drain(Deadline::within(Duration::from_secs(60))).await,
        Drained { abandoned: 0 }
    );
    assert_eq!(running.await.unwrap().unwrap(), "done");
}

/// Notes what it sees of one name, then does its worst.
struct Hostile {
    name: &'static str,
    seen: Mutex<Vec<String>>,
    breaker: CircuitBreaker,
}

impl Observe for Hostile {
    fn on_event(&self, event: &Event<'_>) {
        let line = match event {
            Event::CircuitTransition { name, to, .. } if &***name == self.name => {
                assert_eq!(self.breaker.state(), *to, "told before the state was committed");
                to.as_str().to_owned()
            }
            Event::CallEnded { name, outcome, attempts, .. } if &***name == self.name => {
                format!("{} after {attempts}", outcome.as_str())
            }
            _ => return,
        };
        self.seen.lock().unwrap().push(line);
        let _ = self.breaker.try_acquire().map(resilience_core::Permit::exclude);
        panic!("an observer panics, as it should in this test");
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_and_calls_back_changes_nothing() {
    let (pipeline, breaker) = guarded("observed");
    let hostile =
        Arc::new(Hostile { name: "observed", seen: Mutex::default(), breaker: breaker.clone() });
    add_observer(Arc::clone(&hostile) as Arc<dyn Observe>);
    pipeline.run(Call::read(), &AnyError, |_| fail()).await.unwrap_err();
    pipeline.run(Call::read(), &AnyError, |_| fail()).await.unwrap_err();
    let dropped = pipeline.run(Call::read().named("gone"), &AnyError, |_| hang());
    drop(dropped); // Never polled: it never began.
    assert_eq!(breaker.state(), CircuitState::Open);
    let seen = hostile.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    assert_eq!(*seen, ["open", "service_error after 1", "circuit_open after 0"]);
    assert!(CallOutcome::CircuitOpen.is_error());
}

/// Asks an open circuit and a full bulkhead whatever it is told on a thread, which is told in turn.
struct Echo {
    thread: ThreadId,
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
    refusals: AtomicU32,
}

impl Observe for Echo {
    fn on_event(&self, event: &Event<'_>) {
        if thread::current().id() != self.thread {
            return;
        }
        assert!(matches!(event, Event::Refused { .. }));
        self.refusals.fetch_add(1, Ordering::Relaxed);
        let _ = self.breaker.try_acquire();
        let mut acquire = pin!(self.bulkhead.acquire(Deadline::within(Duration::ZERO)));
        let _ = acquire.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_whose_every_word_makes_more_to_tell_comes_to_an_end() {
    let breaker = CircuitBreaker::new("echo");
    let bulkhead = Bulkhead::builder("echo").limit(1).queue(0).build().unwrap();
    breaker.force_open();
    let _full = bulkhead.try_acquire().unwrap();
    let (thread, refusals) = (thread::current().id(), AtomicU32::new(0));
    let echo = Echo { thread, breaker: breaker.clone(), bulkhead: bulkhead.clone(), refusals };
    let echo = Arc::new(echo);
    add_observer(Arc::clone(&echo) as Arc<dyn Observe>);
    breaker.try_acquire().unwrap_err();
    // One, and four generations of two.
    assert_eq!(echo.refusals.load(Ordering::Relaxed), 1 + 2 + 4 + 8 + 16);
}

#[tokio::test(start_paused = true)]
async fn an_optional_service_has_the_settings_that_were_promised() {
    let pipeline = Pipeline::optional_service("analytics").build().unwrap();
    let settings = pipeline.breaker().unwrap().settings();
    assert_eq!(
        (settings.fail_max, settings.success_threshold, settings.half_open_max_calls),
        (Some(10), 3, 1)
    );
    assert_eq!(settings.reset_timeout, Duration::from_secs(120));
    assert_eq!(settings.probe_lease, Duration::from_secs(30));
    let bulkhead = pipeline.bulkhead().unwrap();
    assert_eq!((bulkhead.limit(), bulkhead.wait()), (64, Duration::ZERO));
    let begun = tokio::time::Instant::now();
    let error = pipeline.run(Call::read(), &AnyError, |_| hang()).await.unwrap_err();
    assert!(
        matches!(error, CallError::AttemptTimeout(ref timeout) if timeout.limit == Duration::from_secs(30))
    );
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_value_stands_in_for_an_outage_and_for_nothing_else() {
    let pipeline = Pipeline::builder("prices").deadline(Duration::from_secs(10)).build().unwrap();
    let begun = tokio::time::Instant::now();
    let hanging = |_| hang();
    let value = pipeline.run_or_value(Call::read(), &AnyError, hanging, ()).await;
    assert!(value.is_ok());
    assert_eq!(begun.elapsed(), Duration::from_secs(10), "the primary has the whole of the time");
    let refusing = |_: &Refused| Verdict::caller(Replay::Never);
    let refused = |_| async { Err(Refused) };
    let error = pipeline.run_or_value(Call::read(), &refusing, refused, ()).await.unwrap_err();
    assert!(!error.is_unavailable());
}
