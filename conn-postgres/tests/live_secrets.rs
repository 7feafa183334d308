//! No password and no token in anything that is shown, whatever goes wrong: errors, `Debug`, health, events, panics, and the logs
//! of all targets.

mod support;

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseConfigBuilder, DatabaseManager, Error, Tx};
use resilience_core::{
    Call, CredentialError, CredentialProvider, Credentials, Deadline, Event, Observe, add_observer,
};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Executor};
use support::ground::Ground;
use support::script::{Script, Welcome};
use support::{State, Wire, server, variable};
use tracing::level_filters::LevelFilter;

/// As it is, and as a URL holds it.
const PASSWORD: [&str; 2] = ["Tr0ub4dor/&3@x", "Tr0ub4dor%2F%263%40x"];
const TOKEN: &str = "eyJhbGciTok3n";
/// What gives any of them away, whole or in part.
const TRACES: [&str; 3] = ["Tr0ub4", "&3@x", "eyJhbGci"];

/// All that was shown.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<u8>>>);

impl Shown {
    fn add(&self, what: impl Debug) {
        let line = format!("{what:?}\n{what:#?}\n");
        self.0.lock().unwrap().extend_from_slice(line.as_bytes());
    }

    /// An error in each of its forms, with all that it has for a source.
    fn error(&self, error: &(dyn std::error::Error + 'static)) {
        let mut next = Some(error);
        while let Some(error) = next {
            self.add((error.to_string(), error));
            next = error.source();
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Shown {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Observe for Shown {
    fn on_event(&self, event: &Event<'_>) {
        self.add(event);
    }
}

/// Gives a token; fails or panics if told to.
#[derive(Clone, Copy)]
enum Vault {
    Gives,
    Fails,
    Panics,
}

#[async_trait::async_trait]
impl CredentialProvider for Vault {
    async fn credentials(&self, _: Deadline) -> Result<Credentials, CredentialError> {
        match self {
            Self::Gives => Ok(Credentials::token(TOKEN)),
            Self::Fails => Err("the vault is shut".into()),
            Self::Panics => panic!("the vault is gone"),
        }
    }
}

fn url(user: &str, address: &str, query: &str) -> String {
    format!("postgresql://{user}:{}@{address}/app{query}", PASSWORD[1])
}

fn settings(url: String) -> DatabaseConfigBuilder {
    DatabaseConfig::builder(url)
        .pool_size(1)
        .max_overflow(0)
        .max_retries(1)
        .base_delay(Duration::from_millis(1))
        .connect_timeout(Duration::from_millis(500))
        .acquire_timeout(Duration::from_millis(50))
        .fail_max(3)
}

/// Goes every way in, until the circuit is open, and shows all there is to see.
async fn go_every_way(shown: &Shown, settings: DatabaseConfigBuilder) {
    shown.add(&settings);
    let config = settings.build().unwrap();
    shown.add(&config);
    let db = DatabaseManager::connect(config).unwrap();
    let note = |error: Option<resilience_core::CallError<Error>>| {
        if let Some(error) = error {
            shown.error(&error);
        }
    };
    for _ in 0..2 {
        note(db.write(async |_| Ok(())).await.err());
        note(db.transaction(async |_| Ok(())).await.err());
        note(db.warm_up(Deadline::within(Duration::from_secs(1))).await.err());
        if let Err(error) = db.acquire().await {
            shown.error(&error);
        }
        if let Err(error) = (&db).execute("SELECT 1").await {
            shown.error(&error);
        }
    }
    let migrator = Migrator::with_migrations(Vec::new());
    if let Err(error) = db.migrate(&migrator, Deadline::within(Duration::from_secs(1))).await {
        shown.error(&error);
    }
    shown.add((db.health().await, db.status(), db.breaker(), db.breaker().snapshot(), &db));
    shown.add(db.drain(Deadline::within(Duration::from_secs(1))).await);
    note(db.write(async |_| Ok(())).await.err());
    if let Err(error) = db.acquire().await {
        shown.error(&error);
    }
}

async fn where_nothing_opens(shown: &Shown) {
    let ca = variable("DATABASE_CA_FILE");
    for welcome in [
        Welcome::Refused("28P01"),
        Welcome::Refused("53300"),
        Welcome::Silence,
        Welcome::Garbage,
        Welcome::Closed,
    ] {
        let script = Script::with(welcome).await;
        let address = format!("127.0.0.1:{}", script.port);
        for mode in ["disable", "prefer", "require", "verify-full"] {
            let url = url("app", &address, &format!("?sslmode={mode}"));
            go_every_way(shown, settings(url).connect_timeout(Duration::from_millis(20))).await;
        }
    }
    go_every_way(shown, settings(url("app", "127.0.0.1:1", ""))).await;
    go_every_way(shown, settings(url("app", "nowhere.invalid", ""))).await;
    let wrong = || settings(url("app", &server(), ""));
    go_every_way(shown, wrong().ca_file(&*ca)).await;
    go_every_way(shown, settings(url("app", &server(), "?sslmode=verify-full"))).await;
    for vault in [Vault::Gives, Vault::Fails, Vault::Panics] {
        go_every_way(shown, wrong().ca_file(&*ca).credentials(vault)).await;
    }
}

fn where_no_config_is_made(shown: &Shown) {
    let [raw, encoded] = PASSWORD;
    for url in [
        format!("postgresql://app:{raw}@one/app"),
        format!("postgresql://app:{encoded}@one,b:{encoded}@two/app"),
        format!("postgresql://app:{encoded}/app"),
        format!("postgresql://app:{encoded}"),
        format!("postgresql:/app:{encoded}@one/app"),
        format!("mysql://app:{encoded}@one/app"),
        format!("postgresql://app:{encoded}@one:x/app?sslmode={encoded}&port={encoded}"),
        format!("postgresql://one/app?sslpassword={encoded}&options={encoded}"),
        format!("postgresql://one/app?password={encoded}&password={encoded}"),
        format!("postgresql://app:%ff{encoded}@one/app"),
        format!("{encoded}@one"),
    ] {
        shown.error(&DatabaseConfig::builder(url).pool_size(0).build().unwrap_err());
    }
}

/// A role that logs in by the password, and all that can go wrong then.
async fn where_a_session_goes_wrong(shown: &Shown, role: &str) {
    let wire = Wire::to(server()).await;
    let config = settings(url(role, &format!("localhost:{}", wire.port), ""))
        .ca_file(variable("DATABASE_CA_FILE"))
        .attempt_timeout(Duration::from_millis(300))
        .connect_timeout(Duration::from_secs(2))
        .fail_max(1_000);
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    for sql in [
        "SELECT 1",
        "SELECT 1/0",
        "SELEC 1",
        "SELECT * FROM pg_authid",
        "SELECT pg_sleep(9)",
        "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(9)",
        "BEGIN",
    ] {
        if let Err(error) = db.write(async |mut conn: Conn| Ok(conn.execute(sql).await?)).await {
            shown.error(&error);
        }
        if let Err(error) =
            db.transaction(async |mut tx: Tx<'static>| Ok(tx.execute(sql).await?)).await
        {
            shown.error(&error);
        }
        if let Err(error) = (&db).execute(sql).await {
            shown.error(&error);
        }
    }
    let undecodable = sqlx::query_as::<_, (i32,)>("SELECT 'x'").fetch_one(&db).await;
    shown.error(&undecodable.unwrap_err());

    let held = db.acquire().await.unwrap();
    shown.add(&held);
    shown.error(&db.write(async |_| Ok(())).await.unwrap_err());
    let hurried = Call::read().by(Deadline::within(Duration::from_millis(5)));
    shown.error(&db.call(hurried, async |_| Ok(())).await.unwrap_err());
    drop(held);
    let tx = db.begin().await.unwrap();
    shown.add(&tx);
    wire.set(State::Down);
    shown.error(&tx.commit().await.unwrap_err());
    wire.set(State::Up);
    let panicking = db.clone();
    let panicked = tokio::spawn(async move {
        panicking.write(async |conn: Conn| -> Result<(), Error> { panic!("with {conn:?}") }).await
    });
    shown.add(panicked.await.unwrap_err());
    let step = "SELECT missing";
    let step = sqlx::SqlSafeStr::into_sql_str(AssertSqlSafe(step.to_owned()));
    let step = Migration::new(1, "wrong".into(), MigrationType::Simple, step, false);
    let migrator = Migrator::with_migrations(vec![step]);
    let migrated = db.migrate(&migrator, Deadline::within(Duration::from_secs(5))).await;
    shown.error(&migrated.unwrap_err());
    shown.add((db.health().await, db.status(), &db));
    shown.add(db.drain(Deadline::within(Duration::from_secs(5))).await);
}

#[tokio::test]
async fn no_secret_is_shown_whatever_goes_wrong() {
    // Before anyone listens: the driver logs statements, and this one holds the password.
    let ground = Ground::new().await;
    let role = format!("secret_{}_{:x}", std::process::id(), fastrand::u32(..));
    ground.run(format!("CREATE ROLE {role} LOGIN PASSWORD '{}'", PASSWORD[0])).await;
    let shown = Shown::default();
    let log = shown.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(move || log.clone())
        .init();
    add_observer(Arc::new(shown.clone()));
    let panics = shown.clone();
    std::panic::set_hook(Box::new(move |panic| panics.add((panic.to_string(), panic))));

    where_no_config_is_made(&shown);
    where_nothing_opens(&shown).await;
    where_a_session_goes_wrong(&shown, &role).await;
    ground.run(format!("DROP ROLE {role}")).await;
    shown.add(Credentials::token(TOKEN).with_username("app"));

    let _ = std::panic::take_hook();
    let text = shown.text();
    // It has seen the logs of others, the events, and the panics.
    for seen in [
        "sqlx::query",
        "shared_external::postgres",
        "ConnectionCreated",
        "the vault is gone",
        "(28P01)",
        "with Conn",
    ] {
        assert!(text.contains(seen), "nothing of {seen} was seen");
    }
    for line in text.lines() {
        for trace in TRACES {
            assert!(!line.contains(trace), "{line}");
        }
    }
}
