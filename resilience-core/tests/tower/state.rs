//! Fear: each clone of a service begins to count anew.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_circuit_is_one_for_all_services_of_a_layer_and_all_their_clones() {
    let layer = CircuitBreakerLayer::new(breaker(3));
    let upstream = Upstream::answering(Err(Reset));
    let services = [layer.layer(upstream.clone()), layer.clone().layer(upstream.clone())];
    for service in services.iter().cycle().take(3) {
        send(service.clone(), request()).await.unwrap_err();
    }
    for service in services {
        let refused = send(service, request()).await.unwrap_err();
        assert!(matches!(refused, CallError::CircuitOpen(_)), "{refused}");
    }
    assert_eq!(upstream.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_pipelines_layers_are_those_of_its_other_users() {
    let breaker = breaker(2);
    let pipeline = Pipeline::builder("upstream").breaker(breaker.clone()).build().unwrap();
    let layer = PipelineLayer::new(pipeline).classify(judge);
    let upstream = Upstream::answering(Ok(503));
    for _ in 0..2 {
        assert_eq!(send(layer.layer(upstream.clone()), request()).await.unwrap(), 503);
    }
    assert_eq!(breaker.state(), CircuitState::Open);
    send(layer.layer(upstream), request()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn places_are_counted_over_all_clones() {
    let bulkhead = bulkhead(1);
    let layer = BulkheadLayer::new(bulkhead.clone());
    let held = begun(send(layer.layer(Upstream::hanging()), request())).await;
    let other = layer.layer(Upstream::answering(Ok(200)));
    let refused = send(other, request()).await.unwrap_err();
    assert!(matches!(refused, CallError::BulkheadFull(_)), "{refused}");
    held.abort();
    let _ = held.await;
    assert_eq!(bulkhead.available(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shedder_counts_what_all_clones_have_in_flight() {
    let shedder = LoadShedder::new("upstream", &Prioritizer::new(), 8).unwrap();
    let layer = LoadShedLayer::new(shedder.clone());
    let first = begun(send(layer.layer(Upstream::hanging()), request())).await;
    let second = begun(send(layer.layer(Upstream::hanging()), request())).await;
    assert_eq!(shedder.in_flight(), 2);
    first.abort();
    second.abort();
    let _ = (first.await, second.await);
    assert_eq!(shedder.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_throttle_sees_the_requests_of_all_clones() {
    let throttle = Throttle::builder("upstream").seed(1).build().unwrap();
    let layer = ThrottleLayer::new(throttle.clone()).classify(judge);
    let upstream = Upstream::answering(Ok(503));
    let mut refused = 0;
    for _ in 0..100 {
        match send(layer.layer(upstream.clone()), request()).await {
            Ok(status) => assert_eq!(status, 503),
            Err(error) => {
                assert!(matches!(error, CallError::Throttled(_)), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 50, "{refused}");
    let snapshot = throttle.snapshot();
    assert_eq!((snapshot.requests, snapshot.refused), (100, refused));
    assert_eq!(u64::from(upstream.calls()) + refused, 100);
}

#[tokio::test(start_paused = true)]
async fn a_retry_budget_is_spent_by_all_clones() {
    let budget = RetryBudget::builder().ratio(0.0).burst(3).build().unwrap();
    let policy = RetryPolicy::builder().max_retries(2).base_delay(MS).budget(budget).build();
    let layer = RetryLayer::new(policy.unwrap()).calls(Call::read());
    let upstream = Upstream::answering(Err(Reset));
    for _ in 0..10 {
        send(layer.layer(upstream.clone()), request()).await.unwrap_err();
    }
    assert_eq!(upstream.calls(), 10 + 3);
}

#[tokio::test(start_paused = true)]
async fn hedges_are_counted_over_all_clones() {
    let hedge = Hedge::builder().delay(10 * MS).build().unwrap();
    let layer = HedgeLayer::new(hedge.clone()).calls(Call::read());
    for _ in 0..2 {
        let late = |n| (if n == 1 { SECOND } else { MS }, Ok(n as u16));
        assert_eq!(send(layer.layer(Upstream::new(late)), request()).await.unwrap(), 2);
    }
    assert_eq!((hedge.counts().started, hedge.counts().won), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_learns_from_the_good_answers_of_all_clones() {
    let timeout = Timeout::learned().min_samples(2).build().unwrap();
    let layer = TimeoutLayer::new(timeout.clone()).classify(judge);
    for status in [503, 200, 503, 503] {
        let upstream = Upstream::new(move |_| (20 * MS, Ok(status)));
        assert_eq!(send(layer.layer(upstream), request()).await.unwrap(), status);
        assert_eq!(timeout.current(), 30 * SECOND);
    }
    send(layer.layer(Upstream::new(|_| (20 * MS, Ok(200)))), request()).await.unwrap();
    assert!(timeout.current() < 70 * MS, "{:?}", timeout.current());
    let late = send(layer.layer(Upstream::hanging()), request()).await.unwrap_err();
    assert!(matches!(late, CallError::AttemptTimeout(_)), "{late}");
}

#[cfg(feature = "rate-limit")]
#[tokio::test(start_paused = true)]
async fn a_rate_is_kept_over_all_clones() {
    let limiter = RateLimiter::builder("upstream", 10, SECOND).burst(1).build().unwrap();
    let layer = RateLimitLayer::new(limiter);
    let started = Instant::now();
    for _ in 0..11 {
        send(layer.layer(Upstream::answering(Ok(200))), request()).await.unwrap();
    }
    assert_eq!(started.elapsed(), SECOND);
    let now = Call::write().by(Deadline::within(MS));
    let refused = send(layer.calls(now).layer(Upstream::answering(Ok(200))), request()).await;
    assert_eq!(refused.unwrap_err().retry_after(), Some(100 * MS));
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_learns_from_all_clones() {
    let limit = AdaptiveLimit::builder("upstream").initial(100).build().unwrap();
    let asks_for_time = |answer: &Answer| match answer {
        Ok(429) => Some(Verdict::service(Replay::Safe).after(SECOND)),
        answer => judge(answer),
    };
    let layer = AdaptiveLimitLayer::new(limit.clone()).classify(asks_for_time);
    let drive = async |status| {
        for _ in 0..200 {
            let upstream = Upstream::new(move |_| (10 * MS, Ok(status)));
            send(layer.layer(upstream), request()).await.unwrap();
        }
    };
    drive(503).await;
    assert_eq!((limit.limit(), limit.in_flight()), (100, 0));
    drive(429).await;
    assert!(limit.limit() < 100, "{}", limit.limit());
    assert_eq!(limit.in_flight(), 0);
}

#[cfg(feature = "chaos")]
#[tokio::test(start_paused = true)]
async fn chaos_has_one_switch_for_all_clones() {
    let chaos = Chaos::builder("upstream").faults(1.0).build().unwrap();
    let service = ChaosLayer::new(chaos.clone()).layer(Upstream::answering(Ok(200)));
    send(service.clone(), request()).await.unwrap();
    chaos.set_enabled(true);
    let struck = send(service, request()).await.unwrap_err();
    assert!(matches!(struck, CallError::Injected(_)), "{struck}");
}
