//! Decides whether and when to call a service: circuit breaker, retry, budget, deadline, pipeline.
//!
//! Nothing here opens a socket or knows a driver. Connectors hand their calls to a [`Pipeline`],
//! which orders the layers once and for all:
//!
//! ```text
//! deadline → fallback → retry (budget) → breaker → bulkhead → attempt timeout → operation
//! ```
//!
//! What several rooms need to agree on lives here as plain nouns: [`Verdict`], [`Deadline`],
//! [`Endpoint`], [`Health`], [`Event`].

mod adaptive;
mod backoff;
mod breaker;
mod budget;
mod bulkhead;
mod circuit;
mod deadline;
mod endpoint;
mod error;
mod gate;
mod health;
mod limit_algorithm;
mod nesting;
mod observe;
mod permit;
mod pipeline;
mod places;
#[cfg(feature = "rate-limit")]
mod rate_limit;
mod registry;
mod retry;
#[cfg(feature = "settings")]
pub mod settings;
mod verdict;

#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod macro_support;

pub use adaptive::{AdaptiveLimit, AdaptiveLimitBuilder, AdaptivePlace, LimitAlgorithm};
pub use backoff::Backoff;
pub use breaker::{
    CircuitBreaker, CircuitBreakerBuilder, CircuitSettings, CircuitSnapshot, CircuitState,
    OutcomeCounts,
};
pub use budget::RetryBudget;
pub use bulkhead::{Bulkhead, BulkheadBuilder, Place, Rejections};
pub use deadline::Deadline;
pub use endpoint::{
    Address, AddressError, Conditions, Endpoint, EndpointSet, Freshness, Role, WatchedEndpoints,
};
pub use error::{
    AttemptTimeout, BulkheadFull, CallError, CircuitOpen, DeadlineExceeded, Draining, Failed,
    FullReason, InvalidSetting, RateLimited,
};
pub use gate::Drained;
pub use health::{Backend, Health, HealthCheck, HealthStatus, PoolStatus};
pub use observe::{CallOutcome, Event, Observe, add_observer, emit};
pub use permit::{Outcome, Permit};
pub use pipeline::{Attempt, Call, Pipeline, PipelineBuilder};
#[cfg(feature = "rate-limit")]
pub use rate_limit::{RateLimiter, RateLimiterBuilder};
pub use registry::CircuitRegistry;
#[cfg(feature = "macros")]
#[doc(inline)]
pub use resilience_macros::{circuit_breaker, with_retry};
pub use retry::{RetryPolicy, RetryPolicyBuilder};
pub use verdict::{AnyError, Blame, Classify, Replay, Verdict};
