//! Do it again, a bounded number of times, later each time, and only where that is safe.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::BackoffBuilder;
use crate::observe::{Event, emit};
use crate::{Backoff, BackoffShape, Deadline, InvalidSetting, Jitter, Name, RetryBudget};

/// How often a call is repeated, and how long it waits in between. Cheap to clone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::io;
/// use resilience_core::RetryPolicy;
///
/// let policy = RetryPolicy::builder().max_retries(2).build()?;
/// let mut left = 2;
/// let answer = policy
///     .run(
///         || {
///             left -= 1;
///             async move { if left == 0 { Ok("at last") } else { Err(io::Error::from(io::ErrorKind::TimedOut)) } }
///         },
///         |error| error.kind() == io::ErrorKind::TimedOut,
///     )
///     .await?;
/// assert_eq!(answer, "at last");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    pub(crate) name: Name,
    max_retries: u32,
    backoff: Backoff,
    budget: Option<RetryBudget>,
}

impl RetryPolicy {
    /// A policy with other settings than the defaults.
    pub fn builder() -> RetryPolicyBuilder {
        RetryPolicyBuilder {
            name: Name::from("retry"),
            max_retries: 3,
            backoff: Backoff::builder(),
            budget: None,
        }
    }

    /// A policy that never repeats.
    #[must_use]
    pub fn never() -> Self {
        Self { max_retries: 0, ..Self::default() }
    }

    /// Attempts after the first.
    #[must_use]
    pub fn max_retries(&self) -> u32 {
        self.max_retries
    }

    /// The waits between attempts; without end, the count is [`max_retries`](Self::max_retries).
    ///
    /// Also the pace of a loop around the calls: see [`Polling`](crate::Polling).
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        self.backoff.clone()
    }

    /// What pays for the retries, if anything does.
    #[must_use]
    pub fn budget(&self) -> Option<&RetryBudget> {
        self.budget.as_ref()
    }

    /// Runs `operation` until it succeeds, an error is not `retryable`, or no retry is left. No
    /// retry starts past the surrounding [`Deadline`], if there is one; the first attempt always does.
    ///
    /// Calling this is the caller's word that the operation is idempotent.
    ///
    /// # Errors
    ///
    /// The last error of the operation.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as the operation.
    ///
    /// # Panics
    ///
    /// If `operation` or `retryable` does: a panic is not repeated. Also outside a tokio runtime with timers, where
    /// there is a wait.
    pub async fn run<T, E, Fut>(
        &self,
        mut operation: impl FnMut() -> Fut,
        retryable: impl Fn(&E) -> bool,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        let mut retries = self.begin(&self.name);
        loop {
            let error = match operation().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match retries.next(retryable(&error), None, Deadline::current()) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            }
            if overslept() {
                return Err(error);
            }
        }
    }

    /// [`run`](Self::run) for an operation that is not a future: waits block the thread.
    ///
    /// # Errors
    ///
    /// The last error of the operation.
    ///
    /// # Panics
    ///
    /// If `operation` or `retryable` does: a panic is not repeated.
    pub fn run_blocking<T, E>(
        &self,
        mut operation: impl FnMut() -> Result<T, E>,
        retryable: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        let mut retries = self.begin(&self.name);
        loop {
            let error = match operation() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match retries.next(retryable(&error), None, Deadline::current()) {
                Some(delay) => block(delay),
                None => return Err(error),
            }
            if overslept() {
                return Err(error);
            }
        }
    }

    /// One call's retries, under the name of whoever makes it. For a call that needs none, this is all
    /// there is to pay: a deposit, and no wait is made ready.
    pub(crate) fn begin<'a>(&'a self, name: &'a Name) -> Retries<'a> {
        self.deposit();
        self.retries(name)
    }

    /// Notes one call with the budget.
    #[inline]
    pub(crate) fn deposit(&self) {
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
    }

    /// [`begin`](Self::begin) where the call has been noted already.
    #[inline]
    pub(crate) fn retries<'a>(&'a self, name: &'a Name) -> Retries<'a> {
        Retries { policy: self, name, waits: None, attempts: 0, budgeted: true }
    }
}

/// Whether a wait went on past the surrounding deadline: this process may have stood still.
fn overslept() -> bool {
    Deadline::current().is_some_and(|deadline| deadline.has_passed(Instant::now()))
}

/// Waits on the thread.
#[expect(
    clippy::disallowed_methods,
    reason = "a caller that is not async has no other way to wait"
)]
pub(crate) fn block(delay: Duration) {
    std::thread::sleep(delay);
}

impl Default for RetryPolicy {
    /// 3 retries after 1, 2 and 4 s, each spread down to zero; no budget.
    fn default() -> Self {
        Self::builder().build().expect("the defaults are valid")
    }
}

