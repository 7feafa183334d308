//! What a service's answer means: over HTTP, a failure comes as a response like any other.

use crate::{AnyError, CallError, Classify, Failed, Replay, Verdict};

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

    /// What a call ends with: a response that is a failure is a response all the same.
    pub(super) fn answer(error: CallError<Self>) -> Result<T, CallError<E>> {
        error.or_else_inner(|failed| {
            let Failed { error: Self { answer, verdict: own }, verdict, attempts, elapsed } =
                failed;
            let verdict = Verdict { replay: own.replay, ..verdict };
            answer.map_err(|error| Failed { error, verdict, attempts, elapsed })
        })
    }
}

/// Reads a failure's verdict; without a copy of the request, whatever it is, none may follow.
pub(super) struct Judged {
    pub(super) repeatable: bool,
}

impl<T, E> Classify<Failure<T, E>> for Judged {
    fn verdict(&self, failure: &Failure<T, E>) -> Verdict {
        match self.repeatable {
            true => failure.verdict,
            false => Verdict { replay: Replay::Never, ..failure.verdict },
        }
    }
}
