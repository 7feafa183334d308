//! sqlx's own idioms on our types, spawned on a multi-threaded runtime as a service would.

mod support;

use std::borrow::Cow;
use std::time::Duration;

use conn_postgres::{Conn, DatabaseManager, Error, Tx};
use futures_util::TryStreamExt;
use resilience_core::{Call, CallError, CircuitState, Deadline};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, FromRow, PgConnection, Postgres, Row, SqlSafeStr, Statement};
use support::{admin, backends, eventually, manager, manager_with};

/// As in code written for `PgPool`: sqlx's error type, sqlx's bounds.
async fn written_for_sqlx<'e>(db: impl Executor<'e, Database = Postgres>) -> sqlx::Result<i32> {
    sqlx::query_scalar("SELECT $1 + 1").bind(41).fetch_one(db).await
}

async fn in_a_transaction(tx: &mut Tx<'_>) -> sqlx::Result<i32> {
    written_for_sqlx(&mut **tx).await
}

#[derive(Debug, PartialEq)]
struct Person {
    name: String,
}

impl FromRow<'_, PgRow> for Person {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self { name: row.try_get("name")? })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlx_code_moves_over_unchanged() {
    let (db, _) = manager();
    let task = tokio::spawn(async move {
        assert_eq!(written_for_sqlx(&db).await?, 42);
        let mut conn = db.acquire().await?;
        assert_eq!(written_for_sqlx(&mut conn).await?, 42);
        assert_eq!(written_for_sqlx(&mut *conn).await?, 42);
        drop(conn);
        let mut tx = db.begin().await?;
        assert_eq!(written_for_sqlx(&mut *tx).await?, 42);
        assert_eq!(in_a_transaction(&mut tx).await?, 42);
        tx.commit().await?;

        let people: Vec<Person> =
            sqlx::query_as("SELECT 'Ada' AS name UNION SELECT 'Grace' ORDER BY 1")
                .fetch_all(&db)
                .await?;
        assert_eq!(people.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["Ada", "Grace"]);
        let none = sqlx::query("SELECT 1 WHERE false").fetch_optional(&db).await?;
        assert!(none.is_none());
        let missing = sqlx::query("SELECT 1 WHERE false").fetch_one(&db).await;
        assert!(matches!(missing, Err(sqlx::Error::RowNotFound)));
        let sum: i64 = sqlx::query_scalar("SELECT generate_series(1, 1000)::int8")
            .fetch(&db)
            .try_fold(0, async |sum, next: i64| Ok(sum + next))
            .await?;
        assert_eq!(sum, 500_500);
        let steps: Vec<_> = (&db).fetch_many("SELECT 1; SELECT 2").try_collect().await?;
        assert_eq!(steps.len(), 4);
        let statement = (&db).prepare("SELECT $1::int4".into_sql_str()).await?;
        let described = (&db).describe("SELECT 1 AS one".into_sql_str()).await?;
        assert_eq!((statement.sql().as_str(), described.columns.len()), ("SELECT $1::int4", 1));
        Ok::<_, sqlx::Error>(())
    });
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_in_can_be_spawned() {
    let (db, _) = manager();
    let task = tokio::spawn(async move {
        let one = db
            .read(|mut conn| async move {
                Ok(sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&mut conn).await?)
            })
            .await?;
        let key = 2;
        let two = db
            .write_idempotent(async |mut conn: Conn| {
                let mut tx = conn.begin().await?;
                let two: i32 = sqlx::query_scalar("SELECT $1").bind(key).fetch_one(&mut tx).await?;
                tx.commit().await?;
                Ok(two)
            })
            .await?;
        let three = db
            .transaction(async |mut tx: Tx<'static>| {
                let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&mut *tx).await?;
                let two: i32 = sqlx::query_scalar("SELECT $1").bind(key).fetch_one(&mut tx).await?;
                Ok(one + two)
            })
            .await?;
        let four = db
            .write(|mut conn| async move {
                conn.raw(async |raw: &mut PgConnection| {
                    sqlx::query_scalar::<_, i32>("SELECT 4").fetch_one(raw).await
                })
                .await
            })
            .await?;
        let deadline = Deadline::within(Duration::from_secs(5));
        let five = db.call(Call::read().named("five").by(deadline), async |_| Ok(5)).await?;
        let six =
            db.read_or(async |_| Ok(6), async |error| Err::<i32, CallError<Error>>(error)).await?;
        assert_eq!([one, two, three, four, five, six], [1, 2, 3, 4, 5, 6]);
        Ok::<_, CallError<Error>>(())
    });
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn copy_goes_through_the_drivers_own_connection_and_keeps_it() {
    let (db, _) = manager_with(|it| it.pool_size(1));
    let mut conn = db.acquire().await.unwrap();
    sqlx::query("CREATE TABLE IF NOT EXISTS copied (name text)").execute(&mut conn).await.unwrap();
    let copied = conn.raw(async |raw: &mut PgConnection| {
        let mut copy = raw.copy_in_raw("COPY copied (name) FROM STDIN").await?;
        copy.send(&b"Ada\nGrace\n"[..]).await?;
        copy.finish().await
    });
    assert_eq!(copied.await.unwrap(), 2);
    drop(conn);
    assert_eq!(db.status().idle, 1);
    let mut conn = db.acquire().await.unwrap();
    let failed = conn.raw(async |raw: &mut PgConnection| {
        let mut copy = raw.copy_in_raw("COPY copied (name) FROM STDIN").await?;
        copy.send(&b"too\tmany\tcolumns\n"[..]).await?;
        copy.finish().await
    });
    assert!(failed.await.is_err());
    drop(conn);
    assert_eq!(db.status().idle, 0, "a connection whose closure failed was kept");
}

