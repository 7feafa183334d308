//! All or nothing: rolled back on errors, run again where others were the cause, and never twice without proof.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use conn_postgres::{Conn, DatabaseManager, Error, PgClassifier, Tx};
use resilience_core::{Blame, CallError, Classify, Replay, Verdict};
use sqlx::{AssertSqlSafe, Executor};
use support::{State, Wire, admin, config_at, eventually, manager, manager_with, server, url_at};
use tokio::sync::Barrier;

async fn table(db: &DatabaseManager) {
    let sql =
        "CREATE TABLE IF NOT EXISTS booked (test text, id int8, amount int8, UNIQUE (test, id))";
    // Two tests may create it at once; one of them is refused.
    let _ = db.execute(sql).await;
}

async fn booked(db: &DatabaseManager, test: &str) -> i64 {
    let sql = "SELECT coalesce(sum(amount), 0)::int8 FROM booked WHERE test = $1";
    sqlx::query_scalar(sql).bind(test).fetch_one(db).await.unwrap()
}

async fn book(on: &mut Tx<'_>, test: &str, id: i64) -> Result<(), Error> {
    let sql = "INSERT INTO booked VALUES ($1, $2, 1)";
    sqlx::query(sql).bind(test).bind(id).execute(&mut **on).await?;
    Ok(())
}

#[tokio::test]
async fn an_error_rolls_back_and_a_value_commits() {
    let (db, name) = manager();
    table(&db).await;
    db.transaction(async |mut tx: Tx<'static>| book(&mut tx, &name, 1).await).await.unwrap();
    assert_eq!(booked(&db, &name).await, 1);

    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("sold out")]
    struct SoldOut;
    let runs = AtomicUsize::new(0);
    let error = db
        .transaction(async |mut tx: Tx<'static>| {
            runs.fetch_add(1, Ordering::Relaxed);
            book(&mut tx, &name, 2).await?;
            Err::<(), _>(Error::application(SoldOut))
        })
        .await
        .unwrap_err();
    assert_eq!(error.inner().unwrap().application_ref(), Some(&SoldOut));
    assert!(!error.is_unavailable());
    assert_eq!((booked(&db, &name).await, runs.into_inner()), (1, 1));
}

