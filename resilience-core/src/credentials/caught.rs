//! A future whose panic is its result, so that what others wrote harms nobody who waits for it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

pin_project! {
    /// It panicked: `Err`. Not polled again after that.
    pub(super) struct Caught<F> {
        #[pin]
        pub(super) future: F,
    }
}

/// It panicked.
#[derive(Debug)]
pub(super) struct Panicked;

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.project().future;
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => {
                // What it threw may throw once more as it is dropped.
                if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                    std::mem::forget(again);
                }
                Poll::Ready(Err(Panicked))
            }
        }
    }
}
