//! What a server is, what a connection is for, and whether the two go together.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use crate::greeting::Greeting;

/// Which servers take the manager's connections, in libpq's words: `target_session_attrs`.
///
/// Among several hosts, those that do not fit are passed over. `read-write` and `primary` mean one server
/// at a time: with several hosts the manager watches them all, follows a failover, and of two that both
/// claim to be the primary uses the one with the higher timeline alone. With the other words a connection
/// is asked for its server's role when it is opened, and not again.
///
/// ```
/// use conn_postgres::TargetSessionAttrs;
///
/// assert_eq!("prefer-standby".parse(), Ok(TargetSessionAttrs::PreferStandby));
/// assert_eq!(TargetSessionAttrs::ReadWrite.to_string(), "read-write");
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum TargetSessionAttrs {
    /// Whichever lets us in.
    Any,
    /// One whose sessions may write: not in recovery, and `default_transaction_read_only` is off.
    ReadWrite,
    /// One whose sessions may not write: in recovery, or `default_transaction_read_only` is on.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is in recovery.
    Standby,
    /// One that is in recovery; where there is none, whichever lets us in.
    PreferStandby,
}

impl TargetSessionAttrs {
    const ALL: [(Self, &str); 6] = [
        (Self::Any, "any"),
        (Self::ReadWrite, "read-write"),
        (Self::ReadOnly, "read-only"),
        (Self::Primary, "primary"),
        (Self::Standby, "standby"),
        (Self::PreferStandby, "prefer-standby"),
    ];

    /// Every word, for whoever used another.
    pub(crate) const WORDS: &str = "any, read-write, read-only, primary, standby or prefer-standby";

    /// `any` for one host, which then is what is meant; `read-write` for several: who lists the members of
    /// a cluster means its primary, and half of the connections would else take no writes after a failover.
    pub(crate) fn default_for(hosts: usize) -> Self {
        if hosts > 1 { Self::ReadWrite } else { Self::Any }
    }

    /// Whether it means one server at a time, which a failover changes.
    pub(crate) fn means_the_primary(self) -> bool {
        matches!(self, Self::ReadWrite | Self::Primary)
    }

    /// Whether a server that is so fits.
    pub(crate) fn fits(self, role: Role) -> bool {
        match self {
            Self::Any | Self::PreferStandby => true,
            Self::ReadWrite => !role.is_standby && !role.is_read_only,
            Self::ReadOnly => role.is_standby || role.is_read_only,
            Self::Primary => !role.is_standby,
            Self::Standby => role.is_standby,
        }
    }

    /// What to ask of each host in turn before the next is tried; then all over with the next word.
    pub(crate) fn passes(self) -> &'static [Self] {
        match self {
            Self::Any => &[Self::Any],
            Self::ReadWrite => &[Self::ReadWrite],
            Self::ReadOnly => &[Self::ReadOnly],
            Self::Primary => &[Self::Primary],
            Self::Standby => &[Self::Standby],
            Self::PreferStandby => &[Self::Standby, Self::Any],
        }
    }
}

/// libpq's word.
impl fmt::Display for TargetSessionAttrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::ALL.iter().find(|(attrs, _)| attrs == self).map(|(_, word)| *word);
        f.write_str(word.expect("each has one"))
    }
}

impl FromStr for TargetSessionAttrs {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let found = Self::ALL.iter().find(|(_, word)| *word == text.trim());
        found.map(|(attrs, _)| *attrs).ok_or(UnknownWord { allowed: Self::WORDS })
    }
}

/// Where [`read`](crate::DatabaseManager::read), [`read_or`](crate::DatabaseManager::read_or) and
/// [`read_after`](crate::DatabaseManager::read_after) go, as far as there are several hosts. Everything else
/// goes where [`TargetSessionAttrs`] says.
///
/// ```
/// use conn_postgres::ReadFrom;
///
/// assert_eq!("prefer-replica".parse(), Ok(ReadFrom::PreferReplica));
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum ReadFrom {
    /// Where everything else goes: what was written is read at once.
    #[default]
    Primary,
    /// To the replicas that lag behind by no more than `max_replica_lag`, each in turn; where there is none,
    /// to the primary.
    PreferReplica,
}

impl ReadFrom {
    const ALL: [(Self, &str); 2] =
        [(Self::Primary, "primary"), (Self::PreferReplica, "prefer-replica")];

    /// Every word, for whoever used another.
    pub(crate) const WORDS: &str = "primary or prefer-replica";
}

