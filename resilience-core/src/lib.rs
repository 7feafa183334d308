//! Decides whether and when to call a service: circuit breaker, retry, budget, deadline, pipeline.
//!
//! Nothing here opens a socket or knows a driver. Connectors hand their calls to a [`Pipeline`],
//! which orders the layers once and for all:
//!
//! ```text
//! deadline → fallback → load shed, rate limit → hedge → retry (budget) → breaker or throttle
//!          → bulkhead or adaptive limit → attempt timeout → chaos → operation
//! ```
//!
//! Where to begin:
//!
//! - [`Pipeline::builder`] puts layers around a call of yours; [`Pipeline::optional_service`] has them chosen.
//! - [`Call`] says whether a call may be made twice, and how long it may take: above that stands the surrounding
//!   [`Deadline`].
//! - [`Classify`] says what your errors mean; [`AnyError`] takes each for a failure of the service.
//! - [`CallError`] is what comes back where there is no value: `is_unavailable` tells an outage from a refused request.
//! - [`Observe`] sees what happens; each layer tells its own figures ([`Pipeline::breaker`] and its like).
//!
//! Each layer works alone too. Whatever waits needs a tokio runtime with timers, and panics outside one.
//!
//! Settings that cannot work are refused, with the field, its value and what is allowed ([`InvalidSetting`]); those that
//! work but hardly as meant are told ([`Unwise`]). Settings that count calls are `u32`, what is kept in memory and
//! figures of the moment `usize`, counters `u64`.
//!
//! What several rooms need to agree on lives here as plain nouns: [`Verdict`], [`Deadline`],
//! [`Endpoint`], [`Health`], [`Event`].

mod adaptive;
mod backoff;
mod breaker;
mod budget;
mod bulkhead;
#[cfg(feature = "chaos")]
mod chaos;
mod circuit;
mod credentials;
mod deadline;
#[cfg(feature = "distributed")]
mod distributed;
mod endpoint;
mod error;
mod gate;
mod health;
mod heartbeat;
mod hedge;
mod keyed;
mod latency;
mod limit_algorithm;
mod limited;
mod lookout;
mod meter;
mod name;
mod nesting;
mod observe;
mod permit;
mod pipeline;
mod places;
mod polling;
mod prioritizer;
mod priority;
#[cfg(feature = "rate-limit")]
mod rate_limit;
mod registry;
mod retry;
#[cfg(feature = "settings")]
pub mod settings;
mod shed;
mod single_flight;
mod stale;
mod sync;
mod throttle;
mod timeout;
#[cfg(feature = "tower")]
pub mod tower;
mod verdict;

#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod macro_support;

pub use adaptive::{AdaptiveLimit, AdaptiveLimitBuilder, AdaptivePlace, LimitAlgorithm};
pub use backoff::{Backoff, BackoffBuilder, BackoffShape, Jitter};
pub use breaker::{
    CircuitBreaker, CircuitBreakerBuilder, CircuitSettings, CircuitSnapshot, CircuitState, Growth,
    OutcomeCounts, SlidingWindow, SlowCalls,
};
pub use budget::{RetryBudget, RetryBudgetBuilder};
pub use bulkhead::{Bulkhead, BulkheadBuilder, Place, Rejections};
#[cfg(feature = "chaos")]
pub use chaos::{Chaos, ChaosBuilder};
pub use credentials::{
    CredentialError, CredentialProvider, Credentials, EnvCredentials, FileCredentials,
    FnCredentials, Rotating, RotationCounts, RotationError, Version,
};
pub use deadline::Deadline;
#[cfg(feature = "distributed")]
pub use distributed::{
    Exchange, ExchangeBuilder, ExchangeCounts, MemoryOpinions, Opinion, OpinionStore, ProcessId,
    StoreError, Tally,
};
pub use endpoint::{
    Address, AddressError, Conditions, Endpoint, EndpointSet, Freshness, Role, WatchedEndpoints,
};
pub use error::{
    AttemptTimeout, BulkheadFull, CallError, CircuitOpen, DeadlineExceeded, Draining, Failed,
    FullReason, Injected, InvalidSetting, RateLimited,
};
pub use gate::Drained;
pub use health::{Backend, Health, HealthCheck, HealthStatus, PoolStatus};
pub use heartbeat::Standstill;
pub use hedge::{Hedge, HedgeBuilder, HedgeCounts};
pub use keyed::{KeyedBreakers, KeyedBreakersBuilder};
pub use lookout::{Lookout, Silent, Vigil};
pub use name::Name;
pub use observe::{CallOutcome, Event, Observe, RefusingLayer, add_observer, emit};
pub use permit::{Outcome, Permit};
pub use pipeline::{Attempt, Call, Pipeline, PipelineBuilder, Unwise};
pub use polling::Polling;
pub use prioritizer::Prioritizer;
pub use priority::{Priority, Rank};
#[cfg(feature = "rate-limit")]
pub use rate_limit::{RateLimiter, RateLimiterBuilder};
pub use registry::CircuitRegistry;
#[cfg(feature = "macros")]
#[doc(inline)]
pub use resilience_macros::{circuit_breaker, with_retry};
pub use retry::{RetryPolicy, RetryPolicyBuilder};
pub use shed::{Load, LoadShedder, Shed, ShedGuard};
pub use single_flight::SingleFlight;
pub use stale::{Cached, StaleCache, StaleCacheBuilder};
pub use throttle::{Throttle, ThrottleBuilder, ThrottlePermit, ThrottleSnapshot, Throttled};
pub use timeout::{LearnedTimeoutBuilder, Timeout};
pub use verdict::{AnyError, Blame, Classify, Replay, Verdict};
