//! A server that is stopped, a wire that swallows, a cable that is pulled: noticed within a second, and served again as soon.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseManager};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use resilience_core::CircuitState;
use sqlx::Executor;
use support::network::Network;
use support::throwaway::Throwaway;
use support::{State, Wire, eventually};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const CALLS: u32 = 32;

/// What a busy machine may add to a second.
const BUSY: Duration = Duration::from_millis(300);

/// Nothing but the second look ends a call within half a minute, and no circuit is in the way.
fn manager(url: &str) -> DatabaseManager {
    let config = DatabaseConfig::builder(url)
        .pool_size(CALLS)
        .max_overflow(0)
        .attempt_timeout(30 * SECOND)
        .connect_timeout(5 * SECOND)
        .max_retries(0)
        .fail_max(1_000_000);
    DatabaseManager::connect(config.build().unwrap()).unwrap()
}

async fn ask(db: &DatabaseManager) -> Result<i32, conn_postgres::Error> {
    let mut conn = db.acquire().await?;
    Ok(sqlx::query_scalar("SELECT 42").fetch_one(&mut conn).await?)
}

/// Takes the server away under calls of each kind, and gives it back: how soon each was noticed.
async fn endure(what: &str, db: &DatabaseManager, silence: impl Fn(bool)) {
    // Full, and one connection of each four idle when it happens.
    let lent: Vec<_> = join_all((0..CALLS).map(|_| db.acquire())).await;
    drop(lent.into_iter().collect::<Result<Vec<_>, _>>().unwrap());
    let calls = join_all((0..CALLS * 3 / 4).map(async |number| {
        let sql = "SELECT pg_sleep(60)";
        let error = match number % 3 {
            0 => db
                .read(async |mut conn: Conn| Ok(conn.execute(sql).await?))
                .await
                .unwrap_err()
                .to_string(),
            1 => (&mut db.begin().await.unwrap())
                .fetch(sql)
                .try_next()
                .await
                .unwrap_err()
                .to_string(),
            _ => {
                let mut conn = db.acquire().await.unwrap();
                conn.raw(async |raw| raw.execute(sql).await).await.unwrap_err().to_string()
            }
        };
        assert!(error.contains("and none to a second look at"), "{error}");
        Instant::now()
    }));
    let mishap = async {
        eventually("all are under way", async || db.status().in_use == CALLS as usize * 3 / 4)
            .await;
        // Long enough for them to have been looked at, and found slow but well.
        sleep(2 * SECOND).await;
        silence(true);
        Instant::now()
    };
    let (ended, fell_silent) = tokio::join!(calls, mishap);
    let noticed = ended.into_iter().max().unwrap() - fell_silent;
    assert!(noticed <= SECOND + BUSY, "{what}: noticed after {noticed:?}");
    assert_eq!(
        (db.status().in_use, db.status().idle),
        (0, 0),
        "lost connections hold their places"
    );

    // A connect is noticed too, though it may take five seconds.
    let connecting = Instant::now();
    let error = ask(db).await.unwrap_err();
    let refused = connecting.elapsed();
    assert!(error.to_string().contains("and none to a second look at"), "{error}");
    assert!(refused <= SECOND + BUSY, "{what}: a connect was given up after {refused:?}");

    // As many as there are places try again and again when it comes back.
    let back = tokio::sync::watch::Sender::new(None);
    let trying = join_all((0..CALLS).map(async |_| {
        loop {
            let Ok(mut conn) = db.acquire().await else { continue };
            if conn.execute("SELECT 1").await.is_ok() {
                // Held, so that each needs one of its own.
                back.subscribe().wait_for(Option::is_some).await.unwrap();
                return (Instant::now(), conn);
            }
        }
    }));
    let return_ = async {
        sleep(SECOND * 3 / 2).await;
        silence(false);
        back.send_replace(Some(Instant::now()));
    };
    let (served, ()) = tokio::join!(trying, return_);
    let returned = back.borrow().unwrap();
    let full = served.iter().map(|(at, _)| *at).max().unwrap() - returned;
    println!(
        "{what}: noticed after {noticed:?}, a connect after {refused:?}, full capacity {full:?} after its return"
    );
    assert!(full <= SECOND + BUSY, "{what}: full capacity was back after {full:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_is_noticed_within_a_second() {
    let mut server = Throwaway::new();
    server.start().await;
    let db = manager(&server.url());
    endure("stopped server", &db, |silent| server.signal(if silent { "STOP" } else { "CONT" }))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_swallows_is_noticed_within_a_second() {
    let mut server = Throwaway::new();
    server.start().await;
    let wire = Wire::to(format!("127.0.0.1:{}", server.port)).await;
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", wire.port);
    let db = manager(&url);
    endure("silent wire", &db, |silent| wire.set(if silent { State::Silent } else { State::Up }))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cable_that_is_pulled_is_noticed_within_a_second() {
    let network = Network::new();
    let mut server = Throwaway::beyond(&network);
    server.start().await;
    let db = manager(&server.url());
    endure("pulled cable", &db, |silent| network.set_up(!silent)).await;
}

#[tokio::test]
async fn a_silence_that_opened_the_circuit_keeps_nobody_out_once_it_is_over() {
    let mut server = Throwaway::new();
    server.start().await;
    let config = DatabaseConfig::builder(server.url()).pool_size(8).max_retries(0);
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let sleep_long = async || sqlx::query("SELECT pg_sleep(60)").execute(&db).await;
    let silence = async {
        eventually("all are in flight", async || db.status().in_use == 8).await;
        server.signal("STOP");
    };
    let (calls, ()) = tokio::join!(join_all((0..8).map(|_| sleep_long())), silence);
    assert!(calls.iter().all(Result::is_err));
    let opened = Instant::now();
    eventually("two seconds have gone by", async || {
        let state = db.breaker().state();
        assert_eq!(state, CircuitState::Open, "{:?} after it was felt", opened.elapsed());
        opened.elapsed() > 2 * SECOND
    })
    .await;
    server.signal("CONT");
    let began = Instant::now();
    eventually("it is served", async || ask(&db).await.is_ok()).await;
    println!("served {:?} after the silence", began.elapsed());
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_slow_statement_on_a_live_server_is_left_alone_and_its_log_stays_clean() {
    let mut server = Throwaway::new();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    server.put("data/server.crt", &own.cert.pem());
    server.put("data/server.key", &own.signing_key.serialize_pem());
    server.put("data/postgresql.auto.conf", "ssl = on\nlog_connections = on\n");
    server.start().await;
    let db = manager(&server.url().replace("sslmode=disable", "sslmode=require"));
    let before = server.log().lines().count();
    sqlx::query("SELECT pg_sleep(5)").execute(&db).await.unwrap();
    assert_eq!(db.status().idle, 1);

    let log = server.log();
    let (arrivals, others): (Vec<&str>, Vec<&str>) =
        log.lines().skip(before).partition(|line| line.contains("connection received"));
    assert!((5..=15).contains(&arrivals.len()), "{} looks in 5 s", arrivals.len());
    assert!(others.iter().all(|line| line.contains("connection auth")), "{others:#?}");
}

#[tokio::test]
async fn one_silence_sends_the_next_connect_to_the_next_host() {
    let (mut first, mut second) = (Throwaway::new(), Throwaway::new());
    tokio::join!(first.start(), second.start());
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", first.port, second.port);
    let db = manager(&format!("postgresql://postgres@{hosts}/postgres?sslmode=disable"));
    ask(&db).await.unwrap();
    first.signal("STOP");
    ask(&db).await.unwrap_err();
    let began = Instant::now();
    ask(&db).await.unwrap();
    assert!(began.elapsed() < SECOND / 2, "the silent one was tried first again");
}
