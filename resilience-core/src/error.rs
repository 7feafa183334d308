//! Why a call did not succeed, and when to come back.

use std::convert::Infallible;
use std::time::Duration;

use crate::{Blame, Name, Replay, Shed, Throttled, Verdict};

/// Why a call did not succeed.
///
/// ```
/// use resilience_core::CallError;
///
/// fn status<E>(error: &CallError<E>) -> u16 {
///     if error.is_unavailable() { 503 } else { 400 }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError<E> {
    /// The circuit is open; the service was not called.
    #[error(transparent)]
    CircuitOpen(#[from] CircuitOpen),
    /// The call's time was over before any attempt had an answer.
    #[error(transparent)]
    DeadlineExceeded(#[from] DeadlineExceeded),
    /// The last attempt took longer than one attempt may.
    #[error(transparent)]
    AttemptTimeout(#[from] AttemptTimeout),
    /// Too many calls are in flight already; the service was not called.
    #[error(transparent)]
    BulkheadFull(#[from] BulkheadFull),
    /// The share of calls that the service would not accept; it was not called.
    #[error(transparent)]
    Throttled(#[from] Throttled),
    /// More calls than may be made in the time; the service was not called.
    #[error(transparent)]
    RateLimited(#[from] RateLimited),
    /// There is more to do than can be done, and this call matters too little; nothing was called.
    #[error(transparent)]
    Shed(#[from] Shed),
    /// A fault that chaos put in place of an answer; the service was not called.
    #[error(transparent)]
    Injected(#[from] Injected),
    /// The manager takes no new work.
    #[error(transparent)]
    Draining(#[from] Draining),
    /// The last real error of the operation.
    #[error(transparent)]
    Inner(Failed<E>),
}

impl<E> CallError<E> {
    /// The soonest another try is worth making, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::CircuitOpen(open) => Some(open.retry_after),
            Self::RateLimited(limited) => Some(limited.retry_after),
            Self::Shed(shed) => Some(shed.retry_after),
            Self::BulkheadFull(_)
            | Self::DeadlineExceeded(_)
            | Self::AttemptTimeout(_)
            | Self::Throttled(_)
            | Self::Injected(_)
            | Self::Draining(_) => None,
            Self::Inner(failed) => failed.verdict.retry_after,
        }
    }

    /// Whether the service could not be had, as against having refused the request:
    /// what a fallback is for, and what HTTP calls 503.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::CircuitOpen(_)
            | Self::DeadlineExceeded(_)
            | Self::AttemptTimeout(_)
            | Self::BulkheadFull(_)
            | Self::Throttled(_)
            | Self::RateLimited(_)
            | Self::Shed(_)
            | Self::Injected(_)
            | Self::Draining(_) => true,
            Self::Inner(failed) => failed.verdict.blame != Blame::Caller,
        }
    }

    /// The operation's own error, if it came to that.
    #[must_use]
    pub fn inner(&self) -> Option<&E> {
        match self {
            Self::Inner(failed) => Some(&failed.error),
            _ => None,
        }
    }

    /// Attempts made, as far as it tells.
    pub(crate) fn attempts(&self) -> u32 {
        match self {
            Self::DeadlineExceeded(over) => over.attempts,
            Self::AttemptTimeout(timeout) => timeout.attempts,
            Self::Inner(failed) => failed.attempts,
            Self::CircuitOpen(_)
            | Self::BulkheadFull(_)
            | Self::Throttled(_)
            | Self::RateLimited(_)
            | Self::Shed(_)
            | Self::Injected(_)
            | Self::Draining(_) => 0,
        }
    }

    /// The same failure with the operation's own error turned into another type.
    pub fn map_inner<F>(self, f: impl FnOnce(E) -> F) -> CallError<F> {
        let mapped = |Failed { error, verdict, attempts, elapsed }| {
            let error = f(error);
            Err::<Infallible, _>(CallError::Inner(Failed { error, verdict, attempts, elapsed }))
        };
        match self.or_else_inner(mapped) {
            Err(error) => error,
        }
    }

    /// The same failure, or what `f` makes of the operation's own.
    pub(crate) fn or_else_inner<T, F>(
        self,
        f: impl FnOnce(Failed<E>) -> Result<T, CallError<F>>,
    ) -> Result<T, CallError<F>> {
        Err(match self {
            Self::CircuitOpen(e) => CallError::CircuitOpen(e),
            Self::DeadlineExceeded(e) => CallError::DeadlineExceeded(e),
            Self::AttemptTimeout(e) => CallError::AttemptTimeout(e),
            Self::BulkheadFull(e) => CallError::BulkheadFull(e),
            Self::Throttled(e) => CallError::Throttled(e),
            Self::RateLimited(e) => CallError::RateLimited(e),
            Self::Shed(e) => CallError::Shed(e),
            Self::Injected(e) => CallError::Injected(e),
            Self::Draining(e) => CallError::Draining(e),
            Self::Inner(failed) => return f(failed),
        })
    }
}

/// The operation's last error, what it means, and what it cost.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failed<E> {
    /// The error itself. It stands in for its own `source`, so that nothing is printed twice.
    pub error: E,
    /// What it means.
    pub verdict: Verdict,
    /// Attempts that the whole call began, 1 or more: those of its hedges are counted with the others (see
    /// [`Attempt::number`](crate::Attempt::number)), and so is one that was cut off. Where a single layer made the call, 1.
    pub attempts: u32,
    /// Time from the call to this answer; `None` where a single layer made it, for which none reads the clock.
    pub elapsed: Option<Duration>,
}

/// The circuit is open; the service was not called.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("circuit {name:?} is open; retry in {retry_after:?}")]
#[non_exhaustive]
pub struct CircuitOpen {
    /// The breaker's name.
    pub name: Name,
    /// The soonest another try is worth making.
    pub retry_after: Duration,
}

/// The call's time was over before any attempt had an answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("deadline of the call to {name:?} exceeded after {elapsed:?} and {attempts} attempts")]
#[non_exhaustive]
pub struct DeadlineExceeded {
    /// The pipeline's name.
    pub name: Name,
    /// Attempts made, those of hedges among them; 0 where the deadline had passed before the first.
    pub attempts: u32,
    /// Time from the call to this answer.
    pub elapsed: Duration,
    /// Whose fault it is: [`Blame::Local`] where this process stood still for a good part of it, or the
    /// time was over before the service was asked.
    pub blame: Blame,
}

/// The last attempt took longer than one attempt may.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("attempt {attempts} on {name:?} had no answer within {limit:?}")]
#[non_exhaustive]
pub struct AttemptTimeout {
    /// The pipeline's name.
    pub name: Name,
    /// Attempts made, this one included, and those of hedges.
    pub attempts: u32,
    /// The time it was given.
    pub limit: Duration,
    /// Whose fault it is: [`Blame::Local`] where this process stood still for a good part of it.
    pub blame: Blame,
}

/// Too many calls are in flight already; the service was not called.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("all {limit} places of bulkhead {name:?} are taken, {reason}")]
#[non_exhaustive]
pub struct BulkheadFull {
    /// The bulkhead's name.
    pub name: Name,
    /// How many calls may be in flight.
    pub limit: usize,
    /// Why it did not get one of the places that come free.
    pub reason: FullReason,
}

/// Why a call did not get one of the places that come free.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FullReason {
    /// As many waited already as may.
    #[error("and so is its queue")]
    QueueFull,
    /// None came free within the time it had.
    #[error("and none came free in time")]
    TimedOut,
}

/// So many calls are made in this time already; the service was not called.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("rate limit of {name:?} reached; retry in {retry_after:?}")]
#[non_exhaustive]
pub struct RateLimited {
    /// The limiter's name.
    pub name: Name,
    /// The soonest another try is worth making.
    pub retry_after: Duration,
}

/// A fault that chaos put in place of an answer; the service was not called.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("chaos {name:?} failed the attempt; the service was not called")]
#[non_exhaustive]
pub struct Injected {
    /// The chaos' name.
    pub name: Name,
}

impl Injected {
    /// What it means: it stands for a failure of the service, and nothing was executed.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        Verdict::service(Replay::Safe)
    }
}

/// The manager takes no new work: it is being drained.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{name:?} is draining and takes no new calls")]
#[non_exhaustive]
pub struct Draining {
    /// The pipeline's name.
    pub name: Name,
}

/// A setting that cannot be built.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field} is {value}; allowed: {allowed}")]
#[non_exhaustive]
pub struct InvalidSetting {
    /// The setting's name.
    pub field: &'static str,
    /// What it holds.
    pub value: String,
    /// What it may hold.
    pub allowed: &'static str,
}

impl InvalidSetting {
    pub(crate) fn new(
        field: &'static str,
        value: impl std::fmt::Debug,
        allowed: &'static str,
    ) -> Self {
        Self { field, value: format!("{value:?}"), allowed }
    }
}

/// For what cannot be invalid where a setting may come in either form.
impl From<Infallible> for InvalidSetting {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(verdict: Verdict) -> CallError<std::fmt::Error> {
        CallError::Inner(Failed { error: std::fmt::Error, verdict, attempts: 1, elapsed: None })
    }

    #[test]
    fn a_refused_request_is_not_an_outage() {
        assert!(!inner(Verdict::caller(Replay::Never)).is_unavailable());
        assert!(inner(Verdict::service(Replay::Safe)).is_unavailable());
        assert!(inner(Verdict::local(Replay::Safe)).is_unavailable());
    }

    #[test]
    fn an_open_circuit_says_when_to_come_back() {
        let open = CircuitOpen { name: "db".into(), retry_after: Duration::from_secs(7) };
        let error: CallError<std::fmt::Error> = open.into();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(error.to_string(), "circuit \"db\" is open; retry in 7s");
    }

    #[test]
    fn the_cause_is_printed_once() {
        let error = inner(Verdict::service(Replay::Safe));
        assert_eq!(error.to_string(), std::fmt::Error.to_string());
        assert!(std::error::Error::source(&error).is_none());
    }
}
