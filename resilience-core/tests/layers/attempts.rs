//! What stands around one attempt, and what that teaches it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_throttle_refuses_attempts_in_the_place_of_a_breaker() {
    let throttle = Throttle::builder("soft").seed(3).build().unwrap();
    let budget = full_budget();
    let pipeline = noted("soft").throttle(throttle.clone()).retry(retries(1, MS, &budget));
    let pipeline = pipeline.build().unwrap();
    let caller = |_: &Refused| Verdict::caller(Replay::Never);
    for _ in 0..100 {
        pipeline.run(Call::read(), &caller, |_| fail(MS)).await.unwrap_err();
    }
    assert_eq!((throttle.snapshot().accepts, throttle.rejection_probability()), (100, 0.0));
    let (made, mut refused) = (AtomicU32::new(0), 0);
    let operation = |_| {
        made.fetch_add(1, Ordering::Relaxed);
        fail(MS)
    };
    for _ in 0..1000 {
        let error = pipeline.run(Call::read(), &AnyError, operation).await.unwrap_err();
        if matches!(error, CallError::Throttled(_)) {
            refused += 1;
            assert_eq!(last_end("soft"), (CallOutcome::Rejected, 0));
        }
    }
    let snapshot = throttle.snapshot();
    // What was refused after a first attempt gave back that one's error.
    assert!(refused > 100 && snapshot.refused > refused, "{refused} calls, {snapshot:?}");
    assert_eq!(snapshot.requests, 100 + u64::from(made.into_inner()) + snapshot.refused);
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_shrinks_only_for_timeouts_and_answers_that_ask_for_time() {
    let limit = AdaptiveLimit::builder("adaptive").max(20).build().unwrap();
    let chaos = Chaos::builder("adaptive").faults(1.0).build().unwrap();
    let pipeline = Pipeline::builder("adaptive").adaptive_limit(limit.clone());
    let pipeline = pipeline.attempt_timeout(SECOND).chaos(chaos.clone()).build().unwrap();
    let service = Verdict::service(Replay::Never);
    let neutral: [Verdict; 4] = [
        service,
        Verdict::caller(Replay::Never).after(SECOND),
        Verdict::local(Replay::Never).after(SECOND),
        Verdict::local(Replay::Never),
    ];
    for verdict in neutral {
        for _ in 0..100 {
            pipeline.run(Call::read(), &|_: &_| verdict, |_| fail(MS)).await.unwrap_err();
        }
    }
    chaos.set_enabled(true);
    for _ in 0..100 {
        pipeline.run(Call::read(), &AnyError, |_| fail(MS)).await.unwrap_err();
    }
    chaos.set_enabled(false);
    assert_eq!((limit.limit(), limit.in_flight()), (20, 0));
    for _ in 0..2 {
        let pushback = |_: &Refused| service.after(SECOND);
        pipeline.run(Call::read(), &pushback, |_| fail(MS)).await.unwrap_err();
    }
    assert_eq!((limit.limit(), limit.in_flight()), (18, 0));
    for _ in 0..2 {
        pipeline.run(Call::read(), &AnyError, |_| answer(1, 9 * SECOND)).await.unwrap_err();
    }
    assert_eq!((limit.limit(), limit.in_flight()), (16, 0));
    for _ in 0..100 {
        let running = begin(&pipeline, Call::read()).await;
        assert_eq!(limit.in_flight(), 1);
        running.abort();
        let _ = running.await;
    }
    assert_eq!((limit.limit(), limit.in_flight()), (16, 0));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_became_slower_than_the_learned_timeout_is_heard_again() {
    let timeout = Timeout::learned().build().unwrap();
    let pipeline = Pipeline::builder("learned").attempt_timeout(timeout.clone()).build().unwrap();
    for _ in 0..200 {
        pipeline.run(Call::read(), &AnyError, |_| answer(1, 10 * MS)).await.unwrap();
    }
    assert!(timeout.current() < 40 * MS);
    let mut cut_off = 0;
    while pipeline.run(Call::read(), &AnyError, |_| answer(1, SECOND)).await.is_err() {
        cut_off += 1;
        assert!(cut_off <= 6, "30 ms doubles to more than 1 s in 6 steps");
    }
    for _ in 0..2000 {
        pipeline.run(Call::read(), &AnyError, |_| answer(1, SECOND)).await.unwrap();
    }
    assert_eq!(cut_off, 6);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_turn_or_a_place_teaches_the_learned_timeout_nothing() {
    let timeout = Timeout::learned().build().unwrap();
    let pipeline = Pipeline::builder("waits")
        .rate_limiter(RateLimiter::builder("waits", 1, SECOND).burst(1).build().unwrap())
        .attempt_timeout(timeout.clone())
        .build()
        .unwrap();
    for _ in 0..200 {
        pipeline.run(Call::read(), &AnyError, |_| answer(1, 10 * MS)).await.unwrap();
    }
    assert!(timeout.current() < 40 * MS, "{:?}", timeout.current());
}

#[tokio::test(start_paused = true)]
async fn an_injected_fault_is_the_services_and_a_write_is_repeated_after_it() {
    let (breaker, budget) = (patient("chaos"), full_budget());
    let chaos = Chaos::builder("chaos").faults(1.0).build().unwrap();
    let pipeline = noted("chaos")
        .retry(retries(3, SECOND, &budget))
        .breaker(breaker.clone())
        .chaos(chaos.clone())
        .build()
        .unwrap();
    let made = AtomicU32::new(0);
    let operation = |attempt: resilience_core::Attempt| {
        made.fetch_add(1, Ordering::Relaxed);
        answer(attempt.number, MS)
    };
    pipeline.run(Call::write(), &AnyError, operation).await.unwrap();
    assert_eq!((chaos.decisions(), breaker.snapshot().calls.failure), (0, 0));
    chaos.set_enabled(true);
    let switch_off = async {
        sleep(1500 * MS).await;
        chaos.set_enabled(false);
    };
    let (number, ()) = tokio::join!(pipeline.run(Call::write(), &AnyError, operation), switch_off);
    assert_eq!((number.unwrap(), made.load(Ordering::Relaxed), chaos.decisions()), (3, 2, 2));
    let calls = breaker.snapshot().calls;
    assert_eq!((calls.success, calls.failure, budget.balance()), (2, 2, 8));
    chaos.set_enabled(true);
    let error = pipeline.run(Call::write(), &AnyError, operation).await.unwrap_err();
    assert!(matches!(error, CallError::Injected(_)), "{error}");
    assert_eq!(last_end("chaos"), (CallOutcome::ServiceError, 4));
}

#[tokio::test(start_paused = true)]
async fn injected_latency_is_cut_off_like_that_of_the_service() {
    let breaker = patient("slow");
    let chaos = Chaos::builder("slow").latency(1.0, 9 * SECOND..=9 * SECOND).enabled(true);
    let pipeline = Pipeline::builder("slow").breaker(breaker.clone()).attempt_timeout(SECOND);
    let pipeline = pipeline.chaos(chaos.build().unwrap()).build().unwrap();
    let started = Instant::now();
    let error = pipeline.run(Call::read(), &AnyError, |_| answer(1, MS)).await.unwrap_err();
    assert!(matches!(error, CallError::AttemptTimeout(_)), "{error}");
    assert_eq!((started.elapsed(), breaker.snapshot().calls.failure), (SECOND, 1));
}
