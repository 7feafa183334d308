//! Do it again, a bounded number of times, later each time, and only where that is safe.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::{Event, emit};
use crate::{Backoff, Deadline, InvalidSetting, RetryBudget};

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
    pub(crate) name: Arc<str>,
    max_retries: u32,
    base_delay: Duration,
    max_delay: Duration,
    exponential_base: f64,
    jitter: bool,
    seed: Option<u64>,
    budget: Option<RetryBudget>,
}

impl RetryPolicy {
    /// A policy with other settings than the defaults.
    pub fn builder() -> RetryPolicyBuilder {
        RetryPolicyBuilder { policy: Self::default() }
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
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        let backoff = Backoff::exponential(self.base_delay, self.max_delay, self.exponential_base);
        match (self.jitter, self.seed) {
            (false, _) => backoff,
            (true, None) => backoff.jittered(),
            (true, Some(seed)) => backoff.jittered_with_seed(seed),
        }
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
            // It may have slept longer than it meant to.
            if Deadline::current().is_some_and(|deadline| deadline.has_passed(Instant::now())) {
                return Err(error);
            }
        }
    }

    /// [`run`](Self::run) for an operation that is not a future: waits block the thread.
    ///
    /// # Errors
    ///
    /// The last error of the operation.
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
        }
    }

    /// One call's retries, under the name of whoever makes it.
    pub(crate) fn begin<'a>(&'a self, name: &'a Arc<str>) -> Retries<'a> {
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
        Retries { policy: self, name, waits: self.backoff(), attempts: 0, budgeted: true }
    }
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
        Self {
            name: Arc::from("retry"),
            max_retries: 3,
            base_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            exponential_base: 2.0,
            jitter: true,
            seed: None,
            budget: None,
        }
    }
}

/// The retries of one call.
#[derive(Debug)]
pub(crate) struct Retries<'a> {
    policy: &'a RetryPolicy,
    name: &'a Arc<str>,
    waits: Backoff,
    attempts: u32,
    /// Whether the next retry costs the budget anything. What never reached the service does not.
    pub(crate) budgeted: bool,
}

impl Retries<'_> {
    /// After a failed attempt: the wait before the next, or `None` if there is to be none. A wait
    /// is never shorter than `at_least`, and never reaches past `deadline`.
    pub(crate) fn next(
        &mut self,
        may_repeat: bool,
        at_least: Option<Duration>,
        deadline: Option<Deadline>,
    ) -> Option<Duration> {
        self.attempts += 1;
        let Self { policy, name, attempts, .. } = *self;
        if !may_repeat || attempts > policy.max_retries {
            tracing::debug!(target: "shared_external::retry", %name, attempts, may_repeat, "attempt failed; none follows");
            return None;
        }
        let delay = self.waits.next()?.max(at_least.unwrap_or_default());
        if deadline.is_some_and(|deadline| deadline.remaining_at(Instant::now()) <= delay) {
            tracing::debug!(target: "shared_external::retry", %name, attempts, ?delay, "no time left for another attempt");
            return None;
        }
        let budget = policy.budget.as_ref().filter(|_| self.budgeted);
        if budget.is_some_and(|budget| !budget.try_withdraw()) {
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
    policy: RetryPolicy,
}

impl RetryPolicyBuilder {
    /// The name under which events and logs speak of it; default `retry`. Within a pipeline, the pipeline's counts.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.policy.name = name.into();
        self
    }

    /// Attempts after the first. 0 or more; default 3.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.policy.max_retries = retries;
        self
    }

    /// The first wait. Up to `max_delay`; default 1 s.
    pub fn base_delay(mut self, delay: Duration) -> Self {
        self.policy.base_delay = delay;
        self
    }

    /// The longest wait. Default 60 s.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.policy.max_delay = delay;
        self
    }

    /// The growth from one wait to the next. 1 or more, finite; default 2.
    pub fn exponential_base(mut self, base: f64) -> Self {
        self.policy.exponential_base = base;
        self
    }

    /// Whether each wait is spread evenly over zero to its length; default true.
    pub fn jitter(mut self, jitter: bool) -> Self {
        self.policy.jitter = jitter;
        self
    }

    /// Makes the jitter repeatable: every call waits as `seed` says. For tests.
    pub fn seed(mut self, seed: u64) -> Self {
        self.policy.seed = Some(seed);
        self
    }

    /// What all calls together may repeat; default: no limit.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.policy.budget = Some(budget);
        self
    }

    /// The policy.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a base delay above the maximum, or a base of growth below 1.
    pub fn build(self) -> Result<RetryPolicy, InvalidSetting> {
        let policy = self.policy;
        if policy.base_delay > policy.max_delay {
            return Err(InvalidSetting::new("base_delay", policy.base_delay, "up to max_delay"));
        }
        if !(policy.exponential_base >= 1.0 && policy.exponential_base.is_finite()) {
            return Err(InvalidSetting::new(
                "exponential_base",
                policy.exponential_base,
                "1 or more",
            ));
        }
        Ok(policy)
    }
}
