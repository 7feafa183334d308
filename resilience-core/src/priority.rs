//! How much a request matters, carried down to whatever it calls.

use std::future::Future;

use serde::Serialize;

/// Levels within a priority.
pub(crate) const LEVELS: u16 = 128;

/// Ranks there are: every level of every priority.
pub(crate) const RANKS: u16 = LEVELS * Priority::ALL.len() as u16;

tokio::task_local! {
    static CURRENT: Rank;
}

/// How much a request matters. The greater is shed later.
///
/// Google SRE, ch. 21, knows four criticalities: `CRITICAL_PLUS`, `CRITICAL`, `SHEDDABLE_PLUS` and
/// `SHEDDABLE`; here they have the plainer names, and one below the last.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Nobody will notice: prefetching, reindexing, backfills.
    Background,
    /// Batch work that can be done later, or not at all: `SHEDDABLE`.
    Low,
    /// What is repeated minutes or hours later if it fails: `SHEDDABLE_PLUS`. The default: what
    /// matters more must say so.
    #[default]
    Normal,
    /// Users see it fail, though less than the critical: `CRITICAL`.
    High,
    /// Users see it fail, severely: `CRITICAL_PLUS`. Keep it rare, and provision for all of it.
    Critical,
}

impl Priority {
    /// Every priority, the least first.
    pub const ALL: [Self; 5] =
        [Self::Background, Self::Low, Self::Normal, Self::High, Self::Critical];

    /// The word for it, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// This priority at `level` of its 128: 0 is shed first, 127 and all above last.
    #[must_use]
    pub const fn level(self, level: u8) -> Rank {
        let last = LEVELS as u8 - 1;
        Rank { priority: self, level: Some(if level < last { level } else { last }) }
    }

    /// This priority at the level of `user`, the same in every process: so that an overload costs
    /// some users all of their requests, not all users some of theirs, which would leave hardly a
    /// page whole. Put the date or the hour into `user` if it should not always be the same who go first.
    #[must_use]
    pub fn user(self, user: &str) -> Rank {
        // FNV-1a, for its values never change; folded, for its lowest bits mix least.
        let hash = user.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let folded = hash ^ hash >> 32;
        self.level(((folded ^ folded >> 16) % u64::from(LEVELS)) as u8)
    }
}

/// A priority, and perhaps a level within it. Without one, each limiter deals it a level by chance.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use resilience_core::{Priority, Rank};
///
/// Priority::High
///     .user("ada")
///     .scope(async {
///         // Every call from here on has that rank.
///         assert_eq!(Rank::current(), Priority::High.user("ada"));
///     })
///     .await;
/// assert_eq!(Rank::current(), Priority::Normal.into());
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Rank {
    priority: Priority,
    level: Option<u8>,
}

impl Rank {
    /// The rank of the surrounding [`scope`](Self::scope); [`Priority::Normal`] where there is none.
    ///
    /// A task spawned from within a scope does not inherit it.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.try_with(|rank| *rank).unwrap_or_default()
    }

    /// Runs `future` under this rank, whatever surrounds it.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `future`.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Runs `f` under this rank, whatever surrounds it.
    #[cfg(feature = "tower")]
    pub(crate) fn enter<T>(self, f: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, f)
    }

    /// Its priority.
    #[must_use]
    pub const fn priority(self) -> Priority {
        self.priority
    }

    /// Its place among all ranks, with the level that `deal` says where it has none.
    pub(crate) fn place(self, deal: impl FnOnce() -> u8) -> u16 {
        let level = u16::from(self.level.unwrap_or_else(deal)).min(LEVELS - 1);
        first_of(self.priority) + level
    }
}

impl From<Priority> for Rank {
    fn from(priority: Priority) -> Self {
        Self { priority, level: None }
    }
}

/// The lowest place of `priority`.
pub(crate) const fn first_of(priority: Priority) -> u16 {
    priority as u16 * LEVELS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_level_lifts_a_request_over_a_higher_priority() {
        for pair in Priority::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
            let best = pair[0].level(u8::MAX).place(|| 0);
            assert_eq!(best + 1, pair[1].level(0).place(|| 0));
        }
        assert_eq!(Rank::from(Priority::Critical).place(|| u8::MAX), RANKS - 1);
    }

    #[test]
    fn users_spread_over_all_levels_and_keep_theirs() {
        let level = |user: u32| Priority::Low.user(&format!("user-{user}")).level;
        let mut counts = [0_u32; LEVELS as usize];
        for user in 0..12_800 {
            counts[usize::from(level(user).unwrap())] += 1;
            assert_eq!(level(user), level(user));
        }
        assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
        // Held so that two builds of two services agree.
        assert_eq!(Priority::Low.user("ada"), Priority::Low.level(25));
    }

    #[tokio::test]
    async fn a_spawned_task_has_no_rank_of_its_parent() {
        let inherited = Rank::from(Priority::Critical)
            .scope(async { tokio::spawn(async { Rank::current() }).await.unwrap() })
            .await;
        assert_eq!(inherited, Rank::default());
    }
}
