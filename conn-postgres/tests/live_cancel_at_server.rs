//! What is cut short here ends at the server too: soon, without anyone waiting for it, and nothing else does.

mod support;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfigBuilder, DatabaseManager, Tx};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use resilience_core::{Address, Call, Deadline, Endpoint, EndpointSet};
use sqlx::{Connection, Executor, PgConnection};
use support::throwaway::Throwaway;
use support::{
    Wire, admin, backends, config, config_at, eventually, figure, manager_with, server, variable,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::join;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Time for what is cut by the clock: enough to begin.
const TIME: Duration = Duration::from_millis(600);

/// How long a cut statement may go on at the server: it takes some milliseconds and, the first time, a connect;
/// the rest is for a machine that has other things to do. Uncancelled, it would go on for half a minute.
const SOON: Duration = Duration::from_secs(2);

/// A manager whose server does not find out by itself before the test is over.
fn unwatched(
    change: impl FnOnce(DatabaseConfigBuilder) -> DatabaseConfigBuilder,
) -> (DatabaseManager, String) {
    let never = "?options=-c%20client_connection_check_interval%3D60s";
    let (builder, name) = config_at(format!("{}{never}", variable("DATABASE_URL")));
    let config = change(builder.max_retries(0)).build().unwrap();
    (DatabaseManager::connect(config).unwrap(), name)
}

/// How many backends of that name run a statement or are in a transaction, but for statements of our own.
async fn busy(admin: &mut PgConnection, name: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity \
               WHERE application_name = $1 AND state <> 'idle' AND backend_type = 'client backend' \
               AND query NOT LIKE '%pg_backend_pid()%' AND query NOT LIKE '%pg_cancel_backend%'";
    sqlx::query_scalar(sql).bind(name).fetch_one(admin).await.unwrap()
}

/// Drops `future` once the server sleeps for it.
async fn cut<T>(admin: &mut PgConnection, name: &str, future: impl Future<Output = T>) {
    let sql = "SELECT count(*) > 0 FROM pg_stat_activity \
               WHERE application_name = $1 AND wait_event = 'PgSleep'";
    tokio::select! {
        _ = future => panic!("it came to an end"),
        () = eventually("it has begun", async || {
            sqlx::query_scalar(sql).bind(name).fetch_one(&mut *admin).await.unwrap()
        }) => {}
    }
}

/// Waits until the server does nothing more for `name`; fails if that takes longer than `limit`.
async fn ends_within(limit: Duration, what: &str, admin: &mut PgConnection, name: &str) {
    let since = Instant::now();
    eventually(what, async || busy(admin, name).await == 0).await;
    assert!(since.elapsed() <= limit, "{what}: it went on for {:?}", since.elapsed());
}

const SLEEP: &str = "SELECT pg_sleep(60)";

#[tokio::test]
async fn what_is_cut_here_ends_at_the_server_however_it_was_cut() {
    let mut admin = admin().await;
    let (db, name) = unwatched(|it| it);
    let (hurried, hurried_name) = unwatched(|it| it.attempt_timeout(TIME));
    for manager in [&db, &hurried] {
        manager.warm_up(Deadline::within(Duration::from_secs(10))).await.unwrap();
    }

    cut(&mut admin, &name, sqlx::query(SLEEP).execute(&db)).await;
    ends_within(SOON, "a dropped future", &mut admin, &name).await;

    cut(&mut admin, &name, sqlx::query(SLEEP).fetch(&db).try_next()).await;
    ends_within(SOON, "a dropped stream", &mut admin, &name).await;

    let call = Call::read().by(Deadline::within(TIME));
    let late = db.call(call, async |mut conn: Conn| Ok(conn.execute(SLEEP).await?));
    late.await.unwrap_err();
    ends_within(SOON, "a call past its deadline", &mut admin, &name).await;

    let mut conn = db.acquire().await.unwrap();
    let raw = conn.raw(async |raw: &mut PgConnection| raw.execute(SLEEP).await);
    cut(&mut admin, &name, raw).await;
    drop(conn);
    ends_within(SOON, "a dropped raw closure", &mut admin, &name).await;

    hurried.read(async |mut conn: Conn| Ok(conn.execute(SLEEP).await?)).await.unwrap_err();
    ends_within(SOON, "an attempt past its time", &mut admin, &hurried_name).await;

    let mut conn = hurried.acquire().await.unwrap();
    conn.execute(SLEEP).await.unwrap_err();
    drop(conn);
    ends_within(SOON, "an operation past its time", &mut admin, &hurried_name).await;

    assert_eq!((figure(&db, "cancelled"), figure(&hurried, "cancelled")), (4, 2));
    assert_eq!((figure(&db, "dropped"), figure(&hurried, "dropped")), (0, 0));
}

#[tokio::test]
async fn what_heeds_no_cancel_request_is_terminated() {
    let mut admin = admin().await;
    let (db, name) = unwatched(|it| it);
    let stubborn = "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(60); \
                    EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$";
    cut(&mut admin, &name, db.execute(stubborn)).await;
    ends_within(SOON, "a stubborn statement", &mut admin, &name).await;
    assert!(figure(&db, "cancelled") == 1 && figure(&db, "terminated") > 0);
}

#[tokio::test]
async fn a_write_that_is_cut_in_a_transaction_is_rolled_back_and_blocks_nobody() {
    let mut admin = admin().await;
    let (db, name) = unwatched(|it| it);
    db.execute("CREATE TABLE IF NOT EXISTS cut_writes (name text, value int)").await.unwrap();
    let sql = "INSERT INTO cut_writes VALUES ($1, 0)";
    sqlx::query(sql).bind(&name).execute(&db).await.unwrap();
    let update = "UPDATE cut_writes SET value = value + 1 WHERE name = $1";
    let slow = "UPDATE cut_writes SET value = value + 1 \
                WHERE name = $1 AND pg_sleep(60) IS NOT NULL";
    let transaction = db.transaction(async |mut tx: Tx<'static>| {
        sqlx::query(update).bind(&name).execute(&mut *tx).await?;
        Ok(sqlx::query(slow).bind(&name).execute(&mut *tx).await?)
    });
    cut(&mut admin, &name, transaction).await;
    let since = Instant::now();
    sqlx::query(update).bind(&name).execute(&mut admin).await.unwrap();
    assert!(since.elapsed() <= SOON, "its lock was held for {:?}", since.elapsed());
    let sql = "SELECT value FROM cut_writes WHERE name = $1";
    let value: i32 = sqlx::query_scalar(sql).bind(&name).fetch_one(&mut admin).await.unwrap();
    assert_eq!(value, 1, "a write that was cut took effect");
}

