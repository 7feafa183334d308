//! A pipeline and each of its layers, seen alike: what runs a call in one or more attempts.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::answer::Failure;
use super::request::{Cloned, Once};
#[cfg(feature = "chaos")]
use crate::Chaos;
#[cfg(feature = "rate-limit")]
use crate::RateLimiter;
use crate::hedge::Standing;
use crate::nesting::{self, Inner};
use crate::permit::{Settle, Watched};
use crate::{
    AdaptiveLimit, Blame, Bulkhead, Call, CallError, CircuitBreaker, Deadline, Failed, Hedge,
    LoadShedder, Outcome, Pipeline, Rank, RetryPolicy, Throttle, Timeout,
};

/// What can stand before a service: a [`Pipeline`], or one of its layers alone. It is sealed.
///
/// Each is a handle: all that it counts, learns and limits is shared by its clones.
pub trait Part: Clone + Send + Sync + 'static {
    /// Whether it clones requests without being told to: it does where it would be useless otherwise.
    type Copies;

    /// Makes attempts, under the deadline and rank that surround it. What it takes has no name
    /// outside, which is what seals the trait.
    #[doc(hidden)]
    fn run<A: Attempts>(&self, call: Call, attempts: A) -> impl Future<Output = Ended<A>> + Send;

    /// The pipeline, if it is one: of all parts, only that cuts off one of several attempts.
    #[doc(hidden)]
    fn pipeline(&self) -> Option<&Pipeline> {
        None
    }
}

/// What begins the attempts of a call: any `FnMut() -> impl Future`, with names for what that comes to.
pub trait Attempts: Send {
    type Response: Send;
    type Error: Send;
    type Attempt: Future<Output = Result<Self::Response, FailureOf<Self>>> + Send;

    /// Another attempt.
    fn begin(&mut self) -> Self::Attempt;
}

type FailureOf<A> = Failure<<A as Attempts>::Response, <A as Attempts>::Error>;

/// What a call ends with.
type Ended<A> = Result<<A as Attempts>::Response, CallError<FailureOf<A>>>;

impl<F, Fut, T, E> Attempts for F
where
    F: FnMut() -> Fut + Send,
    Fut: Future<Output = Result<T, Failure<T, E>>> + Send,
    T: Send,
    E: Send,
{
    type Response = T;
    type Error = E;
    type Attempt = Fut;

    fn begin(&mut self) -> Fut {
        self()
    }
}

impl Part for Pipeline {
    type Copies = Once;

    async fn run<A: Attempts>(&self, call: Call, mut attempts: A) -> Ended<A> {
        Pipeline::run(self, call, &Failure::verdict, |_| attempts.begin()).await
    }

    fn pipeline(&self) -> Option<&Pipeline> {
        Some(self)
    }
}

impl Part for LoadShedder {
    type Copies = Once;

    async fn run<A: Attempts>(&self, _: Call, mut attempts: A) -> Ended<A> {
        let _admitted = self.admit(Rank::current())?;
        Ok(attempts.begin().await?)
    }
}

#[cfg(feature = "rate-limit")]
impl Part for RateLimiter {
    type Copies = Once;

    async fn run<A: Attempts>(&self, _: Call, mut attempts: A) -> Ended<A> {
        self.acquire(inherited()).await?;
        Ok(attempts.begin().await?)
    }
}

impl Part for Hedge {
    type Copies = Cloned;

    async fn run<A: Attempts>(&self, call: Call, mut attempts: A) -> Ended<A> {
        self.budget().deposit();
        if !call.idempotent {
            return Ok(attempts.begin().await?);
        }
        let begun = AtomicU32::new(0);
        let attempt = |_| {
            begun.fetch_add(1, Ordering::Relaxed);
            let attempt = attempts.begin();
            async { attempt.await.map_err(Failed::from) }
        };
        let standing = |result: &Result<A::Response, Failed<FailureOf<A>>>| match result {
            Err(failed) if failed.verdict.may_repeat(true) => Standing::Failed,
            Ok(_) | Err(_) => Standing::Decides,
        };
        let result = self.race(self.name(), Deadline::current(), attempt, standing).await;
        result.map_err(|failed| {
            let attempts = begun.load(Ordering::Relaxed);
            CallError::Inner(Failed { attempts, ..failed })
        })
    }
}

