//! The primary is killed under load and the standby promoted: how soon writes go on, and what became of each.

use std::collections::HashMap;
use std::time::Duration;

use conn_postgres::{Conn, DatabaseManager};
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::load::{Load, ROUNDS, at_most, none, runtime};
use super::throwaway::Pair;
use crate::report::Row;

/// As long as it takes somebody to decide to promote.
const DECISION: Duration = Duration::from_millis(500);

/// How long it goes on afterwards.
const AFTERWARDS: Duration = Duration::from_millis(1500);

const BENCH: &str = "postgres: primary killed under load, synchronous standby promoted";
const SUBJECT: &str = "ours, db.write";

/// What a round showed.
struct Round {
    /// From when the promoted server accepts to the first write.
    gap: Duration,
    /// Acknowledged, then missing.
    lost: usize,
    doubled: usize,
    failed: usize,
}

/// The worst of a few rounds, each on servers of its own.
///
/// # Panics
///
/// If nobody felt it.
#[must_use]
pub fn rows() -> Vec<Row> {
    let rounds: Vec<_> = (0..ROUNDS).map(|_| runtime().block_on(round())).collect();
    let gaps: Vec<_> = rounds.iter().map(|round| round.gap).collect();
    let sum = |of: fn(&Round) -> usize| rounds.iter().map(of).sum::<usize>();
    let failed = sum(|round| round.failed);
    vec![
        at_most(300.0, BENCH, "ours, first write", &gaps),
        none(BENCH, SUBJECT, sum(|round| round.lost), "lost writes"),
        none(BENCH, SUBJECT, sum(|round| round.doubled), "doubled writes"),
        Row::new(BENCH, SUBJECT, failed as f64, "failed writes"),
    ]
}

async fn round() -> Round {
    let mut pair = Pair::start().await;
    // No key: what is written twice shall be seen twice.
    pair.primary.sql("CREATE TABLE orders (id int8); CREATE TABLE probes (at timestamptz)").await;
    let load = Load::on(&pair, write).await;
    pair.kill_primary();
    sleep(DECISION).await;
    let decided = Instant::now();
    pair.promote().await;
    let accepted = pair.standby.accepts("INSERT INTO probes VALUES (now())").await;
    sleep(AFTERWARDS).await;
    let writes = load.stop().await;

    let acknowledged = || writes.iter().filter(|write| write.error.is_none());
    let failed = writes.len() - acknowledged().count();
    let waited = acknowledged().any(|write| write.took() >= DECISION);
    assert!(failed > 0 || waited, "the failover was not felt");
    let after = acknowledged().map(|write| write.ended).filter(|ended| *ended > decided);
    let first = after.min().expect("nothing was written after the failover");
    let mut rows: HashMap<i64, usize> = HashMap::new();
    let mut survivor = pair.standby.connect().await;
    let ids = sqlx::query_scalar("SELECT id FROM orders").fetch_all(&mut survivor).await;
    for id in ids.expect("it answers") {
        *rows.entry(id).or_default() += 1;
    }
    Round {
        gap: first.saturating_duration_since(accepted),
        lost: acknowledged().filter(|write| !rows.contains_key(&write.id)).count(),
        doubled: rows.values().filter(|count| **count > 1).count(),
        failed,
    }
}

fn write(db: DatabaseManager, id: i64) -> BoxFuture<'static, Result<(), String>> {
    Box::pin(async move {
        let insert = async |mut conn: Conn| {
            sqlx::query("INSERT INTO orders VALUES ($1)").bind(id).execute(&mut conn).await?;
            Ok(())
        };
        db.write(insert).await.map_err(|error| error.to_string())
    })
}
