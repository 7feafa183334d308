//! A switchover that was planned, under load: what fails, and how long the longest operation is held.

use std::time::Duration;

use conn_postgres::{Conn, DatabaseManager, Tx};
use futures::future::BoxFuture;

use super::load::{Load, Operation, ROUNDS, at_most, none, runtime, worst};
use super::throwaway::Pair;
use crate::report::Row;

const BENCH: &str = "postgres: planned switchover under load";

/// What a round showed.
struct Round {
    longest: Duration,
    failed: usize,
    /// What the servers took for it.
    recipe: Duration,
}

/// The worst of a few rounds, each on servers of its own.
///
/// # Panics
///
/// If nobody felt it.
#[must_use]
pub fn rows() -> Vec<Row> {
    let rounds: Vec<_> = (0..ROUNDS).map(|_| runtime().block_on(round())).collect();
    let of = |what: fn(&Round) -> Duration| rounds.iter().map(what).collect::<Vec<_>>();
    let failed = rounds.iter().map(|round| round.failed).sum();
    vec![
        none(BENCH, "ours", failed, "failed operations"),
        at_most(500.0, BENCH, "ours, longest pause", &of(|round| round.longest)),
        worst(BENCH, "the servers alone", &of(|round| round.recipe)),
    ]
}

async fn round() -> Round {
    let mut pair = Pair::start().await;
    pair.primary.sql("CREATE TABLE orders (id int8)").await;
    let load = Load::on(&pair, one_of_each).await;
    let recipe = pair.switch_over().await;
    load.goes_on().await;
    let operations = load.stop().await;
    let longest = operations.iter().map(Operation::took).max().unwrap_or_default();
    assert!(longest > recipe / 4, "the switchover was not felt");
    let errors: Vec<_> = operations.iter().filter_map(|it| it.error.as_deref()).collect();
    if let Some(first) = errors.first() {
        eprintln!("{BENCH}: {first}");
    }
    Round { longest, failed: errors.len(), recipe }
}

/// Reads, writes, transactions and single statements, each in turn.
fn one_of_each(db: DatabaseManager, id: i64) -> BoxFuture<'static, Result<(), String>> {
    const INSERT: &str = "INSERT INTO orders VALUES ($1)";
    Box::pin(async move {
        match id % 4 {
            0 => {
                let select = async |mut conn: Conn| {
                    sqlx::query("SELECT 1").execute(&mut conn).await?;
                    Ok(())
                };
                db.read(select).await.map_err(|error| error.to_string())
            }
            1 => {
                let insert = async |mut conn: Conn| {
                    sqlx::query(INSERT).bind(id).execute(&mut conn).await?;
                    Ok(())
                };
                db.write(insert).await.map_err(|error| error.to_string())
            }
            2 => {
                let insert = async |mut tx: Tx<'static>| {
                    sqlx::query(INSERT).bind(id).execute(&mut *tx).await?;
                    Ok(())
                };
                db.transaction(insert).await.map_err(|error| error.to_string())
            }
            _ => {
                let inserted = sqlx::query(INSERT).bind(id).execute(&db).await;
                inserted.map(drop).map_err(|error| error.to_string())
            }
        }
    })
}
