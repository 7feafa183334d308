//! A borrowed connection: transactions on it, the driver's own one inside it, and whether it may be handed on.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Database, Executor, PgConnection, Postgres, Row};
use sqlx_core::transaction::TransactionManager;
use tokio::time::{Instant, timeout};

use crate::classify::Phase;
use crate::connector::Opened;
use crate::error::Error;
use crate::pgbouncer::Bounced;
use crate::statement::Statement;
use crate::track::Track;

type Transactions = <Postgres as Database>::TransactionManager;

/// A borrowed connection. `&mut` of it is a sqlx [`Executor`](sqlx::Executor).
///
/// It is what a [`Conn`](crate::Conn) and a [`Tx`](crate::Tx) dereference to, so that sqlx's idioms
/// `&mut *conn` and `&mut *tx` go on working.
///
/// Statements that begin or end a transaction are refused; those that change the session (`SET`,
/// `LISTEN`, temporary tables) cost the connection when it comes back. A stream dropped before its end, or a
/// statement whose future was dropped, costs it too. A setting changed from within a function
/// (`set_config`) and a session's advisory lock are not seen: undo them, or call
/// [`retire`](Self::retire).
pub struct Session {
    pub(crate) raw: PgConnection,
    pub(crate) track: Track,
    /// There where PgBouncer is on the way.
    pub(crate) bounced: Option<Box<Bounced>>,
}

impl Session {
    pub(crate) fn new(opened: Opened, dies_at: Instant) -> Self {
        let Opened { raw, greeting, origin, epoch, behind_pgbouncer } = opened;
        let bounced = behind_pgbouncer.then(Box::default);
        Self { raw, track: Track::new(origin, epoch, greeting, dies_at), bounced }
    }

    /// Lends the driver's own connection, for what has no other way: COPY, or sqlx's own transactions.
    ///
    /// A closure that fails, is cancelled, or leaves a transaction open or a COPY unread costs the connection;
    /// to make sure costs two round trips, one within a transaction. Settings and locks that it leaves in the
    /// session are its own to undo, or [`retire`](Self::retire) the connection; subscriptions are ended for it.
    /// Within a transaction, it must not end that.
    ///
    /// # Errors
    ///
    /// Those of the closure; that the connection was lost; [`Error::Unfinished`] on a connection whose
    /// last statement was abandoned.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future costs the connection; nobody else sees what was under way.
    pub async fn raw<T>(
        &mut self,
        f: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let Self { raw, track, .. } = self;
        let in_transaction = track.in_transaction;
        let work = async move {
            let value = f(&mut *raw).await?;
            if !in_transaction {
                reject_open_transaction(raw).await?;
            }
            // An answer also proves that a transaction has not failed unnoticed.
            reject_unread_answer(raw).await?;
            Ok(value)
        };
        let result = track.watch(Statement::opaque(), work).await;
        if result.is_err() {
            track.busy = true;
        }
        Ok(result?)
    }

    /// Closes the connection when it comes back, instead of handing it on.
    pub fn retire(&mut self) {
        self.track.retired = true;
    }

    pub(crate) async fn begin(&mut self) -> Result<(), Error> {
        let Self { raw, track, .. } = self;
        if track.in_transaction {
            return Err(Error::TransactionControl("BEGIN within a transaction"));
        }
        // BEGIN alone has no effect: where it fails, nothing was done.
        let result = track.end(Phase::Unsent, Transactions::begin(raw, None)).await;
        match result {
            Ok(()) => (track.in_transaction, track.failed) = (true, false),
            // A failed BEGIN may have opened the transaction all the same.
            Err(_) => track.busy = true,
        }
        Ok(result?)
    }

