//! Of nested pipelines the innermost retries: the ones around it must know when it has given up.
//!
//! Were each to repeat what the next gave up, three pipelines of four attempts would make sixty-four
//! (Google SRE, ch. 22).

use std::cell::Cell;
use std::future::Future;

tokio::task_local! {
    /// Whether the last pipeline within this attempt that retries has given up.
    static GIVEN_UP: Cell<bool>;
}

/// Tells the pipeline around this one, if there is one, how a call of one that retries ended.
pub(crate) fn tell_the_outer(given_up: bool) {
    // An `Err` is no pipeline around this one.
    let _ = GIVEN_UP.try_with(|outer| outer.set(given_up));
}

/// Runs an attempt; also says whether the last call within it that retries has given up.
pub(crate) async fn listen<F: Future>(attempt: F) -> (F::Output, bool) {
    let listening = async {
        let output = attempt.await;
        (output, GIVEN_UP.with(Cell::get))
    };
    GIVEN_UP.scope(Cell::new(false), listening).await
}