impl Part for RetryPolicy {
    type Copies = Cloned;

    async fn run<A: Attempts>(&self, call: Call, mut attempts: A) -> Ended<A> {
        let mut retries = self.begin(&self.name);
        let mut made = 0;
        let result = loop {
            let (answer, inner) = nesting::listen(attempts.begin()).await;
            let failure = match answer {
                Ok(response) => break Ok(response),
                Err(failure) => failure,
            };
            made += 1;
            let failed = Failed { attempts: made, ..failure.into() };
            let may_repeat =
                failed.verdict.may_repeat(call.idempotent) && inner != Some(Inner::GaveUp);
            retries.budgeted = failed.verdict.blame != Blame::Local;
            let deadline = Deadline::current();
            match retries.next(may_repeat, failed.verdict.retry_after, deadline) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => break Err(CallError::Inner(failed)),
            }
            // A wait may go on past its end: this process may have stood still.
            if deadline.is_some_and(|deadline| deadline.has_passed(Instant::now())) {
                break Err(CallError::Inner(failed));
            }
        };
        if self.max_retries() > 0 {
            nesting::tell_the_outer(if result.is_ok() { Inner::Answered } else { Inner::GaveUp });
        }
        result
    }
}

impl Part for CircuitBreaker {
    type Copies = Once;

    async fn run<A: Attempts>(&self, _: Call, mut attempts: A) -> Ended<A> {
        self.call_with(&Failure::verdict, || attempts.begin()).await
    }
}

impl Part for Throttle {
    type Copies = Once;

    async fn run<A: Attempts>(&self, _: Call, mut attempts: A) -> Ended<A> {
        let permit = self.try_acquire()?;
        let (permit, result) = Watched::new(Some(permit), async { attempts.begin().await }).await;
        let result = result.map_err(Failed::from);
        let outcome = match &result {
            Ok(_) => Outcome::Success,
            Err(failed) => failed.verdict.blame.outcome(),
        };
        Settle::settle(permit.expect("nobody else takes it"), outcome);
        result.map_err(CallError::Inner)
    }
}

impl Part for Bulkhead {
    type Copies = Once;

    async fn run<A: Attempts>(&self, _: Call, mut attempts: A) -> Ended<A> {
        let _place = match self.try_acquire() {
            Some(place) => place,
            None => self.acquire(inherited()).await?,
        };
        Ok(attempts.begin().await?)
    }
}

impl Part for AdaptiveLimit {
    type Copies = Once;

    async fn run<A: Attempts>(&self, _: Call, mut attempts: A) -> Ended<A> {
        let place = match self.try_acquire() {
            Some(place) => place,
            None => self.acquire(inherited()).await?,
        };
        let started = Instant::now();
        let result = attempts.begin().await.map_err(Failed::from);
        let load = match &result {
            Ok(_) => Outcome::Success,
            // Of errors, only one that asks for time speaks of load.
            Err(Failed { verdict, .. })
                if verdict.blame == Blame::Service && verdict.retry_after.is_some() =>
            {
                Outcome::Failure
            }
            Err(_) => Outcome::Excluded,
        };
        place.settle(load, started.elapsed());
        result.map_err(CallError::Inner)
    }
}

impl Part for Timeout {
    type Copies = Once;

    async fn run<A: Attempts>(&self, _: Call, mut attempts: A) -> Ended<A> {
        Ok(Timeout::run(self, attempts.begin()).await??)
    }
}

#[cfg(feature = "chaos")]
impl Part for Chaos {
    type Copies = Once;

    async fn run<A: Attempts>(&self, _: Call, mut attempts: A) -> Ended<A> {
        self.strike().await?;
        Ok(attempts.begin().await?)
    }
}

/// The surrounding deadline, or none to speak of.
fn inherited() -> Deadline {
    Deadline::current().unwrap_or_else(|| Deadline::within(Duration::MAX))
}
