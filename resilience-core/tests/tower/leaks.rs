//! Fear: what is taken for a call that is never made, or never ended, is never given back.

use super::*;

fn guarded() -> (Pipeline, CircuitBreaker, Bulkhead) {
    let (breaker, bulkhead) = (breaker(1), bulkhead(1));
    let builder = Pipeline::builder("upstream").retry(retry(3)).breaker(breaker.clone());
    (builder.bulkhead(bulkhead.clone()).build().unwrap(), breaker, bulkhead)
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_ready_and_never_called_holds_nothing() {
    let (pipeline, _, bulkhead) = guarded();
    let upstream = Upstream::with_places(1, |_| (Duration::ZERO, Ok(200)));
    let layer = PipelineLayer::new(pipeline);
    let mut services: Vec<_> = (0..100).map(|_| layer.layer(upstream.clone())).collect();
    for service in &mut services {
        let ready = poll_fn(|cx| Poll::Ready(service.poll_ready(cx))).await;
        assert!(ready.is_ready());
    }
    // Nor does a call that nobody has polled.
    let calls: Vec<_> = services.iter_mut().map(|service| service.call(request())).collect();
    assert_eq!((bulkhead.available(), upstream.free()), (1, 1));
    drop(calls);
    for service in services {
        assert_eq!(send(service, request()).await.unwrap(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_gives_back_its_place_and_blames_nobody() {
    let (pipeline, breaker, bulkhead) = guarded();
    let upstream = Upstream::hanging();
    let service = PipelineLayer::new(pipeline).clone_request().layer(upstream.clone());
    for _ in 0..10 {
        let call = begun(send(service.clone(), request())).await;
        assert_eq!((bulkhead.available(), upstream.free()), (0, 999));
        call.abort();
        let _ = call.await;
        assert_eq!((bulkhead.available(), upstream.free()), (1, 1_000));
    }
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.calls.cancelled), (CircuitState::Closed, 10));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_probe_hands_its_turn_to_the_next_call() {
    let breaker = breaker(1);
    let layer = CircuitBreakerLayer::new(breaker.clone());
    send(layer.layer(Upstream::answering(Err(Reset))), request()).await.unwrap_err();
    sleep(breaker.settings().reset_timeout).await;
    let probe = begun(send(layer.layer(Upstream::hanging()), request())).await;
    let next = layer.layer(Upstream::answering(Ok(200)));
    send(next.clone(), request()).await.unwrap_err();
    probe.abort();
    let _ = probe.await;
    assert_eq!(send(next, request()).await.unwrap(), 200);
}

/// Else two calls could wait for one another: one has our place, the other the service's.
#[tokio::test(start_paused = true)]
async fn a_call_in_our_queue_keeps_no_place_of_the_service_behind() {
    let (pipeline, _, bulkhead) = guarded();
    let upstream = Upstream::with_places(2, |_| (10 * MS, Ok(200)));
    let layer = PipelineLayer::new(pipeline);
    let first = begun(send(layer.layer(upstream.clone()), request())).await;
    let second = begun(send(layer.layer(upstream.clone()), request())).await;
    assert_eq!((bulkhead.waiting(), upstream.free()), (1, 1));
    for call in [first, second] {
        assert_eq!(call.await.unwrap().unwrap(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_classifier_leaves_every_count_right() {
    let (pipeline, breaker, bulkhead) = guarded();
    let panics = |_: &Answer| -> Option<Verdict> { panic!("as it should in this test") };
    let service = PipelineLayer::new(pipeline).classify(panics).layer(Upstream::answering(Ok(200)));
    assert!(tokio::spawn(send(service, request())).await.unwrap_err().is_panic());
    assert_eq!((bulkhead.available(), breaker.state()), (1, CircuitState::Open));
}
