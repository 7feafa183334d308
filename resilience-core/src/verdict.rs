//! What an error means: whose fault it is, and whether doing it again is safe.

use std::time::Duration;

/// The meaning of one error for the breaker, the retry and the fallback.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Replay, Verdict};
///
/// // It had no time for the request, did nothing, and says when to come back.
/// let busy = Verdict::service(Replay::Safe).after(Duration::from_secs(2));
/// assert!(busy.may_repeat(false));
/// // The connection broke after the request was sent: only what may be done twice is sent again.
/// let broken = Verdict::service(Replay::IfIdempotent);
/// assert_eq!((broken.may_repeat(true), broken.may_repeat(false)), (true, false));
/// ```
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

/// Whose fault an error is: what a breaker counts against the service, and what a fallback stands in for.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::io;
/// use resilience_core::{Blame, CircuitBreaker, Replay, Verdict};
///
/// let breaker = CircuitBreaker::builder("mail").fail_max(1).build()?;
/// for (blame, opens) in [(Blame::Caller, false), (Blame::Local, false), (Blame::Service, true)] {
///     let classifier = |_: &io::Error| Verdict { blame, replay: Replay::Never, retry_after: None };
///     let failing = || async { Err::<(), _>(io::Error::other("not sent")) };
///     let error = breaker.call_with(&classifier, failing).await.unwrap_err();
///     // Where the service refused the request, another answer would be a wrong one.
///     assert_eq!(error.is_unavailable(), blame != Blame::Caller);
///     assert_eq!(breaker.state().is_open(), opens);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Blame {
    /// The request was wrong, and the service said so: it is alive.
    Caller,
    /// The service, or the way to it.
    Service,
    /// This process: its pool, its runtime, its file descriptors.
    Local,
}

/// Whether an operation may be sent again, given what is known of its first execution.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resilience_core::{Call, Pipeline, Replay, RetryPolicy, Verdict};
///
/// let ledger = Pipeline::builder("ledger").retry(RetryPolicy::builder().max_retries(1).build()?).build()?;
/// // How often what always fails is sent: as a write, and as one that may be done twice.
/// for (replay, expected) in [
///     (Replay::Safe, [2, 2]),
///     (Replay::Transaction, [2, 2]),
///     (Replay::IfIdempotent, [1, 2]),
///     (Replay::Never, [1, 1]),
/// ] {
///     for (call, expected) in [Call::write(), Call::write_idempotent()].into_iter().zip(expected) {
///         let classifier = |_: &std::fmt::Error| Verdict::service(replay);
///         let mut sent = 0;
///         let book = |_| {
///             sent += 1;
///             async { Err::<(), _>(std::fmt::Error) }
///         };
///         ledger.run(call, &classifier, book).await.unwrap_err();
///         assert_eq!(sent, expected);
///     }
/// }
/// # Ok(()) }
/// ```
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
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Blame, Classify, Replay, Verdict};
///
/// enum MailError {
///     NoSuchAddress,
///     Busy(Duration),
///     Disconnected,
/// }
///
/// struct MailClassifier;
///
/// impl Classify<MailError> for MailClassifier {
///     fn verdict(&self, error: &MailError) -> Verdict {
///         match error {
///             MailError::NoSuchAddress => Verdict::caller(Replay::Never),
///             MailError::Busy(wait) => Verdict::service(Replay::Safe).after(*wait),
///             MailError::Disconnected => Verdict::service(Replay::IfIdempotent),
///         }
///     }
/// }
///
/// assert_eq!(MailClassifier.verdict(&MailError::NoSuchAddress).blame, Blame::Caller);
/// assert!(MailClassifier.verdict(&MailError::Busy(Duration::ZERO)).may_repeat(false));
/// // As a closure:
/// let closure = |_: &MailError| Verdict::service(Replay::IfIdempotent);
/// assert!(!closure.verdict(&MailError::Disconnected).may_repeat(false));
/// ```
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
