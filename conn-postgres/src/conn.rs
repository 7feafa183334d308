//! A borrowed connection, and its way back.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use resilience_core::{Deadline, Event, emit};
use tokio::time::{Instant, timeout};

use crate::error::Error;
use crate::pool::Place;
use crate::session::Session;
use crate::track::Report;
use crate::tx::Tx;

/// What share of an attempt may go by in our own queue before the rest is too short to judge the server by: a quarter.
const FAIR_WAIT: u32 = 4;

/// A connection borrowed from the manager. Dropping it gives it back.
///
/// It goes back to the pool if nothing is left undone on it; else its socket is closed. Either way its
/// place is free at once, without I/O.
///
/// ```no_run
/// # async fn example(db: conn_postgres::DatabaseManager) -> Result<(), conn_postgres::Error> {
/// let mut conn = db.acquire().await?;
/// sqlx::query("UPDATE campaigns SET open = false WHERE ends < now()").execute(&mut conn).await?;
/// let rows = conn.raw(async |c| {
///     let mut copy = c.copy_in_raw("COPY donors (name) FROM STDIN").await?;
///     copy.send(&b"Ada\nGrace\n"[..]).await?;
///     copy.finish().await
/// });
/// assert_eq!(rows.await?, 2);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Conn {
    /// Taken when it goes back.
    session: Option<Box<Session>>,
    place: Place,
    lent_at: Instant,
    /// How long the borrower waited because of other borrowers.
    queued: Duration,
    report: Option<Arc<Report>>,
}

impl Conn {
    pub(crate) fn new(
        session: Box<Session>,
        place: Place,
        lent_at: Instant,
        queued: Duration,
    ) -> Self {
        Self { session: Some(session), place, lent_at, queued, report: None }
    }

    /// Runs `work` on this connection by `deadline`. Where too little of `in_all` is left because of other
    /// borrowers, running out of it does not count against the server.
    pub(crate) async fn fairly<T, Fut>(
        self,
        in_all: Duration,
        deadline: Deadline,
        work: impl FnOnce(Self) -> Fut,
    ) -> Result<T, Error>
    where
        Fut: Future<Output = Result<T, Error>>,
    {
        let waited = self.queued;
        // Pinned once, for it may be large, and each branch would make room for it.
        let work = pin!(work(self));
        if waited <= in_all / FAIR_WAIT {
            return work.await;
        }
        // A moment before the attempt is cut off, or nobody would hear why.
        let left = deadline.remaining();
        let left = left - (left / 20).min(Duration::from_millis(50));
        timeout(left, work).await.unwrap_or(Err(Error::Starved { waited }))
    }

    /// The same connection, bound to tell how it fared when it goes back.
    pub(crate) fn reporting_to(mut self, report: &Arc<Report>) -> Self {
        self.report = Some(Arc::clone(report));
        self
    }

    /// The same connection, with `limit` as the time for each operation.
    pub(crate) fn limited(mut self, limit: Duration) -> Self {
        self.track.limit = Some(limit);
        self
    }

    /// Begins a transaction on this connection.
    ///
    /// # Errors
    ///
    /// Those of the server; that the connection was lost; [`Error::Unfinished`] on a connection whose
    /// last statement was abandoned.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future costs the connection, since it may have an open transaction by then.
    pub async fn begin(&mut self) -> Result<Tx<'_>, Error> {
        Session::begin(self).await?;
        Ok(Tx::lent(self))
    }
}

impl Deref for Conn {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("only the drop takes it")
    }
}

impl DerefMut for Conn {
    fn deref_mut(&mut self) -> &mut Session {
        self.session.as_mut().expect("only the drop takes it")
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let Some(mut session) = self.session.take() else { return };
        session.rollback_now();
        if let Some(report) = &self.report {
            report.write(&session.track);
        }
        let now = Instant::now();
        let used = now.saturating_duration_since(self.lent_at);
        self.place.give_back(session, now);
        emit(&Event::ConnectionReleased { pool: self.place.pool().name(), used });
    }
}
