//! The one layer that all of them are, and its service.

use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::answer::{ClassifyAnswer, Failure, Judged};
use super::part::Part;
use super::request::{CallFor, Cloned, Copies, Once};
use super::respond::RespondLayer;
use crate::{AnyError, Call, CallError, Pipeline};

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
        ResponseFuture { boxed: Box::pin(async move { layer.run(service, request).await }) }
    }
}

impl<P: Part, Q, C, A> PartLayer<P, Q, C, A> {
    async fn run<R, S>(&self, service: S, request: R) -> Result<S::Response, CallError<S::Error>>
    where
        R: Send,
        S: Service<R> + Send,
        S::Response: Send,
        S::Error: Send,
        S::Future: Send,
        Q: CallFor<R> + Sync,
        C: ClassifyAnswer<S::Response, S::Error> + Sync,
        A: Copies<(S, R)>,
    {
        let mut call = self.calls.call_for(&request);
        call.idempotent &= A::ANY;
        let mut next = Some((service, request));
        let operation = || {
            let this = next.take().expect("a call without copies has one attempt");
            next = A::copy(&this);
            async {
                let (service, request) = this;
                Failure::unless_good(attempt(service, request).await, &self.classifier)
            }
        };
        let judged = Judged { repeatable: A::ANY };
        let running = self.part.run(call, &judged, operation);
        let running = async {
            match call.rank {
                Some(rank) => rank.scope(running).await,
                None => running.await,
            }
        };
        let result = match call.deadline {
            Some(deadline) => deadline.scope(running).await,
            None => running.await,
        };
        result.or_else(Failure::answer)
    }
}

async fn attempt<R, S: Service<R>>(mut service: S, request: R) -> Result<S::Response, S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
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
