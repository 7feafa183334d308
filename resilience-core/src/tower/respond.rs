//! A response for whatever keeps a call from having one.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// A layer whose service never fails; made by [`PartLayer::respond`](super::PartLayer::respond).
#[derive(Clone, Copy, Debug)]
#[must_use = "a layer does nothing until it is around a service"]
pub struct RespondLayer<L, F> {
    layer: L,
    respond: F,
}

impl<L, F> RespondLayer<L, F> {
    pub(super) fn new(layer: L, respond: F) -> Self {
        Self { layer, respond }
    }
}

impl<S, L: Layer<S>, F: Clone> Layer<S> for RespondLayer<L, F> {
    type Service = RespondService<L::Service, F>;

    fn layer(&self, inner: S) -> Self::Service {
        RespondService { service: self.layer.layer(inner), respond: self.respond.clone() }
    }
}

/// A service behind a [`RespondLayer`].
#[derive(Clone, Copy, Debug)]
pub struct RespondService<S, F> {
    service: S,
    respond: F,
}

impl<R, S, F> Service<R> for RespondService<S, F>
where
    S: Service<R>,
    F: Fn(S::Error) -> S::Response + Clone,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = RespondFuture<S::Future, F>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // As is the service of a `PartLayer`, and there is no other within.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        RespondFuture { call: self.service.call(request), respond: self.respond.clone() }
    }
}

pin_project! {
    /// A call on its way that will have a response. It allocates nothing of its own.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless awaited"]
    pub struct RespondFuture<Fut, F> {
        #[pin]
        call: Fut,
        respond: F,
    }
}

impl<T, E, Fut, F> Future for RespondFuture<Fut, F>
where
    Fut: Future<Output = Result<T, E>>,
    F: Fn(E) -> T,
{
    type Output = Result<T, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(Ok(ready!(this.call.poll(cx)).unwrap_or_else(&*this.respond)))
    }
}
