//! Every row of the table of errors, from a scripted server: what each means, and where it struck.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseManager, Error, PgClassifier};
use resilience_core::{Call, CallError, Classify, Deadline, Replay, Verdict};
use sqlx::{AssertSqlSafe, Executor};
use support::script::{Script, Welcome};

use Replay::{IfIdempotent, Never, Safe, Transaction};

const SLOWLY: Duration = Duration::from_secs(5);

fn service(replay: Replay) -> Verdict {
    Verdict::service(replay)
}

fn caller(replay: Replay) -> Verdict {
    Verdict::caller(replay)
}

fn manager(script: &Script) -> DatabaseManager {
    let config = DatabaseConfig::builder(script.url()).max_retries(0).fail_max(1_000_000).build();
    DatabaseManager::connect(config.unwrap()).unwrap()
}

fn verdict<T: std::fmt::Debug>(result: Result<T, CallError<Error>>) -> Verdict {
    match result {
        Err(CallError::Inner(failed)) => failed.verdict,
        other => panic!("{other:?}"),
    }
}

async fn send(on: impl Executor<'_, Database = sqlx::Postgres>, text: &str) -> Result<(), Error> {
    on.execute(AssertSqlSafe(text.to_owned())).await?;
    Ok(())
}

/// What `text` means outside a transaction, after something that took effect, and within a transaction.
async fn in_each_place(db: &DatabaseManager, text: &str) -> [Verdict; 3] {
    let alone = db.write(async |mut conn: Conn| send(&mut conn, text).await).await;
    let later = db.write(async |mut conn: Conn| {
        send(&mut conn, "fine").await?;
        send(&mut conn, text).await
    });
    let inside = db.transaction(async |mut tx| {
        send(&mut tx, "fine").await?;
        send(&mut tx, text).await
    });
    [verdict(alone), verdict(later.await), verdict(inside.await)]
}

#[tokio::test]
async fn every_answer_of_the_server_means_what_the_table_says() {
    let script = Script::with(Welcome::Session).await;
    let db = manager(&script);
    let slowly = |replay| service(replay).after(SLOWLY);
    let rows = [
        // Not executed: but what was done before it was.
        ("error 08001", [service(Safe), service(IfIdempotent), service(Safe)]),
        ("error 08004", [service(Safe), service(IfIdempotent), service(Safe)]),
        ("error 53300", [service(Safe), service(IfIdempotent), service(Safe)]),
        ("fatal 57P03", [service(Safe), service(IfIdempotent), service(Safe)]),
        ("error 25006", [service(Safe), service(IfIdempotent), service(Safe)]),
        // Rolled back because of others.
        ("error 40001", [caller(Transaction), caller(IfIdempotent), caller(Transaction)]),
        ("error 40P01", [caller(Transaction), caller(IfIdempotent), caller(Transaction)]),
        ("error 55P03", [caller(Transaction), caller(IfIdempotent), caller(Transaction)]),
        ("fatal 25P03", [caller(Transaction), caller(IfIdempotent), caller(Transaction)]),
        // Nobody knows; but a transaction before its COMMIT is rolled back.
        ("fatal 08006", [service(IfIdempotent), service(IfIdempotent), service(Transaction)]),
        ("fatal 57P01", [service(IfIdempotent), service(IfIdempotent), service(Transaction)]),
        ("fatal 57P02", [service(IfIdempotent), service(IfIdempotent), service(Transaction)]),
        ("cut", [service(IfIdempotent), service(IfIdempotent), service(Transaction)]),
        // Nobody knows, wherever.
        ("error 08007", [service(IfIdempotent); 3]),
        ("error 40003", [service(IfIdempotent); 3]),
        // The statement cache is stale.
        ("error 26000", [caller(Safe), caller(IfIdempotent), caller(Transaction)]),
        ("error 42P05", [caller(Safe), caller(IfIdempotent), caller(Transaction)]),
        ("error 0A000", [caller(Safe), caller(IfIdempotent), caller(Transaction)]),
        // The server has run out of something.
        ("error 53100", [slowly(Transaction), slowly(IfIdempotent), slowly(Transaction)]),
        ("error 53200", [slowly(Transaction), slowly(IfIdempotent), slowly(Transaction)]),
        ("error 53400", [slowly(Transaction), slowly(IfIdempotent), slowly(Transaction)]),
        ("error 58030", [slowly(Transaction), slowly(IfIdempotent), slowly(Transaction)]),
        // The attempt's time is spent.
        ("error 57014", [service(Never); 3]),
        ("error XX000", [service(Never); 3]),
        // The request was wrong.
        ("error 22012", [caller(Never); 3]),
        ("error 23505", [caller(Never); 3]),
        ("error 42P01", [caller(Never); 3]),
        ("error 42501", [caller(Never); 3]),
        ("error 3D000", [caller(Never); 3]),
        ("error 28000", [caller(Never); 3]),
        ("error P0001", [caller(Never); 3]),
    ];
    for (text, expected) in rows {
        assert_eq!(in_each_place(&db, text).await, expected, "{text}");
    }
    assert_eq!(db.status().in_use, 0);
}

