//! Fear: behind PgBouncer in transaction mode, a statement meets another's, or none at all.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseConfigBuilder, DatabaseManager, Error, Tx};
use futures_util::TryStreamExt;
use resilience_core::{CallError, Deadline, HealthStatus};
use sqlx::migrate::Migrator;
use sqlx::{Connection, Executor, PgConnection, Row, SqlSafeStr};
use support::bouncer::{Bouncer, SERVERS};
use support::throwaway::Throwaway;

const SECOND: Duration = Duration::from_secs(1);

async fn servers(passed: &str) -> (Throwaway, Bouncer) {
    let mut server = Throwaway::new();
    server.start().await;
    let bouncer = Bouncer::before(&server, passed).await;
    (server, bouncer)
}

fn config(bouncer: &Bouncer) -> DatabaseConfigBuilder {
    DatabaseConfig::builder(bouncer.url()).pool_size(16).max_overflow(0).max_retries(0)
}

fn connect(builder: DatabaseConfigBuilder) -> DatabaseManager {
    DatabaseManager::connect(builder.build().unwrap()).unwrap()
}

/// Statements of one shape but with different texts: one that ran in place of another would show.
async fn ask(db: &DatabaseManager, task: i64, round: i64) -> sqlx::Result<()> {
    let (one, two) = match round % 4 {
        0 => {
            let sql = "SELECT $1::int8 + 1, $2::int8";
            sqlx::query_as(sql).bind(task).bind(round).fetch_one(db).await?
        }
        1 => {
            let sql = "SELECT $1::int8 * 2 - $1::int8 + 1, $2::int8 * 1";
            sqlx::query_as(sql).bind(task).bind(round).fetch_all(db).await?[0]
        }
        2 => {
            let sql = "SELECT 1 + n, $2::int8 FROM generate_series($1::int8, $1::int8) n";
            let mut rows = sqlx::query_as(sql).bind(task).bind(round).fetch(db);
            let row = rows.try_next().await?.unwrap();
            assert!(rows.try_next().await?.is_none());
            row
        }
        _ => {
            let mut tx = db.begin().await?;
            let sql = "INSERT INTO log VALUES ($1, $2) RETURNING a + 1, b";
            let row = sqlx::query_as(sql).bind(task).bind(round).fetch_one(&mut *tx).await?;
            let again = "SELECT count(*) FROM log WHERE a = $1 AND b = $2";
            let seen: i64 =
                sqlx::query_scalar(again).bind(task).bind(round).fetch_one(&mut *tx).await?;
            assert_eq!(seen, 1);
            tx.commit().await?;
            row
        }
    };
    assert_eq!((one, two), (task + 1, round), "a statement ran in place of another");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_statements_of_sixteen_tasks_on_four_processes_meet_no_other_statement() {
    let (server, bouncer) = servers("").await;
    let db = connect(config(&bouncer).pgbouncer(true));
    (&db).execute("CREATE TABLE log (a int8, b int8)").await.unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let db = db.clone();
            tokio::spawn(async move {
                for round in 0..64 {
                    ask(&db, task, round).await?;
                }
                Ok::<_, sqlx::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let mut admin = PgConnection::connect(&server.url()).await.unwrap();
    let sql = "SELECT (SELECT count(*) FROM log), count(*) FROM pg_stat_activity \
               WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let (rows, processes): (i64, i64) = sqlx::query_as(sql).fetch_one(&mut admin).await.unwrap();
    assert_eq!(rows, 16 * 16);
    assert!(processes <= SERVERS as i64, "{processes} of {SERVERS}: PgBouncer shared nothing");
    let statements = "SELECT count(*) FROM pg_prepared_statements";
    let left: i64 = sqlx::query_scalar(statements).fetch_one(&db).await.unwrap();
    assert_eq!(left, 0, "named statements were left at the server");
    assert_eq!(db.status().idle, 16, "connections were lost");
    assert_eq!(db.health().await.status, HealthStatus::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_closure_does_and_what_fails_in_it_stays_as_it_was() {
    let (_server, bouncer) = servers("").await;
    let db = connect(config(&bouncer).pgbouncer(true).pool_size(1));
    (&db).execute("CREATE TABLE log (a int8 PRIMARY KEY)").await.unwrap();
    (&db).execute("CREATE TYPE mood AS ENUM ('good')").await.unwrap();
    let insert = "INSERT INTO log VALUES ($1)";
    let write = async |mut conn: Conn| {
        sqlx::query(insert).bind(1_i64).execute(&mut conn).await?;
        Ok(sqlx::query("SELECT 'good'::mood").fetch_one(&mut conn).await?.len())
    };
    assert_eq!(db.write(write).await.unwrap(), 1);
    (&db).execute("CREATE TYPE hue AS ENUM ('red')").await.unwrap();
    let mut tx = db.begin().await.unwrap();
    sqlx::query("SAVEPOINT first_time").execute(&mut *tx).await.unwrap();
    for _ in 0..2 {
        let mut rows = sqlx::query("SELECT $1::text::hue").bind("red").fetch(&mut *tx);
        assert!(rows.try_next().await.unwrap().is_some());
        assert!(rows.try_next().await.unwrap().is_none());
    }
    sqlx::query("ROLLBACK TO first_time").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    let hues = sqlx::query("SELECT ARRAY['red'::hue]").fetch_all(&db).await.unwrap();
    assert_eq!((hues.len(), db.status().idle), (1, 1));
    let failed = sqlx::query(insert).bind(1_i64).execute(&db).await.unwrap_err();
    assert_eq!(failed.as_database_error().unwrap().code().as_deref(), Some("23505"));
    let failed = sqlx::query(insert).bind(1_i64).fetch(&db).try_next().await.unwrap_err();
    assert_eq!(failed.as_database_error().unwrap().code().as_deref(), Some("23505"));
    assert_eq!(db.status().idle, 1, "a refused statement cost the connection");
    let undone = db.transaction(async |mut tx: Tx<'static>| {
        sqlx::query(insert).bind(2_i64).execute(&mut *tx).await?;
        Err::<(), _>(Error::application("changed my mind"))
    });
    undone.await.unwrap_err();
    let all = "SELECT count(*) FROM log WHERE a < $1";
    let count: i64 = sqlx::query_scalar(all).bind(9_i64).fetch_one(&db).await.unwrap();
    assert_eq!(count, 1);
    sqlx::raw_sql("VACUUM log").execute(&db).await.unwrap();
    let copied = db.write(async |mut conn: Conn| {
        conn.raw(async |raw: &mut PgConnection| {
            let mut copy = raw.copy_in_raw("COPY log FROM STDIN").await?;
            copy.send(&b"3\n4\n"[..]).await?;
            copy.finish().await
        })
        .await
    });
    assert_eq!(copied.await.unwrap(), 2);
}

#[tokio::test]
async fn without_the_switch_the_error_names_it() {
    let (_server, bouncer) = servers("").await;
    let error = connect(config(&bouncer)).warm_up(Deadline::within(5 * SECOND)).await.unwrap_err();
    let CallError::Inner(failed) = error else { panic!("{error}") };
    let told = failed.error.to_string();
    let cure = "; behind PgBouncer in transaction mode, set pgbouncer=true";
    assert!(told.contains("unsupported startup parameter") && told.ends_with(cure), "{told}");

    // One that lets everything pass, so that it shows only later.
    let lenient = Bouncer::before(&_server, "extra_float_digits,options").await;
    let (one, two) = (connect(config(&lenient)), connect(config(&lenient)));
    let ask = async |mut conn: Conn| {
        for number in 0..50_i64 {
            let sql = "SELECT $1::int8";
            sqlx::query(sql).bind(number).fetch_one(&mut conn).await?;
        }
        Ok(())
    };
    let (first, second) = (one.read(ask).await, two.read(ask).await);
    let error = first.and(second).unwrap_err();
    assert!(error.to_string().contains(cure), "{error}");
}

#[tokio::test]
async fn what_needs_a_session_is_refused_with_the_way_out() {
    let (_server, bouncer) = servers("").await;
    let db = connect(DatabaseConfig::builder(format!("{}&pgbouncer=true", bouncer.url())));
    let refused = db.listen(["jobs"]).await.unwrap_err().to_string();
    let told = "listen() needs a server's process to itself, which PgBouncer in transaction mode gives nobody \
                (pgbouncer=true); listen at the server's own address";
    assert!(refused.ends_with(told), "{refused}");
    let migrator = Migrator::with_migrations(Vec::new());
    let soon = Deadline::within(5 * SECOND);
    let refused = db.migrate(&migrator, soon).await.unwrap_err().to_string();
    assert!(refused.contains("migrate at the server's own address"), "{refused}");
    let refused = (&db).prepare("SELECT 1".into_sql_str()).await.unwrap_err().to_string();
    assert!(refused.contains("run the statement as it is"), "{refused}");
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&db).await.unwrap();
    assert_eq!((one, db.status().idle), (1, 1));
}
