//! Reading what was written, from wherever it has arrived.

use std::future::Future;

use resilience_core::{Call, CallError};

use crate::conn::Conn;
use crate::error::Error;
use crate::holders::CallSite;
use crate::manager::DatabaseManager;
use crate::pool::Want;
use crate::wal::WalPosition;

/// Written is less than inserted where a commit does not wait for the disk.
const POSITION: &str = "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8";

impl DatabaseManager {
    /// How far the primary has written by now: [`read_after`](Self::read_after) with it sees every write that
    /// was acknowledged before this was called, whoever made it. One round trip to the primary.
    ///
    /// ```no_run
    /// # async fn example(db: conn_postgres::DatabaseManager) -> Result<(), Box<dyn std::error::Error>> {
    /// sqlx::query("INSERT INTO donors (name) VALUES ('Ada')").execute(&db).await?;
    /// let written = db.wal_position().await?;
    /// let donors: i64 = db
    ///     .read_after(written, async |mut conn: conn_postgres::Conn| {
    ///         Ok(sqlx::query_scalar("SELECT count(*) FROM donors").fetch_one(&mut conn).await?)
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Why the primary did not tell: it could not be reached, or connections go to standbys
    /// (`target_session_attrs`), which have no position of their own.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    #[track_caller]
    pub fn wal_position(
        &self,
    ) -> impl Future<Output = Result<WalPosition, CallError<Error>>> + Send {
        let ask = async |mut conn: Conn| {
            let bytes: i64 = sqlx::query_scalar(POSITION).fetch_one(&mut conn).await?;
            Ok(WalPosition::from(bytes.cast_unsigned()))
        };
        self.run(Call::read().named("wal_position"), Want::Primary, CallSite::here(), ask)
    }

    /// [`read`](DatabaseManager::read) that sees at the least what lies before `position`: from a replica
    /// that has replayed it, where reads go to replicas; where none does within 50 ms, from the primary.
    ///
    /// # Errors
    ///
    /// The closure's last error, or why it was not called.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the closure's; its connection is closed if work was left undone.
    #[track_caller]
    pub fn read_after<T, F, Fut>(
        &self,
        position: WalPosition,
        f: F,
    ) -> impl Future<Output = Result<T, CallError<Error>>>
    where
        F: Fn(Conn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.run(Call::read(), Want::Replica(position), CallSite::here(), f)
    }
}
