//! How often opinions are exchanged, how long they count, and how many make a quorum.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Exchange, OpinionStore, ProcessId, Shared, Tally};
use crate::{CircuitBreaker, InvalidSetting};

const HOUR: Duration = Duration::from_secs(3600);

/// Builds an [`Exchange`].
#[must_use]
pub struct ExchangeBuilder {
    store: Box<dyn OpinionStore>,
    breakers: Option<Vec<CircuitBreaker>>,
    period: Duration,
    ttl: Option<Duration>,
    share: f64,
    at_least: u64,
    seed: Option<u64>,
}

/// What an exchange goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) period: Duration,
    pub(super) ttl: Duration,
    share: f64,
    at_least: u64,
}

impl ExchangeBuilder {
    pub(super) fn new(store: Box<dyn OpinionStore>) -> Self {
        let period = Duration::from_secs(1);
        Self { store, breakers: None, period, ttl: None, share: 0.5, at_least: 2, seed: None }
    }

    /// The circuits to speak of, in place of those that [`CircuitRegistry::global`] lists. The first 256
    /// in the order of their names; of several with one name, one. It holds them, so breakers of keys belong
    /// into the registry: what is held is never evicted.
    ///
    /// [`CircuitRegistry::global`]: crate::CircuitRegistry::global
    pub fn breakers(mut self, breakers: impl IntoIterator<Item = CircuitBreaker>) -> Self {
        self.breakers = Some(breakers.into_iter().collect());
        self
    }

    /// Time from one exchange to the next, give or take a tenth. 10 ms to an hour; default 1 s, which is
    /// about how long others take to hear of a circuit that opened.
    pub fn period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// How long an opinion counts without being said again, and a hint without being renewed. Two periods
    /// to a day; default three periods, so that an exchange may fail before a process falls silent.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How many processes must have a circuit open for the others to arm theirs: this share (above 0, up
    /// to 1) of all that have spoken of it lately, and at least that many (1 or more). Default: half of
    /// them, and 2, so that the trouble of one process, which may be its own, is nobody else's.
    pub fn quorum(mut self, share: f64, at_least: u64) -> Self {
        (self.share, self.at_least) = (share, at_least);
        self
    }

    /// Makes the jitter of the period repeatable. For tests.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The exchange. It does nothing by itself: see [`Exchange::run`].
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a value out of its range.
    pub fn build(self) -> Result<Exchange, InvalidSetting> {
        let Self { store, breakers, period, ttl, share, at_least, seed } = self;
        if !(Duration::from_millis(10)..=HOUR).contains(&period) {
            return Err(InvalidSetting::new("exchange period", period, "10 ms to an hour"));
        }
        let ttl = ttl.unwrap_or(3 * period);
        if !(2 * period..=24 * HOUR).contains(&ttl) {
            return Err(InvalidSetting::new("exchange ttl", ttl, "two periods to a day"));
        }
        if !(share > 0.0 && share <= 1.0) {
            return Err(InvalidSetting::new("quorum share", share, "above 0, up to 1"));
        }
        if at_least == 0 {
            return Err(InvalidSetting::new("quorum at_least", at_least, "1 or more"));
        }
        let shared = Shared {
            store,
            breakers,
            settings: Settings { period, ttl, share, at_least },
            process: ProcessId::random(),
            jitter: Mutex::new(seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed)),
            quorums: Mutex::new(HashMap::new()),
            lost: AtomicBool::new(false),
            exchanges: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            hints: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        };
        Ok(Exchange { shared: Arc::new(shared) })
    }
}

impl fmt::Debug for ExchangeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExchangeBuilder")
            .field("period", &self.period)
            .field("ttl", &self.ttl)
            .field("quorum", &(self.share, self.at_least))
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Whether enough processes have a circuit open.
    #[expect(clippy::cast_precision_loss, reason = "no service has 2^53 processes")]
    pub(super) fn is_quorum(&self, tally: Tally) -> bool {
        let Tally { processes, open } = tally;
        open >= self.at_least && open as f64 / processes as f64 >= self.share
    }
}
