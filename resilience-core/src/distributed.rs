//! What the breakers of other processes have seen, as a hint to those of this one.
//!
//! ```text
//!   process A: open ──────┐                ┌───────────────────┐
//!   process B: open ──────┼─── opinions ──▶│ 2 of 3 have it    │── tally ──▶ C arms its own:
//!   process C: closed ────┘                │ open; each opinion│             its first failure
//!                                          │ lapses by itself  │             opens it
//!                                          └───────────────────┘
//! ```
//!
//! A hint refuses no call. Whether a circuit opens is decided by what this process sees itself, only
//! sooner; and without the store, hints run out and all is as it would be without them.
//!
//! A hint must not become an echo, in which circuits that opened on hearsay keep each other open. So a
//! circuit follows a quorum once: one that has opened and closed again while the quorum stood has asked
//! the service itself, later than whoever spoke up, and is left alone until the quorum is gone.

mod memory;
mod settings;
mod store;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::deadline::later;
use crate::observe::{Event, emit};
use crate::{CircuitBreaker, CircuitRegistry, CircuitState, Deadline, Name};
use settings::Settings;

pub use memory::MemoryOpinions;
pub use settings::ExchangeBuilder;
pub use store::{Opinion, OpinionStore, ProcessId, StoreError, Tally};

/// Circuits that one exchange speaks of.
const CIRCUITS: usize = 256;

/// A change is told at once, but no more often than this many times a period: circuits may flap.
const PROMPT: u32 = 10;

/// By how much a period is shorter or longer than it is set to be, so that processes do not march in step.
const JITTER: f64 = 0.1;

/// Some circuit of this process changed its state.
static CHANGED: Notify = Notify::const_new();

/// Tells of a change of state. One atomic operation unless somebody waits.
pub(crate) fn circuit_changed() {
    CHANGED.notify_waiters();
}

/// Tells other processes which circuits of this one are open, and [arms](CircuitBreaker::arm) those that
/// a quorum of processes has open. Cheap to clone: clones are the same process to others.
///
/// Make one for a process and spawn [`run`](Self::run). Circuits are the same if their names are.
///
/// - A circuit *is open* in the eyes of its process while it refuses calls because it opened by itself.
///   One that is half-open, or that nobody has called since its reset timeout was over, is not. A state
///   set by hand (forced open, forced closed, disabled, metrics only) is no opinion, and takes no hint.
/// - A *quorum* is a share of the processes that have spoken of the circuit lately, this one included,
///   and a least number of them. Until all have spoken, when the store is new, it is a share of fewer.
/// - A hint lasts as long as an opinion, and is renewed while the quorum stands. A circuit that has since
///   opened and closed again by its own probes knows better, and is left alone.
/// - A store that is lost is logged once and counted. No call waits for it or fails because of it.
///
/// What this is not: no shared state (every process opens and closes its own circuits), no shared count
/// of failures, and no refusal by what others say: an armed circuit admits every call until one of its
/// own has failed. Arm none of these circuits by other means, for the shorter time would win.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resilience_core::{CircuitBreaker, Exchange, MemoryOpinions};
///
/// let store = MemoryOpinions::default(); // or one that other processes see
/// let breaker = CircuitBreaker::new("payments");
/// let exchange = Exchange::builder(store).breakers([breaker]).quorum(0.5, 2).build()?;
/// let running = tokio::spawn(async move { exchange.run().await });
/// // … until the application ends:
/// running.abort();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Exchange {
    shared: Arc<Shared>,
}

struct Shared {
    store: Box<dyn OpinionStore>,
    /// `None`: those of the registry.
    breakers: Option<Vec<CircuitBreaker>>,
    settings: Settings,
    process: ProcessId,
    jitter: Mutex<fastrand::Rng>,
    /// By circuit for which a quorum stands, the generation that it had when the quorum was first seen.
    quorums: Mutex<HashMap<Name, u32>>,
    lost: AtomicBool,
    exchanges: AtomicU64,
    failures: AtomicU64,
    hints: AtomicU64,
    left_out: AtomicU64,
}