#[tokio::test]
async fn the_commit_of_a_failed_transaction_is_an_error() {
    let (db, name) = manager_with(|it| it.pool_size(1));
    table(&db).await;
    let mut tx = db.begin().await.unwrap();
    book(&mut tx, &name, 1).await.unwrap();
    tx.execute("SELECT 1/0").await.unwrap_err();
    assert!(matches!(tx.commit().await, Err(Error::Aborted)));
    assert_eq!((booked(&db, &name).await, db.status().idle), (0, 1));

    let mut tx = db.begin().await.unwrap();
    book(&mut tx, &name, 1).await.unwrap();
    let unseen = tx.raw(async |raw| {
        let _ = raw.execute("SELECT 1/0").await;
        Ok(())
    });
    assert!(unseen.await.is_err(), "a failure inside a closure went unnoticed");
    assert!(tx.commit().await.is_err());
    assert_eq!(booked(&db, &name).await, 0);

    let mut tx = db.begin().await.unwrap();
    book(&mut tx, &name, 1).await.unwrap();
    tx.execute("SAVEPOINT before").await.unwrap();
    tx.execute("SELECT 1/0").await.unwrap_err();
    tx.execute("ROLLBACK TO SAVEPOINT before").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(booked(&db, &name).await, 1, "what a savepoint saved was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serialization_failure_runs_the_whole_transaction_again() {
    let (db, name) = manager_with(|it| it.pool_size(4).base_delay(Duration::from_millis(20)));
    table(&db).await;
    let (runs, barrier) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    let tasks: Vec<_> = (0..2)
        .map(|id| {
            let (db, name) = (db.clone(), name.clone());
            let (runs, barrier) = (Arc::clone(&runs), Arc::clone(&barrier));
            tokio::spawn(async move {
                let first = AtomicUsize::new(0);
                db.transaction(async |mut tx: Tx<'static>| {
                    runs.fetch_add(1, Ordering::Relaxed);
                    tx.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE").await?;
                    let sql = "SELECT count(*) FROM booked WHERE test = $1";
                    let count: i64 =
                        sqlx::query_scalar(sql).bind(&name).fetch_one(&mut *tx).await?;
                    if first.fetch_add(1, Ordering::Relaxed) == 0 {
                        barrier.wait().await;
                    }
                    let sql = "INSERT INTO booked VALUES ($1, $2, $3)";
                    sqlx::query(sql).bind(&name).bind(id).bind(count).execute(&mut *tx).await?;
                    Ok(())
                })
                .await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert!(runs.load(Ordering::Relaxed) >= 3, "the collision did not happen");
    assert_eq!(booked(&db, &name).await, 1, "both saw the same state");
    assert_eq!(db.breaker().snapshot().calls.failure, 0, "a collision is no failure of the server");
}

#[tokio::test]
async fn a_lost_commit_reply_is_not_taken_for_a_failure_that_may_be_repeated() {
    let wire = Wire::to(server()).await;
    let (config, name) = config_at(url_at(&format!("localhost:{}", wire.port)));
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let (direct, _) = manager();
    let table = format!("\"{name}\"");
    // Checked at COMMIT, which takes long enough for the wire to be cut meanwhile.
    let slow_commit = format!(
        "CREATE TABLE {table} (id int8);
         CREATE FUNCTION {table}() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION {table}()"
    );
    (&direct).execute(AssertSqlSafe(slow_commit)).await.unwrap();
    let runs = AtomicUsize::new(0);
    let transaction = db.transaction(async |mut tx: Tx<'static>| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.execute(AssertSqlSafe(format!("INSERT INTO {table} VALUES (1)"))).await?;
        Ok(())
    });
    let cut = async {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND query = 'COMMIT' AND state = 'active')";
        let mut admin = admin().await;
        eventually("COMMIT is under way", async || {
            sqlx::query_scalar(sql).bind(&name).fetch_one(&mut admin).await.unwrap()
        })
        .await;
        wire.set(State::Down);
    };
    let (result, ()) = tokio::join!(transaction, cut);
    let error = result.unwrap_err();
    let verdict = PgClassifier.verdict(error.inner().unwrap());
    assert_eq!(verdict, Verdict::service(Replay::IfIdempotent), "{error}");
    assert_eq!(runs.into_inner(), 1, "a transaction that may be committed was run again");
    eventually("the server did commit it", async || {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&direct).await.unwrap() == 1
    })
    .await;
}

#[tokio::test]
async fn a_connection_lost_before_commit_runs_the_transaction_again() {
    let (db, name) = manager_with(|it| it.base_delay(Duration::from_millis(20)));
    table(&db).await;
    let runs = AtomicUsize::new(0);
    db.transaction(async |mut tx: Tx<'static>| {
        book(&mut tx, &name, 1).await?;
        if runs.fetch_add(1, Ordering::Relaxed) == 0 {
            tx.execute("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(9)").await?;
        }
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!((runs.into_inner(), booked(&db, &name).await), (2, 1));
}

#[tokio::test]
async fn an_uncertain_write_is_repeated_only_when_marked_idempotent() {
    let (db, _) = manager_with(|it| it.base_delay(Duration::from_millis(20)).fail_max(100));
    let runs = AtomicUsize::new(0);
    let cut = async |mut conn: Conn| {
        if runs.fetch_add(1, Ordering::Relaxed) == 0 {
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(9)").await?;
        }
        Ok(())
    };
    let error = db.write(cut).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Inner(failed) if failed.verdict.blame == Blame::Service),
        "{error}"
    );
    assert_eq!(runs.swap(0, Ordering::Relaxed), 1);
    db.write_idempotent(cut).await.unwrap();
    assert_eq!(runs.swap(0, Ordering::Relaxed), 2);
    db.read(cut).await.unwrap();
    assert_eq!(runs.swap(0, Ordering::Relaxed), 2);
}

#[tokio::test]
async fn what_took_effect_earlier_in_a_closure_is_not_repeated_with_it() {
    let (db, name) = manager_with(|it| it.base_delay(Duration::from_millis(20)));
    table(&db).await;
    let collide = "DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = '40001'; END $$";
    let runs = AtomicUsize::new(0);
    let error = db
        .write(async |mut conn: Conn| {
            runs.fetch_add(1, Ordering::Relaxed);
            let sql = "INSERT INTO booked VALUES ($1, $2, 1)";
            sqlx::query(sql).bind(&name).bind(1).execute(&mut conn).await?;
            let mut tx = conn.begin().await?;
            tx.execute(collide).await?;
            tx.commit().await
        })
        .await
        .unwrap_err();
    assert_eq!(error.inner().unwrap().code(), Some("40001"));
    assert_eq!((runs.swap(0, Ordering::Relaxed), booked(&db, &name).await), (1, 1));

    // The same without an earlier effect is a collision like any other.
    db.write(async |mut conn: Conn| {
        let mut tx = conn.begin().await?;
        if runs.fetch_add(1, Ordering::Relaxed) == 0 {
            tx.execute(collide).await?;
        }
        tx.commit().await
    })
    .await
    .unwrap();
    assert_eq!(runs.into_inner(), 2);
}
