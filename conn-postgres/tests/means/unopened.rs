//! Calls that get no connection, because of the server or because of this process.

use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseConfigBuilder, DatabaseManager};
use resilience_core::{
    Call, CallError, CredentialError, CredentialProvider, Credentials, Deadline,
};
use sqlx::{AssertSqlSafe, Executor};
use tokio::time::{Instant, sleep};

use crate::support::ground::{Fate, Ground, Told};
use crate::support::script::{Script, Welcome};
use crate::support::throwaway::Throwaway;
use crate::support::{self, Wire, eventually, server, url_at, variable};

/// A call that needs a connection and gets none. The server, if there is one, has counted `runs`.
async fn unopened(config: DatabaseConfig, runs: impl AsyncFn() -> i64) -> Told {
    let db = DatabaseManager::connect(config).unwrap();
    let error = db.write(async |_| Ok(())).await.unwrap_err();
    assert_eq!((db.status().in_use, db.status().idle), (0, 0));
    let failed = match error {
        CallError::Inner(failed) => failed,
        other => panic!("{other}"),
    };
    let code = failed.error.code().map(str::to_owned);
    Told { code, verdict: failed.verdict, runs: runs().await, fate: Fate::Unopened }
}

pub fn settings(url: impl Into<String>) -> DatabaseConfigBuilder {
    DatabaseConfig::builder(url)
        .max_retries(1)
        .base_delay(Duration::from_millis(1))
        .connect_timeout(Duration::from_secs(3))
}

pub async fn unknown_name(_: &str) -> Told {
    let config = settings("postgresql://app:hunter2@nowhere.invalid/app");
    unopened(config.build().unwrap(), async || 0).await
}

pub async fn closed_port(_: &str) -> Told {
    let config = settings("postgresql://app:hunter2@127.0.0.1:1/app");
    unopened(config.build().unwrap(), async || 0).await
}

pub async fn silent_peer(_: &str) -> Told {
    let script = Script::with(Welcome::Silence).await;
    let config = settings(script.url()).connect_timeout(Duration::from_millis(50));
    unopened(config.build().unwrap(), async || script.accepted() as i64).await
}

pub async fn foreign_certificate(_: &str) -> Told {
    let wire = Wire::to(server()).await;
    let url = format!("{}?sslmode=verify-full", url_at(&format!("localhost:{}", wire.port)));
    unopened(settings(url).build().unwrap(), async || wire.accepted() as i64).await
}

pub async fn refusal_by_script(code: &'static str) -> Told {
    let script = Script::with(Welcome::Refused(code)).await;
    let config = settings(script.url()).build().unwrap();
    unopened(config, async || script.accepted() as i64).await
}

/// A call of `role`, which `make` makes, on the shared server by way of a wire that counts.
async fn as_role(make: &str, database: &str) -> Told {
    let wire = Wire::to(server()).await;
    let role = format!("row_{}_{:x}", std::process::id(), fastrand::u32(..));
    let mut admin = support::admin().await;
    let make = format!("CREATE ROLE {role} PASSWORD 'hunter2' {make}");
    admin.execute(AssertSqlSafe(make)).await.unwrap();
    let url = format!("postgresql://{role}:hunter2@localhost:{}/{database}", wire.port);
    let config = settings(url).ca_file(variable("DATABASE_CA_FILE")).build().unwrap();
    let told = unopened(config, async || wire.accepted() as i64).await;
    admin.execute(AssertSqlSafe(format!("DROP ROLE {role}"))).await.unwrap();
    told
}

pub async fn limited_role(_: &str) -> Told {
    as_role("LOGIN CONNECTION LIMIT 0", "app").await
}

pub async fn class_3d(_: &str) -> Told {
    let told = as_role("LOGIN", "nowhere").await;
    assert_eq!(told.code.as_deref(), Some("3D000"));
    told
}

pub async fn class_28000(_: &str) -> Told {
    let told = as_role("NOLOGIN", "app").await;
    assert_eq!(told.code.as_deref(), Some("28000"));
    told
}

pub async fn class_28(_: &str) -> Told {
    let wire = Wire::to(server()).await;
    let url = format!("postgresql://app:hunter2@localhost:{}/app", wire.port);
    let config = settings(url).ca_file(variable("DATABASE_CA_FILE")).build().unwrap();
    let told = unopened(config, async || wire.accepted() as i64).await;
    assert_eq!(told.code.as_deref(), Some("28P01"));
    told
}

pub async fn smart_shutdown(_: &str) -> Told {
    let mut server = Throwaway::new();
    server.start().await;
    let wire = Wire::to(format!("127.0.0.1:{}", server.port)).await;
    let ground = Ground::at(server.url(), |it| it).await;
    // It waits for this session to end, and takes no other.
    let held = ground.db.acquire().await.unwrap();
    server.shut_down_when_left();
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", wire.port);
    let config = settings(url);
    // Until it has heard, it lets in.
    eventually("it lets nobody in", async || {
        let db = DatabaseManager::connect(config.clone().max_retries(0).build().unwrap()).unwrap();
        db.acquire().await.is_err()
    })
    .await;
    let before = wire.accepted();
    let told = unopened(config.build().unwrap(), async || (wire.accepted() - before) as i64).await;
    drop(held);
    told
}

struct Shut;

#[async_trait::async_trait]
impl CredentialProvider for Shut {
    async fn credentials(&self, _: Deadline) -> Result<Credentials, CredentialError> {
        Err("the vault is shut".into())
    }
}

pub async fn shut_vault(_: &str) -> Told {
    let script = Script::with(Welcome::Session).await;
    let config = settings(script.url()).credentials(Shut).build().unwrap();
    unopened(config, async || script.accepted() as i64).await
}

pub async fn held_connection(_: &str) -> Told {
    let ground = Ground::with(|it| it.acquire_timeout(Duration::from_millis(30))).await;
    let held = ground.db.acquire().await.unwrap();
    let call = ground.db.write(async |_| Ok(())).await;
    drop(held);
    ground.tell(call).await
}

pub async fn long_wait(_: &str) -> Told {
    let ground = Ground::new().await;
    let held = ground.db.acquire().await.unwrap();
    let call = Call::write().by(Deadline::within(Duration::from_millis(500)));
    let slow = || ground.counted("SELECT pg_sleep(9)");
    let late = ground.db.call(call, async |mut conn: Conn| Ok(conn.execute(slow()).await?));
    let give_back = async {
        // More than a quarter of the attempt.
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(250) {
            sleep(Duration::from_millis(10)).await;
        }
        drop(held);
    };
    let (late, ()) = tokio::join!(late, give_back);
    ground.strike("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE true").await;
    ground.tell(late).await
}
