//! A pipeline and each of its layers, seen alike: what runs a call in one or more attempts.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::request::{Cloned, Once};
#[cfg(feature = "chaos")]
use crate::Chaos;
#[cfg(feature = "rate-limit")]
use crate::RateLimiter;
use crate::hedge::Standing;
use crate::nesting::{self, Inner};
use crate::permit::{Settle, Watched};
use crate::{
    AdaptiveLimit, Blame, Bulkhead, Call, CallError, CircuitBreaker, Classify, Deadline, Failed,
    Hedge, LoadShedder, Outcome, Pipeline, Rank, RetryPolicy, Throttle, Timeout,
};

/// What can stand before a service: a [`Pipeline`], or one of its layers alone. It is sealed.
///
/// Each is a handle: all that it counts, learns and limits is shared by its clones.
pub trait Part: Clone + Send + Sync + sealed::Sealed + 'static {
    /// Whether it clones requests without being told to: it does where it would be useless otherwise.
    type Copies;

    /// Runs `operation` once per attempt, under the deadline and rank that surround it.
    #[doc(hidden)]
    fn run<T, E, Fut>(
        &self,
        call: Call,
        classifier: &(impl Classify<E> + Sync),
        operation: impl FnMut() -> Fut + Send,
    ) -> impl Future<Output = Result<T, CallError<E>>> + Send
    where
        T: Send,
        E: Send,
        Fut: Future<Output = Result<T, E>> + Send;

    /// The pipeline, if it is one: of all parts, only that cuts off one of several attempts.
    #[doc(hidden)]
    fn pipeline(&self) -> Option<&Pipeline> {
        None
    }
}

mod sealed {
    /// Keeps [`Part`](super::Part) from being implemented elsewhere.
    pub trait Sealed {}
    impl Sealed for crate::AdaptiveLimit {}
    impl Sealed for crate::Bulkhead {}
    #[cfg(feature = "chaos")]
    impl Sealed for crate::Chaos {}
    impl Sealed for crate::CircuitBreaker {}
    impl Sealed for crate::Hedge {}
    impl Sealed for crate::LoadShedder {}
    impl Sealed for crate::Pipeline {}
    #[cfg(feature = "rate-limit")]
    impl Sealed for crate::RateLimiter {}
    impl Sealed for crate::RetryPolicy {}
    impl Sealed for crate::Throttle {}
    impl Sealed for crate::Timeout {}
}

impl Part for Pipeline {
    type Copies = Once;

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        call: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        Pipeline::run(self, call, classifier, |_| operation()).await
    }

    fn pipeline(&self) -> Option<&Pipeline> {
        Some(self)
    }
}

impl Part for LoadShedder {
    type Copies = Once;

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        _: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        let _admitted = self.admit(Rank::current())?;
        operation().await.map_err(|error| failed(classifier, error))
    }
}

#[cfg(feature = "rate-limit")]
impl Part for RateLimiter {
    type Copies = Once;

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        _: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        self.acquire(inherited()).await?;
        operation().await.map_err(|error| failed(classifier, error))
    }
}

impl Part for Hedge {
    type Copies = Cloned;

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        call: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        self.budget().deposit();
        if !call.idempotent {
            return operation().await.map_err(|error| failed(classifier, error));
        }
        let attempts = AtomicU32::new(0);
        let attempt = |_| {
            attempts.fetch_add(1, Ordering::Relaxed);
            let attempt = operation();
            async { attempt.await.map_err(|error| judged(classifier, error)) }
        };
        let standing = |result: &Result<T, Failed<E>>| match result {
            Err(failed) if failed.verdict.may_repeat(true) => Standing::Failed,
            Ok(_) | Err(_) => Standing::Decides,
        };
        let result = self.race(self.name(), Deadline::current(), attempt, standing).await;
        result.map_err(|failed| {
            let attempts = attempts.load(Ordering::Relaxed);
            CallError::Inner(Failed { attempts, ..failed })
        })
    }
}

impl Part for RetryPolicy {
    type Copies = Cloned;

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        call: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        let mut retries = self.begin(&self.name);
        let mut attempts = 0;
        let result = loop {
            let (answer, inner) = nesting::listen(operation()).await;
            let error = match answer {
                Ok(value) => break Ok(value),
                Err(error) => error,
            };
            attempts += 1;
            let failed = Failed { attempts, ..judged(classifier, error) };
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

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        _: Call,
        classifier: &impl Classify<E>,
        operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        self.call_with(classifier, operation).await
    }
}

impl Part for Throttle {
    type Copies = Once;

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        _: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        let permit = self.try_acquire()?;
        let (permit, result) = Watched::new(Some(permit), async { operation().await }).await;
        let result = result.map_err(|error| judged(classifier, error));
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

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        _: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        let _place = match self.try_acquire() {
            Some(place) => place,
            None => self.acquire(inherited()).await?,
        };
        operation().await.map_err(|error| failed(classifier, error))
    }
}

impl Part for AdaptiveLimit {
    type Copies = Once;

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        _: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        let place = match self.try_acquire() {
            Some(place) => place,
            None => self.acquire(inherited()).await?,
        };
        let started = Instant::now();
        let result = operation().await.map_err(|error| judged(classifier, error));
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

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        _: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        Timeout::run(self, operation()).await?.map_err(|error| failed(classifier, error))
    }
}

#[cfg(feature = "chaos")]
impl Part for Chaos {
    type Copies = Once;

    async fn run<T, E, Fut: Future<Output = Result<T, E>>>(
        &self,
        _: Call,
        classifier: &impl Classify<E>,
        mut operation: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>> {
        self.strike().await?;
        operation().await.map_err(|error| failed(classifier, error))
    }
}

/// The surrounding deadline, or none to speak of.
fn inherited() -> Deadline {
    Deadline::current().unwrap_or_else(|| Deadline::within(Duration::MAX))
}

/// The operation's own error, and what it means.
fn judged<E>(classifier: &impl Classify<E>, error: E) -> Failed<E> {
    let verdict = classifier.verdict(&error);
    Failed { error, verdict, attempts: 1, elapsed: None }
}

fn failed<E>(classifier: &impl Classify<E>, error: E) -> CallError<E> {
    CallError::Inner(judged(classifier, error))
}
