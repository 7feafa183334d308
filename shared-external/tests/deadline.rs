//! Fear: a request outlives its time, or says 503 without saying when to come back.
#![cfg(feature = "axum")]

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use shared_external::axum::{ServiceError, with_deadline};
use shared_external::{AnyError, Call, CallError, Deadline, Pipeline};
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

const LIMIT: Duration = Duration::from_secs(2);

async fn answer(routes: Router) -> Response {
    let request = Request::get("/").body(Body::empty()).unwrap();
    with_deadline(routes, LIMIT).oneshot(request).await.unwrap()
}

fn retry_after(response: &Response) -> Option<&str> {
    response.headers().get("retry-after").map(|value| value.to_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_request_that_takes_too_long_is_answered_in_time_and_told_when_to_come_back() {
    let started = Instant::now();
    let forever = async || sleep(Duration::from_secs(3600)).await;
    let response = answer(Router::new().route("/", get(forever))).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(retry_after(&response), Some("1"));
    assert_eq!(started.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_calls_inherits_its_deadline() {
    let left = async || {
        sleep(Duration::from_millis(500)).await;
        let left = Deadline::within(Duration::from_secs(60)).inherited().remaining();
        left.as_millis().to_string()
    };
    let response = answer(Router::new().route("/", get(left))).await;
    let body = axum::body::to_bytes(response.into_body(), 16).await.unwrap();
    assert!(
        (1_490..=1_500).contains(&std::str::from_utf8(&body).unwrap().parse().unwrap()),
        "{body:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_says_when_it_may_close_and_a_refusal_says_nothing_of_it() {
    let breaker = shared_external::CircuitBreaker::builder("test")
        .fail_max(1)
        .reset_timeout(Duration::from_millis(29_500))
        .build()
        .unwrap();
    let pipeline = Pipeline::builder("test").breaker(breaker.clone()).build().unwrap();
    let run = || pipeline.run(Call::write(), &AnyError, async |_| Err::<(), _>("hunter2"));
    assert!(matches!(run().await, Err(CallError::Inner(_))));
    let response = ServiceError::from(run().await.unwrap_err()).into_response();
    assert_eq!((response.status().as_u16(), retry_after(&response)), (503, Some("30")));
}
