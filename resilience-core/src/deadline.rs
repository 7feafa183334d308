//! The instant by which a call must have ended, carried down to whatever it calls.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Instant;

/// Far enough to mean "never", near enough to add to without overflow.
pub(crate) const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

thread_local! {
    /// The deadline of the call that is being polled.
    static CURRENT: Cell<Option<Deadline>> = const { Cell::new(None) };
}

/// An absolute instant on the monotonic clock. Going down a call it only ever shrinks.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use resilience_core::Deadline;
///
/// Deadline::within(Duration::from_secs(2))
///     .scope(async {
///         // Every pipeline called from here ends by then.
///         assert!(Deadline::current().unwrap().remaining() <= Duration::from_secs(2));
///     })
///     .await;
/// # }
/// ```
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline at `instant`.
    #[must_use]
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The deadline `time` from now; thirty years from now at the most.
    #[must_use]
    pub fn within(time: Duration) -> Self {
        Self(later(Instant::now(), time))
    }

    /// The deadline of the surrounding [`scope`](Self::scope), if there is one.
    ///
    /// A task spawned from within a scope does not inherit it: it may outlive the call.
    #[inline]
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.get()
    }

    /// The nearer of `self` and the surrounding one.
    #[must_use]
    #[inline]
    pub fn inherited(self) -> Self {
        Self::current().map_or(self, |outer| self.min(outer))
    }

    /// Runs `future` under the nearer of `self` and the surrounding deadline.
    ///
    /// This only tells what is called; it ends nothing by itself.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `future`.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        Within::new(self, future)
    }

    /// Runs `f` under this deadline, which is known to be no later than the surrounding one.
    #[inline]
    pub(crate) fn enter<T>(self, f: impl FnOnce() -> T) -> T {
        let _outer = Outer(CURRENT.replace(Some(self)));
        f()
    }

    /// The instant itself.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// What is left; zero once it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.remaining_at(Instant::now())
    }

    /// What was left at `now`; zero once it has passed.
    #[must_use]
    #[inline]
    pub fn remaining_at(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Whether it has passed at `now`.
    #[must_use]
    #[inline]
    pub fn has_passed(self, now: Instant) -> bool {
        self.0 <= now
    }

    /// The deadline half way between `now` and this one: what a primary may use that has a fallback.
    #[must_use]
    pub fn half(self, now: Instant) -> Self {
        Self(now + self.remaining_at(now) / 2)
    }
}

pin_project! {
    /// A future under a deadline.
    pub(crate) struct Within<F> {
        deadline: Deadline,
        #[pin]
        future: F,
    }
}

impl<F> Within<F> {
    /// `future` under `deadline`, or the surrounding one where that is nearer.
    #[inline]
    pub(crate) fn new(deadline: Deadline, future: F) -> Self {
        Self { deadline, future }
    }
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // It may have been made elsewhere: what surrounds it is what it is polled under.
        this.deadline.inherited().enter(|| this.future.poll(cx))
    }
}

/// The deadline around the one that is being polled, put back even by a panic.
struct Outer(Option<Deadline>);

impl Drop for Outer {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// `now + time`, thirty years from now at the most: a time without end must not overflow.
#[inline]
pub(crate) fn later(now: Instant, time: Duration) -> Instant {
    now + time.min(FAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_inner_scope_cannot_gain_time() {
        let outer = Deadline::within(Duration::from_secs(1));
        let seen = outer
            .scope(async {
                Deadline::within(Duration::from_secs(9)).scope(async { Deadline::current() }).await
            })
            .await;
        assert_eq!(seen, Some(outer));
        assert_eq!(Deadline::current(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_duration_does_not_overflow() {
        assert!(Deadline::within(Duration::MAX).remaining() > Duration::from_secs(3600));
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_what_is_gone_is_nothing() {
        let now = Instant::now();
        assert_eq!(
            Deadline::at(now).half(now + Duration::from_secs(1)).instant(),
            now + Duration::from_secs(1)
        );
        assert_eq!(
            Deadline::at(now + Duration::from_secs(4)).half(now).remaining_at(now),
            Duration::from_secs(2)
        );
    }
}
