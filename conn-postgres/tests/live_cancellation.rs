//! A future dropped at any await point: the next borrower finds nothing of it, and the place is free at once.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, DatabaseManager, Error, Tx};
use futures_util::TryStreamExt;
use resilience_core::{CallError, Deadline};
use sqlx::{Connection, PgConnection};
use support::{PollN, Wire, admin, backends, config_at, eventually, manager_with, server, url_at};

/// More polls than any of the operations below needs.
const POLLS: usize = 40;

/// A pool of one connection, over a wire in this very runtime: no answer can arrive before its asker has
/// been polled once more, so that dropping after n polls drops at the n-th await point.
async fn pool_of_one() -> (DatabaseManager, String, Wire) {
    let wire = Wire::to(server()).await;
    let (config, name) = config_at(url_at(&format!("localhost:{}", wire.port)));
    let db = DatabaseManager::connect(config.pool_size(1).build().unwrap()).unwrap();
    (db, name, wire)
}

/// Does `operation` again and again, dropped after 0, 1, 2 … polls, until it comes to its end; after
/// each, looks for what it left behind.
async fn dropped_at_each_poll<T, E: std::fmt::Display>(
    db: &DatabaseManager,
    operation: impl AsyncFn(&DatabaseManager) -> Result<T, E>,
) {
    for polls in 0..POLLS {
        // Warm, so that the polls go to the operation and not to connecting.
        db.warm_up(Deadline::within(Duration::from_secs(10))).await.unwrap();
        let result = PollN::new(polls, operation(db)).await;
        assert_eq!(db.status().in_use, 0, "after {polls} polls a place is not free");
        assert_clean(db, polls).await;
        if let Some(result) = result {
            result.unwrap_or_else(|error| panic!("after {polls} polls: {error}"));
            assert!(polls > 1, "it was never dropped in the midst");
            return;
        }
    }
    panic!("it never came to its end");
}

/// The next borrower is in no transaction (in one, `now()` stands still), holds no lock, and reads the
/// reply to its own question.
async fn assert_clean(db: &DatabaseManager, polls: usize) {
    let sql = "SELECT pg_current_xact_id_if_assigned() IS NULL, now()::text, \
               (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'), $1";
    let mut conn = db.acquire().await.unwrap();
    let mut last = String::new();
    for question in [polls, polls + 1000] {
        let (no_xact, now, locks, echo): (bool, String, i64, i64) = sqlx::query_as(sql)
            .bind(i64::try_from(question).unwrap())
            .fetch_one(&mut conn)
            .await
            .unwrap_or_else(|error| panic!("after {polls} polls: {error}"));
        assert!(no_xact && now != last && locks == 0, "after {polls} polls: a foreign transaction");
        assert_eq!(usize::try_from(echo).unwrap(), question, "the reply to another's question");
        last = now;
    }
}

