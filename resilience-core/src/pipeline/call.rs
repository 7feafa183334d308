//! What a pipeline must know of a call, and what an operation may know of the attempt that it is.

use crate::{Deadline, Rank};

/// What a pipeline must know of a call before it makes it.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Call {
    pub(super) operation: &'static str,
    pub(crate) idempotent: bool,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) rank: Option<Rank>,
}

impl Call {
    /// A call that changes nothing: it may be repeated.
    pub const fn read() -> Self {
        Self { operation: "read", idempotent: true, deadline: None, rank: None }
    }

    /// A call that changes something: repeated only if it is proven not to have been executed.
    pub const fn write() -> Self {
        Self { operation: "write", idempotent: false, ..Self::read() }
    }

    /// A call that changes something, but no more when made twice: it may be repeated.
    pub const fn write_idempotent() -> Self {
        Self { operation: "write", ..Self::read() }
    }

    /// The same call under another name: a fixed word, for it becomes a label.
    pub const fn named(self, operation: &'static str) -> Self {
        Self { operation, ..self }
    }

    /// The same call with a deadline of its own. The surrounding one still holds if it is nearer.
    pub const fn by(self, deadline: Deadline) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// The same call with a rank of its own, in place of the surrounding one: what is shed first.
    pub fn rank(self, rank: impl Into<Rank>) -> Self {
        Self { rank: Some(rank.into()), ..self }
    }
}

/// What an operation may know of the attempt that it is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// When it will be cut off.
    pub deadline: Deadline,
}
