//! How many connections there are: counted by asking the server.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, Error, Session};
use futures_util::future::join_all;
use resilience_core::{Call, CallError, CircuitState, Deadline, HealthStatus};
use sqlx::Row;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use support::{admin, backends, eventually, manager, manager_with, within};
use tokio::time::sleep;

#[tokio::test]
async fn the_server_counts_size_plus_overflow_and_then_size() {
    let (db, name) = manager_with(|it| it.pool_size(3).max_overflow(4));
    let mut admin = admin().await;
    assert_eq!(backends(&mut admin, &name).await, 0, "connect() opened something");

    let lent = join_all((0..7).map(|_| db.acquire())).await;
    let lent: Vec<_> = lent.into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(backends(&mut admin, &name).await, 7);
    assert_eq!((db.status().in_use, db.status().idle, db.status().max), (7, 0, 7));

    drop(lent);
    assert_eq!((db.status().in_use, db.status().idle), (0, 3));
    eventually("the surplus is closed", async || backends(&mut admin, &name).await == 3).await;

    let lent = join_all((0..3).map(|_| db.acquire())).await;
    assert_eq!(backends(&mut admin, &name).await, 3, "idle connections were not used again");
    drop(lent);
}

#[tokio::test]
async fn an_exhausted_pool_says_so_opens_no_breaker_and_counts_as_healthy() {
    let (db, _) = manager_with(|it| {
        it.pool_size(1).max_overflow(1).acquire_timeout(Duration::from_secs(1)).max_retries(0)
    });
    let lent = join_all((0..2).map(|_| db.acquire())).await;
    let lent: Vec<_> = lent.into_iter().collect::<Result<_, _>>().unwrap();
    for result in join_all((0..5).map(|_| db.read(async |_| Ok(())))).await {
        let error = result.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("2 of 2 connections are in use"), "{text}");
        assert!(error.is_unavailable());
        assert!(
            matches!(error.inner(), Some(Error::Exhausted(it)) if it.limit == 2 && it.in_use == 2)
        );
    }
    assert_eq!(db.breaker().state(), CircuitState::Closed);
    assert_eq!(db.breaker().snapshot().calls.failure, 0);
    assert_eq!(db.health().await.status, HealthStatus::Healthy);
    drop(lent);
    db.read(async |_| Ok(())).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_stays_exhausted_until_the_callers_deadline_opens_no_breaker() {
    let (db, _) = manager_with(|it| it.pool_size(1).fail_max(1));
    let lent = db.acquire().await.unwrap();
    let by = || Call::read().by(Deadline::within(Duration::from_millis(300)));
    for result in join_all((0..50).map(|_| db.call(by(), async |_| Ok(())))).await {
        let error = result.unwrap_err();
        assert!(matches!(error.inner(), Some(Error::Exhausted(_))), "{error}");
    }
    assert_eq!(db.breaker().state(), CircuitState::Closed);
    drop(lent);
}

#[tokio::test]
async fn the_time_spent_in_our_own_queue_is_not_held_against_the_server() {
    let (db, _) = manager_with(|it| it.pool_size(1).fail_max(1).max_retries(0));
    let lent = db.acquire().await.unwrap();
    let by = Call::read().by(Deadline::within(Duration::from_millis(600)));
    let late = db.call(by, async |mut conn: Conn| {
        sqlx::query("SELECT pg_sleep(10)").execute(&mut conn).await?;
        Ok(())
    });
    let give_back = async {
        sleep(Duration::from_millis(400)).await;
        drop(lent);
    };
    let (late, ()) =
        within(Duration::from_millis(600), async { tokio::join!(late, give_back) }).await;
    let error = late.unwrap_err();
    assert!(matches!(error.inner(), Some(Error::Starved { .. })), "{error}");
    assert_eq!(db.breaker().state(), CircuitState::Closed);
    sqlx::query("SELECT 1").execute(&db).await.unwrap();
}

#[tokio::test]
async fn a_migration_that_has_the_last_place_is_no_outage() {
    let (db, name) = manager_with(|it| it.pool_size(1).acquire_timeout(Duration::from_millis(200)));
    let step = Migration::new(
        1,
        "slow".into(),
        MigrationType::Simple,
        sqlx::SqlSafeStr::into_sql_str("SELECT pg_sleep(1)"),
        false,
    );
    let mut migrator = Migrator::with_migrations(vec![step]);
    migrator.dangerous_set_table_name(format!("\"{name}-migrations\""));
    let migrating = db.migrate(&migrator, Deadline::within(Duration::from_secs(20)));
    let asked = async {
        eventually("the place is taken", async || db.status().in_use == 1).await;
        db.call(Call::write().named("asked"), async |_| Ok(())).await
    };
    let (migrated, asked) = tokio::join!(migrating, asked);
    migrated.unwrap();
    // It waits for its turn as often as it may, and longer than the migration takes.
    asked.unwrap();
    assert_eq!(db.breaker().snapshot().calls.failure, 0);
    assert_eq!(db.status().in_use, 0);
}

