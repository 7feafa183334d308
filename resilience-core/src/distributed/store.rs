//! Where opinions meet: what a store must do, and in which words.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use async_trait::async_trait;

use crate::Name;

/// A place that all processes of a service reach, and that may be lost at any time.
#[async_trait]
pub trait OpinionStore: Send + Sync {
    /// Notes for `ttl` what `process` thinks of each circuit, in place of what it thought before, and tells
    /// how many processes think what of them now: one tally for each opinion, in their order, `process`
    /// included.
    ///
    /// An opinion that was not repeated within its `ttl` does not count. That is for the store to know, by
    /// a clock of its own: those of the processes do not agree.
    ///
    /// It need not hurry and may hang: whoever asks gives up by the surrounding
    /// [`Deadline`](crate::Deadline), and drops the future.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it is not known what the processes think.
    async fn exchange(
        &self,
        process: ProcessId,
        opinions: &[Opinion],
        ttl: Duration,
    ) -> Result<Vec<Tally>, StoreError>;
}

/// What a process thinks of a circuit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Opinion {
    /// The circuit's name.
    pub circuit: Name,
    /// Whether it is open, so that calls are refused.
    pub is_open: bool,
}

/// What all processes think of a circuit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// How many have an opinion.
    pub processes: u64,
    /// How many of those have it open.
    pub open: u64,
}

/// A process among those that exchange opinions. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ProcessId(u64);

impl ProcessId {
    /// Another one each time. Two processes of one id would be one voice, so it comes from the operating
    /// system's randomness, by way of the keys of a hash map, and not from a seed.
    pub(super) fn random() -> Self {
        Self(RandomState::new().hash_one("process"))
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why no opinions were exchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There was no answer by the deadline.
    #[error("the store of opinions did not answer in time")]
    TimedOut,
    /// The answer was to another question.
    #[error("the store of opinions answered {answered} of {asked} opinions")]
    Mismatched {
        /// Opinions that it was given.
        asked: usize,
        /// Tallies that it gave.
        answered: usize,
    },
    /// The store's own error.
    #[error("{0}")]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    /// An error of the store's own.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }
}
