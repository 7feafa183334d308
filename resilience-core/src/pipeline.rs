//! The layers around a call, in the one order that works.
//!
//! ```text
//! deadline → fallback → retry (budget) → breaker → bulkhead → attempt timeout → operation
//! ```
//!
//! Outermost first. The retry stands outside the breaker, so that each attempt asks the circuit and
//! counts in it; the attempt timeout stands inside, so that an attempt that hangs is a failure.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::gate::Gate;
use crate::nesting;
use crate::observe::{CallOutcome, Event, emit};
use crate::permit::{Settle, Watched};
use crate::retry::Retries;
use crate::{
    AttemptTimeout, Blame, Bulkhead, CallError, CircuitBreaker, Classify, Deadline,
    DeadlineExceeded, Drained, Draining, Failed, InvalidSetting, Outcome, Replay, RetryBudget,
    RetryPolicy, Verdict,
};

/// An attempt that had less time than this says nothing about the service when it runs out of it.
const TOO_SHORT_TO_JUDGE: Duration = Duration::from_millis(10);

/// The layers in front of one dependency. Build it once, share it, run every call through it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::{AnyError, Call, CircuitBreaker, Pipeline, RetryPolicy};
///
/// let pipeline = Pipeline::builder("payments")
///     .deadline(Duration::from_secs(10))
///     .retry(RetryPolicy::builder().max_retries(2).build()?)
///     .breaker(CircuitBreaker::new("payments"))
///     .attempt_timeout(Duration::from_secs(3))
///     .build()?;
/// let reply = pipeline.run(Call::read(), &AnyError, |_| async { Ok::<_, std::io::Error>("paid") }).await?;
/// assert_eq!(reply, "paid");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Pipeline {
    layers: Arc<Layers>,
}

#[derive(Debug)]
struct Layers {
    name: Arc<str>,
    deadline: Duration,
    attempt_timeout: Duration,
    retry: RetryPolicy,
    breaker: Option<CircuitBreaker>,
    bulkhead: Option<Bulkhead>,
    gate: Arc<Gate>,
}

/// What a pipeline must know of a call before it makes it.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Call {
    operation: &'static str,
    idempotent: bool,
    deadline: Option<Deadline>,
}

impl Call {
    /// A call that changes nothing: it may be repeated.
    pub const fn read() -> Self {
        Self { operation: "read", idempotent: true, deadline: None }
    }

    /// A call that changes something: repeated only if it is proven not to have been executed.
    pub const fn write() -> Self {
        Self { operation: "write", idempotent: false, deadline: None }
    }

    /// A call that changes something, but no more when made twice: it may be repeated.
    pub const fn write_idempotent() -> Self {
        Self { operation: "write", idempotent: true, deadline: None }
    }

    /// The same call under another name: a fixed word, for it becomes a label.
    pub const fn named(self, operation: &'static str) -> Self {
        Self { operation, ..self }
    }

    /// The same call with a deadline of its own. The surrounding one still holds if it is nearer.
    pub const fn by(self, deadline: Deadline) -> Self {
        Self { deadline: Some(deadline), ..self }
    }
}

/// What an operation may know of the attempt that it is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// When it will be cut off.
    pub deadline: Deadline,
}

impl Pipeline {
    /// A pipeline with a deadline of 60 s and an attempt timeout of 30 s, and no other layer.
    pub fn builder(name: impl Into<Arc<str>>) -> PipelineBuilder {
        PipelineBuilder {
            name: name.into(),
            deadline: Duration::from_secs(60),
            attempt_timeout: Duration::from_secs(30),
            retry: RetryPolicy::never(),
            breaker: None,
            bulkhead: None,
        }
    }

