//! A spawned task that ends with whoever waits for it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::{JoinError, JoinHandle};

/// Aborts its task when dropped.
#[derive(Debug)]
pub(crate) struct Task<T> {
    handle: JoinHandle<T>,
    ended: bool,
}

impl<T: Send + 'static> Task<T> {
    pub(crate) fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self { handle: tokio::spawn(future), ended: false }
    }

    /// Aborts the task if it still runs, and waits until it is gone.
    pub(crate) async fn end(mut self) {
        self.handle.abort();
        if !self.ended {
            let _ = (&mut self).await;
        }
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.handle).poll(cx);
        self.ended |= polled.is_ready();
        polled
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
