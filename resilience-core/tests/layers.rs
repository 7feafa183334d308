//! Fear: layers in another order than promised, and what one of them takes that another never gives back.

#![cfg(all(feature = "chaos", feature = "rate-limit"))]

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use resilience_core::{
    AdaptiveLimit, AnyError, Blame, Bulkhead, Call, CallError, CallOutcome, Chaos, CircuitBreaker,
    CircuitState, Classify, Deadline, Drained, Event, Hedge, Load, LoadShedder, Name, Observe,
    Pipeline, PipelineBuilder, Prioritizer, Priority, Rank, RateLimiter, Replay, RetryBudget,
    RetryPolicy, Throttle, ThrottlePermit, Timeout, Verdict, add_observer,
};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

type Answer = Result<u32, CallError<Refused>>;

/// Fails after `time`.
async fn fail(time: Duration) -> Result<u32, Refused> {
    sleep(time).await;
    Err(Refused)
}

/// Answers with `number` after `time`.
async fn answer(number: u32, time: Duration) -> Result<u32, Refused> {
    sleep(time).await;
    Ok(number)
}

fn retries(count: u32, delay: Duration, budget: &RetryBudget) -> RetryPolicy {
    let policy = RetryPolicy::builder().max_retries(count).base_delay(delay).max_delay(delay);
    policy.jitter(false).budget(budget.clone()).build().unwrap()
}

fn full_budget() -> RetryBudget {
    RetryBudget::new(1.0, 10).unwrap()
}

/// A hedge after a second, paid by `budget`.
fn hedge(budget: &RetryBudget) -> Hedge {
    Hedge::builder().delay(SECOND).budget(budget.clone()).build().unwrap()
}

fn patient(name: &'static str) -> CircuitBreaker {
    CircuitBreaker::builder(name).fail_max(1_000_000).build().unwrap()
}

/// A shedder that refuses the lower part of [`Priority::Low`], and all below it.
async fn shedding(name: &'static str) -> LoadShedder {
    let load = || Load { taken: 100, limit: 1 };
    let shedder = LoadShedder::watching(name, &Prioritizer::new(), load);
    for _ in 0..10_000 {
        if shedder.threshold() > 130 {
            return shedder;
        }
        sleep(MS).await;
        let _ = shedder.admit(Priority::Low);
    }
    panic!("it sheds nothing");
}

/// How calls ended, by the name of their pipeline.
#[derive(Default)]
struct Ends(Mutex<Vec<(Name, CallOutcome, u32)>>);

impl Observe for Ends {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::CallEnded { name, outcome, attempts, .. } = event {
            self.0.lock().unwrap().push(((*name).clone(), *outcome, *attempts));
        }
    }
}

static ENDS: LazyLock<Arc<Ends>> = LazyLock::new(|| {
    let ends = Arc::<Ends>::default();
    add_observer(Arc::clone(&ends) as Arc<dyn Observe>);
    ends
});

/// A pipeline whose ends are noted.
fn noted(name: &'static str) -> PipelineBuilder {
    LazyLock::force(&ENDS);
    Pipeline::builder(name)
}

fn last_end(name: &str) -> (CallOutcome, u32) {
    let ends = ENDS.0.lock().unwrap();
    let (_, outcome, attempts) = ends.iter().rfind(|end| &*end.0 == name).expect("it has ended");
    (*outcome, *attempts)
}

/// Runs a call in a task of its own until everything waits for time.
async fn begin(pipeline: &Pipeline, call: Call) -> tokio::task::JoinHandle<Answer> {
    let pipeline = pipeline.clone();
    let running = tokio::spawn(async move { pipeline.run(call, &AnyError, |_| pending()).await });
    for _ in 0..10 {
        yield_now().await;
    }
    running
}

// What refuses a call, and what it leaves unasked.

