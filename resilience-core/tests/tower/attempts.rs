//! Fear: a request is sent once too often, or not once more.

use super::*;

fn eager() -> Pipeline {
    let hedge = Hedge::builder().delay(10 * MS).build().unwrap();
    let builder = Pipeline::builder("upstream").retry(retry(3)).hedge(hedge);
    builder.deadline(10 * SECOND).attempt_timeout(SECOND).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_of_which_there_is_but_one_is_sent_once() {
    let layer = PipelineLayer::new(eager()).calls(Call::read());
    for upstream in [Upstream::answering(Err(Reset)), Upstream::hanging()] {
        let safe = |answer: &Answer| judge(answer).map(|_| Verdict::service(Replay::Safe));
        let service = layer.clone().classify(safe).layer(upstream.clone());
        let error = send(service, request()).await.unwrap_err();
        assert_eq!(upstream.calls(), 1);
        // What it means is told as it is: whoever has another may send it.
        if let CallError::Inner(failed) = error {
            assert_eq!((failed.verdict.replay, failed.attempts), (Replay::Safe, 1));
        }
    }
}

#[cfg(feature = "chaos")]
#[tokio::test(start_paused = true)]
async fn a_request_that_chaos_kept_back_is_still_there_for_the_next_attempt() {
    let chaos = Chaos::builder("upstream").faults(0.5).seed(1).enabled(true);
    let builder = Pipeline::builder("upstream").retry(retry(100));
    let pipeline = builder.chaos(chaos.build().unwrap()).build().unwrap();
    let upstream = Upstream::answering(Ok(200));
    let service = PipelineLayer::new(pipeline).layer(upstream.clone());
    for _ in 0..100 {
        assert_eq!(send(service.clone(), request()).await.unwrap(), 200);
    }
    assert_eq!(upstream.calls(), 100);
}

#[tokio::test(start_paused = true)]
async fn each_attempt_sends_the_same_request() {
    let layer = PipelineLayer::new(eager()).calls(Call::read()).clone_request();
    let upstream = Upstream::new(|n| (MS, if n < 3 { Err(Reset) } else { Ok(200) }));
    assert_eq!(send(layer.layer(upstream.clone()), "/a".to_owned()).await.unwrap(), 200);
    let seen = upstream.shared.seen.lock().unwrap();
    let requests: Vec<_> = seen.iter().map(|seen| seen.request.as_str()).collect();
    assert_eq!(requests, ["/a"; 3]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_said_to_be_idempotent_is_not_repeated() {
    let uncertain = Upstream::answering(Err(Reset));
    let safe = |answer: &Answer| judge(answer).map(|_| Verdict::service(Replay::Safe));
    let refused = Upstream::answering(Err(Reset));
    let layer = PipelineLayer::new(eager()).clone_request();
    send(layer.layer(uncertain.clone()), request()).await.unwrap_err();
    send(layer.classify(safe).layer(refused.clone()), request()).await.unwrap_err();
    assert_eq!((uncertain.calls(), refused.calls()), (1, 4));

    let layer = RetryLayer::new(retry(3));
    let (uncertain, refused) = (Upstream::answering(Err(Reset)), Upstream::answering(Err(Reset)));
    send(layer.layer(uncertain.clone()), request()).await.unwrap_err();
    send(layer.classify(safe).layer(refused.clone()), request()).await.unwrap_err();
    assert_eq!((uncertain.calls(), refused.calls()), (1, 4));

    let layer = HedgeLayer::new(Hedge::builder().delay(MS).build().unwrap());
    let slow = Upstream::new(|_| (SECOND, Ok(200)));
    send(layer.layer(slow.clone()), request()).await.unwrap();
    assert_eq!(slow.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_cut_off_in_its_retry_is_not_said_to_be_refused() {
    let refused_then_hanging = |refusal: Answer| {
        Upstream::new(move |n| match n {
            1 => (MS, refusal.clone()),
            _ => (Duration::MAX, Ok(200)),
        })
    };
    let builder = Pipeline::builder("upstream").retry(retry(3)).deadline(SECOND);
    let layer = PipelineLayer::new(builder.build().unwrap()).clone_request();
    let layer = layer.classify(|answer: &Answer| match answer {
        Ok(200) => None,
        _ => Some(Verdict::service(Replay::Safe)),
    });
    let upstream = refused_then_hanging(Ok(429));
    let error = send(layer.layer(upstream.clone()), request()).await.unwrap_err();
    let CallError::DeadlineExceeded(over) = error else { panic!("{error}") };
    assert_eq!((over.attempts, over.elapsed, upstream.calls()), (2, SECOND, 2));

    let upstream = refused_then_hanging(Err(Reset));
    let error = send(layer.layer(upstream), request()).await.unwrap_err();
    let CallError::Inner(failed) = error else { panic!("{error}") };
    assert_eq!(failed.verdict.replay, Replay::IfIdempotent);

    // A read may run as often as it likes.
    let upstream = refused_then_hanging(Ok(429));
    let answer = send(layer.calls(Call::read()).layer(upstream), request()).await;
    assert_eq!(answer.unwrap(), 429);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_waits_out_a_failure_and_no_refusal() {
    let layer = HedgeLayer::new(Hedge::builder().delay(10 * MS).build().unwrap());
    let layer = layer.calls(Call::read()).classify(|answer: &Answer| match answer {
        Ok(404) => Some(Verdict::caller(Replay::Never)),
        answer => judge(answer),
    });
    let started = Instant::now();
    let upstream = Upstream::new(|n| (20 * MS, Ok(if n == 1 { 503 } else { 200 })));
    assert_eq!(send(layer.layer(upstream), request()).await.unwrap(), 200);
    assert_eq!(started.elapsed(), 30 * MS);
    let upstream = Upstream::new(|n| (20 * MS, Ok(if n == 1 { 404 } else { 200 })));
    assert_eq!(send(layer.layer(upstream), request()).await.unwrap(), 404);
}

#[tokio::test(start_paused = true)]
async fn of_nested_retries_only_the_innermost_repeats() {
    let upstream = Upstream::answering(Ok(503));
    let inner = RetryLayer::new(retry(2)).calls(Call::read()).classify(judge);
    let failed = |answer: &Result<u16, CallError<Reset>>| {
        answer.as_ref().is_ok_and(|status| *status >= 500).then_some(Verdict::service(Replay::Safe))
    };
    let outer = RetryLayer::new(retry(2)).calls(Call::read()).classify(failed);
    assert_eq!(send(outer.layer(inner.layer(upstream.clone())), request()).await.unwrap(), 503);
    assert_eq!(upstream.calls(), 3);
}
