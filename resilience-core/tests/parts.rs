//! Fear: a layer whose figures nobody can see, and attempts that are not counted as told.

use std::sync::Mutex;
use std::time::Duration;

use resilience_core::{
    AdaptiveLimit, Attempt, Blame, Bulkhead, Call, CallError, CircuitBreaker, Hedge, LoadShedder,
    Pipeline, Prioritizer, Priority, Replay, RetryBudget, RetryPolicy, Throttle, Timeout, Verdict,
};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

fn failing(_: &Refused) -> Verdict {
    Verdict::service(Replay::Safe)
}

#[tokio::test(start_paused = true)]
async fn every_layer_can_be_looked_at_through_the_pipeline() {
    let retries = RetryBudget::new(0.1, 7).unwrap();
    let hedges = RetryBudget::new(0.1, 3).unwrap();
    let limit = AdaptiveLimit::builder("limit").build().unwrap();
    let common = Pipeline::builder("parts")
        .deadline(20 * SECOND)
        .shedder(LoadShedder::new("shedder", &Prioritizer::new(), 8).unwrap())
        .hedge(Hedge::builder().delay(SECOND).budget(hedges).build().unwrap())
        .retry(RetryPolicy::builder().max_retries(1).budget(retries).build().unwrap())
        .attempt_timeout(9 * SECOND);
    let hard = common.clone().breaker(CircuitBreaker::new("breaker"));
    let hard = hard.bulkhead(Bulkhead::new("bulkhead", 1, SECOND).unwrap()).build().unwrap();
    let soft = common.throttle(Throttle::new("throttle")).adaptive_limit(limit);
    let soft = soft.attempt_timeout(Timeout::learned().max(5 * SECOND).build().unwrap());
    let soft = soft.build().unwrap();
    let looking = async |attempt: Attempt| {
        if attempt.number == 1 {
            assert_eq!(hard.shedder().unwrap().in_flight(), 1);
            assert_eq!(hard.bulkhead().unwrap().available(), 0);
            return Err(Refused);
        }
        Ok(())
    };
    hard.run(Call::read(), &failing, looking).await.unwrap();
    soft.run(Call::read(), &failing, async |_| Ok(())).await.unwrap();
    let calls = hard.breaker().unwrap().snapshot().calls;
    assert_eq!((calls.failure, calls.success), (1, 1));
    assert_eq!(hard.shedder().unwrap().refused(Priority::Normal), 0);
    assert_eq!((hard.retry().max_retries(), hard.retry().budget().unwrap().balance()), (1, 6));
    assert_eq!(
        (hard.hedge().unwrap().counts().started, hard.hedge().unwrap().budget().balance()),
        (0, 3)
    );
    assert_eq!((hard.deadline(), hard.attempt_timeout().current()), (20 * SECOND, 9 * SECOND));
    assert_eq!(soft.throttle().unwrap().snapshot().accepts, 1);
    assert_eq!(
        (soft.adaptive_limit().unwrap().limit(), soft.attempt_timeout().current()),
        (20, 5 * SECOND)
    );
    // What is not there is not shown in place of what is.
    assert!(hard.throttle().is_none() && hard.adaptive_limit().is_none());
    assert!(soft.breaker().is_none() && soft.bulkhead().is_none());
    let bare = Pipeline::builder("bare").build().unwrap();
    assert!(bare.shedder().is_none() && bare.hedge().is_none() && bare.breaker().is_none());
    assert!(bare.throttle().is_none() && bare.bulkhead().is_none());
    assert_eq!((bare.retry().max_retries(), bare.retry().budget().is_some()), (0, false));
    assert_eq!((bare.deadline(), bare.attempt_timeout().current()), (60 * SECOND, 30 * SECOND));
}

#[cfg(all(feature = "chaos", feature = "rate-limit"))]
#[tokio::test(start_paused = true)]
async fn chaos_is_switched_and_the_rate_limit_read_through_the_pipeline() {
    use resilience_core::{Chaos, RateLimiter};

    let pipeline = Pipeline::builder("optional")
        .rate_limiter(RateLimiter::builder("rate", 1, SECOND).queue(0).build().unwrap())
        .chaos(Chaos::builder("chaos").faults(1.0).build().unwrap())
        .build()
        .unwrap();
    let chaos = pipeline.chaos().unwrap();
    assert_eq!(&**chaos.name(), "chaos");
    chaos.set_enabled(true);
    let error = pipeline.run(Call::read(), &failing, async |_| Ok(())).await.unwrap_err();
    assert!(matches!(error, CallError::Injected(_)));
    let error = pipeline.run(Call::read(), &failing, async |_| Ok(())).await.unwrap_err();
    assert!(matches!(error, CallError::RateLimited(_)));
    assert_eq!((chaos.decisions(), pipeline.rate_limiter().unwrap().rejected()), (1, 1));
    let bare = Pipeline::builder("bare").build().unwrap();
    assert!(bare.chaos().is_none() && bare.rate_limiter().is_none());
}

/// The first attempt fails after 2 s, the hedge that began after 1 s fails after 4 s, its retry and that of the first at
/// once: as told in the documentation of `Attempt::number` and `Failed::attempts`.
#[tokio::test(start_paused = true)]
async fn a_hedge_and_its_retries_count_on_with_the_others() {
    let retry = RetryPolicy::builder().max_retries(1).base_delay(Duration::ZERO).build().unwrap();
    let hedge = Hedge::builder().delay(SECOND).build().unwrap();
    let pipeline = Pipeline::builder("both").retry(retry).hedge(hedge).build().unwrap();
    let begun = Mutex::new(Vec::new());
    let operation = |attempt: Attempt| {
        begun.lock().unwrap().push(attempt.number);
        async move {
            match attempt.number {
                1 => sleep(2 * SECOND).await,
                2 => sleep(4 * SECOND).await,
                _ => {}
            }
            Err::<(), _>(Refused)
        }
    };
    let error = pipeline.run(Call::read(), &failing, operation).await.unwrap_err();
    let CallError::Inner(failed) = error else { panic!("{error}") };
    // 1 the first, 2 the hedge, 3 the retry of the first, 4 that of the hedge.
    assert_eq!(*begun.lock().unwrap(), [1, 2, 3, 4]);
    assert_eq!(
        (failed.attempts, failed.elapsed, failed.verdict.blame),
        (4, Some(5 * SECOND), Blame::Service)
    );
}
