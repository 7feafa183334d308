//! This process stands still; what the server does meanwhile, nobody here hears.

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use resilience_core::{CallError, CircuitState, Standstill};
use sqlx::Row;
use support::{admin, backends, eventually, manager_with};
use tokio::time::Instant;

/// Blocks this thread, and with it the test's runtime.
fn block(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Ends all connections of the application `name`, from another thread with a runtime of its own.
fn end_connections(name: String) {
    let elsewhere = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut admin = admin().await;
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
            sqlx::query(sql).bind(&name).fetch_all(&mut admin).await.unwrap();
            eventually("they are gone", async || backends(&mut admin, &name).await == 0).await;
        });
    });
    elsewhere.join().unwrap();
}

#[tokio::test]
async fn connections_that_ended_unheard_fail_no_call() {
    let (db, name) = manager_with(|it| it.pool_size(5).max_retries(0).fail_max(1));
    let ask = || {
        db.read(async |mut conn: conn_postgres::Conn| {
            Ok(sqlx::query("SELECT 1").fetch_one(&mut conn).await?.get::<i32, _>(0))
        })
    };
    let lent = join_all((0..5).map(|_| db.acquire())).await;
    drop(lent.into_iter().collect::<Result<Vec<_>, _>>().unwrap());
    assert_eq!(db.status().idle, 5);

    let standstill = Standstill::watch();
    end_connections(name);
    block(Duration::from_millis(1200));
    assert!(standstill.excuses());
    for answer in join_all((0..5).map(|_| ask())).await {
        assert_eq!(answer.unwrap(), 1);
    }
    assert_eq!(db.breaker().snapshot().calls.failure, 0);
}

#[tokio::test]
async fn connections_that_outlived_a_standstill_are_used_on() {
    let (db, name) = manager_with(|it| it.pool_size(2));
    let id = "SELECT pg_backend_pid()";
    let ask = || {
        db.read(async |mut conn: conn_postgres::Conn| {
            Ok(sqlx::query(id).fetch_one(&mut conn).await?.get::<i32, _>(0))
        })
    };
    let before = ask().await.unwrap();
    block(Duration::from_millis(1200));
    assert_eq!(ask().await.unwrap(), before);
    assert_eq!(backends(&mut admin().await, &name).await, 1);
}

#[tokio::test]
async fn what_is_cut_off_by_a_standstill_opens_no_breaker_and_leaves_no_trouble_behind() {
    let limit = Duration::from_secs(1);
    let (db, _) = manager_with(|it| {
        it.pool_size(1).attempt_timeout(limit).connect_timeout(limit / 2).max_retries(0).fail_max(1)
    });
    // The first is connecting, the others wait for its place.
    let calls = async || join_all((0..5).map(|_| db.read(async |_| Ok(())))).await;
    let blocking = async {
        tokio::task::yield_now().await;
        block(2 * limit);
    };
    let (answers, ()) = tokio::join!(calls(), blocking);
    for answer in answers {
        if let Err(error) = answer {
            assert!(!matches!(error, CallError::CircuitOpen(_)), "{error}");
        }
    }
    let seen = db.breaker().snapshot();
    assert_eq!((seen.state, seen.calls.failure), (CircuitState::Closed, 0));
    assert!(calls().await.into_iter().all(|answer| answer.is_ok()));
}

#[tokio::test]
async fn a_stream_cut_off_by_a_standstill_opens_no_breaker() {
    use futures_util::TryStreamExt;
    use sqlx::Executor;

    let limit = Duration::from_secs(1);
    let (db, _) =
        manager_with(|it| it.pool_size(1).attempt_timeout(limit).max_retries(0).fail_max(1));
    let streaming = async {
        let mut rows = (&db).fetch("SELECT pg_sleep(2.5)");
        rows.try_next().await
    };
    let blocking = async {
        // Until the statement is under way.
        while db.status().in_use == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        block(2 * limit);
    };
    let (answer, ()) = tokio::join!(streaming, blocking);
    answer.unwrap_err();
    let seen = db.breaker().snapshot();
    assert_eq!((seen.state, seen.calls.failure), (CircuitState::Closed, 0));
}
