//! What a layer must know of a request: which call it is, and whether there is another like it.

use crate::Call;

/// Says which [`Call`] a request of type `R` is. A `Call` says it is that one, whatever the request;
/// any `Fn(&R) -> Call` is one too.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say which call a request of type `{R}` is",
    note = "pass a `Call`, or a closure `|request: &{R}| -> Call`"
)]
pub trait CallFor<R> {
    /// The call that `request` is.
    fn call_for(&self, request: &R) -> Call;
}

impl<R> CallFor<R> for Call {
    fn call_for(&self, _: &R) -> Call {
        *self
    }
}

impl<R, F: Fn(&R) -> Call> CallFor<R> for F {
    fn call_for(&self, request: &R) -> Call {
        self(request)
    }
}

/// Each request is sent once: there is one attempt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Once;

/// Each attempt sends a clone of the request, which must be `Clone`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cloned;

/// Whether there is another of what an attempt uses up.
#[diagnostic::on_unimplemented(
    message = "a request that is to be sent again must be `Clone`",
    note = "a request of which there is but one goes through a `PipelineLayer` without `clone_request`"
)]
pub trait Copies<T> {
    /// Whether there is.
    const ANY: bool;

    /// Another like `this`, if there is any.
    fn copy(this: &T) -> Option<T>;
}

impl<T> Copies<T> for Once {
    const ANY: bool = false;

    fn copy(_: &T) -> Option<T> {
        None
    }
}

impl<T: Clone> Copies<T> for Cloned {
    const ANY: bool = true;

    fn copy(this: &T) -> Option<T> {
        Some(this.clone())
    }
}
