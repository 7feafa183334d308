//! The layers around a call, in the one order that works.
//!
//! ```text
//! deadline → fallback → load shed, rate limit → hedge → retry (budget) → breaker or throttle
//!          → bulkhead or adaptive limit → attempt timeout → chaos → operation
//! ```
//!
//! Outermost first. The retry stands outside the breaker, so that each attempt asks the circuit and
//! counts in it; the attempt timeout stands inside, so that an attempt that hangs is a failure. The
//! hedge stands outside the retry, so that a call that waits to repeat is late too.

mod attempts;
mod builder;
mod call;
mod limit;
mod parts;
mod record;

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

#[cfg(feature = "chaos")]
use crate::Chaos;
#[cfg(feature = "rate-limit")]
use crate::RateLimiter;
use crate::deadline::later;
use crate::gate::{Gate, Inside};
use crate::nesting::{self, Inner};
use crate::observe::CallOutcome;
use crate::{
    Blame, Bulkhead, CallError, CircuitBreaker, Classify, Deadline, DeadlineExceeded, Drained,
    Draining, Hedge, LoadShedder, Name, Rank, RetryBudget, RetryPolicy, ShedGuard, Throttle,
    Timeout,
};
use attempts::{Ended, refused, standing};
use limit::Limit;
use record::Record;

pub use builder::{PipelineBuilder, Unwise};
pub use call::{Attempt, Call};

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
    name: Name,
    deadline: Duration,
    gate: Gate,
    shedder: Option<LoadShedder>,
    #[cfg(feature = "rate-limit")]
    rate_limiter: Option<RateLimiter>,
    hedge: Option<Hedge>,
    /// Whether hedges have a budget that no retry deposits in.
    hedge_pays_itself: bool,
    retry: RetryPolicy,
    guard: Option<Guard>,
    limit: Option<Limit>,
    timeout: Timeout,
    #[cfg(feature = "chaos")]
    chaos: Option<Chaos>,
    unwise: Vec<Unwise>,
    /// Set once a pipeline that retries has been seen inside this one, which retries too.
    nested: OnceLock<()>,
}

/// What each attempt asks for leave.
#[derive(Debug)]
enum Guard {
    Breaker(CircuitBreaker),
    Throttle(Throttle),
}

impl Pipeline {
    /// A pipeline with a deadline of 60 s and an attempt timeout of 30 s, and no other layer.
    pub fn builder(name: impl Into<Name>) -> PipelineBuilder {
        PipelineBuilder::new(name.into())
    }

    /// A pipeline for a service that the application can do without, such as analytics: it gives up
    /// late and looks again rarely.
    ///
    /// Deadline 60 s, attempt timeout 30 s; 3 retries from 1 s up to 60 s, within a budget of 10 % of the
    /// calls and 10; a circuit that opens after 10 failures in a row, for 120 s, and closes after 3 probes;
    /// 64 calls in flight, with no wait for a place. All of it can be set anew on the builder.
    pub fn optional_service(name: impl Into<Name>) -> PipelineBuilder {
        let name = name.into();
        let attempt_timeout = Duration::from_secs(30);
        let breaker = CircuitBreaker::builder(name.clone())
            .fail_max(10)
            .reset_timeout(Duration::from_secs(120))
            .success_threshold(3)
            .probe_lease(attempt_timeout)
            .build()
            .expect("the settings are valid");
        let bulkhead = Bulkhead::new(name.clone(), 64, Duration::ZERO);
        let retry = RetryPolicy::builder().budget(RetryBudget::default()).build();
        Self::builder(name)
            .attempt_timeout(attempt_timeout)
            .retry(retry.expect("the defaults are valid"))
            .breaker(breaker)
            .bulkhead(bulkhead.expect("64 places are within the limits"))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.layers.name
    }

    /// What its settings, or its use, have of what is only unwise.
    #[must_use]
    pub fn unwise(&self) -> Vec<Unwise> {
        let nested = self.layers.nested.get().map(|()| Unwise::NestedRetries);
        self.layers.unwise.iter().copied().chain(nested).collect()
    }