fn migrator(name: &str, last: &'static str) -> Migrator {
    let table = AssertSqlSafe(format!("CREATE TABLE \"{name}\" (id int8 PRIMARY KEY)"));
    let migration = |version, sql| {
        Migration::new(version, Cow::Borrowed("step"), MigrationType::Simple, sql, false)
    };
    let mut migrator = Migrator::with_migrations(vec![
        migration(1, table.into_sql_str()),
        migration(2, last.into_sql_str()),
    ]);
    migrator.dangerous_set_table_name(format!("\"{name}-migrations\""));
    migrator
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_once_even_when_all_instances_start_together() {
    let (db, name) = manager();
    let migrator = std::sync::Arc::new(migrator(&name, "SELECT pg_sleep(0.05)"));
    let deadline = Deadline::within(Duration::from_secs(20));
    let starts: Vec<_> = (0..4)
        .map(|_| {
            let (migrator, db) = (std::sync::Arc::clone(&migrator), db.clone());
            tokio::spawn(async move { db.migrate(&migrator, deadline).await })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    let sql = AssertSqlSafe(format!("SELECT count(*) FROM \"{name}-migrations\" WHERE success"));
    let done: i64 = sqlx::query_scalar(sql).fetch_one(&db).await.unwrap();
    assert_eq!(done, 2);
}

#[tokio::test]
async fn a_migration_that_fails_or_takes_too_long_leaves_no_lock_behind() {
    let (db, name) = manager_with(|it| it.attempt_timeout(Duration::from_millis(500)));
    let mut admin = admin().await;
    let soon = || Deadline::within(Duration::from_secs(5));
    let error = db.migrate(&migrator(&name, "SELECT 1/0"), soon()).await.unwrap_err();
    assert!(error.to_string().contains("division by zero"), "{error}");
    let short = Deadline::within(Duration::from_millis(1500));
    let error = db.migrate(&migrator(&name, "SELECT pg_sleep(60)"), short).await.unwrap_err();
    assert!(
        error.to_string().contains("no answer within") || error.to_string().contains("timeout"),
        "{error}"
    );
    assert_eq!(db.status().in_use, 0);
    eventually("their connections are gone", async || backends(&mut admin, &name).await == 0).await;
    // Longer than an attempt may take, but not than its own deadline.
    db.migrate(&migrator(&name, "SELECT pg_sleep(1.7)"), soon()).await.unwrap();
}

#[tokio::test]
async fn a_statement_on_the_manager_goes_through_the_breaker() {
    let (db, _) = manager_with(|it| it.fail_max(1).reset_timeout(Duration::from_secs(60)));
    let refused = sqlx::query("SELECT 1/0").execute(&db).await.unwrap_err();
    assert!(refused.as_database_error().is_some());
    assert_eq!(db.breaker().state(), CircuitState::Closed, "a refused statement is an answer");
    let cut = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(9)")
        .execute(&db)
        .await;
    cut.unwrap_err();
    assert_eq!(db.breaker().state(), CircuitState::Open);
    let refused = sqlx::query("SELECT 1").execute(&db).await.unwrap_err();
    assert!(refused.to_string().contains("circuit \"database\" is open; retry in"), "{refused}");
    let refused = sqlx::query("SELECT 1").fetch(&db).try_next().await.unwrap_err();
    assert!(refused.to_string().contains("circuit \"database\" is open; retry in"), "{refused}");
    assert!(matches!(Error::from(refused), Error::Rejected(_)));
}

#[tokio::test]
async fn what_a_stream_says_reaches_the_breaker() {
    let (db, _) = manager_with(|it| it.fail_max(1));
    let refused = sqlx::query("SELECT 1/0").fetch(&db).try_next().await.unwrap_err();
    assert!(refused.as_database_error().is_some());
    assert_eq!(db.breaker().state(), CircuitState::Closed);
    let cut = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(9)")
        .fetch(&db)
        .try_next()
        .await;
    cut.unwrap_err();
    assert_eq!(db.breaker().state(), CircuitState::Open);
}

#[tokio::test]
async fn what_a_statement_changes_in_its_session_is_not_handed_on() {
    let (db, name) = manager_with(|it| it.pool_size(1));
    let mut admin = admin().await;
    let pid = async |db: &DatabaseManager| -> i32 {
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(db).await.unwrap()
    };
    for sql in [
        "SET search_path = nowhere",
        "LISTEN jobs",
        "CREATE TEMP TABLE t (a int)",
        "BEGIN; SELECT 1",
    ] {
        let before = pid(&db).await;
        (&db).execute(sql).await.unwrap();
        assert_ne!(pid(&db).await, before, "{sql} was handed on");
    }
    let before = pid(&db).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("SET LOCAL search_path = nowhere").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(pid(&db).await, before);
    for sql in ["BEGIN", "COMMIT", "/* hidden */ rollback", "START TRANSACTION", "SAVEPOINT a"] {
        let refused = Error::from((&db).execute(sql).await.unwrap_err());
        assert!(matches!(refused, Error::TransactionControl(_)), "{sql}: {refused}");
    }
    eventually("one is left", async || backends(&mut admin, &name).await == 1).await;
}