#[tokio::test(start_paused = true)]
async fn a_shed_call_asks_no_layer_further_in_and_earns_no_retry() {
    let (shedder, budget, breaker) = (shedding("shed").await, full_budget(), patient("shed"));
    let limiter = RateLimiter::builder("shed", 1, SECOND).queue(0).build().unwrap();
    let chaos = Chaos::builder("shed").faults(1.0).enabled(true).build().unwrap();
    let pipeline = noted("shed")
        .shed(shedder.clone())
        .rate_limit(limiter.clone())
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
    let pipeline = Pipeline::builder("rank").shed(shedding("rank").await).build().unwrap();
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
        .rate_limit(limiter)
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
    let pipeline = noted("queue").rate_limit(limiter).build().unwrap();
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

// Hedges.

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

// What stands around one attempt.

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
    let pipeline = Pipeline::builder("learned").timeout(timeout.clone()).build().unwrap();
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
        .rate_limit(RateLimiter::builder("waits", 1, SECOND).burst(1).build().unwrap())
        .timeout(timeout.clone())
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

#[tokio::test(start_paused = true)]
async fn neither_the_primary_nor_its_fallback_outlives_its_half() {
    let budget = full_budget();
    let pipeline = Pipeline::builder("halves")
        .rate_limit(RateLimiter::builder("halves", 1, SECOND).build().unwrap())
        .hedge(hedge(&budget))
        .retry(retries(9, SECOND, &budget))
        .attempt_timeout(3 * SECOND)
        .build()
        .unwrap();
    let started = Instant::now();
    let fallback = |_| async move {
        assert_eq!(started.elapsed(), 5 * SECOND);
        assert_eq!(Deadline::current().unwrap().remaining(), 5 * SECOND);
        pending().await
    };
    let call = Call::read().by(Deadline::within(10 * SECOND));
    let value: Answer = pipeline.run_or(call, &AnyError, |_| pending(), fallback).await;
    assert!(matches!(value, Err(CallError::DeadlineExceeded(_))), "{value:?}");
    assert_eq!(started.elapsed(), 10 * SECOND);
}

// What comes back, however a call ends.

#[tokio::test(start_paused = true)]
async fn panics_drops_and_deadlines_leave_every_count_right() {
    let shedder = LoadShedder::new("counts", &Prioritizer::new(), 100).unwrap();
    let bulkhead = Bulkhead::new("counts", 2, SECOND).unwrap();
    let limit = AdaptiveLimit::builder("counts").max(2).build().unwrap();
    let breakers = [patient("fixed"), patient("adaptive")];
    let common = |breaker: &CircuitBreaker| {
        let limiter = RateLimiter::builder("counts", 100, SECOND).build().unwrap();
        let pipeline = Pipeline::builder("counts").shed(shedder.clone()).rate_limit(limiter);
        pipeline.hedge(hedge(&full_budget())).breaker(breaker.clone())
    };
    let pipelines = [
        common(&breakers[0]).bulkhead(bulkhead.clone()).build().unwrap(),
        common(&breakers[1]).adaptive_limit(limit.clone()).build().unwrap(),
    ];
    for (pipeline, breaker) in pipelines.iter().zip(&breakers) {
        panics(pipeline, &AnyError, 0).await;
        panics(pipeline, &AnyError, 1).await;
        panics(pipeline, &|_: &Refused| panic!("as it should in this test"), 9).await;
        for call in [Call::read(), Call::write()] {
            let running = begin(pipeline, call).await;
            sleep(2 * SECOND).await; // By now a read runs twice.
            running.abort();
            let _ = running.await;
        }
        let call = Call::read().by(Deadline::within(2 * SECOND));
        pipeline.run(call, &AnyError, |_| pending::<Result<u32, Refused>>()).await.unwrap_err();
        assert_eq!((shedder.in_flight(), limit.in_flight(), bulkhead.available()), (0, 0, 2));
        let drained = pipeline.drain(Deadline::within(SECOND)).await;
        assert_eq!(drained, Drained { abandoned: 0 });
        // Two panics of the operation beside one attempt that lost to one of them; one of the
        // classifier; three that were dropped; two cut off by the deadline, one after half of its time.
        let calls = breaker.snapshot().calls;
        assert_eq!((calls.success, calls.failure, calls.cancelled), (0, 4, 5));
    }
}

/// A hedged call whose operation panics in the attempt after `panics_after`, or whose `classifier` does.
async fn panics(
    pipeline: &Pipeline,
    classifier: &(impl Classify<Refused> + Clone + Send + Sync + 'static),
    panics_after: u32,
) {
    let (pipeline, classifier) = (pipeline.clone(), classifier.clone());
    let operation = move |attempt: resilience_core::Attempt| async move {
        assert!(attempt.number <= panics_after, "as it should in this test");
        sleep(if panics_after == 1 { 9 * SECOND } else { MS }).await;
        Err::<u32, _>(Refused)
    };
    let run = async move { pipeline.run(Call::read(), &classifier, operation).await };
    assert!(tokio::spawn(run).await.unwrap_err().is_panic());
}
