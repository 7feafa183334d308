//! The layers of a pipeline whose figures may be looked at while calls run through it.

use super::{Guard, Limit, Pipeline};
use crate::{AdaptiveLimit, RetryBudget, Throttle};

impl Pipeline {
    /// Its adaptive limit, if it has one.
    #[must_use]
    pub fn adaptive_limit(&self) -> Option<&AdaptiveLimit> {
        match &self.layers.limit {
            Some(Limit::Adaptive(limit)) => Some(limit),
            Some(Limit::Fixed(_)) | None => None,
        }
    }

    /// Its throttle, if it has one.
    #[must_use]
    pub fn throttle(&self) -> Option<&Throttle> {
        match &self.layers.guard {
            Some(Guard::Throttle(throttle)) => Some(throttle),
            Some(Guard::Breaker(_)) | None => None,
        }
    }

    /// What pays for its retries, if anything does.
    #[must_use]
    pub fn retry_budget(&self) -> Option<&RetryBudget> {
        self.layers.retry.budget()
    }
}
