//! How a pipeline is put together: which layers there are is a choice, their order is not.

use std::sync::Arc;
use std::time::Duration;

use super::{Guard, Layers, Limit, Pipeline};
#[cfg(feature = "chaos")]
use crate::Chaos;
#[cfg(feature = "rate-limit")]
use crate::RateLimiter;
use crate::deadline::FAR;
use crate::gate::Gate;
use crate::{
    AdaptiveLimit, Bulkhead, CircuitBreaker, Hedge, InvalidSetting, LoadShedder, Name, RetryPolicy,
    Throttle, Timeout,
};

const BOUNDS: &str = "above 0, up to 30 years";

/// Settings of a [`Pipeline`] to be. Layers may be named in any order: the pipeline has its own. Of what is
/// set twice, the last holds.
///
/// A layer that is shared by several pipelines, as a clone in each, counts and limits what all of them do.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Bulkhead, Pipeline, RetryPolicy, Timeout, Unwise};
///
/// let builder = Pipeline::builder("search")
///     .attempt_timeout(Timeout::learned().max(Duration::from_secs(3)).build()?)
///     .bulkhead(Bulkhead::new("search", 64, Duration::from_millis(500))?)
///     .retry(RetryPolicy::default())
///     .deadline(Duration::from_secs(10));
/// assert!(builder.clone().build()?.unwise().is_empty());
/// let slow = builder.attempt_timeout(Duration::from_secs(10)).build()?;
/// assert_eq!(slow.unwise(), [Unwise::AttemptTimeoutReachesDeadline]);
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PipelineBuilder {
    name: Name,
    deadline: Duration,
    shedder: Option<LoadShedder>,
    #[cfg(feature = "rate-limit")]
    rate_limiter: Option<RateLimiter>,
    hedge: Option<Hedge>,
    retry: RetryPolicy,
    breaker: Option<CircuitBreaker>,
    throttle: Option<Throttle>,
    bulkhead: Option<Bulkhead>,
    adaptive_limit: Option<AdaptiveLimit>,
    pool_size: Option<u32>,
    attempt_timeout: Result<Timeout, InvalidSetting>,
    #[cfg(feature = "chaos")]
    chaos: Option<Chaos>,
}

impl PipelineBuilder {
    pub(super) fn new(name: Name) -> Self {
        Self {
            name,
            deadline: Duration::from_secs(60),
            shedder: None,
            #[cfg(feature = "rate-limit")]
            rate_limiter: None,
            hedge: None,
            retry: RetryPolicy::never(),
            breaker: None,
            throttle: None,
            bulkhead: None,
            adaptive_limit: None,
            pool_size: None,
            attempt_timeout: Timeout::fixed(Duration::from_secs(30)),
            #[cfg(feature = "chaos")]
            chaos: None,
        }
    }

    /// How long a call may take, all its attempts and waits and its fallback together, where it has no deadline
    /// of its own. Above 0, up to 30 years; default 60 s. Set twice, the last holds.
    ///
    /// A call's own deadline ([`Call::by`](crate::Call::by)) takes its place, be it nearer or farther. Over
    /// both stands the surrounding [`Deadline`](crate::Deadline) where that is nearer.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use resilience_core::{AnyError, Call, Deadline, Pipeline};
    ///
    /// let minute = Duration::from_secs(60);
    /// let reports = Pipeline::builder("reports").deadline(minute).attempt_timeout(minute / 4).build()?;
    /// let by_midnight = Call::read().by(Deadline::within(60 * minute)); // An hour, not a minute.
    /// reports.run(by_midnight, &AnyError, |_| async { Ok::<_, std::io::Error>("the year") }).await?;
    /// # Ok(()) }
    /// ```
    pub fn deadline(self, time: Duration) -> Self {
        Self { deadline: time, ..self }
    }

    /// What refuses the least important calls first under load. Default: none; set twice, the last holds.
    ///
    /// It counts calls, not attempts. Where it watches the limit behind it, that must be the limit of this
    /// pipeline: see [`Load`](crate::Load).
    pub fn shedder(self, shedder: LoadShedder) -> Self {
        Self { shedder: Some(shedder), ..self }
    }

