//! What an error means: whose fault it is, and whether doing it again is safe.

use std::time::Duration;

/// The meaning of one error for the breaker, the retry and the fallback.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Whose fault it is.
    pub blame: Blame,
    /// Whether the operation may be sent again.
    pub replay: Replay,
    /// The soonest another try is worth making, where the service or its protocol says so.
    pub retry_after: Option<Duration>,
}

impl Verdict {
    /// The service failed: the breaker counts it.
    #[must_use]
    pub const fn service(replay: Replay) -> Self {
        Self { blame: Blame::Service, replay, retry_after: None }
    }

    /// The service answered as it should; what was asked of it was wrong. The breaker counts a success.
    #[must_use]
    pub const fn caller(replay: Replay) -> Self {
        Self { blame: Blame::Caller, replay, retry_after: None }
    }

    /// This process is in trouble, not the service: the breaker counts nothing.
    #[must_use]
    pub const fn local(replay: Replay) -> Self {
        Self { blame: Blame::Local, replay, retry_after: None }
    }

    /// The same verdict with a floor for the delay before another try.
    #[must_use]
    pub const fn after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// Whether an operation that ended so may be sent again.
    #[must_use]
    pub const fn may_repeat(&self, idempotent: bool) -> bool {
        match self.replay {
            Replay::Safe | Replay::Transaction => true,
            Replay::IfIdempotent => idempotent,
            Replay::Never => false,
        }
    }
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Blame {
    /// The request was wrong, and the service said so: it is alive.
    Caller,
    /// The service, or the way to it.
    Service,
    /// This process: its pool, its runtime, its file descriptors.
    Local,
}

/// Whether an operation may be sent again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Replay {
    /// It was not executed.
    Safe,
    /// It was rolled back as a whole: run the transaction again.
    Transaction,
    /// It may or may not have been executed.
    IfIdempotent,
    /// Doing it again changes nothing, or nothing for the better.
    Never,
}

impl Replay {
    /// The same of an operation that may have been executed after all.
    pub(crate) const fn or_uncertain(self) -> Self {
        match self {
            Self::Safe | Self::Transaction | Self::IfIdempotent => Self::IfIdempotent,
            Self::Never => Self::Never,
        }
    }
}

/// Reads errors of type `E`. Each connector has one; any `Fn(&E) -> Verdict` is one too.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say what an error of type `{E}` means",
    note = "pass `AnyError`, or a closure `|error: &{E}| -> Verdict`"
)]
pub trait Classify<E> {
    /// What `error` means.
    fn verdict(&self, error: &E) -> Verdict;
}

impl<E, F: Fn(&E) -> Verdict> Classify<E> for F {
    fn verdict(&self, error: &E) -> Verdict {
        self(error)
    }
}

/// Takes every error for a failure of the service after which nobody knows what was executed.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyError;

impl<E> Classify<E> for AnyError {
    fn verdict(&self, _: &E) -> Verdict {
        Verdict::service(Replay::IfIdempotent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uncertain_write_is_repeated_only_when_marked_idempotent() {
        let uncertain = Verdict::service(Replay::IfIdempotent);
        assert!(!uncertain.may_repeat(false));
        assert!(uncertain.may_repeat(true));
        assert!(Verdict::service(Replay::Safe).may_repeat(false));
        assert!(Verdict::caller(Replay::Transaction).may_repeat(false));
        assert!(!Verdict::caller(Replay::Never).may_repeat(true));
    }
}