/// What an [`Exchange`] has done since it was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ExchangeCounts {
    /// Exchanges that the store answered.
    pub exchanges: u64,
    /// Exchanges that it did not.
    pub failures: u64,
    /// Times a circuit was armed, each renewal included.
    pub hints: u64,
    /// Circuits that the last exchange left out: those beyond 256, and those whose name another one has.
    pub left_out: u64,
}

impl Exchange {
    /// An exchange through `store` of the circuits that [`CircuitRegistry::global`] lists; the first 256,
    /// in the order of their names.
    pub fn builder(store: impl OpinionStore + 'static) -> ExchangeBuilder {
        ExchangeBuilder::new(Box::new(store))
    }

    /// Who this process is to the others: random, and the same for as long as the exchange lives.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.shared.process
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> ExchangeCounts {
        let Shared { exchanges, failures, hints, left_out, .. } = &*self.shared;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ExchangeCounts {
            exchanges: read(exchanges),
            failures: read(failures),
            hints: read(hints),
            left_out: read(left_out),
        }
    }

    /// Exchanges opinions every period, and as soon as a circuit opens or closes, for as long as it is
    /// polled: spawn it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the exchange. What was said lapses, and so do the hints.
    pub async fn run(&self) {
        loop {
            let began = Instant::now();
            let seen = self.look();
            let said = opinions(&seen);
            // Counted and logged; the next one is a new try.
            let _ = self.speak(&seen, Deadline::at(later(began, self.period()))).await;
            self.rest(began, &said).await;
        }
    }

    /// One exchange, now.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store had no answer by `deadline`: then nothing has changed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing here; others may have heard.
    pub async fn exchange_once(&self, deadline: Deadline) -> Result<(), StoreError> {
        self.speak(&self.look(), deadline).await
    }

    /// Waits for the end of the period, or until other things are to be said than what was.
    async fn rest(&self, began: Instant, said: &[Opinion]) {
        let due = later(began, self.jittered_period());
        let mut looked = began;
        loop {
            sleep_until(later(looked, self.period() / PROMPT).min(due)).await;
            let mut changed = std::pin::pin!(CHANGED.notified());
            changed.as_mut().enable();
            looked = Instant::now();
            // The change may be that of a circuit which is none of ours.
            if looked >= due || opinions(&self.look()) != said {
                return;
            }
            let _ = timeout_at(due, changed).await;
        }
    }

    /// Tells the store what was seen, and heeds what it answers.
    async fn speak(&self, seen: &[Seen], deadline: Deadline) -> Result<(), StoreError> {
        if seen.is_empty() {
            return Ok(());
        }
        let Shared { store, settings, process, exchanges, failures, lost, .. } = &*self.shared;
        let (opinions, deadline) = (opinions(seen), deadline.inherited());
        let asked = store.exchange(*process, &opinions, settings.ttl);
        let answer = match timeout_at(deadline.instant(), deadline.scope(asked)).await {
            Err(_) => Err(StoreError::TimedOut),
            Ok(Ok(tallies)) if tallies.len() != seen.len() => {
                Err(StoreError::Mismatched { asked: seen.len(), answered: tallies.len() })
            }
            Ok(answer) => answer,
        };
        match answer {
            Ok(tallies) => {
                exchanges.fetch_add(1, Ordering::Relaxed);
                emit(&Event::OpinionsExchanged { answered: true });
                if lost.swap(false, Ordering::Relaxed) {
                    tracing::info!(target: "shared_external::distributed", "opinions are exchanged again");
                }
                self.heed(seen, &tallies);
                Ok(())
            }
            Err(error) => {
                failures.fetch_add(1, Ordering::Relaxed);
                emit(&Event::OpinionsExchanged { answered: false });
                if !lost.swap(true, Ordering::Relaxed) {
                    tracing::warn!(target: "shared_external::distributed", %error, "no opinions are exchanged; circuits go by what they see themselves");
                }
                Err(error)
            }
        }
    }

