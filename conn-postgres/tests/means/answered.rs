//! Statements that the server refuses, from a division by zero to a full disk.

use std::time::Duration;

use conn_postgres::{Conn, DatabaseManager, Tx};
use resilience_core::CallError;
use sqlx::{AssertSqlSafe, Executor};

use super::unopened::settings;
use crate::support::ground::{Fate, Ground, Told};
use crate::support::script::{Script, Welcome};
use crate::support::throwaway::Throwaway;
use crate::support::variable;

/// A session that fails so, where no real server can be made to.
async fn by_script(text: &str) -> Told {
    let script = Script::with(Welcome::Session).await;
    let config =
        settings(script.url()).pool_size(1).max_overflow(0).deadline(Duration::from_secs(4));
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let sql = || AssertSqlSafe(text.to_owned());
    let call = db.write(async |mut conn: Conn| Ok(conn.execute(sql()).await?)).await;
    let Err(CallError::Inner(failed)) = call else { panic!("{call:?}") };
    let fate =
        if db.status().idle == 1 && script.accepted() == 1 { Fate::Kept } else { Fate::Closed };
    let code = failed.error.code().map(str::to_owned);
    Told { code, verdict: failed.verdict, runs: script.executed() as i64, fate }
}

pub async fn error_by_script(code: &str) -> Told {
    by_script(&format!("error {code}")).await
}

pub async fn fatal_by_script(code: &str) -> Told {
    by_script(&format!("fatal {code}")).await
}

pub async fn concurrent_update(_: &str) -> Told {
    let ground = Ground::new().await;
    let update = || format!("UPDATE \"{}\" SET n = n + 1", ground.name);
    let call = ground.db.transaction(async |mut tx: Tx<'static>| {
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
        tx.execute(ground.counted("SELECT 1")).await?;
        ground.run(update()).await;
        Ok(tx.execute(AssertSqlSafe(update())).await?)
    });
    ground.tell(call.await).await
}

pub async fn crossed_locks(_: &str) -> Told {
    // Whoever looks first is the victim: this one, and not the other.
    let url = format!("{}?options=-c%20deadlock_timeout=10", variable("TEST_DATABASE_ADMIN_URL"));
    let ground = Ground::at(url, |it| it).await;
    let key = fastrand::i32(..);
    let lock = |number: i32| format!("SELECT pg_advisory_xact_lock({key}, {number})");
    let waiting =
        format!("SELECT FROM pg_locks WHERE classid::int8 = {}::int8 AND NOT granted", key as u32);
    let call = ground.db.transaction(async |mut tx: Tx<'static>| {
        tx.execute(ground.counted(&lock(1))).await?;
        let mut rival = ground.side().await;
        rival.execute("SET deadlock_timeout = '1min'").await?;
        rival.execute(AssertSqlSafe(format!("BEGIN; {}", lock(2)))).await?;
        let one = lock(1);
        let rival = tokio::spawn(async move {
            let _ = rival.execute(AssertSqlSafe(one)).await;
        });
        ground.until(&waiting).await;
        let crossed = tx.execute(AssertSqlSafe(lock(2))).await;
        tx.rollback().await?;
        rival.await.unwrap();
        Ok(crossed?)
    });
    ground.tell(call.await).await
}

pub async fn locked_table(_: &str) -> Told {
    let ground = Ground::new().await;
    let mut holder = ground.side().await;
    let lock = format!("LOCK TABLE \"{}\"", ground.name);
    holder.execute(AssertSqlSafe(format!("BEGIN; {lock}"))).await.unwrap();
    ground.write(&format!("{lock} NOWAIT")).await
}

pub async fn idle_in_transaction(_: &str) -> Told {
    let ground = Ground::new().await;
    let call = ground.db.transaction(async |mut tx: Tx<'static>| {
        tx.execute("SET LOCAL idle_in_transaction_session_timeout = '20ms'").await?;
        tx.execute(ground.counted("SELECT 1")).await?;
        ground.until_ended().await;
        Ok(tx.execute("SELECT 1").await?)
    });
    ground.tell(call.await).await
}

pub async fn read_only(_: &str) -> Told {
    Ground::new().await.write("SET LOCAL transaction_read_only = on; CREATE TABLE never ()").await
}

