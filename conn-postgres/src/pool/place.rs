//! A place in the pool: the right to hold one connection, and the way back for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Pool;
use crate::holders::{CallSite, Holder, Ticket};
use crate::session::Session;

/// The right to hold one connection, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    pool: Arc<Pool>,
    /// There while a connection is held.
    pub(super) ticket: Option<Ticket>,
}

impl Place {
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        Self { pool: Arc::clone(pool), ticket: None }
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Counts as holding a connection from now on.
    pub(crate) fn hold(&mut self, now: Instant, taken: CallSite) {
        self.ticket = Some(self.pool.shelf().holders.enter(now, taken));
    }

    /// Gives the connection back: idle if it may be used on and there is room, else closed.
    pub(crate) fn give_back(&mut self, mut session: Box<Session>, now: Instant) {
        let pool = &*self.pool;
        let (is_clean, is_current) = (session.is_clean(), session.track.is_current(now));
        if is_clean && pool.troubled.load(Ordering::Relaxed) {
            pool.settle_trouble(None);
        }
        let may_stay = is_clean && is_current;
        if may_stay {
            session.track.renew(now);
        }
        let (late, surplus) = {
            let mut shelf = pool.shelf();
            let late = self.ticket.take().and_then(|ticket| shelf.holders.leave(ticket, now));
            (late, if may_stay { shelf.put(session) } else { Some(session) })
        };
        pool.tell_the_return(late);
        let Some(session) = surplus else { return };
        match is_clean {
            true => session.close(),
            false => {
                tracing::debug!(target: "shared_external::postgres", pool = %pool.name, ?session, "connection discarded");
                if let Some(origin) = session.track.silent_origin() {
                    self.pool.await_comeback(origin);
                }
                let cut = session.track.cut();
                drop(session);
                if let Some(cut) = cut {
                    pool.canceller.cancel(cut, pool.is_closed());
                }
            }
        }
        if !is_current {
            pool.sweep(now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let late = self.pool.shelf().holders.leave(ticket, Instant::now());
            self.pool.tell_the_return(late);
        }
        self.pool.places.add_permits(1);
    }
}

impl Pool {
    /// Tells of one that was told to be late, and is back.
    fn tell_the_return(&self, late: Option<Holder>) {
        if let Some(Holder { held, taken }) = late {
            tracing::info!(target: "shared_external::postgres", pool = %self.name, %taken, ?held, "a connection that was held for longer than leak_threshold is back");
        }
    }
}
