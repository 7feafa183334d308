//! Who holds the connections that are lent: since when, where they were taken, and who has had one for too long.
//!
//! The pool keeps it under the lock that it takes anyway to lend and to take back: a place in a table is
//! written there, and nothing is allocated once the table has grown to the most that were ever lent at once.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use tokio::time::Instant;

/// Where a connection was taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum CallSite {
    /// The line that called the manager.
    Line(&'static Location<'static>),
    /// An operation that does not know its caller, by its word: `query`, `stream`, `prepare` or `describe`
    /// of the manager as a sqlx [`Executor`](sqlx::Executor); `health`, `migrate`, `warm_up`.
    Operation(&'static str),
}

impl CallSite {
    /// The line that called the function which asks.
    #[track_caller]
    pub(crate) fn here() -> Self {
        Self::Line(Location::caller())
    }
}

/// `src/donors.rs:42:9`, or the operation's word.
impl fmt::Display for CallSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => line.fmt(f),
            Self::Operation(word) => f.write_str(word),
        }
    }
}

/// Who has a connection, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Holder {
    /// Time since it was lent.
    pub held: Duration,
    /// Where it was taken.
    pub taken: CallSite,
}

/// Everyone who has a connection.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    entries: Vec<Option<Entry>>,
    vacant: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    since: Instant,
    taken: CallSite,
    /// It was told that this one is late.
    told: bool,
}

impl Entry {
    fn holder(&self, now: Instant) -> Holder {
        Holder { held: now.saturating_duration_since(self.since), taken: self.taken }
    }
}

/// An entry among the holders, to be handed in again.
#[derive(Debug)]
pub(crate) struct Ticket(usize);

impl Holders {
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    pub(crate) fn enter(&mut self, now: Instant, taken: CallSite) -> Ticket {
        let entry = Some(Entry { since: now, taken, told: false });
        match self.vacant.pop() {
            Some(index) => {
                self.entries[index] = entry;
                Ticket(index)
            }
            None => {
                self.entries.push(entry);
                Ticket(self.entries.len() - 1)
            }
        }
    }

    /// Strikes an entry off. Says whose it was, if that one was told to be late.
    pub(crate) fn leave(&mut self, ticket: Ticket, now: Instant) -> Option<Holder> {
        let Ticket(index) = ticket;
        let entry = self.entries[index].take()?;
        self.vacant.push(index);
        entry.told.then(|| entry.holder(now))
    }

    pub(crate) fn longest(&self, now: Instant) -> Option<Holder> {
        let longest = self.entries.iter().flatten().min_by_key(|entry| entry.since)?;
        Some(longest.holder(now))
    }

    /// Those who have held a connection for `threshold` or longer and were not among them before.
    pub(crate) fn newly_late(&mut self, threshold: Duration, now: Instant) -> Vec<Holder> {
        let is_late = |entry: &&mut Entry| {
            !entry.told && now.saturating_duration_since(entry.since) >= threshold
        };
        let late = self.entries.iter_mut().flatten().filter(is_late).map(|entry| {
            entry.told = true;
            entry.holder(now)
        });
        late.collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn operation(word: &'static str) -> CallSite {
        CallSite::Operation(word)
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_holder_is_not_whoever_has_the_first_entry() {
        let mut holders = Holders::default();
        assert_eq!(holders.longest(Instant::now()), None);
        let first = holders.enter(Instant::now(), operation("first"));
        advance(SECOND).await;
        let _second = holders.enter(Instant::now(), operation("second"));
        assert_eq!(holders.leave(first, Instant::now()), None);
        advance(SECOND).await;
        let _third = holders.enter(Instant::now(), operation("third"));
        assert_eq!((holders.len(), holders.entries.len()), (2, 2), "an entry was not used again");
        advance(SECOND).await;
        let longest = holders.longest(Instant::now());
        assert_eq!(longest, Some(Holder { held: 2 * SECOND, taken: operation("second") }));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_late_is_told_once_and_once_more_on_coming_back() {
        let mut holders = Holders::default();
        let late = holders.enter(Instant::now(), operation("late"));
        advance(SECOND).await;
        let prompt = holders.enter(Instant::now(), operation("prompt"));
        let threshold = 2 * SECOND;
        assert_eq!(holders.newly_late(threshold, Instant::now()), []);
        advance(SECOND).await;
        let told = [Holder { held: 2 * SECOND, taken: operation("late") }];
        assert_eq!(holders.newly_late(threshold, Instant::now()), told);
        assert_eq!(holders.newly_late(threshold, Instant::now()), []);
        assert_eq!(holders.leave(prompt, Instant::now()), None);
        advance(SECOND).await;
        let back = Holder { held: 3 * SECOND, taken: operation("late") };
        assert_eq!(holders.leave(late, Instant::now()), Some(back));

        let _next = holders.enter(Instant::now(), operation("next"));
        let late = holders.newly_late(threshold, Instant::now());
        assert_eq!(late, [], "the next one inherited an entry's past");
    }

    #[test]
    fn a_call_site_names_the_line_and_not_ours() {
        #[track_caller]
        fn acquire() -> CallSite {
            CallSite::here()
        }
        let (line, taken) = (line!(), acquire());
        let expected = format!("{}:{line}:", file!());
        assert!(taken.to_string().starts_with(&expected), "{taken} is not {expected}");
        assert_eq!(operation("query").to_string(), "query");
    }
}
