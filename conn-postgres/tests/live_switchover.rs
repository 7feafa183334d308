//! Fear: a switchover that was planned fails what runs, or stops it for longer than anyone would notice.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseManager, Error, Tx};
use resilience_core::Deadline;
use sqlx::Executor;
use support::eventually;
use support::throwaway::Pair;
use tokio::time::{Instant, sleep};

const TASKS: u64 = 32;

/// How often there was an operation, what failed, and the longest that one took.
#[derive(Default)]
struct Tally {
    done: u64,
    failed: Vec<String>,
    longest: Duration,
}

/// Reads, writes and transactions, and single statements, each in turn.
async fn keep_working(
    db: DatabaseManager,
    task: u64,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Tally {
    let mut tally = Tally::default();
    let mut turn = task;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let id = next.fetch_add(1, Ordering::Relaxed).cast_signed();
        let insert = "INSERT INTO orders VALUES ($1)";
        let started = Instant::now();
        let result: Result<(), Error> = match turn % 5 {
            0 => {
                let work = async |mut conn: Conn| {
                    sqlx::query("SELECT count(*) FROM orders WHERE id = 0")
                        .execute(&mut conn)
                        .await?;
                    Ok(())
                };
                db.read(work).await.map_err(|error| Error::application(error.to_string()))
            }
            1 => {
                let work = async |mut conn: Conn| {
                    sqlx::query(insert).bind(id).execute(&mut conn).await?;
                    Ok(())
                };
                db.write(work).await.map_err(|error| Error::application(error.to_string()))
            }
            2 => {
                let work = async |mut tx: Tx<'static>| {
                    tx.execute("SELECT 1").await?;
                    sqlx::query(insert).bind(id).execute(&mut *tx).await?;
                    Ok(())
                };
                db.transaction(work).await.map_err(|error| Error::application(error.to_string()))
            }
            3 => {
                let result = sqlx::query(insert).bind(id).execute(&db).await;
                result.map(drop).map_err(Error::from)
            }
            _ => {
                let one = sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&db).await;
                one.map(drop).map_err(Error::from)
            }
        };
        tally.longest = tally.longest.max(started.elapsed());
        match result {
            Ok(()) => tally.done += 1,
            Err(error) => tally.failed.push(format!("{}: {error}", turn % 5)),
        }
        sleep(Duration::from_millis(2)).await;
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_switchover_holds_what_runs_and_fails_nothing() {
    let mut pair = Pair::start().await;
    pair.primary.sql("CREATE TABLE orders (id int8)").await;
    let config = DatabaseConfig::builder(pair.url())
        .pool_size(TASKS as u32)
        .max_overflow(0)
        // Whatever the servers need for it on a busy machine.
        .acquire_timeout(Duration::from_secs(10));
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();
    let (next, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            tokio::spawn(keep_working(db.clone(), task, Arc::clone(&next), Arc::clone(&stop)))
        })
        .collect();
    eventually("there is traffic", async || next.load(Ordering::Relaxed) > 1_000).await;

    let held = pair.switch_over().await;
    let promoted = next.load(Ordering::Relaxed);
    eventually("it goes on", async || next.load(Ordering::Relaxed) > promoted + 1_000).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Tally::default();
    for task in tasks {
        let tally = task.await.unwrap();
        all.done += tally.done;
        all.failed.extend(tally.failed);
        all.longest = all.longest.max(tally.longest);
    }
    println!(
        "{} operations, {} failed, the longest pause {:?}; the recipe took {held:?}",
        all.done,
        all.failed.len(),
        all.longest
    );
    assert_eq!(all.failed, Vec::<String>::new());
    assert!(all.longest > held / 4, "the switchover was not felt");
    // Most of the pause is the servers' own.
    assert!(all.longest <= held + Duration::from_millis(500), "a pause of {:?}", all.longest);
    let serving: i32 =
        sqlx::query_scalar("SELECT inet_server_port()").fetch_one(&db).await.unwrap();
    assert_eq!(serving, i32::from(pair.standby.port));
    assert_eq!(db.breaker().snapshot().calls.failure, 0);
}
