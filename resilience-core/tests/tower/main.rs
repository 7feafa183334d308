//! Fear: a layer that forgets what it counted when its service is cloned, or keeps what a caller left.
#![cfg(feature = "tower")]

mod answers;
mod attempts;
mod leaks;
mod order;
mod router;
mod state;

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use resilience_core::tower::{
    AdaptiveLimitLayer, BulkheadLayer, CircuitBreakerLayer, HedgeLayer, LoadShedLayer,
    PipelineLayer, RetryLayer, ThrottleLayer, TimeoutLayer,
};
use resilience_core::{
    AdaptiveLimit, Bulkhead, Call, CallError, CircuitBreaker, CircuitState, Deadline, Hedge,
    LoadShedder, Pipeline, Prioritizer, Priority, Rank, Replay, RetryBudget, RetryPolicy, Throttle,
    Timeout, Verdict,
};
#[cfg(feature = "chaos")]
use resilience_core::{Chaos, tower::ChaosLayer};
#[cfg(feature = "rate-limit")]
use resilience_core::{RateLimiter, tower::RateLimitLayer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tower_layer::Layer;
use tower_service::Service;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("reset")]
struct Reset;

type Answer = Result<u16, Reset>;
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A service that answers with a status, reserves one of its places when polled ready, and panics if
/// it is called without one, as tower allows it to.
struct Upstream {
    shared: Arc<Shared>,
    reserving: Option<Boxed<OwnedSemaphorePermit>>,
    reserved: Option<OwnedSemaphorePermit>,
}

struct Shared {
    places: Arc<Semaphore>,
    seen: Mutex<Vec<Seen>>,
    calls: AtomicU32,
    answer: Box<dyn Fn(u32) -> (Duration, Answer) + Send + Sync>,
}

/// What a call came with.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    request: String,
    rank: Rank,
    deadline: Option<Deadline>,
}

impl Upstream {
    /// The `n`th call, from 1, is answered after so long with that.
    fn new(answer: impl Fn(u32) -> (Duration, Answer) + Send + Sync + 'static) -> Self {
        Self::with_places(1_000, answer)
    }

    fn with_places(
        places: usize,
        answer: impl Fn(u32) -> (Duration, Answer) + Send + Sync + 'static,
    ) -> Self {
        let (places, answer) = (Arc::new(Semaphore::new(places)), Box::new(answer));
        let (seen, calls) = Default::default();
        let shared = Arc::new(Shared { places, seen, calls, answer });
        Self { shared, reserving: None, reserved: None }
    }

    fn answering(answer: Answer) -> Self {
        Self::new(move |_| (Duration::ZERO, answer.clone()))
    }

    fn hanging() -> Self {
        Self::new(|_| (Duration::MAX, Ok(200)))
    }

    fn calls(&self) -> u32 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    fn free(&self) -> usize {
        self.shared.places.available_permits()
    }
}

impl Clone for Upstream {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), reserving: None, reserved: None }
    }
}

impl Service<String> for Upstream {
    type Response = u16;
    type Error = Reset;
    type Future = Boxed<Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reset>> {
        if self.reserved.is_none() {
            let places = &self.shared.places;
            let reserving = self.reserving.get_or_insert_with(|| {
                let places = Arc::clone(places);
                Box::pin(async move { places.acquire_owned().await.unwrap() })
            });
            self.reserved = Some(ready!(reserving.as_mut().poll(cx)));
            self.reserving = None;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: String) -> Self::Future {
        let reserved = self.reserved.take().expect("called before it was ready");
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let (rank, deadline) = (Rank::current(), Deadline::current());
            shared.seen.lock().unwrap().push(Seen { request, rank, deadline });
            let (time, answer) = (shared.answer)(shared.calls.fetch_add(1, Ordering::Relaxed) + 1);
            if time == Duration::MAX {
                pending::<()>().await;
            }
            sleep(time).await;
            drop(reserved);
            answer
        })
    }
}

fn request() -> String {
    "/".to_owned()
}

/// Statuses of 500 and above are failures after which nobody knows what was executed, and so is any error.
fn judge(answer: &Answer) -> Option<Verdict> {
    let failed = !matches!(answer, Ok(..500));
    failed.then_some(Verdict::service(Replay::IfIdempotent))
}

fn retry(max_retries: u32) -> RetryPolicy {
    RetryPolicy::builder().max_retries(max_retries).base_delay(MS).build().unwrap()
}

fn breaker(fail_max: u32) -> CircuitBreaker {
    CircuitBreaker::builder("upstream").fail_max(fail_max).build().unwrap()
}

fn bulkhead(limit: u32) -> Bulkhead {
    Bulkhead::new("upstream", limit, SECOND).unwrap()
}

/// Polls a call until it waits, and gives it back.
async fn begun<F: Future + Send + 'static>(call: F) -> tokio::task::JoinHandle<F::Output>
where
    F::Output: Send,
{
    let call = tokio::spawn(call);
    tokio::task::yield_now().await;
    call
}

/// Calls a service as tower asks its callers to: once it is ready.
async fn send<R, S: Service<R>>(mut service: S, request: R) -> Result<S::Response, S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}
