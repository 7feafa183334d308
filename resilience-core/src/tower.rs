//! A pipeline, and each of its layers alone, as a [`tower_layer::Layer`].
//!
//! What a layer counts, learns and limits is in the handle that it is made of, never in the services
//! that it makes: axum makes one for each route and clones it for each request, and all of them
//! together open one circuit and fill one bulkhead. Keep the handle to look at it.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::convert::Infallible;
//! use std::time::Duration;
//! use axum::Router;
//! use axum::extract::Request;
//! use axum::http::{StatusCode, header::RETRY_AFTER};
//! use axum::response::{IntoResponse, Response};
//! use axum::routing::get;
//! use resilience_core::tower::PipelineLayer;
//! use resilience_core::{Bulkhead, Call, CallError, CircuitBreaker, Pipeline, Replay, Verdict};
//!
//! /// Over HTTP a failure is a response like any other.
//! fn judge(answer: &Result<Response, Infallible>) -> Option<Verdict> {
//!     let failed = answer.as_ref().is_ok_and(|response| response.status().is_server_error());
//!     failed.then_some(Verdict::service(Replay::IfIdempotent))
//! }
//!
//! fn call(request: &Request) -> Call {
//!     if request.method().is_safe() { Call::read() } else { Call::write() }
//! }
//!
//! /// axum's services never fail: what kept the call from having a response becomes one.
//! fn respond(error: CallError<Infallible>) -> Response {
//!     if !error.is_unavailable() {
//!         return StatusCode::INTERNAL_SERVER_ERROR.into_response();
//!     }
//!     let mut response = StatusCode::SERVICE_UNAVAILABLE.into_response();
//!     if let Some(wait) = error.retry_after() {
//!         let seconds = wait.as_secs_f64().ceil() as u64;
//!         response.headers_mut().insert(RETRY_AFTER, seconds.into());
//!     }
//!     response
//! }
//!
//! let breaker = CircuitBreaker::new("reports");
//! let pipeline = Pipeline::builder("reports")
//!     .deadline(Duration::from_secs(10))
//!     .breaker(breaker.clone())
//!     .bulkhead(Bulkhead::new("reports", 64, Duration::from_secs(1))?)
//!     .attempt_timeout(Duration::from_secs(5))
//!     .build()?;
//! let layer = PipelineLayer::new(pipeline).calls(call).classify(judge).respond(respond);
//! let app: Router = Router::new()
//!     .route("/reports", get(|| async { "all of them" }))
//!     .route("/reports/{id}", get(|| async { StatusCode::BAD_GATEWAY }))
//!     .layer(layer);
//! # use tower_service::Service;
//! # for _ in 0..5 {
//! #     let request = Request::builder().uri("/reports/7").body(axum::body::Body::empty())?;
//! #     assert_eq!(app.clone().call(request).await?.status(), StatusCode::BAD_GATEWAY);
//! # }
//! # let request = Request::builder().uri("/reports").body(axum::body::Body::empty())?;
//! # let refused = app.clone().call(request).await?;
//! # assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
//! # assert_eq!(refused.headers()[RETRY_AFTER], "60");
//! # assert!(breaker.state().is_open());
//! # Ok(()) }
//! ```
//!
//! Several layers alone stand in the order in which they are put around the service, which is yours to
//! get right, and their errors nest; a pipeline has the one order that works.

mod answer;
mod layer;
mod part;
mod request;
mod respond;

#[cfg(feature = "chaos")]
use crate::Chaos;
#[cfg(feature = "rate-limit")]
use crate::RateLimiter;
use crate::{
    AdaptiveLimit, AnyError, Bulkhead, Call, CircuitBreaker, Hedge, LoadShedder, Pipeline,
    RetryPolicy, Throttle, Timeout,
};

pub use answer::ClassifyAnswer;
pub use layer::{PartLayer, PartService, ResponseFuture};
pub use part::Part;
pub use request::{CallFor, Cloned, Once};
pub use respond::{RespondFuture, RespondLayer, RespondService};