    pub(crate) async fn commit(&mut self) -> Result<(), Error> {
        if !self.track.in_transaction && !self.track.busy {
            // The closure has ended it already, one way or the other.
            return Ok(());
        }
        if self.track.failed {
            // The server would answer COMMIT with ROLLBACK, which sqlx takes for success.
            self.rollback().await?;
            return Err(Error::Aborted);
        }
        let Self { raw, track, .. } = self;
        let result = track.end(Phase::Commit, Transactions::commit(raw)).await;
        match &result {
            Ok(()) => {
                track.in_transaction = false;
                track.effect = true;
            }
            // Refused: the server has rolled back, which the driver does not count.
            Err(_) if !track.busy => self.rollback_now(),
            Err(_) => {}
        }
        result.map_err(|error| self.track.explain(error))
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), Error> {
        let Self { raw, track, .. } = self;
        if track.busy || !track.in_transaction {
            // A busy connection goes no further, and the server rolls back when it closes.
            return Ok(());
        }
        let cause = track.struck.take();
        let result = track.end(Phase::Transaction, Transactions::rollback(raw)).await;
        if result.is_ok() {
            (track.in_transaction, track.failed) = (false, false);
        }
        // Why it is rolled back matters more than that this failed too.
        track.struck = cause.or(track.struck.take());
        result.map_err(|error| track.explain(error))
    }

    /// Rolls back with one write that does not wait; the answer is read by whoever uses the connection next.
    /// If the write did not go out whole, the connection is not used again.
    pub(crate) fn rollback_now(&mut self) {
        let Self { raw, track, .. } = self;
        if track.busy || !track.in_transaction {
            return;
        }
        Transactions::start_rollback(raw);
        let flushed = pin!(raw.flush()).poll(&mut Context::from_waker(Waker::noop()));
        match matches!(flushed, Poll::Ready(Err(_))) || raw.should_flush() {
            true => track.busy = true,
            false => (track.in_transaction, track.failed) = (false, false),
        }
    }

    /// Whether the server answers on this connection within `limit`.
    pub(crate) async fn answers(&mut self, limit: Duration) -> bool {
        let Self { raw, track, .. } = self;
        let ping = track.watch(Statement::harmless(), raw.ping());
        timeout(limit, ping).await.is_ok_and(|answer| answer.is_ok())
    }

    /// Whether the connection has not broken, as far as was seen.
    pub(crate) fn is_alive(&self) -> bool {
        !self.track.is_lost()
    }

    /// Whether the next borrower would find nothing of this one.
    pub(crate) fn is_clean(&self) -> bool {
        let Track { busy, in_transaction, retired, .. } = self.track;
        !busy && !in_transaction && !retired && !self.raw.is_in_transaction()
    }

    /// Says goodbye with one write that does not wait, and closes the socket.
    pub(crate) fn close(self) {
        let _ = pin!(self.raw.close()).poll(&mut Context::from_waker(Waker::noop()));
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Track { busy, in_transaction, .. } = &self.track;
        f.debug_struct("Session")
            .field("endpoint", &self.track.endpoint())
            .field("backend", &self.track.greeting.backend)
            .field("busy", busy)
            .field("in_transaction", in_transaction)
            .finish_non_exhaustive()
    }
}

/// Fails if a transaction is open, sound or failed.
async fn reject_open_transaction(raw: &mut PgConnection) -> Result<(), sqlx::Error> {
    let left_open = || Err(sqlx::Error::Protocol("a transaction was left open".to_owned()));
    if raw.is_in_transaction() {
        return left_open();
    }
    // The driver's begin() is the one place where it tells the server's state: it fails with
    // `BeginFailed` where its statement has left no transaction open. A failed transaction refuses
    // the statement itself.
    let statement = sqlx::SqlSafeStr::into_sql_str("UNLISTEN *");
    match Transactions::begin(raw, Some(statement)).await {
        Err(sqlx::Error::BeginFailed) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => left_open(),
    }
}

/// Fails if the next answer is not that to the next question: the driver keeps no count of a COPY that was
/// not read to its end.
async fn reject_unread_answer(raw: &mut PgConnection) -> Result<(), sqlx::Error> {
    let number = fastrand::i64(..);
    let question = sqlx::raw_sql(AssertSqlSafe(format!("SELECT '{number}'::int8")));
    match raw.fetch_optional(question).await?.map(|row| row.try_get::<i64, _>(0)) {
        Some(Ok(answer)) if answer == number => Ok(()),
        _ => Err(sqlx::Error::Protocol("an answer was left unread".to_owned())),
    }
}
