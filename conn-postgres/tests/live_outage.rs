//! A server that is down at the start, is killed, or stops answering: calls fail fast, and service comes back by itself.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseManager};
use resilience_core::{CallError, CircuitState, HealthStatus};
use sqlx::Executor;
use support::eventually;
use support::throwaway::{GRACE, Throwaway};
use tokio::time::{Instant, interval};

const RESET: Duration = Duration::from_millis(500);

fn manager(server: &Throwaway) -> DatabaseManager {
    let config = DatabaseConfig::builder(server.url())
        .pool_size(4)
        .max_overflow(0)
        .attempt_timeout(Duration::from_secs(1))
        .deadline(Duration::from_secs(2))
        .base_delay(Duration::from_millis(10))
        .max_delay(Duration::from_millis(50))
        .reset_timeout(RESET);
    DatabaseManager::connect(config.build().unwrap()).unwrap()
}

async fn ask(db: &DatabaseManager) -> Result<i32, CallError<conn_postgres::Error>> {
    db.read(async |mut conn: Conn| Ok(sqlx::query_scalar("SELECT 42").fetch_one(&mut conn).await?))
        .await
}

/// Asks until it is answered, and says how long that took.
async fn until_served(db: &DatabaseManager) -> Duration {
    let started = Instant::now();
    eventually("it serves again", async || ask(db).await.is_ok()).await;
    started.elapsed()
}

#[tokio::test]
async fn a_server_that_is_down_at_start_does_not_stop_the_application() {
    let mut server = Throwaway::new();
    let db = manager(&server);
    let started = Instant::now();
    let error = ask(&db).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(1), "it did not fail fast");
    let text = error.to_string();
    assert!(text.starts_with(&format!("cannot connect to 127.0.0.1:{}: ", server.port)), "{text}");
    assert!(text.to_lowercase().contains("refused"), "{text}");
    let health = db.health().await;
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reason.unwrap().contains("refused"));
    eventually("the circuit opens", async || {
        let _ = ask(&db).await;
        db.breaker().state() == CircuitState::Open
    })
    .await;
    assert!(matches!(ask(&db).await, Err(CallError::CircuitOpen(_))));

    server.start().await;
    assert_eq!(db.health().await.status, HealthStatus::Healthy);
    let took = until_served(&db).await;
    assert!(took < RESET + GRACE, "it took {took:?}");
    eventually("the circuit closes", async || {
        let _ = ask(&db).await;
        db.breaker().state() == CircuitState::Closed
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_killed_under_traffic_opens_the_circuit_and_closes_it_when_back() {
    let mut server = Throwaway::new();
    server.start().await;
    let db = manager(&server);
    let (served, failed) = <(AtomicUsize, AtomicUsize)>::default();
    let traffic = async {
        let mut pace = interval(Duration::from_millis(5));
        loop {
            pace.tick().await;
            let started = Instant::now();
            match ask(&db).await {
                Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                Err(_) => failed.fetch_add(1, Ordering::Relaxed),
            };
            assert!(started.elapsed() < Duration::from_millis(2100), "an answer came late");
        }
    };
    let events = async {
        let count = || served.load(Ordering::Relaxed);
        eventually("there is traffic", async || count() > 20).await;
        server.kill();
        eventually("the circuit opens", async || db.breaker().state() == CircuitState::Open).await;
        eventually("calls failed", async || failed.load(Ordering::Relaxed) > 0).await;
        assert_eq!(db.health().await.status, HealthStatus::Unhealthy);
        server.start().await;
        let (before, back) = (count(), Instant::now());
        eventually("it serves again", async || count() > before).await;
        assert!(back.elapsed() < RESET + GRACE, "it took {:?}", back.elapsed());
        eventually("the circuit closes", async || db.breaker().state() == CircuitState::Closed)
            .await;
        let failures = failed.load(Ordering::Relaxed);
        let before = count();
        eventually("it goes on serving", async || count() > before + 50).await;
        assert_eq!(failed.load(Ordering::Relaxed), failures, "calls failed after the recovery");
    };
    tokio::select! {
        () = traffic => unreachable!("it has no end"),
        () = events => {}
    }
}

#[tokio::test]
async fn a_server_that_is_stopped_answers_nobody_late_and_serves_when_it_goes_on() {
    let mut server = Throwaway::new();
    server.start().await;
    let db = manager(&server);
    ask(&db).await.unwrap();
    server.signal("STOP");
    for _ in 0..3 {
        let started = Instant::now();
        ask(&db).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_millis(2100), "an answer came late");
    }
    eventually("the circuit opens", async || {
        let _ = ask(&db).await;
        db.breaker().state() == CircuitState::Open
    })
    .await;
    assert_eq!(db.status().in_use, 0);
    server.signal("CONT");
    let took = until_served(&db).await;
    assert!(took < RESET + GRACE, "it took {took:?}");
}

#[tokio::test]
async fn a_restart_between_two_calls_costs_a_read_nothing() {
    let mut server = Throwaway::new();
    server.start().await;
    let db = manager(&server);
    let lent: Vec<_> = futures_util::future::join_all((0..4).map(|_| db.acquire())).await;
    drop(lent);
    assert_eq!(db.status().idle, 4);
    server.kill();
    server.start().await;
    // All four idle connections are dead; the first to find out spares the others the same.
    assert_eq!(ask(&db).await.unwrap(), 42);
    assert_eq!(db.health().await.status, HealthStatus::Healthy);
    (&db).execute("SELECT 1").await.unwrap();
    assert!(db.breaker().snapshot().calls.failure <= 1);

    // A look at the server's health is not misled by a connection that died meanwhile.
    server.kill();
    server.start().await;
    assert_eq!(db.health().await.status, HealthStatus::Healthy);
}
