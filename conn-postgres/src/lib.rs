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
//! A statement cut short on our side is cancelled at the server, by one connection beside the pool that is
//! opened for it and kept for a few seconds; nobody waits for that. Behind it stand the server's own checks,
//! set when a connection is opened: it looks every second whether the connection of a running statement is
//! still there (PostgreSQL 14, on Linux), and gives up a second after the attempt timeout (`statement_timeout`).
//!
//! # A server that falls silent
//!
//! Whatever waits for the server for longer than 0.4 s has it looked at, on a socket of its own: a server that is slow
//! answers, and is left to work; where nobody does, calls in flight end within a second with an error that says so, their
//! places are free at once, idle connections are closed, and the next connect tries the next host first. A look costs the
//! server what a connect costs before the login. It is taken twice a second at the most while no other statement has an
//! answer, and less often for statements that run for minutes. Behind a proxy that answers by itself (PgBouncer), only
//! the proxy is seen.
//!
//! # Credentials and certificates that change
//!
//! [`DatabaseConfigBuilder::credentials`] takes a provider in place of the URL's password; certificate files are
//! read again when they change. A login that the server refuses asks for new ones once before it fails.
//!
//! # Behind PgBouncer
//!
//! In session mode, it is enough that it overlooks what it does not know
//! (`ignore_startup_parameters = extra_float_digits,options`). In transaction mode (`pool_mode = transaction`),
//! say so: `pgbouncer=true` in the URL, `DATABASE_PGBOUNCER=true`, or [`DatabaseConfigBuilder::pgbouncer`]. Then
//!
//! - no statement is cached: each has no name and is parsed anew, and one outside a transaction gets a
//!   transaction of its own (BEGIN and COMMIT: two round trips more; and at first on each connection a savepoint,
//!   another two). What may not run in one (VACUUM,
//!   CREATE INDEX CONCURRENTLY, a procedure that commits) is sent by [`sqlx::raw_sql`]. A stream that is dropped
//!   before its end is rolled back;
//! - no `statement_timeout` is set when a connection is opened. Set it where it lasts:
//!   `ALTER ROLE app SET statement_timeout = '31s'`, or `query_timeout` in `pgbouncer.ini`;
//! - [`listen`](DatabaseManager::listen), [`migrate`](DatabaseManager::migrate) and the driver's `prepare` are
//!   refused: they need the server's own address. What [`raw`](Session::raw) runs is the driver's own, and caches
//!   statements unless each is told not to (`.persistent(false)`, within a transaction);
//! - what changes the session (`SET`, advisory locks, temporary tables) reaches whoever comes next at the server:
//!   use `SET LOCAL` and `pg_advisory_xact_lock`.
//!
//! # Several hosts
//!
//! `postgresql://app:secret@one,two,three/app` names the members of a cluster. Connections go to its primary
//! ([`TargetSessionAttrs`] says so, or otherwise), and reads to its replicas if [`ReadFrom`] says so. The manager
//! looks at each host over a connection of its own, once a second, and every 15 ms from the first sign of trouble
//! until there is a primary. Of two that claim to be it, the one with the higher timeline is; the connections to
//! the other are closed, those that are lent as they come back. A process that runs remembers the highest timeline:
//! one that shall use a cluster that was made anew under the same addresses has to be started again.
//!
//! While there is no primary, what needs one waits for it, holding its place in the pool, for up to
//! `acquire_timeout`; then the error names each host and why it will not do. What was under way when a host was lost
//! is begun again at once, on another connection, if it is proven not to have been executed, or is a read or
//! marked as idempotent. The loss of one host counts for nothing in the breaker; that no other is found in time does. When
//! the primary is another than before, an open circuit is closed: what failed was another server. An autocommitted
//! write that was cut off is an error, as ever: nobody knows whether it took effect.
//!
//! ## A planned switchover
//!
//! Fails nothing that goes through the closures or through `&db`, if the old primary is made read-only before it is stopped:
//!
//! 1. On the primary, `ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf();`. From now on a
//!    write is refused before it has done anything (25006), which makes it wait for the next primary.
//! 2. Wait until nothing is under way there: `SELECT count(*) FROM pg_stat_activity WHERE backend_type =
//!    'client backend' AND state <> 'idle' AND pid <> pg_backend_pid()` is 0. A session in a transaction of before may still write.
//! 3. Stop it with `pg_ctl stop --mode fast`, which hands all that was written to its standbys.
//! 4. Promote the standby. All that waited goes on within a look, and the time to connect.
//! 5. On the old one, which becomes a standby of the new: `ALTER SYSTEM RESET default_transaction_read_only`.
//!
//! Set `acquire_timeout` above the time from the first step to the fourth. It needs `target_session_attrs=read-write`, the default for several hosts. What was taken by
//! [`DatabaseManager::acquire`] or [`DatabaseManager::begin`], and a stream of `&db`, is not begun again: only its owner knows how.
//!
//! # What is read from elsewhere
//!
//! sqlx reads `PGSSLROOTCERT`, `PGSSLCERT`, `PGSSLKEY`, `PGOPTIONS` and `PGUSER` where neither the URL nor our
//! settings say anything. A private CA is trusted beside the public ones.

mod access;
mod cancel;
mod classify;
mod config;
mod conn;
mod connector;
mod cure;
pub mod defaults;
mod direct;
mod endpoints;
mod error;
mod executor;
mod follow;
mod greeting;
mod health;
mod holders;
mod listen;
mod look;
mod manager;
mod pgbouncer;
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
pub use listen::{Heard, Listener};
pub use manager::DatabaseManager;
pub use role::{ReadFrom, TargetSessionAttrs, UnknownWord};
pub use session::Session;
pub use tx::Tx;
pub use wal::{WalPosition, WalPositionError};