    /// How many calls may be made in a time; one too many waits for its turn, until its deadline at the longest.
    /// Default: no limit; set twice, the last holds. It counts calls: retries and hedges pass it no second time.
    #[cfg(feature = "rate-limit")]
    pub fn rate_limiter(self, limiter: RateLimiter) -> Self {
        Self { rate_limiter: Some(limiter), ..self }
    }

    /// Sends a call that may be repeated once more while its answer is late. Default: never; set twice, the
    /// last holds. Retries stand inside: each of the two has as many as the policy allows.
    pub fn hedge(self, hedge: Hedge) -> Self {
        Self { hedge: Some(hedge), ..self }
    }

    /// How often to repeat what failed, after which waits, within which budget. Default:
    /// [never](RetryPolicy::never); set twice, the last holds.
    pub fn retry(self, retry: RetryPolicy) -> Self {
        Self { retry, ..self }
    }

    /// The breaker that each attempt asks. Default: none; set twice, the last holds. Beside a
    /// [`throttle`](Self::throttle), [`build`](Self::build) refuses it.
    ///
    /// Its [probe lease](crate::CircuitBreakerBuilder::probe_lease) (default: its reset timeout) should cover the
    /// wait for a place and the attempt timeout: else that is [reported](Unwise::ProbeOutlivesLease).
    pub fn breaker(self, breaker: CircuitBreaker) -> Self {
        Self { breaker: Some(breaker), ..self }
    }

    /// The soft alternative to a breaker: it refuses a share of the attempts. Default: none; set twice, the
    /// last holds. Beside a [`breaker`](Self::breaker), [`build`](Self::build) refuses it.
    pub fn throttle(self, throttle: Throttle) -> Self {
        Self { throttle: Some(throttle), ..self }
    }

    /// The limit on attempts in flight, and on the wait for a place. Default: none; set twice, the last holds.
    /// Beside an [`adaptive_limit`](Self::adaptive_limit), [`build`](Self::build) refuses it.
    pub fn bulkhead(self, bulkhead: Bulkhead) -> Self {
        Self { bulkhead: Some(bulkhead), ..self }
    }

    /// A limit on attempts in flight that follows what the service can take. Default: none; set twice, the
    /// last holds. Beside a [`bulkhead`](Self::bulkhead), [`build`](Self::build) refuses it.
    pub fn adaptive_limit(self, limit: AdaptiveLimit) -> Self {
        Self { adaptive_limit: Some(limit), ..self }
    }

    /// How many connections stand behind it. 1 or more; default: not known; set twice, the last holds. It
    /// limits nothing: a bulkhead or an adaptive limit that lets in more is
    /// [reported](Unwise::BulkheadWiderThanPool).
    pub fn pool_size(self, connections: u32) -> Self {
        Self { pool_size: Some(connections), ..self }
    }

    /// How long one attempt may take, the wait for a place not included: a [`Duration`] above 0, up to 30 years,
    /// or a [`Timeout`] that learns it. Default 30 s; set twice, the last holds.
    ///
    /// An attempt never takes longer than what is left of its call. A time that may reach the
    /// [`deadline`](Self::deadline) is [reported](Unwise::AttemptTimeoutReachesDeadline).
    pub fn attempt_timeout(self, time: impl TryInto<Timeout, Error: Into<InvalidSetting>>) -> Self {
        let attempt_timeout = time.try_into().map_err(|error| {
            let error: InvalidSetting = error.into();
            InvalidSetting { field: "attempt_timeout", ..error }
        });
        Self { attempt_timeout, ..self }
    }

    /// Faults and latency on purpose, just before the operation. Default: none; set twice, the last holds.
    #[cfg(feature = "chaos")]
    pub fn chaos(self, chaos: Chaos) -> Self {
        Self { chaos: Some(chaos), ..self }
    }

