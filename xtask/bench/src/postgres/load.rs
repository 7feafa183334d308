//! Traffic while a mishap befalls the servers: what became of each operation, and the worst of a few rounds as a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use conn_postgres::{DatabaseConfig, DatabaseManager};
use futures::future::BoxFuture;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::throwaway::Pair;
use super::{eventually, subjects};
use crate::report::Row;
use crate::timing::quantile;

/// Tasks that work, and connections that they may have.
pub(super) const TASKS: u32 = 32;

/// How often each mishap is brought about.
pub(super) const ROUNDS: usize = 3;

/// One operation, with an id that no other has.
type Work = fn(DatabaseManager, i64) -> BoxFuture<'static, Result<(), String>>;

/// What became of an operation.
pub(super) struct Operation {
    pub(super) id: i64,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) error: Option<String>,
}

impl Operation {
    pub(super) fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// Tasks that work until they are told to stop.
pub(super) struct Load {
    tasks: Vec<JoinHandle<Vec<Operation>>>,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Ours on both servers, working.
    pub(super) async fn on(pair: &Pair, work: Work) -> Self {
        let config = DatabaseConfig::builder(pair.url()).pool_size(TASKS).max_overflow(0);
        let db = subjects::connected(config).await;
        let (next, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let task =
            |_| tokio::spawn(keep_working(db.clone(), work, Arc::clone(&next), Arc::clone(&stop)));
        let load = Self { tasks: (0..TASKS).map(task).collect(), next, stop };
        load.goes_on().await;
        load
    }

    /// Waits for a thousand operations more.
    pub(super) async fn goes_on(&self) {
        let before = self.next.load(Ordering::Relaxed);
        eventually("there is traffic", async || self.next.load(Ordering::Relaxed) > before + 1_000)
            .await;
    }

    /// Lets each task end what it is at.
    pub(super) async fn stop(self) -> Vec<Operation> {
        self.stop.store(true, Ordering::Relaxed);
        let mut operations = Vec::new();
        for task in self.tasks {
            operations.extend(task.await.expect("it does not panic"));
        }
        operations
    }
}

async fn keep_working(
    db: DatabaseManager,
    work: Work,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Vec<Operation> {
    let mut operations = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = next.fetch_add(1, Ordering::Relaxed).cast_signed();
        let began = Instant::now();
        let error = work(db.clone(), id).await.err();
        operations.push(Operation { id, began, ended: Instant::now(), error });
        // A refusal costs nothing, and would be asked for again a million times.
        sleep(Duration::from_millis(2)).await;
    }
    operations
}

/// Where a round runs: the tasks of an application, and its sockets with them.
pub(super) fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("it needs no resources")
}

/// The worst of the rounds, and where the others lie.
pub(super) fn worst(bench: &str, subject: &str, rounds: &[Duration]) -> Row {
    let millis: Vec<_> = rounds.iter().map(|round| round.as_secs_f64() * 1e3).collect();
    let [least, median, worst] = [0.0, 0.5, 1.0].map(|share| quantile(millis.clone(), share));
    let seen = format!(
        "{worst:>9.0} ms at worst of {} (median {median:.0}, least {least:.0})",
        millis.len()
    );
    Row { seen: Some(seen), ..Row::new(bench, subject, worst, "ms") }
}

/// The same, and that none may take longer than that many milliseconds.
pub(super) fn at_most(most: f64, bench: &str, subject: &str, rounds: &[Duration]) -> Row {
    let row = worst(bench, subject, rounds);
    let ok = row.value <= most;
    row.target(format!("≤ {most} ms"), ok)
}

/// What may never happen, counted.
pub(super) fn none(bench: &str, subject: &str, count: usize, unit: &'static str) -> Row {
    Row::new(bench, subject, count as f64, unit).target(format!("0 {unit}"), count == 0)
}
