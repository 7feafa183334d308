//! sqlx's own idioms on our types, spawned on a multi-threaded runtime as a service would.

mod support;

use std::borrow::Cow;
use std::time::Duration;

use conn_postgres::{Conn, DatabaseManager, Error, Tx};
use futures_util::TryStreamExt;
use resilience_core::{Call, CallError, CircuitState, Deadline};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{
    Acquire, AssertSqlSafe, Executor, FromRow, PgConnection, Postgres, QueryBuilder, SqlSafeStr,
    Statement,
};
use support::{admin, backends, eventually, manager, manager_with};
use tokio::time::timeout;

/// As in code written for `PgPool`: sqlx's error type, sqlx's bounds.
async fn written_for_sqlx<'e>(db: impl Executor<'e, Database = Postgres>) -> sqlx::Result<i32> {
    sqlx::query_scalar("SELECT $1 + 1").bind(41).fetch_one(db).await
}

async fn in_a_transaction(tx: &mut Tx<'_>) -> sqlx::Result<i32> {
    written_for_sqlx(&mut **tx).await
}

#[derive(Debug, PartialEq, FromRow)]
struct Person {
    #[sqlx(default)]
    id: i64,
    name: String,
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

/// As in code that takes a pool or a connection alike.
async fn written_for_acquire<'c>(db: impl Acquire<'c, Database = Postgres>) -> sqlx::Result<i64> {
    let mut tx = db.begin().await?;
    let sum = sqlx::query_scalar("SELECT $1::int8 + 1").bind(41_i64).fetch_one(&mut *tx).await?;
    let mut savepoint = tx.begin().await?;
    let refused = sqlx::query("SELECT 1/0").execute(&mut *savepoint).await;
    assert!(refused.unwrap_err().as_database_error().is_some());
    savepoint.rollback().await?;
    tx.commit().await?;
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_are_built_and_streams_that_are_spawned_run_as_they_did() {
    let (db, name) = manager_with(|it| it.pool_size(2));
    let table = format!("\"built-{name}\"");
    let create = format!("CREATE TABLE {table} (id int8, name text)");
    (&db).execute(AssertSqlSafe(create)).await.unwrap();
    let mut insert = QueryBuilder::<Postgres>::new(format!("INSERT INTO {table} (id, name) "));
    insert.push_values(1..=500_i64, |mut row, id| {
        row.push_bind(id).push_bind(format!("name {id}"));
    });
    assert_eq!(insert.build().execute(&db).await.unwrap().rows_affected(), 500);

    let select = |db: DatabaseManager| {
        let table = table.clone();
        async move {
            let mut select = QueryBuilder::<Postgres>::new(format!("SELECT * FROM {table} "));
            select.push("WHERE id > ").push_bind(490_i64).push(" ORDER BY id");
            let mut people = select.build_query_as::<Person>().fetch(&db);
            let mut found = Vec::new();
            while let Some(person) = people.try_next().await? {
                found.push(person);
            }
            Ok::<_, sqlx::Error>(found)
        }
    };
    // Both are open before, however quickly the streams follow each other.
    drop((db.acquire().await.unwrap(), db.acquire().await.unwrap()));
    let spawned: Vec<_> = (0..4).map(|_| tokio::spawn(select(db.clone()))).collect();
    for found in spawned {
        let found = found.await.unwrap().unwrap();
        assert_eq!((found.len(), &found[0].name), (10, &"name 491".to_owned()));
    }
    assert_eq!((db.status().in_use, db.status().idle), (0, 2), "a stream cost its connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_acquires_a_connection_and_begins_on_it_has_the_drivers_own() {
    let (db, _) = manager_with(|it| it.pool_size(1));
    let mut conn = db.acquire().await.unwrap();
    assert_eq!(conn.raw(async |raw| written_for_acquire(raw).await).await.unwrap(), 42);
    drop(conn);
    assert_eq!(db.status().idle, 1, "what ended all that it began cost its connection");
}

#[tokio::test]
async fn copy_goes_through_the_drivers_own_connection_and_keeps_it() {
    let (db, name) = manager_with(|it| it.pool_size(1));
    let table = Copied::new(&db, &name).await;
    let mut conn = db.acquire().await.unwrap();
    let copied = conn.raw(async |raw: &mut PgConnection| {
        let mut copy = raw.copy_in_raw(&table.copy_in()).await?;
        copy.send(&b"Ada\nGrace\n"[..]).await?;
        copy.finish().await
    });
    assert_eq!(copied.await.unwrap(), 2);
    let rows = conn.raw(async |raw: &mut PgConnection| {
        let mut rows = raw.copy_out_raw(&table.copy_out()).await?;
        let mut text = Vec::new();
        while let Some(row) = rows.try_next().await? {
            text.extend_from_slice(&row);
        }
        Ok(text)
    });
    assert_eq!(rows.await.unwrap(), b"Ada\nGrace\n");
    drop(conn);
    assert_eq!(db.status().idle, 1);
    let mut conn = db.acquire().await.unwrap();
    let failed = conn.raw(async |raw: &mut PgConnection| {
        let mut copy = raw.copy_in_raw(&table.copy_in()).await?;
        copy.send(&b"Barbara\ntoo\tmany\tcolumns\n"[..]).await?;
        copy.finish().await
    });
    let error = failed.await.unwrap_err();
    assert_eq!(error.code(), Some("22P04"), "{error}");
    drop(conn);
    assert_eq!(db.status().idle, 0, "a connection whose closure failed was kept");
    assert_eq!(table.rows(&db).await, 2, "a part of a COPY that failed is there");
}

#[tokio::test]
async fn an_interrupted_copy_leaves_no_half_rows_and_costs_its_connection_alone() {
    let (db, name) = manager_with(|it| it.pool_size(2));
    let mut admin = admin().await;
    let table = Copied::new(&db, &name).await;
    let other = db.acquire().await.unwrap();
    let mut conn = db.acquire().await.unwrap();
    let rows = "Ada\n".repeat(10_000);
    let interrupted = conn.raw(async |raw: &mut PgConnection| {
        let mut copy = raw.copy_in_raw(&table.copy_in()).await?;
        copy.send(rows.as_bytes()).await?;
        std::future::pending::<()>().await;
        copy.finish().await
    });
    assert!(timeout(Duration::from_millis(300), interrupted).await.is_err());
    drop((conn, other));
    assert_eq!((db.status().in_use, db.status().idle), (0, 1));
    assert_eq!(table.rows(&db).await, 0);
    eventually("its process ends", async || backends(&mut admin, &name).await == 1).await;

    // One that is read in part, by a closure that then says that all is well.
    let mut conn = db.acquire().await.unwrap();
    let read = conn.raw(async |raw: &mut PgConnection| {
        let sql = "COPY (SELECT generate_series(1, 200000)) TO STDOUT";
        let mut rows = raw.copy_out_raw(sql).await?;
        rows.try_next().await.map(|row| row.is_some())
    });
    let refused = read.await.unwrap_err();
    assert!(refused.to_string().contains("an answer was left unread"), "{refused}");
    drop(conn);
    let sane: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&db).await.unwrap();
    assert_eq!((sane, db.status().in_use), (1, 0));
}

/// A table that rows are copied into.
struct Copied(String);

impl Copied {
    async fn new(db: &DatabaseManager, name: &str) -> Self {
        let table = Self(format!("\"copied-{name}\""));
        let create = AssertSqlSafe(format!("CREATE TABLE {} (name text)", table.0));
        db.execute(create).await.unwrap();
        table
    }

    fn copy_in(&self) -> String {
        format!("COPY {} (name) FROM STDIN", self.0)
    }

    fn copy_out(&self) -> String {
        format!("COPY {} (name) TO STDOUT", self.0)
    }

    async fn rows(&self, db: &DatabaseManager) -> i64 {
        let count = AssertSqlSafe(format!("SELECT count(*) FROM {}", self.0));
        sqlx::query_scalar(count).fetch_one(db).await.unwrap()
    }
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
async fn migrations_of_a_directory_are_embedded_and_run() {
    let (db, name) = manager();
    let mut migrator = sqlx::migrate!("tests/migrations");
    migrator.dangerous_set_table_name(format!("\"{name}-migrations\""));
    for _ in 0..2 {
        db.migrate(&migrator, Deadline::within(Duration::from_secs(5))).await.unwrap();
    }
    let ada: Person =
        sqlx::query_as("SELECT * FROM moved_people WHERE id = 1").fetch_one(&db).await.unwrap();
    assert_eq!(ada, Person { id: 1, name: "Ada".to_owned() });
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
