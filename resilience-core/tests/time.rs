//! Fear: a call that outlives its deadline, waits too long, or forgets why it failed.

use std::sync::Mutex;
use std::time::Duration;

use resilience_core::{
    AnyError, Bulkhead, Call, CallError, CircuitBreaker, CircuitState, Deadline, Pipeline, Replay,
    RetryBudget, RetryPolicy, Verdict,
};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

fn retries(count: u32) -> RetryPolicy {
    RetryPolicy::builder().max_retries(count).jitter(false).build().unwrap()
}

fn pipeline(retry: RetryPolicy) -> Pipeline {
    Pipeline::builder("svc")
        .deadline(10 * SECOND)
        .attempt_timeout(3 * SECOND)
        .retry(retry)
        .build()
        .unwrap()
}

async fn hang() -> Result<(), Refused> {
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_by_its_deadline_whatever_the_operation_does() {
    let started = Instant::now();
    let error = pipeline(retries(9)).run(Call::read(), &AnyError, |_| hang()).await.unwrap_err();
    // 3 s, a wait of 1, 3 s, a wait of 2, and the last second.
    assert_eq!(started.elapsed(), 10 * SECOND);
    assert!(
        matches!(error, CallError::AttemptTimeout(ref timeout) if timeout.attempts == 2),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_real_error_comes_back_when_time_is_over() {
    let slow_refusal = |attempt: resilience_core::Attempt| async move {
        if attempt.number == 1 { Err(Refused) } else { hang().await }
    };
    let deadline = Deadline::within(2 * SECOND);
    let started = Instant::now();
    let error = pipeline(retries(9))
        .run(Call::read().by(deadline), &AnyError, slow_refusal)
        .await
        .unwrap_err();
    assert_eq!(started.elapsed(), 2 * SECOND);
    assert!(error.inner().is_some(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_past_the_deadline() {
    let made = Mutex::new(0);
    let deadline = Deadline::within(Duration::ZERO);
    let call = Call::read().by(deadline);
    let result = pipeline(retries(9))
        .run(call, &AnyError, |_| {
            *made.lock().unwrap() += 1;
            async { Ok::<_, Refused>(()) }
        })
        .await;
    assert!(matches!(result, Err(CallError::DeadlineExceeded(ref over)) if over.attempts == 0));
    assert_eq!(*made.lock().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_place_does_not_let_an_attempt_start_late() {
    let bulkhead = Bulkhead::new("svc", 1, 9 * SECOND).unwrap();
    let _held = bulkhead.acquire_owned(Deadline::within(SECOND)).await.unwrap();
    let pipeline = Pipeline::builder("svc").deadline(SECOND).bulkhead(bulkhead).build().unwrap();
    let started = Instant::now();
    let error = pipeline
        .run(Call::read(), &AnyError, |_| async { Ok::<_, Refused>(()) })
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::BulkheadFull(_)), "{error}");
    assert_eq!(started.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn nested_calls_inherit_what_is_left() {
    let (outer, inner) = (pipeline(retries(0)), pipeline(retries(0)));
    let started = Instant::now();
    let error = outer
        .run(Call::read().by(Deadline::within(2 * SECOND)), &AnyError, |_| {
            let inner = inner.clone();
            async move {
                sleep(SECOND).await;
                inner.run(Call::read(), &AnyError, |_| hang()).await
            }
        })
        .await
        .unwrap_err();
    assert_eq!(started.elapsed(), 2 * SECOND);
    assert!(error.is_unavailable());
}

#[tokio::test(start_paused = true)]
async fn the_service_says_when_to_come_back_and_is_obeyed() {
    let busy = |_: &Refused| Verdict::service(Replay::Safe).after(4 * SECOND);
    let times = Mutex::new(Vec::new());
    let started = Instant::now();
    let _ = pipeline(retries(2))
        .run(Call::write(), &busy, |_| {
            times.lock().unwrap().push(started.elapsed());
            async { Err::<(), _>(Refused) }
        })
        .await;
    assert_eq!(*times.lock().unwrap(), [Duration::ZERO, 4 * SECOND, 8 * SECOND]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_past_the_deadline_is_not_begun() {
    let busy = |_: &Refused| Verdict::service(Replay::Safe).after(11 * SECOND);
    let started = Instant::now();
    let error = pipeline(retries(2))
        .run(Call::read(), &busy, |_| async { Err::<(), _>(Refused) })
        .await
        .unwrap_err();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(error.retry_after(), Some(11 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn an_uncertain_write_is_sent_once() {
    for (call, expected) in [(Call::write(), 1), (Call::write_idempotent(), 4), (Call::read(), 4)] {
        let sent = Mutex::new(0);
        let _ = pipeline(retries(3))
            .run(call, &AnyError, |_| {
                *sent.lock().unwrap() += 1;
                async { Err::<(), _>(Refused) }
            })
            .await;
        assert_eq!(*sent.lock().unwrap(), expected, "{call:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_timed_out_is_sent_once() {
    let sent = Mutex::new(0);
    let error = pipeline(retries(3))
        .run(Call::write(), &AnyError, |_| {
            *sent.lock().unwrap() += 1;
            hang()
        })
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::AttemptTimeout(_)));
    assert_eq!(*sent.lock().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_does_not_wait_for_an_open_circuit() {
    let breaker = CircuitBreaker::builder("svc").fail_max(2).build().unwrap();
    let pipeline =
        Pipeline::builder("svc").retry(retries(9)).breaker(breaker.clone()).build().unwrap();
    let started = Instant::now();
    let error = pipeline
        .run(Call::read(), &AnyError, |_| async { Err::<(), _>(Refused) })
        .await
        .unwrap_err();
    assert_eq!(started.elapsed(), SECOND, "one wait, between the two failures that opened it");
    assert!(matches!(error, CallError::Inner(ref failed) if failed.attempts == 2), "{error}");
    assert_eq!(breaker.state(), CircuitState::Open);
    let error = pipeline
        .run(Call::read(), &AnyError, |_| async { Ok::<_, Refused>(()) })
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::CircuitOpen(_)));
}

#[tokio::test(start_paused = true)]
async fn the_budget_bounds_what_all_calls_repeat() {
    let budget = RetryBudget::new(0.1, 10).unwrap();
    let retry = RetryPolicy::builder().max_retries(3).budget(budget).build().unwrap();
    let pipeline = Pipeline::builder("svc").retry(retry).build().unwrap();
    let sent = Mutex::new(0);
    for _ in 0..1000 {
        let _ = pipeline
            .run(Call::read(), &AnyError, |_| {
                *sent.lock().unwrap() += 1;
                async { Err::<(), _>(Refused) }
            })
            .await;
    }
    let sent = *sent.lock().unwrap();
    assert!((1100..=1110).contains(&sent), "{sent} attempts for 1000 calls");
}

#[tokio::test(start_paused = true)]
async fn trouble_of_our_own_spends_no_retry_budget() {
    let budget = RetryBudget::new(0.0, 1).unwrap();
    let retry = RetryPolicy::builder().max_retries(3).budget(budget.clone()).build().unwrap();
    let pipeline = Pipeline::builder("svc").retry(retry).build().unwrap();
    let sent = Mutex::new(0);
    let local = |_: &Refused| Verdict::local(Replay::Safe);
    let refused = pipeline.run(Call::write(), &local, |_| {
        *sent.lock().unwrap() += 1;
        async { Err::<(), _>(Refused) }
    });
    refused.await.unwrap_err();
    assert_eq!(*sent.lock().unwrap(), 4);
    assert!(budget.try_withdraw(), "it was spent on what never reached the service");
}

#[tokio::test(start_paused = true)]
async fn a_primary_with_a_fallback_leaves_it_half_of_the_time() {
    let started = Instant::now();
    let answer = pipeline(retries(9))
        .run_or(
            Call::read().by(Deadline::within(2 * SECOND)),
            &AnyError,
            |_| async { hang().await.map(|()| "primary") },
            |why| async move {
                assert!(why.is_unavailable());
                assert_eq!(Deadline::current().unwrap().remaining(), SECOND);
                Ok::<_, CallError<Refused>>("fallback")
            },
        )
        .await
        .unwrap();
    assert_eq!((answer, started.elapsed()), ("fallback", SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_is_no_case_for_a_fallback() {
    let wrong = |_: &Refused| Verdict::caller(Replay::Never);
    let result = pipeline(retries(9))
        .run_or(
            Call::read(),
            &wrong,
            |_| async { Err::<&str, _>(Refused) },
            |_| async { Ok::<_, CallError<Refused>>("fallback") },
        )
        .await;
    assert!(result.unwrap_err().inner().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_too_short_to_judge_by_blames_nobody() {
    let breaker = CircuitBreaker::builder("svc").fail_max(1).build().unwrap();
    let pipeline = Pipeline::builder("svc").breaker(breaker.clone()).build().unwrap();
    let call = |millis| Call::read().by(Deadline::within(Duration::from_millis(millis)));
    let _ = pipeline.run(call(9), &AnyError, |_| hang()).await;
    assert_eq!((breaker.state(), breaker.snapshot().calls.cancelled), (CircuitState::Closed, 1));
    let _ = pipeline.run(call(10), &AnyError, |_| hang()).await;
    assert_eq!((breaker.state(), breaker.snapshot().calls.failure), (CircuitState::Open, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fallback_that_hangs_ends_by_the_deadline_too() {
    let started = Instant::now();
    let call = Call::read().by(Deadline::within(2 * SECOND));
    let error = pipeline(retries(9))
        .run_or(call, &AnyError, |_| hang(), |_| std::future::pending())
        .await
        .unwrap_err();
    let error: CallError<Refused> = error;
    assert!(
        matches!(error, CallError::DeadlineExceeded(ref over) if over.attempts == 1),
        "{error}"
    );
    assert_eq!(started.elapsed(), 2 * SECOND);
}

#[tokio::test]
async fn no_attempt_is_promised_time_past_the_deadline() {
    let pipeline = pipeline(retries(0));
    for _ in 0..1000 {
        let deadline = Deadline::within(2 * SECOND);
        let told = pipeline.run(Call::read().by(deadline), &AnyError, |attempt| async move {
            Ok::<_, Refused>(attempt.deadline)
        });
        assert!(told.await.unwrap() <= deadline);
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_alone_starts_no_retry_past_the_deadline_either() {
    let made = Mutex::new(0);
    let policy = retries(3);
    let calling = Deadline::within(2 * SECOND).scope(policy.run(
        || {
            *made.lock().unwrap() += 1;
            async { Err::<(), _>(Refused) }
        },
        |_| true,
    ));
    // This process stands still while the policy waits its first second.
    let (result, ()) = tokio::join!(calling, tokio::time::advance(5 * SECOND));
    result.unwrap_err();
    assert_eq!(*made.lock().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn nested_pipelines_do_not_multiply_their_attempts() {
    let sent = Mutex::new(0);
    let quick = || {
        let retry = RetryPolicy::builder().max_retries(3).base_delay(Duration::from_millis(1));
        pipeline(retry.build().unwrap())
    };
    let (outer, inner) = (quick(), quick());
    let call = outer.run(Call::read(), &AnyError, |_| {
        inner.run(Call::read(), &AnyError, |_| {
            *sent.lock().unwrap() += 1;
            async { Err::<(), _>(Refused) }
        })
    });
    call.await.unwrap_err();
    assert_eq!(*sent.lock().unwrap(), 4);

    // Where the inner one never repeats, or has got its answer, the outer one does what it is there for.
    let (plain, made) = (pipeline(retries(0)), Mutex::new(0));
    let call = outer.run(Call::read(), &AnyError, |_| {
        *made.lock().unwrap() += 1;
        async {
            inner.run(Call::read(), &AnyError, |_| async { Ok::<_, Refused>(()) }).await?;
            plain.run(Call::read(), &AnyError, |_| async { Err::<(), _>(Refused) }).await
        }
    });
    call.await.unwrap_err();
    assert_eq!(*made.lock().unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_time_spent_in_our_own_queue_is_not_held_against_the_service() {
    let breaker = CircuitBreaker::builder("svc").fail_max(1).build().unwrap();
    let bulkhead = Bulkhead::new("svc", 1, 9 * SECOND).unwrap();
    let place = bulkhead.acquire_owned(Deadline::within(SECOND)).await.unwrap();
    let pipeline = Pipeline::builder("svc").deadline(4 * SECOND).attempt_timeout(3 * SECOND);
    let pipeline = pipeline.breaker(breaker.clone()).bulkhead(bulkhead).build().unwrap();
    let call = tokio::spawn({
        let pipeline = pipeline.clone();
        async move { pipeline.run(Call::read(), &AnyError, |_| hang()).await }
    });
    sleep(2 * SECOND).await;
    drop(place);
    assert!(matches!(call.await.unwrap(), Err(CallError::DeadlineExceeded(_))));
    assert_eq!((breaker.state(), breaker.snapshot().calls.cancelled), (CircuitState::Closed, 1));
    let _ = pipeline.run(Call::read(), &AnyError, |_| hang()).await;
    assert_eq!(breaker.state(), CircuitState::Open);
}
