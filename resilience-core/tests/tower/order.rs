//! Fear: the layers stand in another order, or do not know of the request what they must.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_order_is_the_pipelines() {
    let (breaker, bulkhead) = (breaker(2), bulkhead(1));
    let shedder = LoadShedder::new("upstream", &Prioritizer::new(), 8).unwrap();
    let builder = Pipeline::builder("upstream").shedder(shedder.clone()).retry(retry(5));
    let builder = builder.attempt_timeout(SECOND).bulkhead(bulkhead.clone());
    let pipeline = builder.breaker(breaker.clone()).build().unwrap();
    let layer = PipelineLayer::new(pipeline).clone_request().calls(Call::read());
    // Each attempt counts in the breaker, so the retry is outside; once it is open, none follows.
    let upstream = Upstream::hanging();
    let running = begun(send(layer.layer(upstream.clone()), request())).await;
    assert_eq!((shedder.in_flight(), bulkhead.available()), (1, 0));
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::AttemptTimeout(_)), "{error}");
    assert_eq!((upstream.calls(), breaker.state()), (2, CircuitState::Open));
    // An open circuit is asked before a place is.
    let _place = bulkhead.try_acquire().unwrap();
    let started = Instant::now();
    let error = send(layer.layer(upstream.clone()), request()).await.unwrap_err();
    assert!(matches!(error, CallError::CircuitOpen(_)), "{error}");
    assert_eq!((started.elapsed(), shedder.in_flight()), (Duration::ZERO, 0));
    // A full bulkhead, inside the breaker, is not the service's fault.
    breaker.reset();
    let error = send(layer.layer(upstream), request()).await.unwrap_err();
    assert!(matches!(error, CallError::BulkheadFull(_)), "{error}");
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_and_rank_of_a_request_hold_for_all_inside() {
    let upstream = Upstream::answering(Ok(200));
    let deadline = Deadline::within(SECOND);
    let rank = Priority::High.user("ada");
    let call = Call::read().by(deadline).rank(rank);
    let alone = BulkheadLayer::new(bulkhead(1)).calls(call).layer(upstream.clone());
    send(alone, request()).await.unwrap();
    let pipeline = Pipeline::builder("upstream").build().unwrap();
    let whole = PipelineLayer::new(pipeline).calls(call).layer(upstream.clone());
    send(whole, request()).await.unwrap();
    let expected = Seen { request: request(), rank, deadline: Some(deadline) };
    assert_eq!(*upstream.shared.seen.lock().unwrap(), [expected.clone(), expected]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_place_ends_by_the_requests_deadline() {
    let bulkhead = bulkhead(1);
    let _place = bulkhead.try_acquire().unwrap();
    let layer = BulkheadLayer::new(bulkhead.clone());
    let soon = |_: &String| Call::write().by(Deadline::within(10 * MS));
    let started = Instant::now();
    let service = layer.calls(soon).layer(Upstream::hanging());
    send(service, request()).await.unwrap_err();
    assert_eq!(started.elapsed(), 10 * MS);
}

#[tokio::test(start_paused = true)]
async fn the_least_important_requests_are_shed_first() {
    let shedder = LoadShedder::new("upstream", &Prioritizer::new(), 1).unwrap();
    let layer = LoadShedLayer::new(shedder.clone()).calls(|request: &String| {
        let priority = if request == "/pay" { Priority::Critical } else { Priority::Background };
        Call::write().rank(priority)
    });
    let mut running = Vec::new();
    for _ in 0..100 {
        for path in ["/pay", "/prefetch", "/prefetch"] {
            running.push(begun(send(layer.layer(Upstream::hanging()), path.to_owned())).await);
        }
        sleep(100 * MS).await;
    }
    assert!(shedder.refused(Priority::Background) > 0);
    assert_eq!(shedder.refused(Priority::Normal), 0, "a rank other than the request's");
    running.iter().for_each(tokio::task::JoinHandle::abort);
}