#[tokio::test]
async fn a_drained_pool_leaves_no_connection_behind_and_nothing_running() {
    let mut admin = admin().await;
    let (db, name) = unwatched(|it| it);
    cut(&mut admin, &name, db.execute(SLEEP)).await;
    let drained = db.drain(Deadline::within(Duration::from_secs(10))).await;
    assert_eq!(drained.abandoned, 0);
    let since = Instant::now();
    eventually("all are gone", async || backends(&mut admin, &name).await == 0).await;
    assert!(since.elapsed() <= SOON, "they were there for {:?}", since.elapsed());
    assert_eq!(figure(&db, "cancelled"), 1);
}

#[tokio::test]
async fn what_comes_back_cut_after_the_drain_is_cancelled_all_the_same() {
    let mut admin = admin().await;
    let (db, name) = unwatched(|it| it);
    let mut conn = db.acquire().await.unwrap();
    cut(&mut admin, &name, conn.execute(SLEEP)).await;
    assert_eq!(db.drain(Deadline::within(Duration::from_millis(100))).await.abandoned, 1);
    drop(conn);
    let since = Instant::now();
    eventually("all are gone", async || backends(&mut admin, &name).await == 0).await;
    assert!(since.elapsed() <= SOON, "they were there for {:?}", since.elapsed());
}

#[tokio::test]
async fn a_manager_that_is_dropped_leaves_no_connection_behind() {
    let mut admin = admin().await;
    let (db, name) = unwatched(|it| it);
    cut(&mut admin, &name, db.execute(SLEEP)).await;
    drop(db);
    let since = Instant::now();
    eventually("all are gone", async || backends(&mut admin, &name).await == 0).await;
    assert!(since.elapsed() <= SOON, "they were there for {:?}", since.elapsed());
}

#[tokio::test]
async fn an_endpoint_that_left_the_set_is_not_kept_for_cancel_requests() {
    let mut admin = admin().await;
    let (old, new) = (Wire::to(server()).await, Wire::to(server()).await);
    let endpoint = |wire: &Wire| Endpoint::new(Address::new("localhost", wire.port));
    let (sender, endpoints) = watch::channel(EndpointSet::fixed([endpoint(&old)]));
    let (builder, name) = config();
    let db = DatabaseManager::connect_to(builder.build().unwrap(), endpoints).unwrap();
    cut(&mut admin, &name, db.execute(SLEEP)).await;
    eventually("it is cancelled", async || figure(&db, "cancelled") == 1).await;
    sender.send_modify(|set| {
        set.endpoints = [endpoint(&new)].into();
        set.generation += 1;
    });
    db.execute("SELECT 1").await.unwrap();
    assert_eq!((old.accepted(), new.accepted()), (2, 1));
    let since = Instant::now();
    eventually("one is left", async || backends(&mut admin, &name).await == 1).await;
    assert!(since.elapsed() <= SOON, "they were there for {:?}", since.elapsed());
}

#[tokio::test]
async fn without_a_runtime_to_ask_from_the_server_finds_out_by_itself() {
    let mut admin = admin().await;
    let (db, name) = manager_with(|it| it);
    let mut conn = db.acquire().await.unwrap();
    cut(&mut admin, &name, conn.execute(SLEEP)).await;
    std::thread::spawn(move || drop(conn)).join().unwrap();
    assert_eq!(db.status().in_use, 0);
    // It looks once a second.
    ends_within(Duration::from_secs(1) + SOON, "a cut without runtime", &mut admin, &name).await;
    assert_eq!((figure(&db, "cancelled"), figure(&db, "dropped")), (0, 1));
}

