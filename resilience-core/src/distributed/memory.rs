//! Opinions in the memory of one process: for tests, and for several runtimes in one program.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Opinion, OpinionStore, ProcessId, StoreError, Tally};
use crate::Name;
use crate::deadline::later;

/// A store of opinions that only this process sees. Cheap to clone: clones share the opinions.
///
/// What lapses goes with the next exchange, so that it holds no more than what was said lately.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::{CircuitBreaker, Deadline, Exchange, MemoryOpinions};
///
/// let store = MemoryOpinions::default();
/// let process = || {
///     let breaker = CircuitBreaker::builder("payments").fail_max(1).build()?;
///     let exchange = Exchange::builder(store.clone()).breakers([breaker.clone()]).build()?;
///     Ok::<_, resilience_core::InvalidSetting>((breaker, exchange))
/// };
/// let processes = [process()?, process()?, process()?];
/// for (breaker, _) in &processes[..2] {
///     breaker.try_acquire()?.failure();
/// }
/// for (_, exchange) in &processes {
///     exchange.exchange_once(Deadline::within(Duration::from_secs(1))).await?;
/// }
/// assert!(processes[2].0.snapshot().armed);
/// assert!(processes[2].0.try_acquire().is_ok(), "an armed circuit refuses nobody");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryOpinions {
    circuits: Arc<Mutex<HashMap<Name, Voices>>>,
}

/// What each process said of one circuit.
type Voices = HashMap<ProcessId, Held>;

/// Whether a circuit is open in the eyes of one process, and until when that counts.
#[derive(Debug)]
struct Held {
    is_open: bool,
    until: Instant,
}

#[async_trait]
impl OpinionStore for MemoryOpinions {
    async fn exchange(
        &self,
        process: ProcessId,
        opinions: &[Opinion],
        ttl: Duration,
    ) -> Result<Vec<Tally>, StoreError> {
        let now = Instant::now();
        let mut circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        circuits.retain(|_, held| {
            held.retain(|_, held| now < held.until);
            !held.is_empty()
        });
        let tallies = opinions.iter().map(|Opinion { circuit, is_open }| {
            let held = circuits.entry(circuit.clone()).or_default();
            held.insert(process, Held { is_open: *is_open, until: later(now, ttl) });
            let open = held.values().filter(|held| held.is_open).count() as u64;
            Tally { processes: held.len() as u64, open }
        });
        Ok(tallies.collect())
    }
}
