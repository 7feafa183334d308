//! What observers are told of a call, however it ends.

use std::sync::atomic::{AtomicU32, Ordering};
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
    pub(super) outcome: CallOutcome,
}

impl<'a> Record<'a> {
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
            outcome: CallOutcome::Cancelled,
        }
    }

    pub(super) fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// The number of one more attempt, from 1.
    pub(super) fn next_attempt(&self) -> u32 {
        self.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn deadline_exceeded(&self, blame: Blame) -> DeadlineExceeded {
        DeadlineExceeded {
            name: self.name.clone(),
            attempts: self.attempts(),
            elapsed: self.started.elapsed(),
            blame,
        }
    }

    pub(super) fn end<T, E>(&mut self, result: &Result<T, CallError<E>>) {
        self.outcome = match result {
            Ok(_) => CallOutcome::Success,
            Err(CallError::CircuitOpen(_)) => CallOutcome::CircuitOpen,
            Err(
                CallError::DeadlineExceeded(DeadlineExceeded { blame: Blame::Local, .. })
                | CallError::AttemptTimeout(crate::AttemptTimeout { blame: Blame::Local, .. }),
            ) => CallOutcome::LocalError,
            Err(CallError::DeadlineExceeded(_) | CallError::AttemptTimeout(_)) => {
                CallOutcome::Timeout
            }
            Err(
                CallError::BulkheadFull(_)
                | CallError::RateLimited(_)
                | CallError::Shed(_)
                | CallError::Throttled(_)
                | CallError::Draining(_),
            ) => CallOutcome::Rejected,
            Err(CallError::Injected(_)) => CallOutcome::ServiceError,
            Err(CallError::Inner(failed)) => match failed.verdict.blame {
                Blame::Caller => CallOutcome::CallerError,
                Blame::Service => CallOutcome::ServiceError,
                Blame::Local => CallOutcome::LocalError,
            },
        };
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        // The clock is read for those who look, and not otherwise.
        if !is_observed()
            && !tracing::enabled!(target: "shared_external::pipeline", tracing::Level::DEBUG)
        {
            return;
        }
        let Self { name, operation, outcome, .. } = *self;
        let (attempts, elapsed) = (self.attempts(), self.started.elapsed());
        tracing::debug!(target: "shared_external::pipeline", %name, operation, outcome = outcome.as_str(), attempts, ?elapsed, "call ended");
        emit(&Event::CallEnded { name, operation, outcome, attempts, elapsed });
    }
}
