//! What observers are told of a call, however it ends.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Call;
use crate::deadline::later;
use crate::observe::{CallOutcome, Event, emit, is_observed};
use crate::{Blame, CallError, Deadline, DeadlineExceeded, Name};

/// A call while it lasts; dropped, it tells observers how it ended.
///
/// Whoever works on the call borrows it, rather than pass instants on from one future to the next.
pub(super) struct Record<'a> {
    name: &'a Name,
    pub(super) operation: &'static str,
    pub(super) idempotent: bool,
    pub(super) started: Instant,
    pub(super) deadline: Deadline,
    /// Attempts made. Hedges count them side by side.
    attempts: AtomicU32,
    /// Those of them that are proven not to have been executed.
    unexecuted: AtomicU32,
    panicked: AtomicBool,
    pub(super) outcome: CallOutcome,
}

impl<'a> Record<'a> {
    #[inline]
    pub(super) fn new(name: &'a Name, call: &Call, time: Duration) -> Self {
        let started = Instant::now();
        let deadline = call.deadline.unwrap_or_else(|| Deadline::at(later(started, time)));
        Self {
            name,
            operation: call.operation,
            idempotent: call.idempotent,
            started,
            deadline: deadline.inherited(),
            attempts: AtomicU32::new(0),
            unexecuted: AtomicU32::new(0),
            panicked: AtomicBool::new(false),
            outcome: CallOutcome::Cancelled,
        }
    }

    #[inline]
    pub(super) fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// The number of one more attempt, from 1.
    #[inline]
    pub(super) fn next_attempt(&self) -> u32 {
        // They take turns on the call's one task, so nobody writes between the two.
        let number = self.attempts() + 1;
        self.attempts.store(number, Ordering::Relaxed);
        number
    }

    /// Notes that an attempt ended, and that nothing is left of what it was to do.
    pub(super) fn was_not_executed(&self) {
        self.unexecuted.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that an attempt panicked.
    pub(super) fn panicked(&self) {
        self.panicked.store(true, Ordering::Relaxed);
    }

    pub(super) fn deadline_exceeded(&self, blame: Blame) -> DeadlineExceeded {
        DeadlineExceeded {
            name: self.name.clone(),
            attempts: self.attempts(),
            elapsed: self.started.elapsed(),
            blame,
        }
    }

    /// Takes note of how the call ended, and lets its last real error speak for all its attempts.
    #[inline]
    pub(super) fn end<E>(&mut self, mut error: Option<&mut CallError<E>>) {
        if let Some(CallError::Inner(failed)) = &mut error {
            failed.attempts = self.attempts();
            failed.elapsed = Some(self.started.elapsed());
            if self.unexecuted.load(Ordering::Relaxed) < failed.attempts {
                failed.verdict.replay = failed.verdict.replay.or_uncertain();
            }
        }
        self.outcome = match error {
            None => CallOutcome::Success,
            Some(CallError::CircuitOpen(_)) => CallOutcome::CircuitOpen,
            Some(
                CallError::DeadlineExceeded(DeadlineExceeded { blame: Blame::Local, .. })
                | CallError::AttemptTimeout(crate::AttemptTimeout { blame: Blame::Local, .. }),
            ) => CallOutcome::LocalError,
            Some(CallError::DeadlineExceeded(_) | CallError::AttemptTimeout(_)) => {
                CallOutcome::Timeout
            }
            Some(
                CallError::BulkheadFull(_)
                | CallError::RateLimited(_)
                | CallError::Shed(_)
                | CallError::Throttled(_)
                | CallError::Draining(_),
            ) => CallOutcome::Rejected,
            Some(CallError::Injected(_)) => CallOutcome::ServiceError,
            Some(CallError::Inner(failed)) => match failed.verdict.blame {
                Blame::Caller => CallOutcome::CallerError,
                Blame::Service => CallOutcome::ServiceError,
                Blame::Local => CallOutcome::LocalError,
            },
        };
    }
    #[cold]
    fn tell(&self) {
        let Self { name, operation, .. } = *self;
        let outcome = match self.panicked.load(Ordering::Relaxed) {
            true => CallOutcome::ServiceError,
            false => self.outcome,
        };
        let (attempts, elapsed) = (self.attempts(), self.started.elapsed());
        tracing::debug!(target: "shared_external::pipeline", %name, operation, outcome = outcome.as_str(), attempts, ?elapsed, "call ended");
        emit(&Event::CallEnded { name, operation, outcome, attempts, elapsed });
    }
}

impl Drop for Record<'_> {
    #[inline]
    fn drop(&mut self) {
        // The clock is read for those who look, and not otherwise.
        if is_observed()
            || tracing::enabled!(target: "shared_external::pipeline", tracing::Level::DEBUG)
        {
            self.tell();
        }
    }
}
