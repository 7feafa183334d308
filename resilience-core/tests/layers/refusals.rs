//! What refuses a call, and what it leaves unasked.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_shed_call_asks_no_layer_further_in_and_earns_no_retry() {
    let (shedder, budget, breaker) = (shedding("shed").await, full_budget(), patient("shed"));
    let limiter = RateLimiter::builder("shed", 1, SECOND).queue(0).build().unwrap();
    let chaos = Chaos::builder("shed").faults(1.0).enabled(true).build().unwrap();
    let pipeline = noted("shed")
        .shedder(shedder.clone())
        .rate_limiter(limiter.clone())
        .hedge(hedge(&budget))
        .retry(retries(3, SECOND, &budget))
        .breaker(breaker.clone())
        .bulkhead(Bulkhead::new("shed", 1, SECOND).unwrap())
        .chaos(chaos.clone())
        .build()
        .unwrap();
    assert!(budget.try_withdraw());
    let started = Instant::now();
    let call = Call::read().rank(Priority::Low.level(0));
    let error = pipeline.run(call, &AnyError, |_| fail(SECOND)).await.unwrap_err();
    assert!(matches!(&error, CallError::Shed(shed) if &*shed.name == "shed"), "{error}");
    assert_eq!(last_end("shed"), (CallOutcome::Rejected, 0));
    assert_eq!((budget.balance(), chaos.decisions(), started.elapsed()), (9, 0, Duration::ZERO));
    assert_eq!(breaker.snapshot().calls.cancelled, 0);
    assert_eq!(shedder.in_flight(), 0);
    limiter.try_acquire().expect("the shed call took no turn");
}