#[tokio::test]
async fn the_server_looks_after_a_connection_as_often_as_someone_chose() {
    let sql = "SELECT current_setting('client_connection_check_interval')";
    let (db, _) = manager_with(|it| it);
    assert_eq!(sqlx::query_scalar::<_, String>(sql).fetch_one(&db).await.unwrap(), "1s");
    let (db, _) = unwatched(|it| it);
    assert_eq!(sqlx::query_scalar::<_, String>(sql).fetch_one(&db).await.unwrap(), "1min");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_cuts_hit_no_neighbour_of_the_same_name() {
    const HITS: u64 = 100;
    let mut server = Throwaway::new();
    server.start().await;
    let (builder, _) = config_at(server.url());
    let config = builder.pool_size(4).max_overflow(4).max_retries(0).build().unwrap();
    let [db, neighbour] =
        [&config, &config].map(|config| DatabaseManager::connect(config.clone()).unwrap());
    let cuts = (0..4).map(|_| async {
        while figure(&db, "cancelled") < HITS {
            // Some while it connects, most while it runs.
            let time = Duration::from_millis(fastrand::u64(..40));
            let _ = timeout(time, db.execute(SLEEP)).await;
        }
    });
    let is_over = AtomicBool::new(false);
    let neighbours = (0..4).map(|_| async {
        let mut served = 0;
        while !is_over.load(Ordering::Relaxed) {
            neighbour.execute("SELECT pg_sleep(0.003)").await.unwrap();
            served += 1;
        }
        served
    });
    let cutting = async {
        join_all(cuts).await;
        is_over.store(true, Ordering::Relaxed);
    };
    let both = async { join!(cutting, join_all(neighbours)) };
    let ((), served) = timeout(Duration::from_secs(60), both).await.expect("too few were hit");
    let served: usize = served.into_iter().sum();
    assert!(served > 100, "only {served} statements beside {HITS} that were cancelled");
    assert_eq!(figure(&neighbour, "cancelled"), 0);
}

#[tokio::test]
async fn a_process_id_that_is_a_strangers_by_now_hits_nobody() {
    let mut server = Throwaway::new();
    server.start().await;
    let mut admin = PgConnection::connect(&server.url()).await.unwrap();
    let mut stranger = PgConnection::connect(&server.url()).await.unwrap();
    let sql = "SELECT pg_backend_pid()";
    let pid: i32 = sqlx::query_scalar(sql).fetch_one(&mut stranger).await.unwrap();
    let port = first_is_told_another_pid(server.port, pid).await;
    let (builder, name) =
        config_at(format!("postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"));
    let db = DatabaseManager::connect(builder.build().unwrap()).unwrap();
    let conn = db.acquire().await.unwrap();
    assert!(format!("{conn:?}").contains(&format!("backend: {pid}")), "{conn:?}");
    drop(conn);

    let working = tokio::spawn(async move { stranger.execute("SELECT pg_sleep(2)").await });
    cut(&mut admin, &name, db.execute(SLEEP)).await;
    working.await.unwrap().expect("the stranger was hit");
    assert_eq!((figure(&db, "cancelled"), figure(&db, "terminated")), (0, 0));
    // The server looks after the connection itself.
    ends_within(SOON, "a cut under another's process id", &mut admin, &name).await;
}

/// A way to the server on `port`. Who comes first is told `pid` in the place of its own.
async fn first_is_told_another_pid(port: u16, pid: i32) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near_port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut is_first = true;
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(carry(near, far, std::mem::take(&mut is_first).then_some(pid)));
        }
    });
    near_port
}

async fn carry(mut near: TcpStream, mut far: TcpStream, pid: Option<i32>) {
    let ((mut hears, mut says), (mut answers, mut asks)) = (near.split(), far.split());
    let back = async {
        let (mut bytes, mut own) = (vec![0; 65536], None);
        loop {
            let count = answers.read(&mut bytes).await.unwrap_or(0);
            if count == 0 {
                return;
            }
            let bytes = &mut bytes[..count];
            // The server says it twice: on its own, for cancel requests of another kind, and when it is asked.
            let key = bytes.windows(9).find(|it| it.starts_with(&[b'K', 0, 0, 0, 12]));
            own = own.or(key.map(|key| i32::from_be_bytes(key[5..].try_into().unwrap())));
            if let (Some(pid), Some(own)) = (pid, own) {
                let own = own.to_string();
                let pid = format!("{pid:0width$}", width = own.len());
                let found = bytes.windows(own.len()).position(|it| it == own.as_bytes());
                if let Some(at) = found {
                    bytes[at..at + own.len()].copy_from_slice(pid.as_bytes());
                }
            }
            if says.write_all(bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = back => {}
        _ = copy(&mut hears, &mut asks) => {}
    }
}