    /// A pipeline for a service that the application can do without, such as analytics: it gives up
    /// late and looks again rarely.
    ///
    /// Deadline 60 s, attempt timeout 30 s; 3 retries from 1 s up to 60 s, within a budget of 10 % of the
    /// calls and 10; a circuit that opens after 10 failures in a row, for 120 s, and closes after 3 probes;
    /// 64 calls in flight, with no wait for a place. All of it can be set anew on the builder.
    pub fn optional_service(name: impl Into<Arc<str>>) -> PipelineBuilder {
        let name = name.into();
        let attempt_timeout = Duration::from_secs(30);
        let breaker = CircuitBreaker::builder(Arc::clone(&name))
            .fail_max(10)
            .reset_timeout(Duration::from_secs(120))
            .success_threshold(3)
            .probe_lease(attempt_timeout)
            .build()
            .expect("the settings are valid");
        let bulkhead = Bulkhead::new(Arc::clone(&name), 64, Duration::ZERO);
        let retry = RetryPolicy::builder().budget(RetryBudget::default()).build();
        Self::builder(name)
            .attempt_timeout(attempt_timeout)
            .retry(retry.expect("the defaults are valid"))
            .breaker(breaker)
            .bulkhead(bulkhead.expect("64 places are within the limits"))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.layers.name
    }

    /// Its breaker, if it has one.
    #[must_use]
    pub fn breaker(&self) -> Option<&CircuitBreaker> {
        self.layers.breaker.as_ref()
    }

    /// Its bulkhead, if it has one.
    #[must_use]
    pub fn bulkhead(&self) -> Option<&Bulkhead> {
        self.layers.bulkhead.as_ref()
    }