/// What a statement comes to on a connection that `spoil` has spoiled: once with a single attempt, to see what
/// it is taken for, and once with two, of which the second succeeds.
pub async fn after(ground: &Ground, spoil: impl AsyncFn(&Ground)) -> Told {
    let name = &ground.name;
    let sql = || {
        AssertSqlSafe(format!("SELECT \"{name}\"('SELECT 1'), t.* FROM \"{name}\" t WHERE n = $1"))
    };
    let ask = async |db: &DatabaseManager| {
        db.write(async |mut conn: Conn| Ok(sqlx::query(sql()).bind(1).fetch_all(&mut conn).await?))
            .await
    };
    let once = ground.once();
    once.backend().await;
    spoil(&once).await;
    let Err(CallError::Inner(failed)) = ask(&once.db).await else { panic!("it was not spoiled") };
    once.leave().await;
    spoil(ground).await;
    let before = ground.runs().await;
    ask(&ground.db).await.unwrap();
    let fate = ground.fate().await;
    let code = failed.error.code().map(str::to_owned);
    Told { code, verdict: failed.verdict, runs: ground.runs().await - before, fate }
}

/// The statement that [`after`] tries has been prepared; then `what` happens behind the driver's back.
pub async fn after_first_use(what: impl Fn(&Ground) -> String) -> Told {
    let ground = Ground::new().await;
    after(&ground, async |it| {
        let name = &it.name;
        let sql = format!("SELECT \"{name}\"('SELECT 1'), t.* FROM \"{name}\" t WHERE n = $1");
        sqlx::query(AssertSqlSafe(sql)).bind(1).fetch_all(&it.db).await.unwrap();
        it.db.execute(it.counted(&what(it))).await.unwrap();
    })
    .await
}

pub async fn deallocated_statements(_: &str) -> Told {
    after_first_use(|_| "DEALLOCATE ALL".to_owned()).await
}

pub async fn changed_table(_: &str) -> Told {
    let column = || fastrand::u32(..);
    after_first_use(|it| format!("ALTER TABLE \"{}\" ADD COLUMN c{} int", it.name, column())).await
}

pub async fn taken_statement_names(_: &str) -> Told {
    let ground = Ground::new().await;
    after(&ground, async |it| {
        for number in 1..9 {
            let taken = format!("PREPARE sqlx_s_{number} AS SELECT 1");
            it.db.execute(it.counted(&taken)).await.unwrap();
        }
    })
    .await
}

pub async fn full_disk(_: &str) -> Told {
    Ground::new().await.write("COPY (SELECT repeat('x', 100000)) TO '/dev/full'").await
}

pub async fn full_lock_table(_: &str) -> Told {
    let mut server = Throwaway::new();
    server.start().await;
    let ground = Ground::at(server.url(), |it| it).await;
    let sql = "SELECT count(pg_advisory_xact_lock(n)) FROM generate_series(1, 1000000) n";
    let told = ground.write(sql).await;
    ground.leave().await;
    told
}

pub const SORT: &str = "SET LOCAL temp_file_limit = '64kB'; SET LOCAL work_mem = '64kB'; \
                    SELECT n FROM generate_series(1, 100000) n ORDER BY -n";

pub async fn temp_file_limit(_: &str) -> Told {
    Ground::new().await.write(SORT).await
}

pub async fn unreadable_input(_: &str) -> Told {
    Ground::new().await.write("SELECT pg_read_file('/proc/self/mem', 0, 1)").await
}

pub async fn operator(_: &str) -> Told {
    let ground = Ground::new().await;
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    tokio::join!(ground.write("SELECT pg_sleep(9)"), ground.strike(cancel)).0
}

pub async fn statement_timeout(_: &str) -> Told {
    let url = format!("{}?options=-c%20statement_timeout=100", variable("TEST_DATABASE_ADMIN_URL"));
    Ground::at(url, |it| it).await.write("SELECT pg_sleep(9)").await
}

pub async fn corrupt_request(_: &str) -> Told {
    let internal = "DO $$ BEGIN RAISE EXCEPTION 'broken' USING ERRCODE = 'XX000'; END $$";
    let told = Ground::new().await.write(internal).await;
    assert_eq!(told.code.as_deref(), Some("XX000"));
    told
}

pub async fn class_22(_: &str) -> Told {
    Ground::new().await.write("SELECT 1/0").await
}

pub async fn class_23(_: &str) -> Told {
    let ground = Ground::new().await;
    let table = &ground.name;
    let told = ground
        .write(&format!(
            "ALTER TABLE \"{table}\" ADD UNIQUE (n); INSERT INTO \"{table}\" VALUES (1)"
        ))
        .await;
    assert_eq!(told.code.as_deref(), Some("23505"));
    told
}

pub async fn class_42(_: &str) -> Told {
    Ground::new().await.write("SELECT FROM no_such_table").await
}

pub async fn forgotten_parameter(_: &str) -> Told {
    let ground = Ground::new().await;
    let sql = || AssertSqlSafe(format!("SELECT \"{}\"($1)", ground.name));
    let call = ground
        .db
        .write(async |mut conn: Conn| Ok(sqlx::query(sql()).execute(&mut conn).await?))
        .await;
    assert_eq!(ground.db.breaker().snapshot().calls.failure, 0);
    ground.tell(call).await
}
