//! A borrowed connection, and its way back.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use resilience_core::{Event, emit};
use tokio::time::Instant;

use crate::error::Error;
use crate::pool::Place;
use crate::session::Session;
use crate::track::Report;
use crate::tx::Tx;

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
    session: Option<Session>,
    place: Place,
    lent_at: Instant,
    report: Option<Arc<Report>>,
}

impl Conn {
    pub(crate) fn new(session: Session, place: Place, lent_at: Instant) -> Self {
        Self { session: Some(session), place, lent_at, report: None }
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
        self.place.pool().give_back(session, now);
        emit(&Event::ConnectionReleased { pool: self.place.pool().name(), used });
    }
}
