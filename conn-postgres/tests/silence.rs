//! A peer that accepts and says nothing, or falls silent: every await ends by its deadline all the same.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseManager, Error, TargetSessionAttrs};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use resilience_core::{Call, CallError, CircuitState, Deadline, HealthStatus};
use sqlx::Executor;
use sqlx::migrate::Migrator;
use support::script::{Script, Welcome};
use support::{eventually, within};
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_millis(300);

fn manager(script: &Script) -> DatabaseManager {
    connecting_for(LIMIT, script)
}

fn connecting_for(time: Duration, script: &Script) -> DatabaseManager {
    let config = DatabaseConfig::builder(script.url())
        .pool_size(2)
        .max_overflow(0)
        .connect_timeout(time)
        .acquire_timeout(LIMIT)
        .attempt_timeout(LIMIT)
        .max_retries(0)
        .fail_max(1_000_000);
    DatabaseManager::connect(config.build().unwrap()).unwrap()
}

#[tokio::test]
async fn every_way_in_ends_by_its_deadline_and_names_the_silent_endpoint() {
    let script = Script::with(Welcome::Silence).await;
    // Half of the call's time: of two that end at once, the one that names the endpoint might come second.
    let db = connecting_for(LIMIT / 2, &script);
    let endpoint = format!("127.0.0.1:{}", script.port);
    let deadline = || Deadline::within(LIMIT);
    let named = |error: &dyn std::fmt::Display| {
        let text = error.to_string();
        assert!(text.contains(&endpoint) || text.contains("had no answer within"), "{text}");
    };
    named(&within(LIMIT, db.read(async |_| Ok(()))).await.unwrap_err());
    named(&within(LIMIT, db.write(async |_| Ok(()))).await.unwrap_err());
    named(&within(LIMIT, db.transaction(async |_| Ok(()))).await.unwrap_err());
    named(&within(LIMIT, db.warm_up(deadline())).await.unwrap_err());
    named(&within(LIMIT, db.acquire()).await.unwrap_err());
    named(&within(LIMIT, db.begin()).await.unwrap_err());
    named(&within(LIMIT, (&db).execute("SELECT 1")).await.unwrap_err());
    named(&within(LIMIT, (&db).fetch("SELECT 1").try_next()).await.unwrap_err());
    let none = Migrator::with_migrations(Vec::new());
    named(&within(LIMIT, db.migrate(&none, deadline())).await.unwrap_err());
    let fell_back: i32 = within(
        LIMIT,
        db.read_or(
            async |_| Ok(1),
            async |error| {
                assert!(error.is_unavailable());
                Ok::<_, CallError<Error>>(2)
            },
        ),
    )
    .await
    .unwrap();
    assert_eq!(fell_back, 2);
    let health = within(LIMIT, resilience_core::HealthCheck::check(&db, deadline())).await;
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reason.unwrap().contains("no answer within"));
    assert_eq!(within(LIMIT, db.drain(deadline())).await.abandoned, 0);
}

#[tokio::test]
async fn who_queues_behind_silent_connects_blames_the_server_and_not_the_pool() {
    let script = Script::with(Welcome::Silence).await;
    let db = manager(&script);
    let errors = join_all((0..6).map(|_| db.read(async |_| Ok(())))).await;
    for error in errors {
        let error = error.unwrap_err();
        let text = error.to_string();
        assert!(!text.contains("exhausted"), "{text}");
        assert!(!matches!(error.inner(), Some(Error::Exhausted(_))), "{text}");
    }
    assert_eq!(db.breaker().snapshot().calls.failure, 6);
}

#[tokio::test]
async fn a_session_that_falls_silent_ends_each_operation_and_frees_its_place() {
    let script = Script::committing(Welcome::Session, "silence").await;
    let db = manager(&script);
    let statement = db.read(async |mut conn: Conn| Ok(conn.execute("silence").await?));
    assert!(matches!(within(LIMIT, statement).await, Err(CallError::AttemptTimeout(_))));

    let mut conn = db.acquire().await.unwrap();
    let error = within(LIMIT, conn.execute("silence")).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 300ms"), "{error}");
    drop(conn);

    let mut conn = db.acquire().await.unwrap();
    let error = within(LIMIT, conn.fetch("silence").try_next()).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 300ms"), "{error}");
    drop(conn);

    let mut conn = db.acquire().await.unwrap();
    let raw = conn.raw(async |raw| raw.execute("silence").await);
    within(LIMIT, raw).await.unwrap_err();
    drop(conn);

    let tx = db.begin().await.unwrap();
    within(LIMIT, tx.commit()).await.unwrap_err();
    let result = within(LIMIT, db.transaction(async |_| Ok(()))).await;
    assert!(matches!(result, Err(CallError::AttemptTimeout(_))), "{result:?}");
    assert!((&db).fetch("silence").try_next().await.is_err());
    assert_eq!((db.status().in_use, db.status().idle), (0, 0));
}

