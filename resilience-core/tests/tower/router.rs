//! Fear: a layer that works alone does not within axum.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::*;

fn judge(answer: &Result<Response, Infallible>) -> Option<Verdict> {
    let failed = answer.as_ref().is_ok_and(|response| response.status().is_server_error());
    failed.then_some(Verdict::service(Replay::IfIdempotent))
}

fn respond(error: CallError<Infallible>) -> Response {
    assert!(error.is_unavailable());
    let seconds = error.retry_after().map_or(0, |wait| wait.as_secs_f64().ceil() as u64);
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, seconds.to_string())]).into_response()
}

async fn ask(app: &Router, path: &str) -> Response {
    let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    // As axum serves each connection: by a clone of the router.
    app.clone().call(request).await.unwrap()
}

fn routes() -> Router {
    Router::new()
        .route("/good", get(|| async { "good" }))
        .route("/bad", get(|| async { StatusCode::BAD_GATEWAY }))
        .route("/worse", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
        .route("/slow", get(pending::<()>))
}

#[tokio::test(start_paused = true)]
async fn a_circuit_opened_on_two_routes_is_open_on_the_third() {
    let breaker = breaker(4);
    let pipeline = Pipeline::builder("app").breaker(breaker.clone()).build().unwrap();
    let app = routes().layer(PipelineLayer::new(pipeline).classify(judge).respond(respond));
    assert_eq!(ask(&app, "/good").await.status(), StatusCode::OK);
    for _ in 0..2 {
        assert_eq!(ask(&app, "/bad").await.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(ask(&app, "/worse").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert_eq!(breaker.state(), CircuitState::Open);
    let refused = ask(&app, "/good").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[RETRY_AFTER], "60");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_gives_back_its_place() {
    let bulkhead = bulkhead(1);
    let layer = BulkheadLayer::new(bulkhead.clone());
    let app = routes().layer(layer.respond(respond));
    let asking = begun({
        let app = app.clone();
        async move { ask(&app, "/slow").await }
    });
    let asking = asking.await;
    assert_eq!(bulkhead.available(), 0);
    assert_eq!(ask(&app, "/good").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    asking.abort();
    let _ = asking.await;
    assert_eq!(ask(&app, "/good").await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn every_layer_that_repeats_nothing_fits_a_router() {
    let shedder = LoadShedder::new("app", &Prioritizer::new(), 8).unwrap();
    let timeout = Timeout::fixed(SECOND).unwrap();
    let app = routes()
        .layer(TimeoutLayer::new(timeout).respond(respond))
        .layer(BulkheadLayer::new(bulkhead(8)).respond(respond))
        .layer(CircuitBreakerLayer::new(breaker(2)).classify(judge).respond(respond))
        .layer(ThrottleLayer::new(Throttle::new("app")).classify(judge).respond(respond))
        .layer(LoadShedLayer::new(shedder).respond(respond));
    assert_eq!(ask(&app, "/good").await.status(), StatusCode::OK);
    let late = ask(&app, "/slow").await;
    assert_eq!(late.headers()[RETRY_AFTER], "0");
}
