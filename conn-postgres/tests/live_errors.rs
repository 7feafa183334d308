//! What the real server's errors mean: provoked, not scripted.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, Error};
use resilience_core::{CallError, Deadline, Replay, Verdict};
use sqlx::{AssertSqlSafe, Executor, Row};
use support::{admin, eventually, manager_with};
use tokio::sync::Barrier;

fn expect<T: std::fmt::Debug>(result: Result<T, CallError<Error>>, code: &str, verdict: Verdict) {
    match result {
        Err(CallError::Inner(failed)) => {
            assert_eq!((failed.error.code(), failed.verdict), (Some(code), verdict));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_of_the_servers_refusals_is_the_callers_own_affair() {
    let (db, _) = manager_with(|it| it.max_retries(0));
    for (sql, code) in [
        ("SELECT 1/0", "22012"),
        ("SELECT * FROM no_such_table", "42P01"),
        ("SELEC 1", "42601"),
        ("SELECT * FROM pg_authid", "42501"),
        ("DO $$ BEGIN RAISE EXCEPTION 'own'; END $$", "P0001"),
        ("SELECT 'x'::int", "22P02"),
    ] {
        let result = db.write(async |mut conn: Conn| Ok(conn.execute(sql).await?)).await;
        expect(result, code, Verdict::caller(Replay::Never));
    }
    assert_eq!(db.breaker().snapshot().calls.failure, 0);
    assert_eq!(db.status().idle, 1, "a refusal cost a connection that could have been kept");
}

#[tokio::test]
async fn a_locked_row_and_a_deadlock_are_collisions() {
    let (db, name) = manager_with(|it| it.max_retries(0).pool_size(4));
    let table = format!("\"{name}\"");
    let sql = format!("CREATE TABLE {table} AS SELECT id FROM generate_series(1, 2) AS id");
    (&db).execute(AssertSqlSafe(sql)).await.unwrap();
    let lock = |id: i32, wait: &str| {
        AssertSqlSafe(format!("SELECT FROM {table} WHERE id = {id} FOR UPDATE {wait}"))
    };
    let mut holder = db.begin().await.unwrap();
    holder.execute(lock(1, "")).await.unwrap();
    let result = db.write(async |mut conn: Conn| Ok(conn.execute(lock(1, "NOWAIT")).await?)).await;
    expect(result, "55P03", Verdict::caller(Replay::Transaction));
    holder.rollback().await.unwrap();

    let barrier = Barrier::new(2);
    let cross = async |first: i32, second: i32| {
        db.transaction(async |mut tx| {
            tx.execute(lock(first, "")).await?;
            barrier.wait().await;
            tx.execute(lock(second, "")).await?;
            Ok(())
        })
        .await
    };
    let (one, other) = tokio::join!(cross(1, 2), cross(2, 1));
    let victim = if one.is_err() { one } else { other };
    expect(victim, "40P01", Verdict::caller(Replay::Transaction));
}

#[tokio::test]
async fn a_procedure_that_committed_before_it_failed_is_not_called_again() {
    let (db, name) = manager_with(|it| it.base_delay(Duration::from_millis(10)));
    let table = format!("\"{name}\"");
    let sql = format!(
        "CREATE TABLE {table} (id int);
         CREATE PROCEDURE {table}() LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO {table} VALUES (1); COMMIT;
           RAISE EXCEPTION 'collision' USING ERRCODE = '40001';
         END $$"
    );
    (&db).execute(AssertSqlSafe(sql)).await.unwrap();
    let call = db.write(async |mut conn: Conn| {
        let call = AssertSqlSafe(format!("CALL {table}()"));
        Ok(sqlx::query(call).execute(&mut conn).await?)
    });
    expect(call.await, "40001", Verdict::caller(Replay::IfIdempotent));
    let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    let rows: i64 = sqlx::query_scalar(sql).fetch_one(&db).await.unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn a_statement_cut_short_by_the_server_has_spent_its_time() {
    let (db, _) = manager_with(|it| it.max_retries(0));
    let result = db.transaction(async |mut tx| {
        tx.execute("SET LOCAL statement_timeout = '20ms'").await?;
        tx.execute("SELECT pg_sleep(10)").await?;
        Ok(())
    });
    expect(result.await, "57014", Verdict::service(Replay::Never));
}

#[tokio::test]
async fn the_server_itself_ends_what_nobody_waits_for_any_more() {
    let (db, name) = manager_with(|it| it.max_retries(0).attempt_timeout(Duration::from_secs(1)));
    let mut admin = admin().await;
    let result =
        db.read(async |mut conn: Conn| Ok(conn.execute("SELECT pg_sleep(60)").await?)).await;
    assert!(matches!(result, Err(CallError::AttemptTimeout(_))), "{result:?}");
    eventually("its backend is gone", async || support::backends(&mut admin, &name).await == 0)
        .await;
}

async fn until_gone(pid: i32) {
    let mut admin = admin().await;
    let deadline = Deadline::within(Duration::from_secs(20));
    loop {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
        let there: bool = sqlx::query_scalar(sql).bind(pid).fetch_one(&mut admin).await.unwrap();
        if !there {
            return;
        }
        assert!(!deadline.remaining().is_zero(), "the server does not end the session");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_transaction_left_idle_too_long_is_run_again() {
    let (db, _) = manager_with(|it| it.max_retries(0));
    let result = db.transaction(async |mut tx| {
        tx.execute("SET LOCAL idle_in_transaction_session_timeout = '20ms'").await?;
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut tx).await?;
        until_gone(pid).await;
        tx.execute("SELECT 1").await?;
        Ok(())
    });
    // FATAL 25P03, or the reset that follows it, whichever is read: rolled back either way.
    match result.await {
        Err(CallError::Inner(failed)) => {
            assert_eq!(failed.verdict.replay, Replay::Transaction, "{}", failed.error);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_changed_table_costs_one_more_try_and_no_error() {
    let (db, name) = manager_with(|it| it.pool_size(1).base_delay(Duration::from_millis(10)));
    let table = format!("\"{name}\"");
    let run = async |sql: String| (&db).execute(AssertSqlSafe(sql)).await.map(drop);
    run(format!("CREATE TABLE {table} AS SELECT 1 AS a")).await.unwrap();
    let select = async || {
        db.write(async |mut conn: Conn| {
            let sql = AssertSqlSafe(format!("SELECT * FROM {table} WHERE a = $1"));
            Ok(sqlx::query(sql).bind(1).fetch_all(&mut conn).await?)
        })
        .await
    };
    select().await.unwrap();
    run(format!("ALTER TABLE {table} ADD COLUMN b int")).await.unwrap();
    let rows = select().await.unwrap();
    assert_eq!(rows[0].len(), 2);
    let refusals = async || {
        db.write(async |mut conn: Conn| {
            conn.execute("DEALLOCATE ALL").await?;
            let sql = AssertSqlSafe(format!("SELECT * FROM {table} WHERE a = $1"));
            Ok(sqlx::query(sql).bind(1).fetch_all(&mut conn).await?)
        })
        .await
    };
    // The cache was emptied behind the driver's back: repeated, since DEALLOCATE may be, only if so marked.
    expect(refusals().await, "26000", Verdict::caller(Replay::IfIdempotent));
}

#[tokio::test]
async fn a_role_without_a_free_connection_is_unreachable_and_the_pool_stays_whole() {
    let mut admin = admin().await;
    let role = format!("limited_{}", std::process::id());
    let create = format!("CREATE ROLE {role} LOGIN PASSWORD 'hunter2' CONNECTION LIMIT 1");
    admin.execute(AssertSqlSafe(create)).await.unwrap();
    let url = format!("postgresql://{role}:hunter2@{}/app", support::server());
    let (builder, _) = support::config_at(url);
    let db =
        conn_postgres::DatabaseManager::connect(builder.max_retries(0).build().unwrap()).unwrap();
    let held = db.acquire().await.unwrap();
    let error = db.write(async |_| Ok(())).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cannot connect to") && text.contains("53300"), "{text}");
    expect(Err::<(), _>(error), "53300", Verdict::service(Replay::Safe));
    assert_eq!(db.status().in_use, 1);
    drop(held);
    db.write(async |_| Ok(())).await.unwrap();
    assert_eq!(db.drain(Deadline::within(Duration::from_secs(5))).await.abandoned, 0);
    eventually("the role can go", async || {
        admin.execute(AssertSqlSafe(format!("DROP ROLE IF EXISTS {role}"))).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_primary_that_became_a_standby_loses_its_connections() {
    let (db, _) = manager_with(|it| it.pool_size(2).base_delay(Duration::from_millis(10)));
    let runs = std::sync::atomic::AtomicUsize::new(0);
    let (one, other) = tokio::join!(db.acquire(), db.acquire());
    drop((one.unwrap(), other.unwrap()));
    assert_eq!(db.status().idle, 2);
    db.write(async |mut conn: Conn| {
        if runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            let mut tx = conn.begin().await?;
            tx.execute("SET TRANSACTION READ ONLY").await?;
            tx.execute("CREATE TABLE never (a int)").await?;
        }
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(runs.into_inner(), 2);
    assert_eq!(db.status().idle, 1, "a connection to the old primary could be handed out");
}