#[tokio::test]
async fn a_commit_without_an_answer_is_uncertain_and_a_refused_one_is_not() {
    for (commit, expected) in [
        ("cut", service(IfIdempotent)),
        ("fatal 57P01", service(IfIdempotent)),
        ("error 40001", caller(Transaction)),
        ("error 23505", caller(Never)),
        ("error 40003", service(IfIdempotent)),
    ] {
        let script = Script::committing(Welcome::Session, commit).await;
        let db = manager(&script);
        let result = db.transaction(async |mut tx| send(&mut tx, "fine").await).await;
        assert_eq!(verdict(result), expected, "{commit}");
        let error = db.begin().await.unwrap().commit().await.unwrap_err();
        assert_eq!(PgClassifier.verdict(&error), expected, "{commit}, outside a closure");
    }
}

#[tokio::test]
async fn a_refused_connection_was_not_executed() {
    for (code, expected) in [
        ("08001", service(Safe)),
        ("08004", service(Safe)),
        ("53300", service(Safe)),
        ("57P03", service(Safe)),
        ("53200", service(Safe).after(SLOWLY)),
        ("28P01", caller(Never)),
        ("28000", caller(Never)),
        ("3D000", caller(Never)),
        ("42501", caller(Never)),
    ] {
        let script = Script::with(Welcome::Refused(code)).await;
        let db = manager(&script);
        let error = db.write(async |_| Ok(())).await.unwrap_err();
        let text = format!("{error} {error:?} {db:?}");
        assert!(text.contains(&format!("127.0.0.1:{}", script.port)), "{text}");
        assert!(text.contains(code) && !text.contains("hunter2"), "{text}");
        assert_eq!(verdict(Err::<(), _>(error)), expected, "{code}");
    }
}

#[tokio::test]
async fn a_server_that_is_none_is_told_from_one_that_refuses() {
    for (welcome, cause) in
        [(Welcome::Garbage, "unexpected"), (Welcome::Closed, "expected to read")]
    {
        let script = Script::with(welcome).await;
        let error = manager(&script).read(async |_| Ok(())).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("cannot connect to 127.0.0.1:{}: ", script.port)),
            "{text}"
        );
        assert_eq!(verdict(Err::<(), _>(error)), service(Safe), "{cause}: {text}");
    }
}

#[tokio::test]
async fn a_stale_statement_cache_is_worth_one_more_try_and_no_third() {
    let script = Script::with(Welcome::Session).await;
    let config = DatabaseConfig::builder(script.url()).base_delay(Duration::from_millis(1));
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let error =
        db.write(async |mut conn: Conn| send(&mut conn, "error 0A000").await).await.unwrap_err();
    assert_eq!(script.executed(), 2);
    assert_eq!(verdict(Err::<(), _>(error)), caller(Never));
    assert_eq!((db.status().idle, script.accepted()), (0, 2), "its connection was used again");
}

#[tokio::test]
async fn a_caller_in_a_hurry_cannot_blame_the_service() {
    let script = Script::with(Welcome::Session).await;
    let db = manager(&script);
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();
    // Whether it is cut off or answered in time, the service is not to blame.
    let call = Call::read().by(Deadline::within(Duration::from_millis(8)));
    match db.call(call, async |mut conn: Conn| send(&mut conn, "error 57014").await).await {
        Err(CallError::Inner(failed)) => assert_eq!(failed.verdict, caller(Never)),
        Err(CallError::DeadlineExceeded(_)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(db.breaker().snapshot().calls.failure, 0);
}

#[tokio::test]
async fn a_statement_on_the_manager_is_never_sent_twice() {
    let script = Script::with(Welcome::Session).await;
    let config = DatabaseConfig::builder(script.url()).base_delay(Duration::from_millis(1));
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    for text in ["error 40001", "error 53300", "error 0A000"] {
        let before = script.executed();
        send(&db, text).await.unwrap_err();
        assert_eq!(script.executed() - before, 1, "{text}");
    }
}

#[tokio::test]
async fn an_error_from_elsewhere_is_taken_for_the_worst() {
    let script = Script::with(Welcome::Session).await;
    let db = manager(&script);
    let foreign = db.write(async |_| {
        let elsewhere = manager(&script);
        let mut conn = elsewhere.acquire().await?;
        send(&mut conn, "error 40001").await
    });
    assert_eq!(verdict(foreign.await), caller(IfIdempotent));
    let nested = db.write(async |_| {
        let unreachable = DatabaseConfig::builder("postgres://127.0.0.1:1/app").max_retries(0);
        let elsewhere = DatabaseManager::connect(unreachable.build().unwrap()).unwrap();
        send(&elsewhere, "fine").await
    });
    // The innermost pipeline retries; those around it do not repeat what it gave up.
    assert_eq!(verdict(nested.await), service(Never));
}

#[tokio::test]
async fn a_raw_closure_may_have_done_anything_before_it_failed() {
    let script = Script::with(Welcome::Session).await;
    let db = manager(&script);
    let raw = db.write(async |mut conn: Conn| {
        conn.raw(async |raw| {
            raw.execute("fine").await?;
            raw.execute("error 40001").await
        })
        .await
    });
    assert_eq!(verdict(raw.await), caller(IfIdempotent));
}
