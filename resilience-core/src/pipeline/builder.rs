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

/// Settings of a [`Pipeline`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct PipelineBuilder {
    pub(super) name: Name,
    pub(super) deadline: Duration,
    pub(super) shedder: Option<LoadShedder>,
    #[cfg(feature = "rate-limit")]
    pub(super) rate_limit: Option<RateLimiter>,
    pub(super) hedge: Option<Hedge>,
    pub(super) retry: RetryPolicy,
    pub(super) breaker: Option<CircuitBreaker>,
    pub(super) throttle: Option<Throttle>,
    pub(super) bulkhead: Option<Bulkhead>,
    pub(super) adaptive_limit: Option<AdaptiveLimit>,
    pub(super) pool_size: Option<usize>,
    pub(super) attempt_timeout: Result<Timeout, Duration>,
    #[cfg(feature = "chaos")]
    pub(super) chaos: Option<Chaos>,
}

impl PipelineBuilder {
    pub(super) fn new(name: Name) -> Self {
        Self {
            name,
            deadline: Duration::from_secs(60),
            shedder: None,
            #[cfg(feature = "rate-limit")]
            rate_limit: None,
            hedge: None,
            retry: RetryPolicy::never(),
            breaker: None,
            throttle: None,
            bulkhead: None,
            adaptive_limit: None,
            pool_size: None,
            attempt_timeout: Err(Duration::from_secs(30)),
            #[cfg(feature = "chaos")]
            chaos: None,
        }
    }

    /// The time of a call whose caller sets none. Above 0, up to 30 years; default 60 s.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// What refuses the least important calls first under load; default: nothing.
    pub fn shed(self, shedder: LoadShedder) -> Self {
        Self { shedder: Some(shedder), ..self }
    }

    /// How often the service may be called; a call waits for its turn until its deadline. Default: no limit.
    #[cfg(feature = "rate-limit")]
    pub fn rate_limit(self, limiter: RateLimiter) -> Self {
        Self { rate_limit: Some(limiter), ..self }
    }

    /// Sends a call that may be repeated once more while its answer is late; default: never. Retries
    /// stand inside, so each of the two has its own.
    pub fn hedge(self, hedge: Hedge) -> Self {
        Self { hedge: Some(hedge), ..self }
    }

    /// How often to repeat; default: never.
    pub fn retry(self, retry: RetryPolicy) -> Self {
        Self { retry, ..self }
    }

    /// The breaker that each attempt asks; default: none.
    pub fn breaker(self, breaker: CircuitBreaker) -> Self {
        Self { breaker: Some(breaker), ..self }
    }

    /// The soft alternative to a breaker: it refuses a share of the attempts; default: none.
    pub fn throttle(self, throttle: Throttle) -> Self {
        Self { throttle: Some(throttle), ..self }
    }

    /// The limit on attempts in flight; default: none.
    pub fn bulkhead(self, bulkhead: Bulkhead) -> Self {
        Self { bulkhead: Some(bulkhead), ..self }
    }

    /// A limit on attempts in flight that follows what the service can take, in place of a bulkhead; default: none.
    pub fn adaptive_limit(self, limit: AdaptiveLimit) -> Self {
        Self { adaptive_limit: Some(limit), ..self }
    }

    /// How many connections stand behind it. Changes nothing: a bulkhead that is wider lets calls
    /// wait in a second queue, and is [reported](Unwise::BulkheadWiderThanPool).
    pub fn pool_size(self, connections: usize) -> Self {
        Self { pool_size: Some(connections), ..self }
    }

    /// The time of one attempt. Above 0, up to 30 years; default 30 s.
    pub fn attempt_timeout(self, attempt_timeout: Duration) -> Self {
        Self { attempt_timeout: Err(attempt_timeout), ..self }
    }

    /// The time of one attempt, fixed or learned from how long attempts take.
    pub fn timeout(self, timeout: Timeout) -> Self {
        Self { attempt_timeout: Ok(timeout), ..self }
    }

    /// Faults and latency on purpose, just before the operation; default: none.
    #[cfg(feature = "chaos")]
    pub fn chaos(self, chaos: Chaos) -> Self {
        Self { chaos: Some(chaos), ..self }
    }

    /// The pipeline. What is only unwise is built, reported at WARN, and listed by [`Pipeline::unwise`].
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a time of zero or without end, and for two layers of which there can be but one.
    pub fn build(self) -> Result<Pipeline, InvalidSetting> {
        let name = self.name;
        let out_of_bounds = |time: Duration| time.is_zero() || time > FAR;
        if out_of_bounds(self.deadline) {
            return Err(InvalidSetting::new("deadline", self.deadline, BOUNDS));
        }
        let timeout = match self.attempt_timeout {
            Ok(timeout) => timeout,
            Err(limit) if out_of_bounds(limit) => {
                return Err(InvalidSetting::new("attempt_timeout", limit, BOUNDS));
            }
            Err(limit) => Timeout::fixed(limit)?,
        };
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
        if let (Some(Limit::Fixed(bulkhead)), Some(connections)) = (&limit, self.pool_size)
            && bulkhead.limit() > connections
        {
            unwise.push(Unwise::BulkheadWiderThanPool);
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
            rate_limit: self.rate_limit,
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
    /// The bulkhead lets more calls in than the pool has connections: the surplus waits in the pool's
    /// queue with its attempt timeout running.
    BulkheadWiderThanPool,
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
            Self::NestedRetries => "nested_retries",
        }
    }

    pub(super) fn report(self, name: &Name) {
        tracing::warn!(target: "shared_external::pipeline", %name, warning = self.as_str(), "settings work, but hardly as meant");
    }
}