#[tokio::test]
async fn a_cancelled_begin_hands_no_open_transaction_to_the_next_borrower() {
    let (db, name, _wire) = pool_of_one().await;
    dropped_at_each_poll(&db, async |db| db.begin().await.map(drop)).await;
    dropped_at_each_poll(&db, async |db| {
        let mut conn = db.acquire().await.unwrap();
        conn.begin().await.map(drop)
    })
    .await;
    let mut admin = admin().await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state LIKE 'idle in transaction%'";
    eventually("no backend is idle in transaction", async || {
        let open: i64 = sqlx::query_scalar(sql).bind(&name).fetch_one(&mut admin).await.unwrap();
        open == 0
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_connect_gives_its_place_back() {
    let (db, name, _wire) = pool_of_one().await;
    for polls in 0..POLLS {
        // Retired, so that the next one has to connect.
        let _ = PollN::new(polls, async { db.acquire().await.unwrap().retire() }).await;
        assert_eq!(db.status().in_use + db.status().idle, 0);
    }
    db.acquire().await.unwrap();
    let mut admin = admin().await;
    eventually("one is left", async || backends(&mut admin, &name).await == 1).await;
}

#[tokio::test]
async fn a_cancelled_statement_leaves_no_reply_to_the_next_borrower() {
    let (db, _, _wire) = pool_of_one().await;
    dropped_at_each_poll(&db, async |db| {
        sqlx::query("SELECT generate_series(1, 20), pg_sleep(0.002)").fetch_all(db).await
    })
    .await;
    dropped_at_each_poll(&db, async |db| {
        db.read(async |mut conn: Conn| Ok(sqlx::query("SELECT 1").execute(&mut conn).await?)).await
    })
    .await;
    dropped_at_each_poll(&db, async |db| {
        let rows = sqlx::query("SELECT generate_series(1, 20)").fetch(db);
        rows.try_collect::<Vec<_>>().await
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_transaction_leaves_nothing_open_at_any_of_its_points() {
    let (db, name, _wire) = pool_of_one().await;
    sqlx::query("CREATE TABLE IF NOT EXISTS cancelled_transactions (name text, a int, b int)")
        .execute(&db)
        .await
        .unwrap();
    dropped_at_each_poll(&db, async |db| {
        db.transaction(async |mut tx: Tx<'static>| {
            sqlx::query("SELECT pg_advisory_xact_lock(4711)").execute(&mut *tx).await?;
            let sql = "INSERT INTO cancelled_transactions VALUES ($1, 1, 1)";
            sqlx::query(sql).bind(&name).execute(&mut tx).await?;
            sqlx::query("UPDATE cancelled_transactions SET b = 0 WHERE name = $1")
                .bind(&name)
                .execute(&mut *tx)
                .await?;
            Ok(())
        })
        .await
    })
    .await;
    dropped_at_each_poll(&db, async |db| db.begin().await.unwrap().commit().await).await;
    dropped_at_each_poll(&db, async |db| db.begin().await.unwrap().rollback().await).await;
    let half: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM cancelled_transactions WHERE name = $1 AND b <> 0",
    )
    .bind(&name)
    .fetch_one(&db)
    .await
    .unwrap();
    assert_eq!(half, 0, "half a transaction was committed");
}

#[tokio::test]
async fn a_cancelled_raw_closure_costs_its_connection_and_nothing_else() {
    let (db, _, _wire) = pool_of_one().await;
    dropped_at_each_poll(&db, async |db| {
        let mut conn = db.acquire().await.unwrap();
        conn.raw(async |raw: &mut PgConnection| {
            let mut tx = raw.begin().await?;
            sqlx::query("SELECT pg_advisory_xact_lock(4712)").execute(&mut *tx).await?;
            tx.commit().await
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn a_raw_closure_that_leaves_a_transaction_open_is_found_out() {
    let (db, _, _wire) = pool_of_one().await;
    for sql in ["BEGIN", "BEGIN; SELECT 1/0"] {
        let mut conn = db.acquire().await.unwrap();
        let left_open = conn.raw(async |raw: &mut PgConnection| {
            let _ = sqlx::raw_sql(sql).execute(raw).await;
            Ok(())
        });
        assert!(left_open.await.is_err(), "{sql}");
        drop(conn);
        assert_clean(&db, 0).await;
    }
    let mut conn = db.acquire().await.unwrap();
    let fine = conn.raw(async |raw: &mut PgConnection| {
        sqlx::raw_sql("BEGIN; SELECT 1; COMMIT").execute(raw).await.map(drop)
    });
    fine.await.unwrap();
    drop(conn);
    assert_eq!(db.status().idle, 1, "a connection was closed that could have been kept");
}

#[tokio::test]
async fn a_stream_dropped_midway_leaves_no_rows_to_the_next_borrower() {
    let (db, _, _wire) = pool_of_one().await;
    for _ in 0..5 {
        let mut rows = sqlx::query_scalar::<_, i32>("SELECT generate_series(1, 100000)").fetch(&db);
        assert_eq!(rows.try_next().await.unwrap(), Some(1));
        drop(rows);
        assert_eq!(db.status().in_use, 0);
        assert_clean(&db, 7).await;
    }
}

#[tokio::test]
async fn a_transaction_that_is_dropped_lets_go_of_its_locks_and_keeps_its_connection() {
    let (db, name) = manager_with(|it| it.pool_size(2));
    let mut watcher = admin().await;
    let mut pids = Vec::new();
    for _ in 0..20 {
        let mut tx = db.begin().await.unwrap();
        let sql = "SELECT pg_advisory_xact_lock(4713)::text, pg_backend_pid()";
        let (_, pid): (String, i32) = sqlx::query_as(sql).fetch_one(&mut *tx).await.unwrap();
        pids.push(pid);
        drop(tx);
        eventually("the lock is free", async || {
            let sql = "SELECT pg_try_advisory_lock(4713) AND pg_advisory_unlock(4713)";
            sqlx::query_scalar(sql).fetch_one(&mut watcher).await.unwrap()
        })
        .await;
    }
    pids.dedup();
    assert_eq!(pids.len(), 1, "a connection was closed that could have been kept");
    assert_eq!(backends(&mut watcher, &name).await, 1);
}

#[tokio::test]
async fn a_connection_with_an_abandoned_statement_goes_no_further() {
    let (db, _, _wire) = pool_of_one().await;
    let mut conn = db.acquire().await.unwrap();
    let statement = sqlx::query("SELECT pg_sleep(10)").execute(&mut conn);
    assert!(tokio::time::timeout(Duration::from_millis(50), statement).await.is_err());
    let error = Error::from(sqlx::query("SELECT 1").execute(&mut conn).await.unwrap_err());
    assert!(matches!(error, Error::Unfinished), "{error}");
    drop(conn);
    assert_clean(&db, 1).await;
}

#[tokio::test]
async fn an_attempt_that_runs_out_of_time_gives_its_place_back_at_once() {
    let (db, _) =
        manager_with(|it| it.pool_size(1).attempt_timeout(Duration::from_secs(1)).max_retries(0));
    db.warm_up(Deadline::within(Duration::from_secs(10))).await.unwrap();
    let slow = db
        .read(async |mut conn: Conn| {
            Ok(sqlx::query("SELECT pg_sleep(10)").execute(&mut conn).await?)
        })
        .await;
    assert!(matches!(slow, Err(CallError::AttemptTimeout(_))), "{slow:?}");
    assert_eq!(db.status().in_use, 0);
    let mut conn = db.acquire().await.unwrap();
    let slow = sqlx::query("SELECT pg_sleep(10)").execute(&mut conn).await.unwrap_err();
    assert!(slow.to_string().contains("no answer within"), "{slow}");
}
