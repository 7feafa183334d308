//! Whether an idle connection can be lent as it is, or is asked first, or is closed.

use std::time::Duration;

use resilience_core::Standstill;
use tokio::time::Instant;

use super::Pool;
use crate::session::Session;

/// Time for which this process must have stood still for an idle connection to be asked before it is lent:
/// the end of many at once may have gone by unheard, and each would fail a call.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// Whether an idle connection can be lent.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Fitness {
    /// As it is.
    Good,
    /// If it answers.
    Doubtful,
    /// No longer.
    Over,
}

impl Pool {
    pub(super) fn fitness(&self, session: &Session, now: Instant, is_kept: bool) -> Fitness {
        let track = &session.track;
        let is_unneeded = self.is_unneeded(session, now);
        if !track.is_current(now) || is_unneeded && !is_kept {
            return Fitness::Over;
        }
        let idle = now.saturating_duration_since(track.idle_since);
        // No standstill is longer than the time that it is looked for in.
        let is_doubtful = is_unneeded
            || idle >= self.test_after
            || idle >= SUSPICIOUS && Standstill::since(track.idle_since).time() >= SUSPICIOUS;
        if is_doubtful { Fitness::Doubtful } else { Fitness::Good }
    }

    pub(super) fn is_unneeded(&self, session: &Session, now: Instant) -> bool {
        now.saturating_duration_since(session.track.idle_since) >= self.idle_timeout
    }
}
