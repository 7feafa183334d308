//! When a call ends, and what comes back however it does.

use super::*;

#[tokio::test(start_paused = true)]
async fn neither_the_primary_nor_its_fallback_outlives_its_half() {
    let budget = full_budget();
    let pipeline = Pipeline::builder("halves")
        .rate_limiter(RateLimiter::builder("halves", 1, SECOND).build().unwrap())
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

#[tokio::test(start_paused = true)]
async fn panics_drops_and_deadlines_leave_every_count_right() {
    let shedder = LoadShedder::new("counts", &Prioritizer::new(), 100).unwrap();
    let bulkhead = Bulkhead::new("counts", 2, SECOND).unwrap();
    let limit = AdaptiveLimit::builder("counts").max(2).build().unwrap();
    let breakers = [patient("fixed"), patient("adaptive")];
    let common = |breaker: &CircuitBreaker| {
        let limiter = RateLimiter::builder("counts", 100, SECOND).build().unwrap();
        let pipeline = Pipeline::builder("counts").shedder(shedder.clone()).rate_limiter(limiter);
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
