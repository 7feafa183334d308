//! Fear: an answer is taken for something that it is not.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_503_counts_as_a_failure_and_is_the_answer_all_the_same() {
    let breaker = breaker(10);
    let builder = Pipeline::builder("upstream").retry(retry(2)).breaker(breaker.clone());
    let layer = PipelineLayer::new(builder.build().unwrap()).clone_request().classify(judge);
    let upstream = Upstream::answering(Ok(503));
    let service = layer.calls(Call::read()).layer(upstream.clone());
    assert_eq!(send(service, request()).await.unwrap(), 503);
    assert_eq!((upstream.calls(), breaker.snapshot().calls.failure), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_response_counts_as_a_success_unless_it_is_said_to_be_none() {
    let breaker = breaker(1);
    let service = CircuitBreakerLayer::new(breaker.clone()).layer(Upstream::answering(Ok(503)));
    assert_eq!(send(service, request()).await.unwrap(), 503);
    assert_eq!(breaker.snapshot().calls.success, 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_is_as_it_should_be_is_final_and_no_failure() {
    let breaker = breaker(1);
    let builder = Pipeline::builder("upstream").retry(retry(2)).breaker(breaker.clone());
    let layer = PipelineLayer::new(builder.build().unwrap()).clone_request();
    let upstream = Upstream::answering(Err(Reset));
    let layer = layer.calls(Call::read()).classify(|_: &Answer| None);
    let error = send(layer.layer(upstream.clone()), request()).await.unwrap_err();
    assert!(!error.is_unavailable());
    assert_eq!((upstream.calls(), breaker.snapshot().calls.success), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_to_be_ready_or_never_is_fails() {
    #[derive(Clone)]
    struct Unready(Poll<Result<(), Reset>>);
    impl Service<String> for Unready {
        type Response = u16;
        type Error = Reset;
        type Future = std::future::Ready<Answer>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Reset>> {
            self.0.clone()
        }
        fn call(&mut self, _: String) -> Self::Future {
            unreachable!("it was not ready")
        }
    }
    let breaker = breaker(10);
    let builder = Pipeline::builder("upstream").breaker(breaker.clone());
    let layer = PipelineLayer::new(builder.attempt_timeout(SECOND).build().unwrap());
    let error = send(layer.layer(Unready(Poll::Ready(Err(Reset)))), request()).await;
    assert_eq!(error.unwrap_err().inner(), Some(&Reset));
    let error = send(layer.layer(Unready(Poll::Pending)), request()).await.unwrap_err();
    assert!(matches!(error, CallError::AttemptTimeout(_)), "{error}");
    assert_eq!(breaker.snapshot().calls.failure, 2);
}
