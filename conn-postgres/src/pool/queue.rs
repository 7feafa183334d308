//! The wait for a place, first come, first served, and why it may have been in vain.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use resilience_core::{Deadline, Event, emit};
use tokio::sync::TryAcquireError;
use tokio::time::{Instant, timeout_at};

use super::{Place, Pool};
use crate::error::{Error, Exhausted, Unreachable};
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
