//! What an axum application needs around its own routes: health, deadlines, refusals, shutdown.

use std::io;
use std::pin::pin;
use std::time::Duration;

use ::axum::Router;
use ::axum::extract::{Request, State};
use ::axum::http::{HeaderValue, StatusCode, header};
use ::axum::middleware::{self, Next};
use ::axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::{CallError, Deadline, get_monitoring_manager};

/// `/health`, `/ready`, `/health/detailed`, `/health/circuit-breakers` and `/metrics` of this
/// process's monitoring. None of them does I/O.
pub fn health_routes() -> Router {
    monitoring::health_routes(get_monitoring_manager())
}

/// Gives each request to `router` `limit` to be answered. What it calls inherits that deadline; an
/// answer that is not there by then becomes 503 with `Retry-After: 1`.
pub fn with_deadline<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    limit: Duration,
) -> Router<S> {
    router.layer(middleware::from_fn_with_state(limit, by_deadline))
}

async fn by_deadline(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let deadline = Deadline::within(limit);
    match timeout_at(deadline.instant(), deadline.scope(next.run(request))).await {
        Ok(response) => response,
        Err(_) => ServiceError::unavailable(None).into_response(),
    }
}

/// A call that failed, as an HTTP answer: 503 with `Retry-After` where the service could not be had,
/// 500 where it refused what we asked. The client is told no more; the log is.
///
/// ```
/// use shared_external::axum::ServiceError;
/// use shared_external::{AnyError, Call, Pipeline};
///
/// # fn pipeline() -> Pipeline { unreachable!() }
/// async fn handler() -> Result<String, ServiceError> {
///     let reply = pipeline().run(Call::read(), &AnyError, |_| async { Ok::<_, std::io::Error>("hello") }).await?;
///     Ok(reply.to_owned())
/// }
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServiceError {
    status: StatusCode,
    retry_after: Duration,
}

impl ServiceError {
    /// 503: come back after that time, or in a second.
    #[must_use]
    pub fn unavailable(retry_after: Option<Duration>) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            retry_after: retry_after.unwrap_or(Duration::from_secs(1)),
        }
    }
}

impl<E: std::fmt::Display> From<CallError<E>> for ServiceError {
    fn from(error: CallError<E>) -> Self {
        if error.is_unavailable() {
            tracing::debug!(target: "shared_external::axum", %error, "answering 503");
            return Self::unavailable(error.retry_after());
        }
        tracing::error!(target: "shared_external::axum", %error, "a service refused what was asked of it; answering 500");
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, retry_after: Duration::ZERO }
    }
}

impl IntoResponse for ServiceError {
    fn into_response(self) -> Response {
        let unavailable = self.status == StatusCode::SERVICE_UNAVAILABLE;
        let message = if unavailable { "temporarily unavailable" } else { "internal error" };
        let body = ::axum::Json(serde_json::json!({ "error": message }));
        let mut response = (self.status, body).into_response();
        if unavailable {
            let seconds =
                self.retry_after.as_secs() + u64::from(self.retry_after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

/// Serves `router` until SIGTERM or Ctrl-C, then shuts down within `grace`: `/ready` answers 503, no
/// connection is accepted, requests in flight are finished, the monitoring ends, and the managers of
/// this process drain. A second signal ends the grace at once.
///
/// # Errors
///
/// Whatever ends the listener; that signals cannot be listened for.
///
/// # Cancel safety
///
/// Dropping the future closes the listener and drains nothing.
pub async fn serve(listener: TcpListener, router: Router, grace: Duration) -> io::Result<()> {
    let mut signals = Signals::new()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let asked = async { drop(stopped.await) };
    let served = ::axum::serve(listener, router).with_graceful_shutdown(asked).into_future();
    let mut served = pin!(served);
    tokio::select! {
        ended = served.as_mut() => return ended,
        () = signals.next() => {}
    }
    tracing::info!(target: "shared_external::axum", ?grace, "shutting down");
    let deadline = Deadline::within(grace);
    let monitoring = get_monitoring_manager();
    monitoring.set_draining();
    drop(stop);
    let shut_down = async {
        if timeout_at(deadline.instant(), served).await.is_err() {
            tracing::warn!(target: "shared_external::axum", "requests still in flight at the end of the grace are abandoned");
        }
        // Before the managers drain: it would take that for an outage, and tell.
        monitoring.shutdown(deadline).await;
        #[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
        crate::drain(deadline).await;
    };
    tokio::select! {
        () = shut_down => {}
        () = signals.next() => {
            tracing::warn!(target: "shared_external::axum", "told to stop again: what is still running is abandoned");
        }
    }
    Ok(())
}

/// SIGTERM and Ctrl-C, from the moment it is made.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
