//! Connections that break under a statement, under COMMIT, before it, and while they lie idle.

use std::process::Command;

use conn_postgres::{Conn, Tx};
use resilience_core::CallError;
use sqlx::{AssertSqlSafe, Executor};

use super::answered::after;
use crate::support::ground::{Ground, Told};
use crate::support::throwaway::Throwaway;
use crate::support::{State, Wire, eventually, server, variable};

const END_SELF: &str = "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(9)";

pub async fn terminated_backend(_: &str) -> Told {
    Ground::new().await.write(END_SELF).await
}

pub async fn terminated_before_commit(_: &str) -> Told {
    Ground::new().await.transaction(END_SELF).await
}

pub async fn terminated_at_commit(_: &str) -> Told {
    let ground = Ground::new().await;
    let name = &ground.name;
    let trigger = format!(
        "CREATE FUNCTION \"{name}\"() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM \"{name}\"('{END_SELF}'); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER ending AFTER INSERT ON \"{name}\" DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION \"{name}\"()"
    );
    ground.run(trigger).await;
    let insert = || AssertSqlSafe(format!("INSERT INTO \"{name}\" VALUES (2)"));
    let call = ground.db.transaction(async |mut tx: Tx<'static>| Ok(tx.execute(insert()).await?));
    ground.tell(call.await).await
}

pub async fn cut_wire(_: &str) -> Told {
    broken_wire(State::Down).await
}

pub async fn silenced_wire(_: &str) -> Told {
    broken_wire(State::Silent).await
}

async fn broken_wire(how: State) -> Told {
    let wire = Wire::to(server()).await;
    let ground = Ground::over(&wire).await;
    let slow = || ground.counted("SELECT pg_sleep(9)");
    let call = ground.db.write(async |mut conn: Conn| Ok(conn.execute(slow()).await?));
    let cut = async {
        ground.strike("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'").await;
        wire.set(how);
    };
    let (call, ()) = tokio::join!(call, cut);
    // What fell silent would stay so.
    wire.tear();
    // It knows nothing of it.
    ground.strike("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE true").await;
    ground.tell(call).await
}

pub async fn cut_wire_before_commit(_: &str) -> Told {
    let wire = Wire::to(server()).await;
    let ground = Ground::over(&wire).await;
    let call = ground.db.transaction(async |mut tx: Tx<'static>| {
        tx.execute(ground.counted("SELECT 1")).await?;
        wire.set(State::Down);
        let cut = tx.execute("SELECT 1").await;
        wire.set(State::Up);
        Ok(cut?)
    });
    ground.tell(call.await).await
}

pub async fn crash(_: &str) -> Told {
    let mut server = Throwaway::new();
    server.start().await;
    let ground = Ground::at(server.url(), |it| it).await;
    let mut other = ground.side().await;
    let other: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut other).await.unwrap();
    let slow = || ground.counted("SELECT pg_sleep(9)");
    let call = ground.db.write(async |mut conn: Conn| Ok(conn.execute(slow()).await?));
    let crash = async {
        ground.strike("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'").await;
        let kill = Command::new("kill").args(["-9", &other.to_string()]).status();
        assert!(kill.unwrap().success());
    };
    let (call, ()) = tokio::join!(call, crash);
    eventually("it has recovered", async || ground.db.acquire().await.is_ok()).await;
    let attempts = match &call {
        Err(CallError::Inner(failed)) => failed.attempts,
        other => panic!("{other:?}"),
    };
    // A crash moves sequences forward.
    Told { runs: i64::from(attempts), ..ground.tell(call).await }
}

pub async fn idle_session_timeout(_: &str) -> Told {
    let url =
        format!("{}?options=-c%20idle_session_timeout=400", variable("TEST_DATABASE_ADMIN_URL"));
    let ground = Ground::at(url, |it| it).await;
    after(&ground, async |it| it.until_ended().await).await
}
