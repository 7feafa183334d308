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

/// An answer that is no success, as the parts of a pipeline see it: an error.
pub struct Failure<T, E> {
    answer: Result<T, E>,
    /// What it means by itself.
    own: Verdict,
    /// Whether there is a copy of the request. Without one, no attempt may follow, whatever the verdict.
    repeatable: bool,
}

impl<T, E> Failure<T, E> {
    /// The response, if `answer` is a success.
    pub(super) fn unless_good(
        answer: Result<T, E>,
        classifier: &impl ClassifyAnswer<T, E>,
        repeatable: bool,
    ) -> Result<T, Self> {
        match (classifier.verdict(&answer), answer) {
            (None, Ok(response)) => Ok(response),
            (None, answer) => Err(Self { answer, own: Verdict::caller(Replay::Never), repeatable }),
            (Some(own), answer) => Err(Self { answer, own, repeatable }),
        }
    }

    /// What it means to whoever could repeat it.
    pub(super) fn verdict(&self) -> Verdict {
        match self.repeatable {
            true => self.own,
            false => Verdict { replay: Replay::Never, ..self.own },
        }
    }
}

impl<T, E> From<Failure<T, E>> for Failed<Failure<T, E>> {
    fn from(error: Failure<T, E>) -> Self {
        Self { verdict: error.verdict(), error, attempts: 1, elapsed: None }
    }
}

impl<T, E> From<Failure<T, E>> for CallError<Failure<T, E>> {
    fn from(failure: Failure<T, E>) -> Self {
        Self::Inner(failure.into())
    }
}

/// What a call ends with: a response that is a failure is a response all the same.
///
/// A `write` that a pipeline may repeat comes with the pipeline's name, and the time when it began.
pub(super) fn ending<T, E>(
    error: CallError<Failure<T, E>>,
    write: Option<(&Name, Instant)>,
) -> Result<T, CallError<E>> {
    error.or_else_inner(|failed| {
        let Failed { error: failure, mut verdict, attempts, elapsed } = failed;
        let Failure { answer, own, repeatable } = failure;
        if let (Ok(_), Some((name, started))) = (&answer, write)
            && verdict.replay != own.replay
        {
            // The response says that nothing was executed, but the attempt after it was cut off,
            // and may have been.
            let (name, elapsed) = (name.clone(), started.elapsed());
            let blame = verdict.blame;
            return Err(DeadlineExceeded { name, attempts, elapsed, blame }.into());
        }
        if !repeatable {
            // Whoever has another request may send that.
            verdict.replay = own.replay;
        }
        answer.map_err(|error| CallError::Inner(Failed { error, verdict, attempts, elapsed }))
    })
}