/// A whole [`Pipeline`]. Without [`clone_request`](PartLayer::clone_request) it makes one attempt.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::{future::{ready, Ready}, io, task::{Context, Poll}};
/// # #[derive(Clone)]
/// # struct Upstream;
/// # static CALLS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
/// # impl Service<String> for Upstream {
/// #     type Response = String;
/// #     type Error = io::Error;
/// #     type Future = Ready<io::Result<String>>;
/// #     fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> { Poll::Ready(Ok(())) }
/// #     fn call(&mut self, path: String) -> Self::Future {
/// #         let first = CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
/// #         ready(if first { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(path) })
/// #     }
/// # }
/// use resilience_core::tower::PipelineLayer;
/// use resilience_core::{Call, CircuitBreaker, Pipeline, RetryPolicy};
/// use tower_layer::Layer;
/// use tower_service::Service;
///
/// let pipeline = Pipeline::builder("upstream")
///     .retry(RetryPolicy::builder().max_retries(2).build()?)
///     .breaker(CircuitBreaker::new("upstream"))
///     .build()?;
/// let layer = PipelineLayer::new(pipeline).calls(Call::read()).clone_request();
/// let mut upstream = layer.layer(Upstream);
/// // Its first answer is an error; the request, a `String`, is cloned and sent again.
/// assert_eq!(upstream.call("/status".to_owned()).await?, "/status");
/// # Ok(()) }
/// ```
pub type PipelineLayer<Q = Call, C = AnyError, A = Once> = PartLayer<Pipeline, Q, C, A>;

/// A [`LoadShedder`]: while there is more to do than can be done, it refuses the requests whose
/// [`calls`](PartLayer::calls) have the lowest rank.
///
/// ```
/// # use axum::{Router, extract::Request, http::StatusCode, response::IntoResponse, routing::get};
/// use resilience_core::tower::LoadShedLayer;
/// use resilience_core::{Call, LoadShedder, Prioritizer, Priority};
///
/// let shedder = LoadShedder::new("checkout", &Prioritizer::new(), 64)?;
/// let rank = |request: &Request| match request.uri().path() {
///     "/pay" => Call::write().rank(Priority::Critical),
///     _ => Call::write().rank(Priority::Normal),
/// };
/// let refuse = |_| StatusCode::SERVICE_UNAVAILABLE.into_response();
/// let app: Router = Router::new()
///     .route("/pay", get(|| async { "paid" }))
///     .layer(LoadShedLayer::new(shedder).calls(rank).respond(refuse));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type LoadShedLayer<Q = Call, C = AnyError> = PartLayer<LoadShedder, Q, C>;

/// A [`RateLimiter`]: a request waits for its turn until its deadline.
///
/// ```
/// # use axum::{Router, http::StatusCode, response::IntoResponse, routing::post};
/// use std::time::Duration;
/// use resilience_core::RateLimiter;
/// use resilience_core::tower::RateLimitLayer;
///
/// let limiter = RateLimiter::builder("mail", 10, Duration::from_secs(1)).build()?;
/// let refuse = |_| StatusCode::TOO_MANY_REQUESTS.into_response();
/// let app: Router = Router::new()
///     .route("/mail", post(|| async { "sent" }))
///     .layer(RateLimitLayer::new(limiter).respond(refuse));
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[cfg(feature = "rate-limit")]
pub type RateLimitLayer<Q = Call, C = AnyError> = PartLayer<RateLimiter, Q, C>;

/// A [`Hedge`]: a call that is idempotent is sent once more while its answer is late. It clones each
/// request, which must be `Clone`.
///
/// ```
/// # use axum::{extract::Request, http::Method};
/// use resilience_core::tower::HedgeLayer;
/// use resilience_core::{Call, Hedge};
///
/// let hedge = Hedge::builder().quantile(0.95).build()?;
/// let layer = HedgeLayer::new(hedge).calls(|request: &Request<String>| match *request.method() {
///     Method::GET => Call::read(),
///     _ => Call::write(),
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type HedgeLayer<Q = Call, C = AnyError> = PartLayer<Hedge, Q, C, Cloned>;

/// A [`RetryPolicy`]: a call is made again if what its answer means and what the call is allow it. It
/// clones each request, which must be `Clone`.
///
/// A retry around a service that retries, be it by another of these or by a pipeline, does not repeat
/// what that one gave up.
///
/// ```
/// use resilience_core::tower::RetryLayer;
/// use resilience_core::{Call, Replay, RetryBudget, RetryPolicy, Verdict};
/// use std::io;
///
/// let policy = RetryPolicy::builder().max_retries(2).budget(RetryBudget::default()).build()?;
/// let layer = RetryLayer::new(policy).calls(Call::read()).classify(
///     |answer: &io::Result<String>| match answer {
///         Ok(_) => None,
///         Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Verdict::caller(Replay::Never)),
///         Err(_) => Some(Verdict::service(Replay::IfIdempotent)),
///     },
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type RetryLayer<Q = Call, C = AnyError> = PartLayer<RetryPolicy, Q, C, Cloned>;

