//! Fear: a call that tells observers, its caller or the pipeline around it what did not happen.

use std::future::{Future, pending, poll_fn};
use std::io::ErrorKind::{self, ConnectionRefused, ConnectionReset};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use resilience_core::{
    AdaptiveLimit, AnyError, Attempt, Bulkhead, Call, CallError, CallOutcome, CircuitBreaker,
    CircuitOpen, CircuitState, Deadline, Event, Failed, Hedge, Observe, Permit, Pipeline,
    PipelineBuilder, Replay, RetryPolicy, Standstill, Timeout, Verdict, add_observer,
};
use tokio::time::{advance, sleep};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Was refused: not executed. Was reset: who knows.
fn verdict(error: &ErrorKind) -> Verdict {
    match error {
        ConnectionRefused => Verdict::service(Replay::Safe),
        _ => Verdict::service(Replay::IfIdempotent),
    }
}

fn retrying(name: &'static str, retries: u32) -> PipelineBuilder {
    let retry = RetryPolicy::builder().max_retries(retries).build().unwrap();
    Pipeline::builder(name).retry(retry)
}

/// The last real error of a call, with its attempts.
fn last_word<T>(result: Result<T, CallError<ErrorKind>>) -> (ErrorKind, Replay, u32) {
    match result {
        Err(CallError::Inner(Failed { error, verdict, attempts, .. })) => {
            (error, verdict.replay, attempts)
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it has succeeded"),
    }
}

/// How the calls of one pipeline ended.
struct Ends(&'static str, Mutex<Vec<CallOutcome>>);

impl Ends {
    fn of(name: &'static str) -> Arc<Self> {
        let ends = Arc::new(Self(name, Mutex::default()));
        add_observer(Arc::clone(&ends) as Arc<dyn Observe>);
        ends
    }
}

impl Observe for Ends {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::CallEnded { name, outcome, .. } = event
            && &***name == self.0
        {
            self.1.lock().unwrap().push(*outcome);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_told_to_observers_as_the_failure_that_the_breaker_counts() {
    let ends = Ends::of("panics");
    let breaker = CircuitBreaker::new("panics");
    for builder in
        [Pipeline::builder("panics"), Pipeline::builder("panics").breaker(breaker.clone())]
    {
        let pipeline = builder.build().unwrap();
        let call = tokio::spawn(async move {
            let operation = |_| async {
                sleep(MS).await;
                panic!("on purpose")
            };
            let _: Result<(), CallError<ErrorKind>> =
                pipeline.run(Call::read(), &AnyError, operation).await;
        });
        assert!(call.await.unwrap_err().is_panic());
    }
    assert_eq!(*ends.1.lock().unwrap(), [CallOutcome::ServiceError; 2]);
    assert_eq!(breaker.snapshot().calls.failure, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_somebody_elses_panic_drops_is_cancelled() {
    let ends = Ends::of("bystander");
    let pipeline = Pipeline::builder("bystander").build().unwrap();
    let bystander = tokio::spawn(async move {
        let hang = |_| pending::<Result<(), ErrorKind>>();
        let mut call = pin!(pipeline.run(Call::read(), &AnyError, hang));
        let begun = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending()));
        assert!(begun.await);
        panic!("on purpose");
    });
    assert!(bystander.await.unwrap_err().is_panic());
    assert_eq!(*ends.1.lock().unwrap(), [CallOutcome::Cancelled]);
}

#[tokio::test(start_paused = true)]
async fn an_inner_call_that_was_never_attempted_leaves_the_retry_to_the_outer() {
    let breaker = CircuitBreaker::new("inner");
    breaker.force_open();
    let inner = retrying("inner", 2).breaker(breaker.clone()).build().unwrap();
    let attempts = AtomicU32::new(0);
    let call = retrying("outer", 2).build().unwrap();
    let result = call
        .run(Call::read(), &AnyError, |attempt| {
            attempts.store(attempt.number, Ordering::Relaxed);
            inner.run(Call::read(), &verdict, |_| async { Err::<(), _>(ConnectionReset) })
        })
        .await;
    result.unwrap_err();
    assert_eq!(attempts.into_inner(), 3);
    assert_eq!(call.unwise().len(), 1, "the two are nested all the same");
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_was_made_up_for_keeps_nobody_from_retrying() {
    let inner = &retrying("cache", 1).build().unwrap();
    for by_value in [true, false] {
        let outer = retrying("outer", 1).build().unwrap();
        let result = outer.run(Call::read(), &verdict, |attempt: Attempt| async move {
            let miss = |_| async { Err::<u32, _>(ConnectionReset) };
            let cached = match by_value {
                true => inner.run_or_value(Call::read(), &verdict, miss, 7).await,
                false => inner.run_or(Call::read(), &verdict, miss, |_| async { Ok(7) }).await,
            };
            let cached: Result<u32, CallError<ErrorKind>> = cached;
            assert_eq!(cached.unwrap(), 7);
            if attempt.number == 1 { Err(ConnectionReset) } else { Ok(()) }
        });
        result.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_the_fallback_too() {
    let pipeline = Pipeline::builder("drains").build().unwrap();
    let call = pipeline.run_or(
        Call::read(),
        &verdict,
        |_| async { Err::<(), _>(ConnectionReset) },
        |_| async {
            sleep(5 * SECOND).await;
            Ok::<_, CallError<ErrorKind>>(())
        },
    );
    let drain = async {
        sleep(SECOND).await;
        let early = pipeline.drain(Deadline::within(SECOND)).await;
        (early, pipeline.drain(Deadline::within(60 * SECOND)).await)
    };
    let (answer, drained) = tokio::join!(call, drain);
    answer.unwrap();
    let drained = (drained.0.abandoned, drained.1.abandoned);
    assert_eq!(drained, (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_last_error_does_not_deny_what_earlier_attempts_may_have_done() {
    let pipeline = &retrying("denies", 1).build().unwrap();
    let kinds = |first, second| async move {
        let operation = |attempt: Attempt| async move {
            Err::<(), _>(if attempt.number == 1 { first } else { second })
        };
        last_word(pipeline.run(Call::read(), &verdict, operation).await)
    };
    let refused = (ConnectionRefused, Replay::Safe, 2);
    assert_eq!(kinds(ConnectionRefused, ConnectionRefused).await, refused);
    let uncertain = (ConnectionRefused, Replay::IfIdempotent, 2);
    assert_eq!(kinds(ConnectionReset, ConnectionRefused).await, uncertain);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_cut_off_is_counted_though_an_earlier_error_tells_more() {
    let pipeline = retrying("cut", 1).deadline(5 * SECOND).build().unwrap();
    let call = pipeline.run(Call::read(), &verdict, |attempt: Attempt| async move {
        match attempt.number {
            1 => Err::<(), _>(ConnectionRefused),
            _ => pending().await,
        }
    });
    assert_eq!(last_word(call.await), (ConnectionRefused, Replay::IfIdempotent, 2));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_was_refused_does_not_deny_what_the_other_may_have_done() {
    let hedge = Hedge::builder().delay(SECOND).build().unwrap();
    let pipeline = Pipeline::builder("hedged").deadline(5 * SECOND).hedge(hedge).build().unwrap();
    let call = pipeline.run(Call::read(), &verdict, |attempt: Attempt| async move {
        match attempt.number {
            1 => pending().await,
            _ => Err::<(), _>(ConnectionRefused),
        }
    });
    assert_eq!(last_word(call.await), (ConnectionRefused, Replay::IfIdempotent, 2));
}

#[cfg(feature = "chaos")]
#[tokio::test(start_paused = true)]
async fn an_injected_fault_hides_no_real_error() {
    let chaos = resilience_core::Chaos::builder("c").faults(1.0).build().unwrap();
    let pipeline = retrying("hides", 2).chaos(chaos.clone()).deadline(5 * SECOND).build().unwrap();
    let call = pipeline.run(Call::read(), &verdict, |_| async {
        chaos.set_enabled(true);
        Err::<(), _>(ConnectionReset)
    });
    assert_eq!(last_word(call.await), (ConnectionReset, Replay::IfIdempotent, 3));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waited_for_a_place_is_not_sent_into_a_circuit_that_opened_meanwhile() {
    let breaker = CircuitBreaker::builder("queue").fail_max(1).build().unwrap();
    let bulkhead = Bulkhead::builder("queue").limit(1).wait(9 * SECOND);
    let pipeline =
        Pipeline::builder("queue").breaker(breaker.clone()).bulkhead(bulkhead.build().unwrap());
    let pipeline = pipeline.build().unwrap();
    let sent = AtomicU32::new(0);
    let call = || {
        pipeline.run(Call::read(), &verdict, |_| async {
            sent.fetch_add(1, Ordering::Relaxed);
            sleep(SECOND).await;
            Err::<(), _>(ConnectionReset)
        })
    };
    let (_, second, third) = tokio::join!(call(), call(), call());
    for late in [second, third] {
        assert!(matches!(late, Err(CallError::CircuitOpen(_))), "{late:?}");
    }
    assert_eq!(sent.into_inner(), 1);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.calls.failure, snapshot.not_permitted), (1, 2));
    assert_eq!(snapshot.calls.cancelled, 0);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_that_panics_leaves_every_count_right() {
    let breaker = CircuitBreaker::new("fallback");
    let bulkhead = Bulkhead::new("fallback", 1, Duration::ZERO).unwrap();
    let pipeline = retrying("fallback", 1).breaker(breaker.clone()).bulkhead(bulkhead.clone());
    let pipeline = pipeline.build().unwrap();
    let call = tokio::spawn({
        let pipeline = pipeline.clone();
        async move {
            let fail = |_| async { Err::<(), _>(ConnectionReset) };
            let panic = |_| async { panic!("on purpose") };
            let _: Result<(), CallError<ErrorKind>> =
                pipeline.run_or(Call::read(), &verdict, fail, panic).await;
        }
    });
    assert!(call.await.unwrap_err().is_panic());
    let calls = breaker.snapshot().calls;
    assert_eq!((calls.failure, calls.cancelled, bulkhead.available()), (2, 0, 1));
    assert_eq!(pipeline.drain(Deadline::within(SECOND)).await.abandoned, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_holds_its_permit_to_its_end_and_drops_it_without_blame() {
    /// Rows of an answer, of which any may be the last that comes.
    struct Rows {
        permit: Option<Permit>,
        left: u32,
    }
    impl Rows {
        async fn next(&mut self) -> Option<u32> {
            sleep(MS).await;
            let left = self.left.checked_sub(1);
            match left {
                Some(left) => self.left = left,
                None => self.permit.take().into_iter().for_each(Permit::success),
            }
            left
        }
    }
    let breaker = CircuitBreaker::builder("rows").fail_max(1).success_threshold(1).build().unwrap();
    breaker.try_acquire().unwrap().failure();
    sleep(breaker.settings().reset_timeout).await;
    let ask = |left| Ok::<_, CircuitOpen>(Rows { permit: Some(breaker.try_acquire()?), left });
    let mut dropped = ask(9).unwrap();
    assert_eq!(dropped.next().await, Some(8));
    assert!(ask(1).is_err(), "the one probe is out");
    drop(dropped);
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    let mut whole = tokio::spawn({
        let rows = ask(3).unwrap();
        async move {
            let mut rows = rows;
            while rows.next().await.is_some() {}
        }
    });
    (&mut whole).await.unwrap();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_not_lost_because_this_process_was_stopped() {
    let breaker =
        CircuitBreaker::builder("probe").fail_max(1).success_threshold(1).build().unwrap();
    let lease = breaker.settings().probe_lease;
    let _watched = Standstill::watch();
    breaker.try_acquire().unwrap().failure();
    sleep(breaker.settings().reset_timeout).await;
    let probe = breaker.try_acquire().unwrap();
    sleep(SECOND).await;
    advance(lease).await;
    breaker.try_acquire().unwrap_err();
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    probe.success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_vanished_is_lost_all_the_same_after_a_standstill() {
    let breaker = CircuitBreaker::builder("lost").fail_max(1).build().unwrap();
    let lease = breaker.settings().probe_lease;
    let _watched = Standstill::watch();
    breaker.try_acquire().unwrap().failure();
    sleep(breaker.settings().reset_timeout).await;
    let probe = breaker.try_acquire().unwrap();
    advance(60 * SECOND).await;
    sleep(lease + SECOND).await;
    breaker.try_acquire().unwrap_err();
    assert_eq!(breaker.state(), CircuitState::Open);
    drop(probe);
}

#[tokio::test(start_paused = true)]
async fn what_this_process_held_up_teaches_no_layer() {
    let limit = AdaptiveLimit::builder("learns").max(20).build().unwrap();
    let timeout = Timeout::learned().min_samples(8).build().unwrap();
    let pipeline =
        Pipeline::builder("learns").adaptive_limit(limit.clone()).attempt_timeout(timeout.clone());
    let pipeline = pipeline.build().unwrap();
    let _watched = Standstill::watch();
    let call = |stopped: Duration| {
        pipeline.run(Call::read(), &AnyError, move |_| async move {
            sleep(10 * MS).await;
            advance(stopped).await;
            Ok::<_, ErrorKind>(())
        })
    };
    for _ in 0..100 {
        call(Duration::ZERO).await.unwrap();
    }
    let before = (timeout.current(), limit.limit());
    for _ in 0..100 {
        let _ = call(20 * SECOND).await;
    }
    assert_eq!((timeout.current(), limit.limit()), before);
}
