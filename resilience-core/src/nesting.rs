//! Of nested pipelines the innermost retries: the ones around it must know when it has given up.
//!
//! Were each to repeat what the next gave up, three pipelines of four attempts would make sixty-four
//! (Google SRE, ch. 22).

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;

use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    /// How the last pipeline within this attempt that retries has ended.
    static INNER: Cell<Option<Inner>>;
}

/// How a pipeline that retries has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Inner {
    Answered,
    GaveUp,
}

/// An attempt that hears of what runs within it.
pub(crate) type Listening<F> = TaskLocalFuture<Cell<Option<Inner>>, F>;

/// Tells the pipeline around this one, if there is one, how a call of one that retries ended.
pub(crate) fn tell_the_outer(inner: Inner) {
    // An `Err` is no pipeline around this one.
    let _ = INNER.try_with(|outer| outer.set(Some(inner)));
}

/// Tells the pipeline around this one what was heard, if anything was.
pub(crate) fn pass_on(inner: Option<Inner>) {
    if let Some(inner) = inner {
        tell_the_outer(inner);
    }
}

/// Lets `attempt` hear of what runs within it.
pub(crate) fn listen<F: Future>(attempt: F) -> Listening<F> {
    INNER.scope(Cell::new(None), attempt)
}

/// How the last call within an attempt that is over has ended, if it was one that retries.
pub(crate) fn heard<F: Future>(attempt: Pin<&mut Listening<F>>) -> Option<Inner> {
    attempt.take_value().and_then(|inner| inner.get())
}
