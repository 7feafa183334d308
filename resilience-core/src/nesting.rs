//! Of nested pipelines the innermost retries: the ones around it must know when it has given up.
//!
//! Were each to repeat what the next gave up, three pipelines of four attempts would make sixty-four
//! (Google SRE, ch. 22).

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

thread_local! {
    /// How the last pipeline within the attempt that is being polled has ended, if one has that retries.
    static INNER: Cell<Option<Inner>> = const { Cell::new(None) };
}

/// How a pipeline that retries has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Inner {
    /// With an answer, or one in its place, or without an attempt.
    Answered,
    /// With its last attempt.
    GaveUp,
}

/// Tells the pipeline around this one, if there is one, how a call of one that retries ended.
#[inline]
pub(crate) fn tell_the_outer(inner: Inner) {
    INNER.set(Some(inner));
}

/// Tells the pipeline around this one what was heard, if anything was.
pub(crate) fn pass_on(inner: Option<Inner>) {
    if let Some(inner) = inner {
        tell_the_outer(inner);
    }
}

pin_project! {
    /// A future that hears of the pipelines within it, and lets nothing of them out.
    pub(crate) struct Listening<F> {
        heard: Option<Inner>,
        #[pin]
        future: F,
    }
}

/// Lets `future` hear of what runs within it.
pub(crate) fn listen<F: Future>(future: F) -> Listening<F> {
    Listening { heard: None, future }
}

impl<F: Future> Future for Listening<F> {
    type Output = (F::Output, Option<Inner>);

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _outer = Outer(INNER.replace(*this.heard));
        let polled = this.future.poll(cx);
        *this.heard = INNER.get();
        polled.map(|output| (output, *this.heard))
    }
}

/// What the attempt around this one has heard, put back even by a panic.
struct Outer(Option<Inner>);

impl Drop for Outer {
    #[inline]
    fn drop(&mut self) {
        INNER.set(self.0);
    }
}
