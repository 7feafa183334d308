//! Redis behind a bounded pool, with breaker, retries and deadlines.
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use conn_redis::redis::AsyncCommands;
//! use conn_redis::{RedisConfig, RedisManager};
//!
//! let redis = RedisManager::connect(RedisConfig::from_env()?)?;
//!
//! // A closure has a connection to itself, for one attempt. What only reads may be repeated.
//! let name: Option<String> = redis.read(|mut conn| async move { Ok(conn.get("name").await?) }).await?;
//!
//! // What writes is repeated only if it is proven not to have been executed.
//! redis.write(|mut conn| async move { Ok(conn.incr::<_, _, ()>("visits", 1).await?) }).await?;
//!
//! // Without Redis, something else will do.
//! let name: String = redis
//!     .read_or(
//!         |mut conn| async move { Ok(conn.get("name").await?) },
//!         |_unavailable| async { Ok::<_, conn_redis::CallError<conn_redis::Error>>("nobody".to_owned()) },
//!     )
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! Nothing is connected until it is needed, and a server that is down is found again by itself. What an
//! error means is written down at [`Classifier`], what can be set at [`RedisConfig`].
//!
//! What is not here yet: URLs of Sentinel and Cluster are refused with a clear word, and there is no
//! subscription that outlives its closure.

mod address;
mod classify;
mod commands;
mod config;
mod conn;
mod connect;
pub mod defaults;
#[cfg(feature = "distributed")]
mod distributed;
mod error;
mod lane;
mod like;
mod manager;
mod pool;
mod pools;
mod tls;
mod tuning;

pub use classify::Classifier;
pub use config::{RedisConfig, RedisConfigBuilder};
pub use conn::RedisConn;
pub use deadpool_redis::redis;
#[cfg(feature = "distributed")]
pub use distributed::RedisOpinions;
pub use error::{ConnectCause, ConnectError, Error, call_error};
pub use manager::RedisManager;
pub use resilience_core::CallError;