    /// The pipeline. What is only unwise is built, reported at WARN, and listed by [`Pipeline::unwise`].
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a value out of its range, for a breaker beside a throttle, and for a bulkhead beside an
    /// adaptive limit.
    pub fn build(self) -> Result<Pipeline, InvalidSetting> {
        let name = self.name;
        if self.deadline.is_zero() || self.deadline > FAR {
            return Err(InvalidSetting::new("deadline", self.deadline, BOUNDS));
        }
        if self.pool_size == Some(0) {
            return Err(InvalidSetting::new("pool_size", 0, "1 or more"));
        }
        let timeout = self.attempt_timeout?;
        let guard = match (self.breaker, self.throttle) {
            (Some(breaker), Some(throttle)) => {
                let both = (breaker.name(), throttle.name());
                return Err(InvalidSetting::new(
                    "throttle",
                    both,
                    "a breaker or a throttle, not both",
                ));
            }
            (Some(breaker), None) => Some(Guard::Breaker(breaker)),
            (None, Some(throttle)) => Some(Guard::Throttle(throttle)),
            (None, None) => None,
        };
        let limit = match (self.bulkhead, self.adaptive_limit) {
            (Some(bulkhead), Some(adaptive)) => {
                let both = (bulkhead.name(), adaptive.name());
                let cure = "a bulkhead or an adaptive limit, not both";
                return Err(InvalidSetting::new("adaptive_limit", both, cure));
            }
            (Some(bulkhead), None) => Some(Limit::Fixed(bulkhead)),
            (None, Some(adaptive)) => Some(Limit::Adaptive(adaptive)),
            (None, None) => None,
        };
        let mut unwise = Vec::new();
        if timeout.longest() >= self.deadline {
            unwise.push(Unwise::AttemptTimeoutReachesDeadline);
        }
        if let (Some(limit), Some(connections)) = (&limit, self.pool_size)
            && limit.most() > connections as usize
        {
            unwise.push(Unwise::BulkheadWiderThanPool);
        }
        if let Some(Guard::Breaker(breaker)) = &guard {
            let wait = limit.as_ref().map_or(Duration::ZERO, Limit::wait);
            let longest = wait.saturating_add(timeout.longest()).min(self.deadline);
            if breaker.settings().probe_lease < longest {
                unwise.push(Unwise::ProbeOutlivesLease);
            }
        }
        unwise.iter().for_each(|unwise| unwise.report(&name));
        let hedge_pays_itself = self.hedge.as_ref().is_some_and(|hedge| {
            self.retry.budget().is_none_or(|budget| !budget.is_same(hedge.budget()))
        });
        let layers = Layers {
            name,
            deadline: self.deadline,
            gate: Gate::default(),
            shedder: self.shedder,
            #[cfg(feature = "rate-limit")]
            rate_limiter: self.rate_limiter,
            hedge: self.hedge,
            hedge_pays_itself,
            retry: self.retry,
            guard,
            limit,
            timeout,
            #[cfg(feature = "chaos")]
            chaos: self.chaos,
            unwise,
            nested: std::sync::OnceLock::new(),
        };
        Ok(Pipeline { layers: Arc::new(layers) })
    }
}

/// Settings that work, but hardly as somebody meant them to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Unwise {
    /// One attempt may take the whole time of the call: nothing is left for a second, and an attempt that
    /// hangs ends as the call's deadline.
    AttemptTimeoutReachesDeadline,
    /// The bulkhead, or the adaptive limit at its highest, lets more attempts in than the pool has connections:
    /// the surplus waits in the pool's queue with its attempt timeout running.
    BulkheadWiderThanPool,
    /// The breaker's [probe lease](crate::CircuitBreakerBuilder::probe_lease) is shorter than the longest wait for
    /// a place and the attempt timeout together (or the deadline, where that is nearer): a probe that merely waits,
    /// or is slow, is taken for lost, and the circuit opens again. The lease is the reset timeout unless it is set.
    ProbeOutlivesLease,
    /// A pipeline that retries ran inside another that does: only the innermost repeats, so the
    /// outer one's retries cover less than they seem to.
    NestedRetries,
}

impl Unwise {
    /// The word for it, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptTimeoutReachesDeadline => "attempt_timeout_reaches_deadline",
            Self::BulkheadWiderThanPool => "bulkhead_wider_than_pool",
            Self::ProbeOutlivesLease => "probe_outlives_lease",
            Self::NestedRetries => "nested_retries",
        }
    }

    pub(super) fn report(self, name: &Name) {
        tracing::warn!(target: "shared_external::pipeline", %name, warning = self.as_str(), "settings work, but hardly as meant");
    }
}