    /// Arms the circuits for which a quorum stands.
    fn heed(&self, seen: &[Seen], tallies: &[Tally]) {
        let hinted = self.hinted(seen, tallies);
        if hinted.is_empty() {
            return;
        }
        for breaker in self.breakers() {
            let Some((tally, is_new)) = hinted.get(breaker.name()) else { continue };
            breaker.arm(self.shared.settings.ttl);
            self.shared.hints.fetch_add(1, Ordering::Relaxed);
            if *is_new {
                let Tally { processes, open } = tally;
                tracing::debug!(target: "shared_external::distributed", name = %breaker.name(), processes, open, "armed: a quorum of processes has this circuit open");
                emit(&Event::CircuitArmed { name: breaker.name() });
            }
        }
    }

    /// The circuits to arm, why, and whether this is the first time since the quorum was seen.
    fn hinted<'a>(&self, seen: &'a [Seen], tallies: &[Tally]) -> HashMap<&'a Name, (Tally, bool)> {
        let settings = &self.shared.settings;
        let mut quorums = self.shared.quorums.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *quorums);
        let mut hinted = HashMap::new();
        for (seen, tally) in
            seen.iter().zip(tallies).filter(|(_, tally)| settings.is_quorum(**tally))
        {
            let known = before.get(&seen.circuit).copied();
            let first = known.unwrap_or(seen.generation);
            quorums.insert(seen.circuit.clone(), first);
            if seen.is_closed && seen.generation == first {
                hinted.insert(&seen.circuit, (*tally, known.is_none()));
            }
        }
        hinted
    }

    /// What this process thinks of its circuits. It holds none of them, for what is held is not evicted,
    /// and the store may take its time.
    fn look(&self) -> Vec<Seen> {
        self.breakers().iter().filter_map(Seen::of).collect()
    }

    fn breakers(&self) -> Vec<CircuitBreaker> {
        let mut breakers = match &self.shared.breakers {
            Some(breakers) => breakers.clone(),
            None => CircuitRegistry::global().all(),
        };
        let all = breakers.len();
        breakers.sort_by(|one, other| one.name().cmp(other.name()));
        breakers.dedup_by(|one, other| one.name() == other.name());
        breakers.truncate(CIRCUITS);
        let left_out = (all - breakers.len()) as u64;
        self.shared.left_out.store(left_out, Ordering::Relaxed);
        breakers
    }

    fn period(&self) -> Duration {
        self.shared.settings.period
    }

    fn jittered_period(&self) -> Duration {
        let roll = self.shared.jitter.lock().unwrap_or_else(PoisonError::into_inner).f64();
        self.period().mul_f64(1.0 - JITTER + 2.0 * JITTER * roll)
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process = self.process();
        f.debug_struct("Exchange")
            .field("process", &process)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// A circuit of this process at the moment of an exchange.
struct Seen {
    circuit: Name,
    generation: u32,
    is_closed: bool,
    is_open: bool,
}

impl Seen {
    /// `None` of a circuit whose state was set by hand.
    fn of(breaker: &CircuitBreaker) -> Option<Self> {
        let snapshot = breaker.snapshot();
        let (is_closed, is_open) = match snapshot.state {
            CircuitState::Closed => (true, false),
            // Without calls a circuit stays open for ever: it speaks of the service only while it refuses.
            CircuitState::Open => (false, snapshot.retry_after.is_some()),
            CircuitState::HalfOpen => (false, false),
            CircuitState::ForcedOpen
            | CircuitState::ForcedClosed
            | CircuitState::Disabled
            | CircuitState::MetricsOnly => return None,
        };
        Some(Self { circuit: snapshot.name, generation: snapshot.generation, is_closed, is_open })
    }
}

fn opinions(seen: &[Seen]) -> Vec<Opinion> {
    let opinion = |seen: &Seen| Opinion { circuit: seen.circuit.clone(), is_open: seen.is_open };
    seen.iter().map(opinion).collect()
}