#[tokio::test]
async fn a_callers_nearer_deadline_cuts_what_has_a_longer_one() {
    let script = Script::with(Welcome::Silence).await;
    let config = DatabaseConfig::builder(script.url()).build().unwrap();
    let db = DatabaseManager::connect(config).unwrap();
    let call = Call::read().by(Deadline::within(LIMIT));
    let started = Instant::now();
    within(LIMIT, db.call(call, async |_| Ok(()))).await.unwrap_err();
    Deadline::within(LIMIT)
        .scope(async {
            within(LIMIT, db.begin()).await.unwrap_err();
            within(LIMIT, (&db).execute("SELECT 1")).await.unwrap_err();
        })
        .await;
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_silent_first_host_leaves_time_for_the_second() {
    let (silent, well) =
        (Script::with(Welcome::Silence).await, Script::with(Welcome::Session).await);
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", silent.port, well.port);
    let config = DatabaseConfig::builder(format!("postgres://user@{hosts}/app?sslmode=disable"))
        .target_session_attrs(TargetSessionAttrs::Any)
        .connect_timeout(Duration::from_secs(30))
        .acquire_timeout(Duration::from_secs(2));
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let started = Instant::now();
    db.read(async |_| Ok(())).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1), "it took {:?}", started.elapsed());
    assert_eq!(silent.accepted(), 1, "the first was not tried");
    let held = db.acquire().await.unwrap();
    let again = Instant::now();
    let other = db.acquire().await.unwrap();
    assert!(again.elapsed() < Duration::from_secs(1), "what failed was tried first again");
    assert_eq!(silent.accepted(), 1);
    drop((held, other));
}

#[tokio::test]
async fn a_silent_first_host_that_is_looked_at_holds_nobody_up() {
    let (silent, well) =
        (Script::with(Welcome::Silence).await, Script::with(Welcome::Session).await);
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", silent.port, well.port);
    let config = DatabaseConfig::builder(format!("postgres://user@{hosts}/app?sslmode=disable"));
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    within(Duration::from_millis(500), db.read(async |_| Ok(()))).await.unwrap();
    let lent = join_all((0..4).map(|_| db.acquire())).await;
    assert!(lent.iter().all(Result::is_ok));
}

#[tokio::test]
async fn one_loss_sweeps_the_idle_connections_to_that_endpoint() {
    let script = Script::with(Welcome::Session).await;
    let db = manager(&script);
    let both = join_all((0..2).map(|_| db.acquire())).await;
    drop(both);
    assert_eq!(db.status().idle, 2);
    db.write(async |mut conn: Conn| Ok(conn.execute("cut").await?)).await.unwrap_err();
    assert_eq!(db.status().idle, 0, "a connection from before the loss could be handed out");
    db.read(async |mut conn: Conn| Ok(conn.execute("fine").await?)).await.unwrap();
    assert_eq!(db.breaker().state(), CircuitState::Closed);

    // A refused statement is no loss.
    db.write(async |mut conn: Conn| Ok(conn.execute("error 42P01").await?)).await.unwrap_err();
    assert_eq!(db.status().idle, 1);
}

#[tokio::test]
async fn a_server_that_takes_no_writes_sends_the_next_call_to_the_next_host() {
    let (standby, primary) =
        (Script::with(Welcome::Session).await, Script::with(Welcome::Session).await);
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", standby.port, primary.port);
    let config = DatabaseConfig::builder(format!("postgres://user@{hosts}/app?sslmode=disable"))
        .target_session_attrs(TargetSessionAttrs::Any)
        .base_delay(Duration::from_millis(1));
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let runs = std::sync::atomic::AtomicUsize::new(0);
    db.write(async |mut conn: Conn| {
        let first = runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        Ok(conn.execute(if first { "error 25006" } else { "fine" }).await?)
    })
    .await
    .unwrap();
    assert_eq!((standby.executed(), primary.executed()), (1, 1));
}

#[tokio::test]
async fn a_pool_drained_behind_a_silent_server_ends_too() {
    let script = Script::with(Welcome::Session).await;
    let db = manager(&script);
    let task = tokio::spawn({
        let db = db.clone();
        async move { db.read(async |mut conn: Conn| Ok(conn.execute("silence").await?)).await }
    });
    eventually("it waits", async || db.status().in_use == 1).await;
    let short = Duration::from_millis(50);
    assert_eq!(within(short, db.drain(Deadline::within(short))).await.abandoned, 1);
    assert!(task.await.unwrap().is_err());
    assert_eq!(db.status().in_use, 0);
}