#[tokio::test(start_paused = true)]
async fn the_rank_of_the_call_outweighs_the_one_around_it_and_that_the_default() {
    let pipeline = Pipeline::builder("rank").shedder(shedding("rank").await).build().unwrap();
    let run = |call| pipeline.run(call, &AnyError, |_| answer(1, MS));
    let (low, high) = (Priority::Low.level(0), Rank::from(Priority::High));
    assert_eq!(run(Call::read()).await.unwrap(), 1);
    assert!(matches!(low.scope(run(Call::read())).await, Err(CallError::Shed(_))));
    assert_eq!(low.scope(run(Call::read().rank(high))).await.unwrap(), 1);
    assert!(matches!(high.scope(run(Call::read().rank(low))).await, Err(CallError::Shed(_))));
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_turn_once_and_its_attempts_have_their_whole_time_after_it() {
    let limiter = RateLimiter::builder("turns", 1, 10 * SECOND).build().unwrap();
    let (breaker, budget) = (patient("turns"), full_budget());
    let pipeline = noted("turns")
        .rate_limiter(limiter)
        .retry(retries(1, SECOND, &budget))
        .breaker(breaker.clone())
        .attempt_timeout(3 * SECOND)
        .build()
        .unwrap();
    let started = Instant::now();
    pipeline.run(Call::read(), &AnyError, |_| answer(1, MS)).await.unwrap();
    let operation = |attempt: resilience_core::Attempt| async move {
        if attempt.number == 1 { fail(2 * SECOND).await } else { answer(2, 2 * SECOND).await }
    };
    // Its turn comes at 10 s; the second attempt needs no other.
    assert_eq!(pipeline.run(Call::read(), &AnyError, operation).await.unwrap(), 2);
    assert_eq!(started.elapsed(), 15 * SECOND);
    assert_eq!(breaker.snapshot().calls.success, 2);

    let (started, spent) = (Instant::now(), budget.balance());
    let call = Call::read().by(Deadline::within(4 * SECOND));
    let error = pipeline.run(call, &AnyError, operation).await.unwrap_err();
    assert!(matches!(error, CallError::RateLimited(_)), "{error}");
    assert_eq!(error.retry_after(), Some(5 * SECOND));
    assert_eq!(
        (last_end("turns"), started.elapsed()),
        ((CallOutcome::Rejected, 0), Duration::ZERO)
    );
    assert_eq!((budget.balance(), breaker.snapshot().calls.cancelled), (spent, 0));
}

#[tokio::test(start_paused = true)]
async fn each_refusal_has_its_outcome_and_reaches_the_fallback() {
    let open = CircuitBreaker::new("open");
    open.force_open();
    let throttle = Throttle::builder("throttled").multiplier(1.0).max_rejection(0.999).seed(1);
    let throttle = throttle.build().unwrap();
    for _ in 0..10_000 {
        let _ = throttle.try_acquire().map(ThrottlePermit::failure);
    }
    let full = Bulkhead::new("full", 1, Duration::ZERO).unwrap();
    let _place = full.try_acquire().unwrap();
    let narrow = AdaptiveLimit::builder("narrow").max(1).wait(Duration::ZERO).build().unwrap();
    let _other = narrow.try_acquire().unwrap();
    let drained = noted("drained").build().unwrap();
    assert_eq!(drained.drain(Deadline::within(SECOND)).await, Drained { abandoned: 0 });
    let built = |builder: PipelineBuilder| builder.build().unwrap();
    for (pipeline, outcome) in [
        (built(noted("open").breaker(open)), CallOutcome::CircuitOpen),
        (built(noted("throttled").throttle(throttle)), CallOutcome::Rejected),
        (built(noted("full").bulkhead(full.clone())), CallOutcome::Rejected),
        (built(noted("narrow").adaptive_limit(narrow.clone())), CallOutcome::Rejected),
        (drained, CallOutcome::Rejected),
    ] {
        let call = Call::read().rank(Priority::Low);
        let value: Answer =
            pipeline.run_or(call, &AnyError, |_| answer(1, MS), |_| async { Ok(2) }).await;
        assert_eq!((value.unwrap(), last_end(pipeline.name())), (2, (outcome, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_answers_before_a_full_bulkhead_and_a_full_one_blames_nobody() {
    let breaker = CircuitBreaker::builder("order").fail_max(1).build().unwrap();
    let bulkhead = Bulkhead::new("order", 1, SECOND).unwrap();
    let pipeline = noted("order").breaker(breaker.clone()).bulkhead(bulkhead.clone());
    let pipeline = pipeline.build().unwrap();
    let place = bulkhead.try_acquire().unwrap();
    let run = || pipeline.run(Call::read(), &AnyError, |_| answer(1, MS));
    assert!(matches!(run().await, Err(CallError::BulkheadFull(_))));
    assert_eq!((breaker.snapshot().calls.cancelled, breaker.state()), (1, CircuitState::Closed));
    breaker.try_acquire().unwrap().failure();
    let started = Instant::now();
    assert!(matches!(run().await, Err(CallError::CircuitOpen(_))));
    assert_eq!((started.elapsed(), bulkhead.waiting()), (Duration::ZERO, 0));
    drop(place);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ran_out_of_time_before_its_first_attempt_speaks_against_no_service() {
    let limiter = RateLimiter::builder("queue", 1, 2 * SECOND).build().unwrap();
    let pipeline = noted("queue").rate_limiter(limiter).build().unwrap();
    let call = || Call::read().by(Deadline::within(2 * SECOND));
    let run = |call| pipeline.run(call, &AnyError, |_| answer(1, Duration::ZERO));
    run(call()).await.unwrap();
    // Its turn comes when its time is over.
    let error = run(call()).await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    let (outcome, attempts) = last_end("queue");
    assert!(!outcome.is_error() && attempts == 0, "{outcome:?}");
    let gone = Pipeline::builder("gone").build().unwrap();
    let past = Call::read().by(Deadline::at(Instant::now()));
    let error = gone.run(past, &AnyError, |_| answer(1, Duration::ZERO)).await.unwrap_err();
    assert!(matches!(error, CallError::DeadlineExceeded(over) if over.blame == Blame::Local));
}
