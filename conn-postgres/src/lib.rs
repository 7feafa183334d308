//! PostgreSQL behind a pool that survives cancellation, with breaker, retries and deadlines, on sqlx.
//!
//! ```no_run
//! use std::time::Duration;
//! use conn_postgres::{DatabaseConfig, DatabaseManager};
//! use resilience_core::Deadline;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // DATABASE_URL=postgresql://app:secret@localhost:5432/app
//! let db = DatabaseManager::connect(DatabaseConfig::from_env()?)?;
//!
//! // Existing sqlx code moves over unchanged.
//! let (one,): (i32,) = sqlx::query_as("SELECT 1").fetch_one(&db).await?;
//!
//! // All or nothing, and again where the server rolled it back because of others.
//! db.transaction(|mut tx| async move {
//!     sqlx::query("UPDATE accounts SET balance = balance - 5 WHERE id = 1").execute(&mut *tx).await?;
//!     sqlx::query("UPDATE accounts SET balance = balance + 5 WHERE id = 2").execute(&mut *tx).await?;
//!     Ok(())
//! })
//! .await?;
//!
//! println!("{:?} {:?}", db.health().await.status, db.status());
//! db.drain(Deadline::within(Duration::from_secs(5))).await;
//! # Ok(()) }
//! ```
//!
//! # How a connection is kept clean
//!
//! A connection goes back to the pool only if the end of everything that ran on it was seen. One that was
//! borrowed by a future that was dropped in mid-statement, mid-`begin()` or mid-COMMIT is closed, and its
//! place is free at once. So no borrower ever finds another's transaction or reply.
//!
//! A statement cut short on our side may go on for a while on the server; its `statement_timeout`, set when
//! the connection is opened to a second more than the attempt timeout, is the backstop.
//!
//! # Credentials and certificates that change
//!
//! [`DatabaseConfigBuilder::credentials`] takes a provider in place of the URL's password; certificate files are
//! read again when they change. A login that the server refuses asks for new ones once before it fails.
//!
//! # What is read from elsewhere
//!
//! sqlx reads `PGSSLROOTCERT`, `PGSSLCERT`, `PGSSLKEY`, `PGOPTIONS` and `PGUSER` where neither the URL nor our
//! settings say anything. A private CA is trusted beside the public ones.

mod access;
mod classify;
mod config;
mod conn;
mod connector;
pub mod defaults;
mod direct;
mod endpoints;
mod error;
mod executor;
mod follow;
mod greeting;
mod health;
mod holders;
mod manager;
mod pool;
mod primary;
mod reads;
mod role;
mod scout;
mod session;
mod statement;
mod topology;
mod track;
mod tuning;
mod tx;
mod url;
mod wal;

pub use resilience_core::settings::ConfigError;

pub use classify::PgClassifier;
pub use config::{DatabaseConfig, DatabaseConfigBuilder};
pub use conn::Conn;
pub use error::{Error, Exhausted, SqlError, Unreachable};
pub use holders::{CallSite, Holder};
pub use manager::DatabaseManager;
pub use role::{ReadFrom, TargetSessionAttrs, UnknownWord};
pub use session::Session;
pub use tx::Tx;
pub use wal::{WalPosition, WalPositionError};