    /// Runs `operation` once per attempt. `classifier` says what its errors mean.
    ///
    /// The call ends by its own deadline, or where it has none by the pipeline's; by the surrounding one
    /// where that is nearer. Of nested pipelines the innermost retries: those around it do not repeat
    /// what it gave up. Where there is a hedge, a call that may be repeated may run twice at once.
    ///
    /// # Errors
    ///
    /// The operation's last error where it came to that; otherwise why it did not.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the attempt in flight, frees its place and its probe, and moves no
    /// count of the breaker. Whether the service executes what was sent to it is the operation's affair.
    ///
    /// # Panics
    ///
    /// Where `operation` or `classifier` does, and the panic passes through: to breaker, throttle and observers, an
    /// attempt whose operation panicked is a [`Failure`](crate::Outcome::Failure), one whose classifier did is
    /// [`Cancelled`](crate::Outcome::Cancelled). Its place is free, and what else the call has in flight is dropped. Also outside a tokio runtime with timers, where there
    /// is something to wait for.
    pub fn run<T, E, F, Fut>(
        &self,
        call: Call,
        classifier: &impl Classify<E>,
        mut operation: F,
    ) -> impl Future<Output = Result<T, CallError<E>>>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let layers = &*self.layers;
        // Not an `async fn`: that would keep the call and the operation twice, and copy them when it is polled.
        async move {
            // It is out once its end was told, not before.
            let inside = layers.gate.enter();
            layers.run(inside.as_ref(), &call, classifier, &mut operation).await
        }
    }

    /// [`run`](Self::run), and when the service cannot be had, `value`. It takes no time, so the
    /// primary has all there is.
    ///
    /// # Errors
    ///
    /// The refusal, where the service refused the request: that is no case for a fallback.
    ///
    /// # Cancel safety
    ///
    /// That of [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run) does: a panic is no case for a fallback.
    pub async fn run_or_value<T, E, F, Fut>(
        &self,
        call: Call,
        classifier: &impl Classify<E>,
        operation: F,
        value: T,
    ) -> Result<T, CallError<E>>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        match self.run(call, classifier, operation).await {
            Err(error) if error.is_unavailable() => {
                self.layers.tell_the_outer(Inner::Answered);
                Ok(value)
            }
            result => result,
        }
    }

    /// [`run`](Self::run), and when the service cannot be had, `fallback`. The primary gets half of
    /// the time there is, so that both end by the deadline: a fallback that does not is cut off.
    ///
    /// A request that the service refused is no case for a fallback: its error comes back. Observers are told
    /// how the primary ended. A drain waits for the fallbacks of the calls it waits for; a call that it turned
    /// away falls back too, and that is not waited for.
    ///
    /// # Errors
    ///
    /// What `fallback` returns, or the refusal; [`DeadlineExceeded`] where the fallback ran out of time.
    ///
    /// # Cancel safety
    ///
    /// That of [`run`](Self::run), and that of the fallback.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run) does, which is no case for a fallback; and where `fallback` does.
    pub async fn run_or<T, E, F, Fut, Alt, AltErr>(
        &self,
        call: Call,
        classifier: &impl Classify<E>,
        mut operation: F,
        fallback: impl FnOnce(CallError<E>) -> Alt,
    ) -> Result<T, AltErr>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        Alt: Future<Output = Result<T, AltErr>>,
        AltErr: From<CallError<E>>,
    {
        let started = Instant::now();
        let whole = call.deadline.unwrap_or_else(|| self.layers.deadline_from(started)).inherited();
        let half = whole.half(started);
        let inside = self.layers.gate.enter();
        let call = call.by(half);
        match self.layers.run(inside.as_ref(), &call, classifier, &mut operation).await {
            Ok(value) => Ok(value),
            Err(error) if error.is_unavailable() => {
                tracing::debug!(target: "shared_external::pipeline", name = %self.layers.name, "falling back");
                let attempts = error.attempts();
                let falling_back = whole.scope(async { fallback(error).await });
                let answer = timeout_at(whole.instant(), falling_back).await;
                if matches!(answer, Ok(Ok(_))) {
                    self.layers.tell_the_outer(Inner::Answered);
                }
                answer.unwrap_or_else(|_| {
                    let name = self.layers.name.clone();
                    let elapsed = started.elapsed();
                    let blame = Blame::Local; // The fallback is the application's own.
                    Err(CallError::from(DeadlineExceeded { name, attempts, elapsed, blame }).into())
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

impl Layers {
    fn deadline_from(&self, started: Instant) -> Deadline {
        Deadline::at(later(started, self.deadline))
    }

    /// One call of one that is `inside`, and what is told of it.
    async fn run<T, E, Fut>(
        &self,
        inside: Option<&Inside<'_>>,
        call: &Call,
        classifier: &impl Classify<E>,
        operation: &mut impl FnMut(Attempt) -> Fut,
    ) -> Result<T, CallError<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        let mut record = Record::new(&self.name, call, self.deadline);
        if inside.is_none() {
            record.outcome = CallOutcome::Rejected;
            return Err(Draining { name: self.name.clone() }.into());
        }
        let mut result = match self.shed(call.rank) {
            Err(ended) => Err(ended),
            Ok(admitted) => {
                let result = self.call(classifier, operation, &record).await;
                if let Some(admitted) = admitted
                    && let Err(ended) = &result
                    && matches!(ended.error, CallError::BulkheadFull(_))
                {
                    admitted.refused_behind();
                }
                result
            }
        };
        record.end(result.as_mut().err().map(|ended| &mut ended.error));
        // What was never attempted has repeated nothing.
        let gave_up = result.is_err() && record.attempts() > 0;
        self.tell_the_outer(if gave_up { Inner::GaveUp } else { Inner::Answered });
        result.map_err(|ended| ended.error)
    }

    /// Tells the pipeline around this one how a call ended, if this one retries.
    fn tell_the_outer(&self, end: Inner) {
        if self.retry.max_retries() > 0 {
            nesting::tell_the_outer(end);
        }
    }

    /// Leave to begin a call at all, if it must ask for it.
    #[inline]
    fn shed<E>(&self, rank: Option<Rank>) -> Result<Option<ShedGuard<'_>>, Ended<E>> {
        match &self.shedder {
            None => Ok(None),
            Some(shedder) => {
                shedder.admit(rank.unwrap_or_else(Rank::current)).map(Some).map_err(refused)
            }
        }
    }

    /// The layers of one call that was not shed.
    async fn call<T, E, Fut>(
        &self,
        classifier: &impl Classify<E>,
        operation: &mut impl FnMut(Attempt) -> Fut,
        record: &Record<'_>,
    ) -> Result<T, Ended<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        #[cfg_attr(not(feature = "rate-limit"), expect(unused_mut, reason = "nothing waits"))]
        let mut now = record.started;
        #[cfg(feature = "rate-limit")]
        if let Some(limiter) = &self.rate_limiter {
            limiter.acquire(record.deadline).await.map_err(refused)?;
            now = Instant::now();
        }
        match self.hedge.as_ref().filter(|_| record.idempotent) {
            None => self.attempts(now, classifier, operation, record).await,
            // Boxed: a call that is not hedged need not have room for one that is.
            Some(hedge) => Box::pin(self.hedged(now, hedge, classifier, operation, record)).await,
        }
    }

    /// The attempts, and the same once more beside them while their answer is late.
    async fn hedged<T, E, Fut>(
        &self,
        now: Instant,
        hedge: &Hedge,
        classifier: &impl Classify<E>,
        operation: &mut impl FnMut(Attempt) -> Fut,
        record: &Record<'_>,
    ) -> Result<T, Ended<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        // Locked while a future is made, never while one runs.
        let operation = &Mutex::new(operation);
        let attempts = |number| async move {
            let mut operation =
                |attempt| operation.lock().unwrap_or_else(PoisonError::into_inner)(attempt);
            let now = if number == 0 { now } else { Instant::now() };
            self.attempts(now, classifier, &mut operation, record).await
        };
        let standing = |result: &Result<T, Ended<E>>| standing(result, true);
        hedge.race(&self.name, Some(record.deadline), attempts, standing).await
    }

    /// Notes one call that has come to an attempt with whatever pays for its retries and hedges. One that
    /// was refused before that earns the others none.
    #[inline]
    fn deposit(&self) {
        self.retry.deposit();
        if let Some(hedge) = self.hedge.as_ref().filter(|_| self.hedge_pays_itself) {
            hedge.budget().deposit();
        }
    }
}
