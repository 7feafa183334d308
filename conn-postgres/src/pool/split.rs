//! Where reads go to replicas: idle connections are told apart by where they lead.

use std::sync::Arc;
use std::time::Duration;

use resilience_core::Deadline;
use tokio::time::Instant;

use super::{Fitness, Place, Pool};
use crate::conn::Conn;
use crate::endpoints::Origin;
use crate::error::Error;
use crate::holders::CallSite;
use crate::session::Session;
use crate::wal::WalPosition;

/// How long a reader waits for a replica to replay what it must see: most need a few milliseconds, and the
/// primary has it already.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a connection is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Want {
    /// Whatever the manager's connections are for.
    Primary,
    /// A read that must see what lies before the position; the primary will do.
    Replica(WalPosition),
}

impl Pool {
    /// [`acquire_for`](Self::acquire_for) where idle connections lead to primary and replicas.
    pub(super) async fn acquire_split(
        self: &Arc<Self>,
        want: Want,
        deadline: Deadline,
        taken: CallSite,
    ) -> Result<Conn, Error> {
        let started = Instant::now();
        let mut place = match self.try_place()? {
            Some(place) => place,
            None => {
                let patience = Deadline::at(started + self.acquire_timeout).min(deadline);
                self.queue(patience, started).await?
            }
        };
        let queued = started.elapsed();
        self.ensure_scout();
        if let Some(replica) = self.replica_for(want, deadline).await {
            if let Some(session) = self.take_idle_to(Some(&replica), &mut place, taken) {
                return Ok(self.lend(session, place, Instant::now(), queued, Duration::ZERO));
            }
            self.make_room();
            let opening = Instant::now();
            let share = Deadline::within(deadline.remaining() / 2);
            match self.connector.open_at(&replica, share).await {
                Ok(opened) => {
                    let (session, elapsed) = self.settle_opened(opened, opening);
                    return Ok(self.hold_and_lend(session, place, taken, queued, elapsed));
                }
                // The primary has it as well.
                Err(_) => self.connector.topology().alarm(&replica),
            }
        }
        if let Some(session) = self.take_idle_to(None, &mut place, taken) {
            return Ok(self.lend(session, place, Instant::now(), queued, Duration::ZERO));
        }
        self.make_room();
        self.open(place, deadline, taken, queued).await
    }

    async fn replica_for(&self, want: Want, deadline: Deadline) -> Option<Arc<Origin>> {
        let Want::Replica(position) = want else { return None };
        let topology = self.connector.topology();
        if let Some(replica) = topology.replica(position) {
            return Some(replica);
        }
        if position == WalPosition::default() {
            // Nothing is waited for: there is none, or they lag too far behind.
            return None;
        }
        topology.replica_by(position, Deadline::within(PATIENCE).min(deadline)).await
    }

    /// An idle connection to `replica`; to wherever writes go, if there is none.
    pub(super) fn take_idle_to(
        &self,
        replica: Option<&Arc<Origin>>,
        place: &mut Place,
        taken: CallSite,
    ) -> Option<Box<Session>> {
        let topology = self.connector.topology();
        let primary = match replica {
            None if topology.leads_writers() => Some(topology.primary()?),
            _ => None,
        };
        let now = Instant::now();
        let mut over = Vec::new();
        let found = {
            let mut shelf = self.shelf();
            loop {
                let leads_there = |session: &Session| {
                    let origin = &session.track.origin;
                    replica.or(primary.as_ref()).is_none_or(|wanted| Arc::ptr_eq(origin, wanted))
                };
                let Some(index) = shelf.idle.iter().rposition(|it| leads_there(it)) else {
                    break None;
                };
                let session = shelf.idle.remove(index);
                if self.fitness(&session, now, false) == Fitness::Good {
                    place.ticket = Some(shelf.holders.enter(now, taken));
                    break Some(session);
                }
                // One that lay idle for long is not asked here: another is opened as fast.
                over.push(session);
            }
        };
        for session in over {
            session.close();
        }
        found
    }

    /// Closes the connection that has been idle for longest, if with one more there would be too many.
    fn make_room(&self) {
        let oldest = {
            let idle = &mut self.shelf().idle;
            let is_full = idle.len() > self.places.available_permits();
            is_full.then(|| idle.remove(0))
        };
        if let Some(session) = oldest {
            session.close();
        }
    }

    fn hold_and_lend(
        &self,
        session: Box<Session>,
        mut place: Place,
        taken: CallSite,
        queued: Duration,
        elapsed: Duration,
    ) -> Conn {
        let now = Instant::now();
        place.hold(now, taken);
        self.lend(session, place, now, queued, elapsed)
    }
}
