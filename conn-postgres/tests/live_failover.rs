//! Fear: after a failover writes are lost, made twice, or go to the old primary; or nobody notices that the new one is there.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseManager};
use resilience_core::{CircuitState, Deadline};
use sqlx::Connection;
use support::eventually;
use support::throwaway::Pair;
use tokio::time::{Instant, sleep};

const TASKS: u64 = 32;

fn manager(pair: &Pair) -> DatabaseManager {
    let config = DatabaseConfig::builder(pair.url())
        .application_name("failover")
        .pool_size(TASKS as u32)
        .max_overflow(0);
    DatabaseManager::connect(config.build().unwrap()).unwrap()
}

/// What became of a write.
#[derive(Debug)]
struct Write {
    id: i64,
    began: Instant,
    ended: Instant,
    acknowledged: bool,
}

/// Writes ids that nobody else writes, until told to stop.
async fn keep_writing(
    db: DatabaseManager,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Vec<Write> {
    let mut writes = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = next.fetch_add(1, Ordering::Relaxed).cast_signed();
        let began = Instant::now();
        let result = db
            .write(async |mut conn: Conn| {
                sqlx::query("INSERT INTO orders VALUES ($1)").bind(id).execute(&mut conn).await?;
                Ok(())
            })
            .await;
        writes.push(Write { id, began, ended: Instant::now(), acknowledged: result.is_ok() });
        // A refusal costs nothing, and would be asked for again a million times.
        sleep(Duration::from_millis(2)).await;
    }
    writes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_killed_under_load_loses_and_doubles_nothing() {
    let mut pair = Pair::start().await;
    // No key: what is written twice shall be seen twice.
    pair.primary.sql("CREATE TABLE orders (id int8); CREATE TABLE probes (at timestamptz)").await;
    let db = manager(&pair);
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();
    let (next, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| tokio::spawn(keep_writing(db.clone(), Arc::clone(&next), Arc::clone(&stop))))
        .collect();
    eventually("there is traffic", async || next.load(Ordering::Relaxed) > 1_000).await;

    let killed = Instant::now();
    pair.kill_primary();
    // As long as it takes somebody to decide.
    let decision = Duration::from_millis(500);
    eventually("it is decided", async || killed.elapsed() >= decision).await;
    pair.promote().await;
    let accepted = pair.standby.accepts("INSERT INTO probes VALUES (now())").await;
    let later = Duration::from_millis(1500);
    eventually("it has gone on for a while", async || accepted.elapsed() >= later).await;
    stop.store(true, Ordering::Relaxed);
    let mut writes = Vec::new();
    for task in tasks {
        writes.extend(task.await.unwrap());
    }

    let acknowledged = || writes.iter().filter(|write| write.acknowledged);
    let failed = writes.len() - acknowledged().count();
    let late =
        acknowledged().filter(|write| write.ended - write.began > Duration::from_millis(300));
    let late = late.count();
    assert!(failed + late > 0, "the failover was not felt");
    let first = acknowledged()
        .map(|write| write.ended)
        .filter(|ended| *ended > killed + Duration::from_millis(400));
    let first = first.min().expect("nothing was written after the failover");
    let gap = first.saturating_duration_since(accepted);
    let mut rows: HashMap<i64, u32> = HashMap::new();
    let mut survivor = pair.standby.connect().await;
    for id in sqlx::query_scalar::<_, i64>("SELECT id FROM orders")
        .fetch_all(&mut survivor)
        .await
        .unwrap()
    {
        *rows.entry(id).or_default() += 1;
    }
    let lost = acknowledged().filter(|write| !rows.contains_key(&write.id)).count();
    let doubled = rows.values().filter(|count| **count > 1).count();
    println!(
        "{} writes: {lost} lost, {doubled} doubled, {failed} failed, {late} late by more than 300 ms; \
         the first {gap:?} after the promoted server accepted, {:?} after the kill",
        writes.len(),
        first - killed,
    );
    assert_eq!((lost, doubled), (0, 0));
    assert!(gap <= Duration::from_millis(300), "{gap:?} after the promoted server accepted");
    // What was under way was cut off; nobody was turned away after that.
    assert!(failed as u64 <= 2 * TASKS, "{failed} writes failed");
    assert_eq!(db.breaker().state(), CircuitState::Closed);
    let after = writes.iter().filter(|write| write.began > accepted + Duration::from_millis(300));
    assert_eq!(after.filter(|write| !write.acknowledged).count(), 0, "writes failed after that");

    // The old one comes back, and takes itself for a primary. It gets no write: not of those that are
    // connected, nor of a process that starts now and finds two.
    pair.primary.start().await;
    pair.primary.sql("ALTER SYSTEM RESET synchronous_standby_names").await;
    pair.primary.sql("SELECT pg_reload_conf()").await;
    let count = "SELECT count(*) FROM orders";
    let before: i64 = pair.primary.ask(count).await;
    pair.primary.sql("INSERT INTO probes VALUES (now())").await;
    let looks = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'failover'";
    eventually("it is looked at", async || pair.primary.ask::<i64>(looks).await > 0).await;
    let fresh = manager(&pair);
    for db in [&db, &fresh] {
        let lent: Vec<_> = futures_util::future::join_all((0..8).map(|_| db.acquire())).await;
        assert!(lent.iter().all(Result::is_ok));
        drop(lent);
        for _ in 0..20 {
            let id = next.fetch_add(1, Ordering::Relaxed).cast_signed();
            sqlx::query("INSERT INTO orders VALUES ($1)").bind(id).execute(db).await.unwrap();
        }
    }
    assert_eq!(pair.primary.ask::<i64>(count).await, before, "the old primary was written to");
    survivor.close().await.unwrap();
}

#[tokio::test]
async fn a_primary_seen_to_be_of_the_past_loses_its_connections() {
    let pair = Pair::start().await;
    pair.primary.sql("ALTER SYSTEM RESET synchronous_standby_names").await;
    pair.primary.sql("SELECT pg_reload_conf()").await;
    let db = manager(&pair);
    let lent: Vec<_> = futures_util::future::join_all((0..4).map(|_| db.acquire())).await;
    let mut held = lent.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    let kept = held.pop();
    drop(held);
    assert_eq!(db.status().idle, 3);

    // Nothing fails: the old one goes on as if nothing were.
    pair.promote().await;
    eventually("idle connections are closed", async || db.status().idle == 0).await;
    let port: i32 = sqlx::query_scalar("SELECT inet_server_port()").fetch_one(&db).await.unwrap();
    assert_eq!(port, i32::from(pair.standby.port));
    drop(kept);
    assert_eq!(db.status().idle, 1, "a lent one to the old primary was kept");
}

#[tokio::test]
async fn a_read_that_loses_its_connection_is_made_again_at_once() {
    let pair = Pair::start().await;
    let db = manager(&pair);
    let runs = AtomicU64::new(0);
    let started = Instant::now();
    let answer = db.read(|mut conn| {
        runs.fetch_add(1, Ordering::Relaxed);
        async move {
            let backend: i32 =
                sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut conn).await?;
            Ok(sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid() FROM pg_sleep(0.3)")
                .fetch_one(&mut conn)
                .await
                .map(|_| backend)?)
        }
    });
    let kill = async {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(0.3)%' AND pid <> pg_backend_pid()";
        eventually("it is killed", async || pair.primary.ask::<i64>(sql).await == 1).await;
    };
    let (answer, ()) = tokio::join!(answer, kill);
    answer.unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 2);
    // The first wait between two attempts would be a second.
    assert!(started.elapsed() < Duration::from_millis(900), "it took {:?}", started.elapsed());
    assert_eq!(db.breaker().snapshot().calls.failure, 0);
}
