//! The wait for a place, first come, first served, and why it may have been in vain.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use resilience_core::{Deadline, Event, emit};
use tokio::sync::{SemaphorePermit, TryAcquireError};
use tokio::time::{Instant, timeout_at};

use super::{Place, Pool};
use crate::error::{Error, Exhausted, Unreachable};
use crate::holders::CallSite;
use crate::session::Session;
use crate::track::silence;

impl Pool {
    /// A place, if one is free.
    pub(super) fn try_place(self: &Arc<Self>) -> Result<Option<Place>, Error> {
        match self.places.try_acquire() {
            Ok(permit) => {
                permit.forget();
                Ok(Some(Place::new(self)))
            }
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(self.refusal()),
        }
    }

    /// The next place that is free, for whoever has waited since `started`.
    pub(super) async fn queue(
        self: &Arc<Self>,
        deadline: Deadline,
        started: Instant,
    ) -> Result<Place, Error> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _queued = Queued(self);
        match timeout_at(deadline.instant(), self.places.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(Place::new(self))
            }
            Ok(Err(_)) => Err(self.refusal()),
            Err(_) => Err(self.waited_in_vain(started)),
        }
    }

    /// Waits for a primary, as long as for a place, and then for a turn to connect to it: all at once would keep
    /// each other, and a server that has just been promoted, busy for longer than their work takes.
    pub(super) async fn turn(
        self: &Arc<Self>,
        deadline: Deadline,
    ) -> Result<SemaphorePermit<'_>, Error> {
        self.ensure_scout();
        let patience = Deadline::within(self.acquire_timeout).min(deadline);
        let topology = self.connector.topology();
        if topology.primary_by(patience).await
            && let Ok(turn) = timeout_at(deadline.instant(), self.turns.acquire()).await
        {
            return Ok(turn.expect("nobody closes it"));
        }
        let why = topology.why();
        self.settle_trouble(Some(why.clone()));
        Err(why.into())
    }

    /// An idle connection that came back while a turn was waited for.
    pub(super) async fn take_returned(
        self: &Arc<Self>,
        place: &mut Place,
        taken: CallSite,
    ) -> Option<Box<Session>> {
        match self.connector.topology().splits_reads() {
            true => self.take_idle_to(None, place, taken),
            false => self.take_idle(place, Instant::now(), taken).await,
        }
    }

    /// Exhausted, if connections work; else why they do not.
    fn waited_in_vain(&self, started: Instant) -> Error {
        emit(&Event::AcquireTimedOut { pool: &self.name });
        let now = Instant::now();
        let waited = now.saturating_duration_since(started);
        let (in_use, longest) = {
            let holders = &self.shelf().holders;
            (holders.len(), holders.longest(now))
        };
        if let Some(trouble) = &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            return trouble.clone().into();
        }
        if let Some(why) = self.connector.topology().without_primary() {
            // Every place is taken by someone who waits for one.
            return why.into();
        }
        if in_use == 0 {
            // Every place is taken by someone who is still connecting.
            let endpoints = self.connector.endpoints.candidates();
            let label =
                endpoints.first().map_or_else(|| "any endpoint".into(), |it| Arc::clone(&it.label));
            return Unreachable::new(label, silence(waited)).into();
        }
        Exhausted {
            pool: self.name.clone(),
            limit: self.limit,
            in_use,
            waited,
            longest,
            spent: false,
        }
        .into()
    }
}

struct Queued<'a>(&'a Pool);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
