//! Who may be sent twice: an uncertain write is repeated only if it is marked, and the server counts what it executed.

mod support;

use std::future::Future;

use conn_postgres::{Conn, Tx};
use resilience_core::{Blame, Call, CallError, Replay};
use sqlx::{AssertSqlSafe, Executor};
use support::ground::Ground;

/// A ground with a procedure that counts itself, commits a row, and ends its own session before it has answered:
/// always, or the first time.
async fn uncertain(only_first: bool) -> Ground {
    let ground = Ground::new().await;
    let name = &ground.name;
    let ends = if only_first { "(SELECT last_value = 1 FROM \"{}-runs\")" } else { "true" };
    let ends = ends.replace("{}", name);
    let make = format!(
        "CREATE PROCEDURE \"{name}-book\"() LANGUAGE plpgsql AS $$ BEGIN
           PERFORM nextval('\"{name}-runs\"');
           INSERT INTO \"{name}\" VALUES (2);
           COMMIT;
           IF {ends} THEN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(9); END IF;
         END $$"
    );
    ground.run(make).await;
    ground
}

fn book(ground: &Ground) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("CALL \"{}-book\"()", ground.name))
}

/// How many rows were committed.
async fn booked(ground: &Ground) -> i64 {
    let sql = format!("SELECT count(*) FROM \"{}\" WHERE n = 2", ground.name);
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut ground.side().await).await.unwrap()
}

/// Runs the procedure as `call` says. Whether it succeeded, and how often the server executed it.
async fn executed(call: Call, only_first: bool) -> (bool, i64) {
    let ground = uncertain(only_first).await;
    let sql = || book(&ground);
    let result = ground.db.call(call, async |mut conn: Conn| Ok(conn.execute(sql()).await?)).await;
    if let Err(error) = &result {
        let CallError::Inner(failed) = error else { panic!("{error}") };
        let expected = (Blame::Service, Replay::IfIdempotent);
        assert_eq!((failed.verdict.blame, failed.verdict.replay), expected, "{error}");
    }
    let runs = ground.runs().await;
    assert_eq!(booked(&ground).await, runs, "each took effect");
    (result.is_ok(), runs)
}

#[tokio::test]
async fn an_uncertain_write_is_executed_once() {
    assert_eq!(executed(Call::write(), true).await, (false, 1));
    assert_eq!(executed(Call::write(), false).await, (false, 1));
}

#[tokio::test]
async fn an_uncertain_write_that_is_marked_is_executed_again_and_no_more_often_than_there_are_retries()
 {
    assert_eq!(executed(Call::write_idempotent(), true).await, (true, 2));
    assert_eq!(executed(Call::write_idempotent(), false).await, (false, 2));
}

#[tokio::test]
async fn an_uncertain_read_is_executed_again() {
    assert_eq!(executed(Call::read(), true).await, (true, 2));
}

/// How often the server executes what `run` sends outside the closures, which fails.
async fn outside<T, E, Fut>(run: impl FnOnce(Ground) -> Fut) -> i64
where
    Fut: Future<Output = (Ground, Result<T, E>)>,
{
    let (ground, result) = run(uncertain(true).await).await;
    assert!(result.is_err(), "it had no answer");
    let runs = ground.runs().await;
    assert_eq!(booked(&ground).await, runs);
    runs
}

#[tokio::test]
async fn what_runs_outside_the_closures_is_executed_once() {
    let on_the_manager = outside(async |it| {
        let result = (&it.db).execute(book(&it)).await;
        (it, result)
    });
    assert_eq!(on_the_manager.await, 1);
    let on_a_connection = outside(async |it| {
        let mut conn = it.db.acquire().await.unwrap();
        let result = conn.execute(book(&it)).await;
        drop(conn);
        (it, result)
    });
    assert_eq!(on_a_connection.await, 1);
    let in_raw = outside(async |it| {
        let sql = book(&it);
        let result = it.db.write(async |mut conn: Conn| {
            let sql = AssertSqlSafe(sql.0.clone());
            conn.raw(async |raw| raw.execute(sql).await).await
        });
        let result = result.await;
        (it, result)
    });
    assert_eq!(in_raw.await, 1);
}

/// A ground whose table ends the session of whoever inserts into it: `when` that is, at COMMIT or at once.
async fn ending(when: &str) -> Ground {
    let ground = Ground::new().await;
    let name = &ground.name;
    let make = format!(
        "CREATE FUNCTION \"{name}\"() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM nextval('\"{name}-runs\"');
           IF (SELECT last_value = 1 FROM \"{name}-runs\") THEN
             PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(9);
           END IF;
           RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER ending AFTER INSERT ON \"{name}\" {when}
         FOR EACH ROW EXECUTE FUNCTION \"{name}\"()"
    );
    ground.run(make).await;
    ground
}

#[tokio::test]
async fn a_transaction_runs_again_if_it_broke_before_commit_and_not_if_it_broke_under_it() {
    for (when, succeeds, runs) in
        [("NOT DEFERRABLE", true, 2), ("DEFERRABLE INITIALLY DEFERRED", false, 1)]
    {
        let ground = ending(when).await;
        let insert = || AssertSqlSafe(format!("INSERT INTO \"{}\" VALUES (2)", ground.name));
        let result =
            ground.db.transaction(async |mut tx: Tx<'static>| Ok(tx.execute(insert()).await?));
        assert_eq!(result.await.is_ok(), succeeds, "{when}");
        assert_eq!(ground.runs().await, runs, "{when}");
        assert_eq!(booked(&ground).await, i64::from(succeeds), "{when}");
    }
}

#[tokio::test]
async fn what_was_refused_before_it_ran_is_sent_again_unmarked() {
    let ground = Ground::new().await;
    let name = &ground.name;
    // The first time it is on a server that takes no writes.
    let make = format!(
        "CREATE FUNCTION \"{name}-refuse\"() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           PERFORM nextval('\"{name}-runs\"');
           IF (SELECT last_value = 1 FROM \"{name}-runs\") THEN SET LOCAL transaction_read_only = on; END IF;
           INSERT INTO \"{name}\" VALUES (2);
         END $$"
    );
    ground.run(make).await;
    let sql = || AssertSqlSafe(format!("SELECT \"{name}-refuse\"()"));
    ground.db.write(async |mut conn: Conn| Ok(conn.execute(sql()).await?)).await.unwrap();
    assert_eq!((ground.runs().await, booked(&ground).await), (2, 1));
}
