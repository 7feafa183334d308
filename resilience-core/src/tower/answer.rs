//! What a service's answer means: over HTTP, a failure comes as a response like any other.

use tokio::time::Instant;

use crate::{AnyError, CallError, Classify, DeadlineExceeded, Failed, Name, Replay, Verdict};

/// Says what an answer means, be it a response or an error. Any `Fn(&Result<T, E>) -> Option<Verdict>`
/// is one; [`AnyError`] takes every error for a failure of the service, and every response for a success.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say what an answer of type `Result<{T}, {E}>` means",
    note = "pass `AnyError`, or a closure `|answer: &Result<{T}, {E}>| -> Option<Verdict>`"
)]
pub trait ClassifyAnswer<T, E> {
    /// What `answer` means; `None` if it is as it should be. An error that is so is its caller's own,
    /// and final.
    fn verdict(&self, answer: &Result<T, E>) -> Option<Verdict>;
}

impl<T, E> ClassifyAnswer<T, E> for AnyError {
    fn verdict(&self, answer: &Result<T, E>) -> Option<Verdict> {
        answer.as_ref().err().map(|error| Classify::verdict(self, error))
    }
}

impl<T, E, F: Fn(&Result<T, E>) -> Option<Verdict>> ClassifyAnswer<T, E> for F {
    fn verdict(&self, answer: &Result<T, E>) -> Option<Verdict> {
        self(answer)
    }
}

/// An answer that is no success.
pub(super) struct Failure<T, E> {
    answer: Result<T, E>,
    verdict: Verdict,
}

impl<T, E> Failure<T, E> {
    /// The response, if `answer` is a success.
    pub(super) fn unless_good(
        answer: Result<T, E>,
        classifier: &impl ClassifyAnswer<T, E>,
    ) -> Result<T, Self> {
        match (classifier.verdict(&answer), answer) {
            (None, Ok(response)) => Ok(response),
            (None, answer) => Err(Self { answer, verdict: Verdict::caller(Replay::Never) }),
            (Some(verdict), answer) => Err(Self { answer, verdict }),
        }
    }
}

/// Reads a failure's verdict, on the way in and on the way out.
pub(super) struct Judged<'a> {
    /// Whether there is a copy of the request. Without one, no attempt may follow, whatever the verdict.
    pub(super) repeatable: bool,
    /// The name of the pipeline that makes the call, and since when, if it is to repeat what is not idempotent.
    pub(super) write: Option<(&'a Name, Instant)>,
}

impl Judged<'_> {
    /// What a call ends with: a response that is a failure is a response all the same.
    pub(super) fn answer<T, E>(&self, error: CallError<Failure<T, E>>) -> Result<T, CallError<E>> {
        error.or_else_inner(|failed| {
            let Failed { error: failure, mut verdict, attempts, elapsed } = failed;
            let Failure { answer, verdict: own } = failure;
            if let (Ok(_), Some((name, started))) = (&answer, self.write)
                && verdict.replay != own.replay
            {
                // The response says that nothing was executed, but the attempt after it was cut off,
                // and may have been.
                let (name, elapsed) = (name.clone(), started.elapsed());
                let (attempts, blame) = (attempts.saturating_add(1), verdict.blame);
                return Err(DeadlineExceeded { name, attempts, elapsed, blame }.into());
            }
            if !self.repeatable {
                // Whoever has another request may send that.
                verdict.replay = own.replay;
            }
            answer.map_err(|error| CallError::Inner(Failed { error, verdict, attempts, elapsed }))
        })
    }
}

impl<T, E> Classify<Failure<T, E>> for Judged<'_> {
    fn verdict(&self, failure: &Failure<T, E>) -> Verdict {
        match self.repeatable {
            true => failure.verdict,
            false => Verdict { replay: Replay::Never, ..failure.verdict },
        }
    }
}
