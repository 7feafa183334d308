//! The limit on attempts in flight: a fixed one, or one that follows what the service can take.

use std::time::Duration;

use tokio::time::Instant;

use crate::bulkhead::LentPlace;
use crate::{AdaptiveLimit, AdaptivePlace, Bulkhead, BulkheadFull, Deadline, Outcome};

/// How many attempts may be in flight.
#[derive(Debug)]
pub(super) enum Limit {
    Fixed(Bulkhead),
    Adaptive(AdaptiveLimit),
}

impl Limit {
    /// The most that may ever be in flight.
    pub(super) fn most(&self) -> usize {
        match self {
            Self::Fixed(bulkhead) => bulkhead.limit(),
            Self::Adaptive(limit) => limit.max(),
        }
    }

    /// The longest wait for a place.
    pub(super) fn wait(&self) -> Duration {
        match self {
            Self::Fixed(bulkhead) => bulkhead.wait(),
            Self::Adaptive(limit) => limit.wait(),
        }
    }

    #[inline]
    pub(super) fn try_acquire(&self) -> Option<Taken<'_>> {
        match self {
            Self::Fixed(bulkhead) => bulkhead.try_lend().map(Taken::Fixed),
            Self::Adaptive(limit) => limit.try_acquire().map(Taken::Adaptive),
        }
    }

    pub(super) async fn acquire(&self, deadline: Deadline) -> Result<Taken<'_>, BulkheadFull> {
        match self {
            Self::Fixed(bulkhead) => bulkhead.lend(deadline).await.map(Taken::Fixed),
            Self::Adaptive(limit) => limit.acquire(deadline).await.map(Taken::Adaptive),
        }
    }
}

/// One attempt's place.
pub(super) enum Taken<'a> {
    Fixed(#[expect(dead_code, reason = "it is held, not read")] LentPlace<'a>),
    Adaptive(AdaptivePlace<'a>),
}

impl Taken<'_> {
    /// Gives the place back. Of what the attempt tells of the service's load, `started` at an instant,
    /// an adaptive limit learns.
    #[inline]
    pub(super) fn settle(self, load: Outcome, started: Instant) {
        match self {
            Self::Fixed(_) => {}
            Self::Adaptive(place) => place.settle(load, started.elapsed()),
        }
    }
}
