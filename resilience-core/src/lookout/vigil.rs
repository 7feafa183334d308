//! The watch that one call keeps: a timer while it is young, and looks once it is late.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Lookout, PATIENCE, Silent};

pin_project! {
    /// Keeps watch over what is no future: a stream, whose every item is waited for anew.
    ///
    /// Poll it whenever what it watches over was found pending, and say when there was an answer.
    #[derive(Default)]
    #[must_use = "it watches only while it is polled"]
    pub struct Vigil {
        since: Option<Instant>,
        // It may be early: moving it with each answer would cost more than being woken for nothing.
        #[pin]
        timer: Option<Sleep>,
        looks: Option<Pin<Box<dyn Future<Output = Silent> + Send>>>,
    }
}

impl Vigil {
    /// One that waits for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The wait is over: the next poll begins another.
    pub fn end_wait(self: Pin<&mut Self>) {
        let this = self.project();
        (*this.since, *this.looks) = (None, None);
    }

    /// Ready once `lookout` has seen that nobody will answer. The wait begins with the first poll.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    #[inline]
    pub fn poll_silent(
        self: Pin<&mut Self>,
        lookout: &Lookout,
        cx: &mut Context<'_>,
    ) -> Poll<Silent> {
        let mut this = self.project();
        let since = *this.since.get_or_insert_with(Instant::now);
        let due = since + PATIENCE;
        if this.looks.is_none() {
            if this.timer.is_none() {
                this.timer.set(Some(sleep_until(due)));
            }
            let mut timer = this.timer.as_pin_mut().expect("it was set just now");
            loop {
                // A future that uses up the task's budget at each poll must not keep the looks away.
                ready!(pin!(unconstrained(timer.as_mut())).poll(cx));
                if timer.deadline() >= due {
                    break;
                }
                timer.as_mut().reset(due);
            }
        }
        let looks = this
            .looks
            .get_or_insert_with(|| Box::pin(Arc::clone(&lookout.shared).keep_looking(since)));
        pin!(unconstrained(looks.as_mut())).poll(cx)
    }
}

pin_project! {
    /// A future under watch.
    pub(super) struct Watched<'a, F> {
        lookout: &'a Lookout,
        #[pin]
        work: F,
        #[pin]
        vigil: Vigil,
    }
}

impl<'a, F> Watched<'a, F> {
    pub(super) fn new(lookout: &'a Lookout, work: F) -> Self {
        Self { lookout, work, vigil: Vigil::new() }
    }
}

impl<F: Future> Future for Watched<'_, F> {
    type Output = Result<F::Output, Silent>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.work.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        this.vigil.poll_silent(this.lookout, cx).map(Err)
    }
}
