//! A call that is made twice at once: what it costs, and what it leaves.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_hedge_has_its_whole_attempt_timeout_and_its_loser_is_cancelled() {
    let (budget, breaker) = (full_budget(), patient("hedged"));
    let bulkhead = Bulkhead::new("hedged", 2, Duration::ZERO).unwrap();
    let pipeline = noted("hedged")
        .hedge(hedge(&budget))
        .retry(retries(1, SECOND, &budget))
        .breaker(breaker.clone())
        .bulkhead(bulkhead.clone())
        .attempt_timeout(3 * SECOND)
        .build()
        .unwrap();
    let started = Instant::now();
    // The hedge begins at 1 s and answers 2.5 s later; the first attempt was cut off at 3 s, and
    // waits to be repeated at 4 s.
    let operation = |attempt: resilience_core::Attempt| {
        answer(attempt.number, if attempt.number == 2 { 2500 * MS } else { 100 * SECOND })
    };
    assert_eq!(pipeline.run(Call::read(), &AnyError, operation).await.unwrap(), 2);
    assert_eq!((started.elapsed(), last_end("hedged")), (3500 * MS, (CallOutcome::Success, 2)));
    let operation = |attempt: resilience_core::Attempt| {
        answer(attempt.number, if attempt.number == 2 { SECOND } else { 100 * SECOND })
    };
    assert_eq!(pipeline.run(Call::read(), &AnyError, operation).await.unwrap(), 2);
    let calls = breaker.snapshot().calls;
    assert_eq!((calls.success, calls.failure, calls.cancelled), (2, 1, 1));
    assert_eq!(bulkhead.available(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_to_repeat_is_late_too() {
    let budget = full_budget();
    let pipeline = Pipeline::builder("late").hedge(hedge(&budget));
    let pipeline = pipeline.retry(retries(1, 20 * SECOND, &budget)).build().unwrap();
    let started = Instant::now();
    let operation = |attempt: resilience_core::Attempt| async move {
        if attempt.number == 1 { fail(Duration::ZERO).await } else { answer(2, MS).await }
    };
    assert_eq!(pipeline.run(Call::read(), &AnyError, operation).await.unwrap(), 2);
    assert_eq!(started.elapsed(), SECOND + MS);
}

#[tokio::test(start_paused = true)]
async fn a_write_is_never_made_twice_at_once() {
    let (budget, most) = (full_budget(), AtomicU32::new(0));
    let hedge = hedge(&budget);
    let pipeline = Pipeline::builder("writes").hedge(hedge.clone()).build().unwrap();
    for (call, attempts) in [(Call::write(), 1), (Call::write_idempotent(), 2), (Call::read(), 2)] {
        most.store(0, Ordering::Relaxed);
        let operation = |attempt: resilience_core::Attempt| {
            most.fetch_max(attempt.number, Ordering::Relaxed);
            answer(attempt.number, 5 * SECOND)
        };
        pipeline.run(call, &AnyError, operation).await.unwrap();
        assert_eq!(most.load(Ordering::Relaxed), attempts);
    }
    assert_eq!(hedge.counts().started, 2);
}

#[tokio::test(start_paused = true)]
async fn hedges_and_retries_of_a_thousand_calls_stay_within_one_budget_exactly() {
    let budget = RetryBudget::new(0.1, 10).unwrap();
    let (hedge, breaker) = (hedge(&budget), patient("load"));
    let pipeline = noted("load")
        .hedge(hedge.clone())
        .retry(retries(3, SECOND, &budget))
        .breaker(breaker.clone())
        .build()
        .unwrap();
    let (attempts, mut told) = (AtomicU32::new(0), 0);
    for _ in 0..1000 {
        let operation = |attempt: resilience_core::Attempt| {
            attempts.fetch_add(1, Ordering::Relaxed);
            fail(if attempt.number % 2 == 1 { 1500 * MS } else { 700 * MS })
        };
        pipeline.run(Call::read(), &AnyError, operation).await.unwrap_err();
        told += last_end("load").1;
    }
    // The first deposit found the budget full: 10 + 0.1 · 999, of which the tenths buy nothing.
    let attempts = attempts.into_inner();
    assert_eq!((attempts, told, budget.balance()), (1109, 1109, 0));
    assert_eq!(breaker.snapshot().calls.failure, u64::from(attempts));
    assert!((1..109).contains(&hedge.counts().started), "{:?}", hedge.counts());
}