/// A [`CircuitBreaker`]. Over HTTP, say by [`classify`](PartLayer::classify) which responses are failures.
///
/// ```
/// # use axum::{Router, extract::Request, http::StatusCode, response::{IntoResponse, Response}, routing::get};
/// # use std::convert::Infallible;
/// use resilience_core::tower::CircuitBreakerLayer;
/// use resilience_core::{CircuitBreaker, Replay, Verdict};
///
/// let judge = |answer: &Result<Response, Infallible>| {
///     let failed = answer.as_ref().is_ok_and(|response| response.status().is_server_error());
///     failed.then_some(Verdict::service(Replay::IfIdempotent))
/// };
/// let refuse = |_| StatusCode::SERVICE_UNAVAILABLE.into_response();
/// let app: Router = Router::new()
///     .route("/search", get(|| async { "found" }))
///     .layer(CircuitBreakerLayer::new(CircuitBreaker::new("search")).classify(judge).respond(refuse));
/// ```
pub type CircuitBreakerLayer<Q = Call, C = AnyError> = PartLayer<CircuitBreaker, Q, C>;

/// A [`Throttle`]. Over HTTP, say by [`classify`](PartLayer::classify) which responses are failures.
///
/// ```
/// use resilience_core::tower::ThrottleLayer;
/// use resilience_core::{Replay, Throttle, Verdict};
/// # use axum::response::Response;
/// # use std::convert::Infallible;
///
/// let layer = ThrottleLayer::new(Throttle::new("search")).classify(
///     |answer: &Result<Response, Infallible>| {
///         let refused = answer.as_ref().is_ok_and(|response| response.status() == 429);
///         refused.then_some(Verdict::service(Replay::Safe))
///     },
/// );
/// ```
pub type ThrottleLayer<Q = Call, C = AnyError> = PartLayer<Throttle, Q, C>;

/// A [`Bulkhead`]: a request takes its place when it is called, and gives it back with its answer, or
/// when nobody waits for that any longer.
///
/// ```
/// # use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
/// use std::time::Duration;
/// use resilience_core::Bulkhead;
/// use resilience_core::tower::BulkheadLayer;
///
/// let bulkhead = Bulkhead::new("search", 64, Duration::from_millis(100))?;
/// let refuse = |_| StatusCode::SERVICE_UNAVAILABLE.into_response();
/// let app: Router = Router::new()
///     .route("/search", get(|| async { "found" }))
///     .layer(BulkheadLayer::new(bulkhead.clone()).respond(refuse));
/// assert_eq!(bulkhead.available(), 64);
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
pub type BulkheadLayer<Q = Call, C = AnyError> = PartLayer<Bulkhead, Q, C>;

/// An [`AdaptiveLimit`]: a [`Bulkhead`] that learns its size from how long answers take. Over HTTP, say by
/// [`classify`](PartLayer::classify) which responses ask for less; their verdict has a `retry_after`.
///
/// ```
/// use std::convert::Infallible;
/// use std::time::Duration;
/// use axum::http::StatusCode;
/// use axum::response::Response;
/// use resilience_core::tower::AdaptiveLimitLayer;
/// use resilience_core::{AdaptiveLimit, Replay, Verdict};
///
/// let limit = AdaptiveLimit::builder("search").max(200).build()?;
/// let layer = AdaptiveLimitLayer::new(limit).classify(|answer: &Result<Response, Infallible>| {
///     let status = answer.as_ref().map(Response::status).ok()?;
///     let overload = status == StatusCode::TOO_MANY_REQUESTS;
///     overload.then_some(Verdict::service(Replay::Safe).after(Duration::from_secs(1)))
/// });
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
pub type AdaptiveLimitLayer<Q = Call, C = AnyError> = PartLayer<AdaptiveLimit, Q, C>;

/// A [`Timeout`], fixed or learned from the answers that are no failures.
///
/// ```
/// # use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
/// use std::time::Duration;
/// use resilience_core::Timeout;
/// use resilience_core::tower::TimeoutLayer;
///
/// let timeout = Timeout::fixed(Duration::from_secs(5))?.named("search");
/// let late = |_| StatusCode::GATEWAY_TIMEOUT.into_response();
/// let app: Router = Router::new()
///     .route("/search", get(|| async { "found" }))
///     .layer(TimeoutLayer::new(timeout).respond(late));
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
pub type TimeoutLayer<Q = Call, C = AnyError> = PartLayer<Timeout, Q, C>;

/// A [`Chaos`], which strikes in place of the service.
///
/// ```
/// # use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
/// use resilience_core::Chaos;
/// use resilience_core::tower::ChaosLayer;
///
/// let chaos = Chaos::builder("search").faults(0.05).build()?;
/// let fail = |_| StatusCode::INTERNAL_SERVER_ERROR.into_response();
/// let app: Router = Router::new()
///     .route("/search", get(|| async { "found" }))
///     .layer(ChaosLayer::new(chaos.clone()).respond(fail));
/// chaos.set_enabled(true);
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[cfg(feature = "chaos")]
pub type ChaosLayer<Q = Call, C = AnyError> = PartLayer<Chaos, Q, C>;
