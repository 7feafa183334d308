//! The one layer that all of them are, and its service.

use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::answer::{ClassifyAnswer, Failure, ending};
use super::part::Part;
use super::request::{CallFor, Cloned, Copies, Once};
use super::respond::RespondLayer;
use crate::{AnyError, Call, CallError, Deadline, Pipeline, Rank};

/// A pipeline or one of its layers as a [`tower_layer::Layer`]; go by its aliases, such as
/// [`PipelineLayer`](super::PipelineLayer).
///
/// All its services, and all their clones, share what `P` counts, learns and limits.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is around a service"]
pub struct PartLayer<P, Q = Call, C = AnyError, A = Once> {
    part: P,
    calls: Q,
    classifier: C,
    copies: PhantomData<fn() -> A>,
}

impl<P: Part> PartLayer<P, Call, AnyError, P::Copies> {
    /// A layer of `part`, to which each request is a [`Call::write`], each error a failure of the
    /// service, and each response a success.
    pub fn new(part: P) -> Self {
        Self { part, calls: Call::write(), classifier: AnyError, copies: PhantomData }
    }
}

impl<P, Q, C, A> PartLayer<P, Q, C, A> {
    /// Which call a request is: a [`Call`], or a closure `|request: &R| -> Call`; default
    /// [`Call::write`], which is repeated only if it is proven not to have been executed.
    ///
    /// Its deadline and its rank hold for all that runs inside: they are carried down.
    pub fn calls<N>(self, calls: N) -> PartLayer<P, N, C, A> {
        let Self { part, classifier, copies, .. } = self;
        PartLayer { part, calls, classifier, copies }
    }

    /// What an answer means: a closure `|answer: &Result<T, E>| -> Option<Verdict>`, `None` for a
    /// success; default [`AnyError`], to which each response is one. A response that comes to count
    /// as a failure still is what the call ends with, if no better one follows.
    pub fn classify<N>(self, classifier: N) -> PartLayer<P, Q, N, A> {
        let Self { part, calls, copies, .. } = self;
        PartLayer { part, calls, classifier, copies }
    }

    /// Makes a response of whatever keeps a call from having one, so that the service never fails, as
    /// axum asks of it: `|error: CallError<E>| -> T`.
    pub fn respond<F>(self, respond: F) -> RespondLayer<Self, F> {
        RespondLayer::new(self, respond)
    }
}

impl<Q, C> PartLayer<Pipeline, Q, C, Once> {
    /// Sends a clone of the request with each attempt. Without this there is but one, whatever the
    /// pipeline's retry and hedge say.
    ///
    /// A request that is not `Clone`, such as axum's with its stream for a body, does not compile:
    ///
    /// ```compile_fail,E0277
    /// # use axum::{Router, extract::Request, http::StatusCode, response::{IntoResponse, Response}, routing::get};
    /// # use resilience_core::{Call, Pipeline, tower::PipelineLayer};
    /// let pipeline = Pipeline::builder("reports").build().unwrap();
    /// let layer = PipelineLayer::new(pipeline).clone_request();
    /// let respond = |_| StatusCode::SERVICE_UNAVAILABLE.into_response();
    /// let app: Router = Router::new().route("/", get(|| async {})).layer(layer.respond(respond));
    /// ```
    pub fn clone_request(self) -> PartLayer<Pipeline, Q, C, Cloned> {
        let Self { part, calls, classifier, .. } = self;
        PartLayer { part, calls, classifier, copies: PhantomData }
    }
}

impl<S, P, Q, C, A> Layer<S> for PartLayer<P, Q, C, A>
where
    P: Clone,
    Q: Clone,
    C: Clone,
{
    type Service = PartService<S, P, Q, C, A>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { part, calls, classifier, copies } = self;
        let (part, calls, classifier) = (part.clone(), calls.clone(), classifier.clone());
        let layer = PartLayer { part, calls, classifier, copies: *copies };
        PartService { inner, layer: Arc::new(layer) }
    }
}

/// A service behind a [`PartLayer`].
///
/// It is always ready: it reserves nothing before it is called, not even the inner service. Each
/// attempt calls a clone of that, and waits for it to be ready within the attempt's time: one that
/// is never ready is a slow service, and one that fails to be is a failing one.
#[derive(Debug)]
pub struct PartService<S, P, Q = Call, C = AnyError, A = Once> {
    inner: S,
    layer: Arc<PartLayer<P, Q, C, A>>,
}

impl<S: Clone, P, Q, C, A> Clone for PartService<S, P, Q, C, A> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: Arc::clone(&self.layer) }
    }
}

impl<R, S, P, Q, C, A> Service<R> for PartService<S, P, Q, C, A>
where
    R: Send + 'static,
    S: Service<R> + Clone + Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
    P: Part,
    Q: CallFor<R> + Send + Sync + 'static,
    C: ClassifyAnswer<S::Response, S::Error> + Send + Sync + 'static,
    A: Copies<(S, R)> + 'static,
{
    type Response = S::Response;
    type Error = CallError<S::Error>;
    type Future = ResponseFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let layer = Arc::clone(&self.layer);
        let service = self.inner.clone();
        let boxed = Box::pin(async move {
            let PartLayer { part, calls, classifier, .. } = &*layer;
            let mut call = calls.call_for(&request);
            call.idempotent &= A::ANY;
            let mut next = Some((service, request));
            let attempts = || {
                let this = next.take().expect("a call without copies has one attempt");
                next = A::copy(&this);
                async {
                    let (service, request) = this;
                    let answer = attempt(service, request).await;
                    Failure::unless_good(answer, classifier, A::ANY)
                }
            };
            let pipeline = part.pipeline().filter(|_| A::ANY && !call.idempotent);
            let write = pipeline.map(|pipeline| (pipeline.name(), Instant::now()));
            let result = Carried::new(&call, part.run(call, attempts)).await;
            result.or_else(|error| ending(error, write))
        });
        ResponseFuture { boxed }
    }
}

async fn attempt<R, S: Service<R>>(mut service: S, request: R) -> Result<S::Response, S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}

pin_project! {
    /// A future to which a call's own deadline and rank are the surrounding ones.
    struct Carried<F> {
        deadline: Option<Deadline>,
        rank: Option<Rank>,
        #[pin]
        future: F,
    }
}

impl<F> Carried<F> {
    fn new(call: &Call, future: F) -> Self {
        let deadline = call.deadline.map(Deadline::inherited);
        Self { deadline, rank: call.rank, future }
    }
}

impl<F: Future> Future for Carried<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let poll = || this.future.poll(cx);
        let poll = || match this.rank {
            Some(rank) => rank.enter(poll),
            None => poll(),
        };
        match this.deadline {
            Some(deadline) => deadline.enter(poll),
            None => poll(),
        }
    }
}

/// A call on its way: one box, whatever the layer. Dropping it is cancelling the call.
#[must_use = "futures do nothing unless awaited"]
pub struct ResponseFuture<T, E> {
    boxed: Pin<Box<dyn Future<Output = Result<T, CallError<E>>> + Send>>,
}

impl<T, E> Future for ResponseFuture<T, E> {
    type Output = Result<T, CallError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.boxed.as_mut().poll(cx)
    }
}

impl<T, E> fmt::Debug for ResponseFuture<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
