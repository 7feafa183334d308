//! What a connector may give beyond what each must, and why one does not.

use std::fmt;

/// Something that a connector gives, or has a reason not to give. What is not listed here, every connector gives.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Capability {
    /// Connections belong to one borrower at a time, are bounded, and their figures are told.
    Pool,
    /// The pool tells what happens to its connections as events.
    PoolEvents,
    /// An exhausted pool names who has had a connection for longest.
    Holders,
    /// Idle connections are closed after their time, whether or not anyone comes by.
    IdleTimeout,
    /// Connections are replaced after their time.
    MaxLifetime,
    /// Some connections are kept idle, whatever the idle timeout says.
    MinIdle,
    /// Who holds a connection for too long is told of.
    LeakDetection,
    /// Of several endpoints, one that is down costs no call.
    SeveralEndpoints,
    /// Credentials come from a provider, and may change without a restart.
    CredentialRotation,
    /// All or nothing.
    Transactions,
    /// Answers that are read row by row.
    Streams,
}

impl Capability {
    /// Every one, in the order of the enum.
    pub const ALL: [Self; 11] = [
        Self::Pool,
        Self::PoolEvents,
        Self::Holders,
        Self::IdleTimeout,
        Self::MaxLifetime,
        Self::MinIdle,
        Self::LeakDetection,
        Self::SeveralEndpoints,
        Self::CredentialRotation,
        Self::Transactions,
        Self::Streams,
    ];

    /// The words for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "a pool",
            Self::PoolEvents => "events of the pool",
            Self::Holders => "names of holders",
            Self::IdleTimeout => "an idle timeout",
            Self::MaxLifetime => "a maximum lifetime",
            Self::MinIdle => "a minimum of idle connections",
            Self::LeakDetection => "leak detection",
            Self::SeveralEndpoints => "several endpoints",
            Self::CredentialRotation => "rotation of credentials",
            Self::Transactions => "transactions",
            Self::Streams => "streams",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a connector has a [`Capability`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Support {
    /// It has it: the behaviours that need it must hold.
    Gives,
    /// It has not, for this reason. The behaviours are run all the same, so that the list cannot go stale.
    Lacks(&'static str),
}