/// The retries of one call.
#[derive(Debug)]
pub(crate) struct Retries<'a> {
    policy: &'a RetryPolicy,
    name: &'a Name,
    waits: Option<Backoff>,
    attempts: u32,
    /// Whether the next retry costs the budget anything. What never reached the service does not.
    pub(crate) budgeted: bool,
}

impl Retries<'_> {
    /// After a failed attempt: the wait before the next, or `None` if there is to be none. A wait
    /// is never shorter than `retry_after`, and never reaches past `deadline`.
    ///
    /// An answer with a `retry_after` counts as throttled. A service that says not to come back at all
    /// (a negative pushback in gRPC) is no time but a verdict: [`Replay::Never`](crate::Replay::Never).
    pub(crate) fn next(
        &mut self,
        may_repeat: bool,
        retry_after: Option<Duration>,
        deadline: Option<Deadline>,
    ) -> Option<Duration> {
        self.attempts = self.attempts.saturating_add(1);
        let Self { policy, name, attempts, .. } = *self;
        if !may_repeat || attempts > policy.max_retries {
            tracing::debug!(target: "shared_external::retry", %name, attempts, may_repeat, "attempt failed; none follows");
            return None;
        }
        let room = deadline.map_or(Duration::MAX, Deadline::remaining);
        let waits = self.waits.get_or_insert_with(|| policy.backoff());
        let delay = match retry_after {
            Some(floor) => waits.wait_at_least(floor, room),
            None => waits.wait(),
        };
        if room <= delay {
            tracing::debug!(target: "shared_external::retry", %name, attempts, ?delay, "no time left for another attempt");
            return None;
        }
        let budget = policy.budget.as_ref().filter(|_| self.budgeted);
        let paid = budget.is_none_or(|budget| match retry_after {
            Some(_) => budget.try_withdraw_throttled(),
            None => budget.try_withdraw(),
        });
        if !paid {
            tracing::debug!(target: "shared_external::retry", %name, attempts, "retry budget exhausted");
            emit(&Event::RetryBudgetExhausted { name });
            return None;
        }
        tracing::debug!(target: "shared_external::retry", %name, attempts, ?delay, "attempt failed; another follows");
        emit(&Event::RetryScheduled { name, attempts, delay });
        Some(delay)
    }
}

/// Settings of a [`RetryPolicy`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryPolicyBuilder {
    name: Name,
    max_retries: u32,
    backoff: BackoffBuilder,
    budget: Option<RetryBudget>,
}

impl RetryPolicyBuilder {
    /// The name under which events and logs speak of it; default `retry`. Within a pipeline, the pipeline's counts.
    pub fn name(self, name: impl Into<Name>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Attempts after the first. 0 or more; default 3.
    pub fn max_retries(self, max_retries: u32) -> Self {
        Self { max_retries, ..self }
    }

    /// The first wait. Up to `max_delay`; default 1 s. Zero makes every wait zero, so it is refused
    /// where waits grow in steps of it: linear, Fibonacci, decorrelated.
    pub fn base_delay(self, delay: Duration) -> Self {
        self.with(|backoff| backoff.base_delay(delay))
    }

    /// The longest wait, jitter included. Above 0, up to a year; default 60 s. What the service asks for may be
    /// longer, up to the deadline.
    pub fn max_delay(self, delay: Duration) -> Self {
        self.with(|backoff| backoff.max_delay(delay))
    }

    /// The growth from one wait to the next: the shape [`BackoffShape::Exponential`] with this factor.
    /// 1 or more, finite; default 2.
    pub fn exponential_base(self, base: f64) -> Self {
        self.shape(BackoffShape::Exponential { factor: base })
    }

    /// How waits grow; default exponential, by a factor of 2.
    pub fn shape(self, shape: BackoffShape) -> Self {
        self.with(|backoff| backoff.shape(shape))
    }

    /// How waits are spread: a [`Jitter`], or `true` for [`Jitter::Full`] and `false` for none; default `true`.
    pub fn jitter(self, jitter: impl Into<Jitter>) -> Self {
        self.with(|backoff| backoff.jitter(jitter))
    }

    /// Makes the jitter repeatable: every call waits as `seed` says. For tests.
    pub fn seed(self, seed: u64) -> Self {
        self.with(|backoff| backoff.seed(seed))
    }

    /// What all calls together may repeat; default: no limit.
    pub fn budget(self, budget: RetryBudget) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// The policy.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for waits that [`BackoffBuilder::build`] refuses.
    pub fn build(self) -> Result<RetryPolicy, InvalidSetting> {
        let Self { name, max_retries, backoff, budget } = self;
        Ok(RetryPolicy { name, max_retries, backoff: backoff.build()?, budget })
    }

    fn with(self, change: impl FnOnce(BackoffBuilder) -> BackoffBuilder) -> Self {
        Self { backoff: change(self.backoff), ..self }
    }
}