/// `primary` or `prefer-replica`.
impl fmt::Display for ReadFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::ALL.iter().find(|(from, _)| from == self).map(|(_, word)| *word);
        f.write_str(word.expect("each has one"))
    }
}

impl FromStr for ReadFrom {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let found = Self::ALL.iter().find(|(_, word)| *word == text.trim());
        found.map(|(from, _)| *from).ok_or(UnknownWord { allowed: Self::WORDS })
    }
}

/// A word that a setting does not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown word; allowed: {allowed}")]
pub struct UnknownWord {
    allowed: &'static str,
}

/// Which hosts take what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// `None`: as [`TargetSessionAttrs::default_for`] says.
    pub(crate) attrs: Option<TargetSessionAttrs>,
    pub(crate) read_from: ReadFrom,
    pub(crate) max_replica_lag: Duration,
}

impl Rules {
    /// What is asked of a host, where there are so many.
    pub(crate) fn attrs(&self, hosts: usize) -> TargetSessionAttrs {
        self.attrs.unwrap_or_else(|| TargetSessionAttrs::default_for(hosts))
    }

    /// Whether so many hosts must be watched.
    pub(crate) fn need_a_scout(&self, hosts: usize) -> bool {
        hosts > 1
            && (self.attrs(hosts).means_the_primary() || self.read_from == ReadFrom::PreferReplica)
    }
}

/// What a server said of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Role {
    /// It is in recovery.
    pub(crate) is_standby: bool,
    /// A transaction that does not say otherwise may not write.
    pub(crate) is_read_only: bool,
}

impl From<&Greeting> for Role {
    fn from(greeting: &Greeting) -> Self {
        Self { is_standby: greeting.is_standby, is_read_only: greeting.is_read_only }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.is_standby, self.is_read_only) {
            (true, _) => "it is a standby",
            (false, true) => "it is a primary whose default_transaction_read_only is on",
            (false, false) => "it is a primary",
        })
    }
}

/// Why a server that lets us in is passed over.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("{role}, and target_session_attrs is {attrs}")]
    Role { role: Role, attrs: TargetSessionAttrs },
    #[error("it is a primary of the past: its timeline is {timeline}, and {highest} was seen")]
    Past { timeline: u32, highest: u32 },
    #[error("nothing is known of it for certain yet")]
    Doubted,
}

/// Travels as the driver's errors do.
impl From<Misfit> for sqlx::Error {
    fn from(misfit: Misfit) -> Self {
        Self::Io(io::Error::new(io::ErrorKind::NotConnected, misfit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_means_what_libpq_means_by_it() {
        let primary = Role { is_standby: false, is_read_only: false };
        let read_only = Role { is_standby: false, is_read_only: true };
        let standby = Role { is_standby: true, is_read_only: false };
        for (word, expected) in [
            ("any", [true, true, true]),
            ("read-write", [true, false, false]),
            ("read-only", [false, true, true]),
            ("primary", [true, true, false]),
            ("standby", [false, false, true]),
        ] {
            let attrs: TargetSessionAttrs = word.parse().unwrap();
            assert_eq!(
                [primary, read_only, standby].map(|role| attrs.fits(role)),
                expected,
                "{word}"
            );
            assert_eq!((attrs.to_string().as_str(), attrs.passes()), (word, &[attrs][..]));
        }
        let prefer: TargetSessionAttrs = "prefer-standby".parse().unwrap();
        assert_eq!(prefer.passes(), [TargetSessionAttrs::Standby, TargetSessionAttrs::Any]);
    }

    #[test]
    fn an_unknown_word_is_answered_with_those_that_are_known() {
        let error = "master".parse::<TargetSessionAttrs>().unwrap_err().to_string();
        for (_, word) in TargetSessionAttrs::ALL {
            assert!(error.contains(word), "{error}");
        }
        let error = "replica".parse::<ReadFrom>().unwrap_err().to_string();
        for (_, word) in ReadFrom::ALL {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn several_hosts_without_a_word_mean_the_primary() {
        let rules =
            |attrs| Rules { attrs, read_from: ReadFrom::Primary, max_replica_lag: Duration::ZERO };
        assert_eq!(rules(None).attrs(1), TargetSessionAttrs::Any);
        assert_eq!(rules(None).attrs(2), TargetSessionAttrs::ReadWrite);
        assert!(rules(None).need_a_scout(2) && !rules(None).need_a_scout(1));
        assert!(!rules(Some(TargetSessionAttrs::Any)).need_a_scout(3));
    }
}