    /// Runs `operation` once per attempt. `classifier` says what its errors mean.
    ///
    /// The call ends by its own deadline, or where it has none by the pipeline's; by the surrounding one
    /// where that is nearer. Of nested pipelines the innermost retries: those around it do not repeat
    /// what it gave up.
    ///
    /// # Errors
    ///
    /// The operation's last error where it came to that; otherwise why it did not.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the attempt in flight, frees its place and its probe, and moves no
    /// count of the breaker. Whether the service executes what was sent to it is the operation's affair.
    pub async fn run<T, E, F, Fut>(
        &self,
        call: Call,
        classifier: &impl Classify<E>,
        operation: F,
    ) -> Result<T, CallError<E>>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let layers = &*self.layers;
        let mut record = Record::new(&layers.name, call.operation);
        let Some(_inside) = layers.gate.enter() else {
            record.outcome = CallOutcome::Rejected;
            return Err(Draining { name: Arc::clone(&layers.name) }.into());
        };
        let deadline =
            call.deadline.unwrap_or_else(|| Deadline::within(layers.deadline)).inherited();
        let result =
            layers.attempts(call.idempotent, deadline, classifier, operation, &mut record).await;
        record.outcome = outcome(&result);
        if layers.retry.max_retries() > 0 {
            nesting::tell_the_outer(result.is_err());
        }
        result
    }

    /// [`run`](Self::run), and when the service cannot be had, `fallback`. The primary gets half of
    /// the time there is, so that both end by the deadline: a fallback that does not is cut off.
    ///
    /// A request that the service refused is no case for a fallback: its error comes back.
    ///
    /// # Errors
    ///
    /// What `fallback` returns, or the refusal; [`DeadlineExceeded`] where the fallback ran out of time.
    ///
    /// # Cancel safety
    ///
    /// That of [`run`](Self::run), and that of the fallback.
    pub async fn run_or<T, E, F, Fut, Alt, AltErr>(
        &self,
        call: Call,
        classifier: &impl Classify<E>,
        operation: F,
        fallback: impl FnOnce(CallError<E>) -> Alt,
    ) -> Result<T, AltErr>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        Alt: Future<Output = Result<T, AltErr>>,
        AltErr: From<CallError<E>>,
    {
        let whole =
            call.deadline.unwrap_or_else(|| Deadline::within(self.layers.deadline)).inherited();
        let started = Instant::now();
        let half = whole.half(started);
        match self.run(call.by(half), classifier, operation).await {
            Ok(value) => Ok(value),
            Err(error) if error.is_unavailable() => {
                tracing::debug!(target: "shared_external::pipeline", name = %self.layers.name, "falling back");
                let attempts = error.attempts();
                let falling_back = whole.scope(async { fallback(error).await });
                timeout_at(whole.instant(), falling_back).await.unwrap_or_else(|_| {
                    let name = Arc::clone(&self.layers.name);
                    let elapsed = started.elapsed();
                    Err(CallError::from(DeadlineExceeded { name, attempts, elapsed }).into())
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses new calls, and waits for those that run, until `deadline`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the pipeline refusing; call it again to wait on.
    pub async fn drain(&self, deadline: Deadline) -> Drained {
        self.layers.gate.drain(deadline).await
    }

    /// Whether [`drain`](Self::drain) was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.layers.gate.is_closed()
    }
}

/// Settings of a [`Pipeline`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct PipelineBuilder {
    name: Arc<str>,
    deadline: Duration,
    attempt_timeout: Duration,
    retry: RetryPolicy,
    breaker: Option<CircuitBreaker>,
    bulkhead: Option<Bulkhead>,
}

impl PipelineBuilder {
    /// The time of a call whose caller sets none. Above 0; default 60 s.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The time of one attempt. Above 0; default 30 s.
    pub fn attempt_timeout(self, attempt_timeout: Duration) -> Self {
        Self { attempt_timeout, ..self }
    }

    /// How often to repeat; default: never.
    pub fn retry(self, retry: RetryPolicy) -> Self {
        Self { retry, ..self }
    }

    /// The breaker that each attempt asks; default: none.
    pub fn breaker(self, breaker: CircuitBreaker) -> Self {
        Self { breaker: Some(breaker), ..self }
    }

    /// The limit on attempts in flight; default: none.
    pub fn bulkhead(self, bulkhead: Bulkhead) -> Self {
        Self { bulkhead: Some(bulkhead), ..self }
    }

    /// The pipeline.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a time of zero.
    pub fn build(self) -> Result<Pipeline, InvalidSetting> {
        let Self { name, deadline, attempt_timeout, retry, breaker, bulkhead } = self;
        for (field, value) in [("deadline", deadline), ("attempt_timeout", attempt_timeout)] {
            if value.is_zero() {
                return Err(InvalidSetting::new(field, value, "above 0"));
            }
        }
        let gate = Arc::default();
        Ok(Pipeline {
            layers: Arc::new(Layers {
                name,
                deadline,
                attempt_timeout,
                retry,
                breaker,
                bulkhead,
                gate,
            }),
        })
    }
}

/// How one attempt ended without a value.
enum Ended<E> {
    /// It was not made, or was cut off by the call's own deadline: an earlier error tells more.
    Refused(CallError<E>),
    /// It was made and failed.
    Failed(CallError<E>, Verdict),
}

impl Layers {
    async fn attempts<T, E, F, Fut>(
        &self,
        idempotent: bool,
        deadline: Deadline,
        classifier: &impl Classify<E>,
        mut operation: F,
        record: &mut Record<'_>,
    ) -> Result<T, CallError<E>>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let mut retries: Retries<'_> = self.retry.begin(&self.name);
        let mut last = None;
        loop {
            let attempt = self.attempt(deadline, classifier, &mut operation, record);
            let (attempt, given_up) = nesting::listen(attempt).await;
            let (error, verdict) = match attempt {
                Ok(value) => return Ok(value),
                Err(Ended::Refused(error)) => return Err(last.unwrap_or(error)),
                Err(Ended::Failed(error, verdict)) => (error, verdict),
            };
            // Waiting for an open circuit would only end in its refusal.
            let open = self.breaker.as_ref().is_some_and(|breaker| breaker.state().is_open());
            let may_repeat = verdict.may_repeat(idempotent) && !open && !given_up;
            retries.budgeted = verdict.blame != Blame::Local;
            match retries.next(may_repeat, verdict.retry_after, Some(deadline)) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            }
            last = Some(error);
        }
    }

    async fn attempt<T, E, F, Fut>(
        &self,
        deadline: Deadline,
        classifier: &impl Classify<E>,
        operation: &mut F,
        record: &mut Record<'_>,
    ) -> Result<T, Ended<E>>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let in_time = |record: &Record<'_>| match deadline.has_passed(Instant::now()) {
            true => Err(Ended::Refused(record.deadline_exceeded().into())),
            false => Ok(()),
        };
        in_time(record)?;
        let permit = self.breaker.as_ref().map(CircuitBreaker::lend).transpose();
        let permit = permit.map_err(|open| Ended::Refused(open.into()))?;
        let queued = Instant::now();
        let _place = match &self.bulkhead {
            Some(bulkhead) => {
                Some(bulkhead.acquire(deadline).await.map_err(|full| Ended::Refused(full.into()))?)
            }
            None => None,
        };
        in_time(record)?;
        let waited = queued.elapsed();
        let limit = self.attempt_timeout.min(deadline.remaining());
        let until = Deadline::within(limit).min(deadline);
        record.attempts += 1;
        let attempt = Attempt { number: record.attempts, deadline: until };
        tracing::debug!(target: "shared_external::pipeline", name = %self.name, operation = record.operation, attempt = attempt.number, ?limit, "attempt");
        let mut watched =
            pin!(Watched::new(permit, until.scope(async { operation(attempt).await })));
        match timeout_at(until.instant(), watched.as_mut()).await {
            Ok((permit, Ok(value))) => {
                settle(permit, Outcome::Success);
                Ok(value)
            }
            Ok((permit, Err(error))) => {
                let verdict = classifier.verdict(&error);
                settle(permit, verdict.blame.outcome());
                let failed = Failed {
                    error,
                    verdict,
                    attempts: record.attempts,
                    elapsed: Some(record.started.elapsed()),
                };
                Err(Ended::Failed(CallError::Inner(failed), verdict))
            }
            Err(_) => {
                // Settled before the attempt is dropped: its drop must not count as the caller's.
                // Nor is it the service's fault if our own queue took a good part of the time it needed.
                let starved = limit < self.attempt_timeout && waited > (waited + limit) / 4;
                let fair = limit >= TOO_SHORT_TO_JUDGE && !starved;
                settle(
                    watched.as_mut().take_permit(),
                    if fair { Outcome::Failure } else { Outcome::Cancelled },
                );
                if deadline.has_passed(Instant::now()) {
                    return Err(Ended::Refused(record.deadline_exceeded().into()));
                }
                let timeout = AttemptTimeout {
                    name: Arc::clone(&self.name),
                    attempts: record.attempts,
                    limit,
                };
                Err(Ended::Failed(timeout.into(), Verdict::service(Replay::IfIdempotent)))
            }
        }
    }
}

