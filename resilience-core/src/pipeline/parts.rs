//! The layers of a pipeline, for whoever reads their figures or turns their switches.

use std::time::Duration;

use super::{Guard, Limit, Pipeline};
#[cfg(feature = "chaos")]
use crate::Chaos;
#[cfg(feature = "rate-limit")]
use crate::RateLimiter;
use crate::{
    AdaptiveLimit, Bulkhead, CircuitBreaker, Hedge, LoadShedder, RetryPolicy, Throttle, Timeout,
};

impl Pipeline {
    /// How long a call may take that has no deadline of its own.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.layers.deadline
    }

    /// Its load shedder, if it has one.
    #[must_use]
    pub fn shedder(&self) -> Option<&LoadShedder> {
        self.layers.shedder.as_ref()
    }

    /// Its rate limiter, if it has one.
    #[cfg(feature = "rate-limit")]
    #[must_use]
    pub fn rate_limiter(&self) -> Option<&RateLimiter> {
        self.layers.rate_limiter.as_ref()
    }

    /// Its hedge, if it has one, and with it what pays for the hedges.
    #[must_use]
    pub fn hedge(&self) -> Option<&Hedge> {
        self.layers.hedge.as_ref()
    }

    /// How it repeats, and with it the budget that pays for it; with no retries unless it was given a policy.
    #[must_use]
    pub fn retry(&self) -> &RetryPolicy {
        &self.layers.retry
    }

    /// Its breaker, if it has one.
    #[must_use]
    pub fn breaker(&self) -> Option<&CircuitBreaker> {
        match &self.layers.guard {
            Some(Guard::Breaker(breaker)) => Some(breaker),
            Some(Guard::Throttle(_)) | None => None,
        }
    }

    /// Its throttle, if it has one in place of a breaker.
    #[must_use]
    pub fn throttle(&self) -> Option<&Throttle> {
        match &self.layers.guard {
            Some(Guard::Throttle(throttle)) => Some(throttle),
            Some(Guard::Breaker(_)) | None => None,
        }
    }

    /// Its bulkhead, if it has one.
    #[must_use]
    pub fn bulkhead(&self) -> Option<&Bulkhead> {
        match &self.layers.limit {
            Some(Limit::Fixed(bulkhead)) => Some(bulkhead),
            Some(Limit::Adaptive(_)) | None => None,
        }
    }

    /// Its adaptive limit, if it has one in place of a bulkhead.
    #[must_use]
    pub fn adaptive_limit(&self) -> Option<&AdaptiveLimit> {
        match &self.layers.limit {
            Some(Limit::Adaptive(limit)) => Some(limit),
            Some(Limit::Fixed(_)) | None => None,
        }
    }

    /// How long one attempt may take: [`current`](Timeout::current) tells what has been learned of it.
    #[must_use]
    pub fn attempt_timeout(&self) -> &Timeout {
        &self.layers.timeout
    }

    /// Its chaos, if it has one: the switch is on it.
    #[cfg(feature = "chaos")]
    #[must_use]
    pub fn chaos(&self) -> Option<&Chaos> {
        self.layers.chaos.as_ref()
    }
}
