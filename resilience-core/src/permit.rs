//! Leave to make one attempt, and how that attempt ended.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::circuit::Pass;
use crate::{CircuitBreaker, CircuitOpen, ThrottlePermit};

/// How an attempt ended, as far as the breaker cares.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// The service answered as it should.
    Success,
    /// The service failed.
    Failure,
    /// It ended in a way that says nothing about the service; moves no count.
    Excluded,
    /// Nobody waited for its end; moves no count.
    Cancelled,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Success, Self::Failure, Self::Excluded, Self::Cancelled];

    /// The word for it, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Excluded => "excluded",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Leave to make one attempt. Dropped unsettled it is [`Outcome::Cancelled`]: it blames nobody.
///
/// ```
/// use resilience_core::CircuitBreaker;
///
/// let breaker = CircuitBreaker::new("payments");
/// let permit = breaker.try_acquire()?;
/// // … talk to the service …
/// permit.success();
/// # Ok::<(), resilience_core::CircuitOpen>(())
/// ```
#[derive(Debug)]
#[must_use = "settle it, or the attempt counts as cancelled"]
pub struct Permit {
    breaker: CircuitBreaker,
    pass: Pass,
    outcome: Outcome,
}

impl Permit {
    pub(crate) fn new(breaker: CircuitBreaker, pass: Pass) -> Self {
        Self { breaker, pass, outcome: Outcome::Cancelled }
    }

    /// The service answered as it should.
    pub fn success(self) {
        self.settle(Outcome::Success);
    }

    /// The service failed.
    pub fn failure(self) {
        self.settle(Outcome::Failure);
    }

    /// The end says nothing about the service.
    pub fn exclude(self) {
        self.settle(Outcome::Excluded);
    }

    /// Settles as `outcome`.
    pub fn settle(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// The number of the state that admitted it.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.pass.generation()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.breaker.settle(self.pass, self.outcome);
    }
}

/// A [`Permit`] that borrows its breaker: it costs no reference count.
#[derive(Debug)]
pub(crate) struct Lent<'a> {
    breaker: &'a CircuitBreaker,
    pass: Pass,
    /// How it will have ended if nobody settles it.
    pub(crate) outcome: Outcome,
}

impl<'a> Lent<'a> {
    #[inline]
    pub(crate) fn new(breaker: &'a CircuitBreaker, pass: Pass) -> Self {
        Self { breaker, pass, outcome: Outcome::Cancelled }
    }

    /// Lets the attempt begin `now`: it had to wait for a place of ours. The circuit is asked again if
    /// it has changed meanwhile.
    pub(crate) fn restart(&mut self, now: Instant) -> Result<(), CircuitOpen> {
        if self.breaker.generation() == self.pass.generation() {
            self.breaker.restart(&mut self.pass, now);
        } else {
            // It is one attempt, and counts once.
            self.pass.uncount();
            self.pass = self.breaker.admit()?;
        }
        Ok(())
    }
}

impl Drop for Lent<'_> {
    #[inline]
    fn drop(&mut self) {
        self.breaker.settle(self.pass, self.outcome);
    }
}

/// What can say how an attempt ended.
pub(crate) trait Settle: Sized {
    fn settle(self, outcome: Outcome);

    /// Settles an attempt that panicked.
    fn panicked(self) {
        self.settle(Outcome::Failure);
    }
}

impl Settle for Permit {
    fn settle(self, outcome: Outcome) {
        Permit::settle(self, outcome);
    }
}

impl Settle for ThrottlePermit<'_> {
    fn settle(self, outcome: Outcome) {
        ThrottlePermit::settle(self, outcome);
    }
}

impl Settle for Lent<'_> {
    #[inline]
    fn settle(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

pin_project! {
    /// Runs a future under a permit and gives both back. A panic inside is a failure; dropping the
    /// future before its end is a cancellation, even while the dropper itself is panicking.
    pub(crate) struct Watched<P, F>
    where
        P: Settle,
    {
        permit: Option<P>,
        polling: bool,
        #[pin]
        future: F,
    }

    impl<P, F> PinnedDrop for Watched<P, F>
    where
        P: Settle,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(permit) = this.permit.take().filter(|_| *this.polling) {
                permit.panicked();
            }
        }
    }
}

impl<P: Settle, F> Watched<P, F> {
    pub(crate) fn new(permit: Option<P>, future: F) -> Self {
        Self { permit, polling: false, future }
    }

    /// Takes the permit out, to settle it while the future still exists.
    pub(crate) fn take_permit(self: Pin<&mut Self>) -> Option<P> {
        self.project().permit.take()
    }
}

impl<P: Settle, F: Future> Future for Watched<P, F> {
    type Output = (Option<P>, F::Output);

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        *this.polling = true;
        let polled = this.future.poll(cx);
        *this.polling = false;
        polled.map(|output| (this.permit.take(), output))
    }
}
