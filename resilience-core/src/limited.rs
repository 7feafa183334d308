//! A future that may take so long and no longer, and costs no timer if it is ready at once.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::heartbeat;

pin_project! {
    /// Ends with the output of a future, or with `None` at an instant. It does not drop the future:
    /// whoever holds it may want to settle something first.
    ///
    /// Whatever has to wait starts the heartbeat, by which its end will be judged.
    pub(crate) struct Limited<F> {
        #[pin]
        future: F,
        until: Instant,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl<F> Limited<F> {
    pub(crate) fn new(future: F, until: Instant) -> Self {
        Self { future, until, sleep: None }
    }

    /// The future itself.
    pub(crate) fn future(self: Pin<&mut Self>) -> Pin<&mut F> {
        self.project().future
    }
}

impl<F: Future> Future for Limited<F> {
    type Output = Option<F::Output>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Some(output));
        }
        if this.sleep.is_none() {
            heartbeat::start();
            this.sleep.set(Some(sleep_until(*this.until)));
        }
        let sleep = this.sleep.as_pin_mut().expect("it was set just now");
        // A future that uses up the task's budget at each poll must not keep its own end away.
        ready!(pin!(unconstrained(sleep)).poll(cx));
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_never_ends_is_given_back_at_its_limit() {
        let until = Instant::now() + Duration::from_secs(3);
        let mut limited = pin!(Limited::new(pending::<()>(), until));
        assert_eq!(limited.as_mut().await, None);
        assert_eq!(Instant::now(), until);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_late_but_ready_has_its_answer() {
        let limited = Limited::new(std::future::ready(1), Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limited.await, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_that_uses_up_its_tasks_budget_ends_all_the_same() {
        let until = Instant::now() + Duration::from_secs(1);
        let greedy = poll_fn(|cx| {
            while pin!(tokio::task::coop::consume_budget()).poll(cx).is_ready() {}
            Poll::<()>::Pending
        });
        let mut limited = pin!(Limited::new(greedy, until));
        let first = poll_fn(|cx| Poll::Ready(limited.as_mut().poll(cx))).await;
        assert!(first.is_pending());
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = poll_fn(|cx| Poll::Ready(limited.as_mut().poll(cx))).await;
        assert_eq!(second, Poll::Ready(None));
    }
}
