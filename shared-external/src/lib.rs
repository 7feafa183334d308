//! PostgreSQL, Redis and OpenSearch for services that must not be taken down by them.
//!
//! Choose backends by features; none is on by default, and what you do not choose is not compiled.
//!
//! | feature | brings |
//! |---|---|
//! | `postgres` | [`get_database`], [`DatabaseManager`], [`postgres`] |
//! | `redis` | [`get_redis_client`], [`RedisManager`], [`redis`] |
//! | `opensearch` | [`get_opensearch_client`], [`OpenSearchManager`], [`opensearch`] |
//! | `discovery`, `kubernetes` | [`ServiceRegistry`]: where a service is, from configuration, files or DNS |
//! | `monitoring` | [`setup_default_monitoring`], [`get_monitoring_manager`]: health, alerts, metrics |
//! | `axum` | [`axum`]: health routes, a deadline per request, graceful shutdown |
//! | `distributed` | [`Exchange`], and with `redis` [`RedisOpinions`]: circuits of many processes warn each other |
//! | `macros` | [`circuit_breaker`] and [`with_retry`] as attributes |
//! | `full` | all of these |
//!
//! ```no_run
//! # #[cfg(feature = "redis")]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use shared_external::get_redis_client;
//! use shared_external::redis::redis::AsyncCommands;
//!
//! let mut redis = get_redis_client()?; // from REDIS_URL; connects when first used
//! redis.set::<_, _, ()>("greeting", "hello").await?;
//! # Ok(()) }
//! # #[cfg(not(feature = "redis"))] fn main() {}
//! ```
//!
//! This crate holds no logic: it re-exports the others under one name, and keeps the managers of
//! this process.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
pub mod axum;
#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
mod globals;
#[cfg(any(
    feature = "opensearch",
    feature = "postgres",
    feature = "redis",
    feature = "monitoring"
))]
mod runtime;
#[cfg(feature = "monitoring")]
mod watch;

// Item by item, so that the compiler names the feature of one that is used without it.
#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
pub use globals::{Config, SetupError, drain, init};
#[cfg(feature = "postgres")]
pub use globals::{get_database, get_database_health};
#[cfg(feature = "opensearch")]
pub use globals::{get_opensearch_client, get_opensearch_health};
#[cfg(feature = "redis")]
pub use globals::{get_redis_client, get_redis_health};
#[cfg(feature = "monitoring")]
pub use watch::get_monitoring_manager;
#[cfg(feature = "monitoring")]
#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
pub use watch::setup_default_monitoring;

#[doc(no_inline)]
pub use resilience_core::*;

/// The Python module's name for [`RetryPolicy`].
pub type RetryManager = RetryPolicy;

/// The Python module's name for [`CallError`].
pub type CircuitBreakerError<E> = CallError<E>;

#[cfg(feature = "opensearch")]
#[doc(no_inline)]
pub use conn_opensearch::{self as opensearch, OpenSearchConfig, OpenSearchManager};
#[cfg(feature = "postgres")]
#[doc(no_inline)]
pub use conn_postgres::{self as postgres, DatabaseConfig, DatabaseManager};
#[cfg(all(feature = "distributed", feature = "redis"))]
#[doc(no_inline)]
pub use conn_redis::RedisOpinions;
#[cfg(feature = "redis")]
#[doc(no_inline)]
pub use conn_redis::{self as redis, RedisConfig, RedisManager};
#[cfg(feature = "discovery")]
#[doc(no_inline)]
pub use discovery::{self, ServiceRegistry};
#[cfg(feature = "monitoring")]
#[doc(no_inline)]
pub use monitoring::{self, AlertHandler, LogAlertHandler, MonitoringManager, ServiceMonitor};

/// Compiles the README's programs.
#[cfg(all(doctest, feature = "full"))]
#[doc = include_str!("../../README.md")]
pub struct Readme;