#[tokio::test]
async fn who_waits_first_is_served_first() {
    let (db, _) = manager_with(|it| it.pool_size(1));
    let held = db.acquire().await.unwrap();
    let (sender, mut served) = tokio::sync::mpsc::unbounded_channel();
    let waiters: Vec<_> = (0..8)
        .map(|number| {
            let (db, sender) = (db.clone(), sender.clone());
            tokio::spawn(async move {
                let conn = db.acquire().await.unwrap();
                sender.send(number).unwrap();
                drop(conn);
            })
        })
        .collect();
    eventually("all are in the queue", async || db.status().waiting == 8).await;
    drop(held);
    for waiter in waiters {
        waiter.await.unwrap();
    }
    let mut order = Vec::new();
    while let Ok(number) = served.try_recv() {
        order.push(number);
    }
    assert_eq!(order, (0..8).collect::<Vec<_>>());
    assert_eq!(db.status().waiting, 0);
}

#[tokio::test]
async fn idle_and_old_connections_are_closed_when_nobody_comes_by() {
    let (db, name) = manager_with(|it| it.idle_timeout(Duration::from_millis(100)));
    let mut admin = admin().await;
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();
    assert_eq!(backends(&mut admin, &name).await, 1);
    eventually("the idle one is closed", async || backends(&mut admin, &name).await == 0).await;

    let (db, _) = manager_with(|it| it.max_lifetime(Duration::from_millis(100)));
    let pid = async |session: &mut Session| -> i32 {
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(session).await.unwrap()
    };
    let mut conn = db.acquire().await.unwrap();
    let first = pid(&mut conn).await;
    drop(conn);
    eventually("an old one is replaced", async || {
        let mut conn = db.acquire().await.unwrap();
        pid(&mut conn).await != first
    })
    .await;
}

#[tokio::test]
async fn drain_waits_for_what_runs_refuses_what_is_new_and_closes_the_rest() {
    let (db, name) = manager();
    let mut admin = admin().await;
    let running = tokio::spawn({
        let db = db.clone();
        async move {
            db.read(async |mut conn: conn_postgres::Conn| {
                Ok(sqlx::query("SELECT pg_sleep(0.3)").execute(&mut conn).await?)
            })
            .await
        }
    });
    eventually("it runs", async || db.status().in_use == 1).await;
    let drained = db.drain(Deadline::within(Duration::from_secs(10))).await;
    assert_eq!(drained.abandoned, 0);
    running.await.unwrap().unwrap();
    assert!(matches!(db.read(async |_| Ok(())).await, Err(CallError::Draining(_))));
    assert!(matches!(db.acquire().await, Err(Error::Closed { .. })));
    eventually("all are closed", async || backends(&mut admin, &name).await == 0).await;
}

#[tokio::test]
async fn drain_ends_by_its_deadline_and_says_what_it_abandons() {
    let (db, name) = manager();
    let mut admin = admin().await;
    let conn = db.acquire().await.unwrap();
    let limit = Duration::from_millis(100);
    let drained = within(limit, db.drain(Deadline::within(limit))).await;
    assert_eq!(drained.abandoned, 1);
    drop(conn);
    eventually("it is closed when it comes back", async || backends(&mut admin, &name).await == 0)
        .await;
}

#[tokio::test]
async fn a_manager_outlives_the_runtime_that_used_it_first() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let host = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        sender.send(runtime.handle().clone()).unwrap();
        runtime.block_on(async { stopped.await.unwrap() });
    });
    let (db, _) = manager_with(|it| it.runtime(receiver.recv().unwrap()).pool_size(1));
    let pid = {
        let db = db.clone();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                sqlx::query("SELECT pg_backend_pid()")
                    .fetch_one(&db)
                    .await
                    .unwrap()
                    .get::<i32, _>(0)
            })
        })
        .join()
        .unwrap()
    };
    let again: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&db).await.unwrap();
    assert_eq!(pid, again, "the connection died with the runtime that asked for it");
    stop.send(()).unwrap();
    host.join().unwrap();
}