fn settle(permit: Option<impl Settle>, outcome: Outcome) {
    if let Some(permit) = permit {
        permit.settle(outcome);
    }
}

fn outcome<T, E>(result: &Result<T, CallError<E>>) -> CallOutcome {
    match result {
        Ok(_) => CallOutcome::Success,
        Err(CallError::CircuitOpen(_)) => CallOutcome::CircuitOpen,
        Err(CallError::DeadlineExceeded(_) | CallError::AttemptTimeout(_)) => CallOutcome::Timeout,
        Err(CallError::BulkheadFull(_) | CallError::Draining(_)) => CallOutcome::Rejected,
        Err(CallError::Inner(failed)) => match failed.verdict.blame {
            Blame::Caller => CallOutcome::CallerError,
            Blame::Service => CallOutcome::ServiceError,
            Blame::Local => CallOutcome::LocalError,
        },
    }
}

/// What observers will be told of a call, however it ends.
struct Record<'a> {
    name: &'a Arc<str>,
    operation: &'static str,
    started: Instant,
    attempts: u32,
    outcome: CallOutcome,
}

impl<'a> Record<'a> {
    fn new(name: &'a Arc<str>, operation: &'static str) -> Self {
        Self {
            name,
            operation,
            started: Instant::now(),
            attempts: 0,
            outcome: CallOutcome::Cancelled,
        }
    }

    fn deadline_exceeded(&self) -> DeadlineExceeded {
        DeadlineExceeded {
            name: Arc::clone(self.name),
            attempts: self.attempts,
            elapsed: self.started.elapsed(),
        }
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let Self { name, operation, outcome, attempts, .. } = *self;
        let elapsed = self.started.elapsed();
        tracing::debug!(target: "shared_external::pipeline", %name, operation, outcome = outcome.as_str(), attempts, ?elapsed, "call ended");
        emit(&Event::CallEnded { name, operation, outcome, attempts, elapsed });
    }
}
