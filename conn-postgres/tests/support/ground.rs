//! A place on a real server where one thing goes wrong: the server counts how often, and tells what becomes of the connection.

use std::fmt::Debug;
use std::str::FromStr;
use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseConfigBuilder, DatabaseManager, Error, Tx};
use resilience_core::{CallError, Deadline, Verdict};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

use super::{Wire, variable};

/// What became of the connection on which it went wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// The next borrower has it.
    Kept,
    /// The next borrower has another, and the server holds it no more.
    Closed,
    /// There was none.
    Unopened,
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub code: Option<String>,
    pub verdict: Verdict,
    /// How often the server began it.
    pub runs: i64,
    pub fate: Fate,
}

/// A manager with one connection and two attempts, and on its server a function that counts its calls before
/// it does as it is told. The count survives a rollback.
pub struct Ground {
    pub db: DatabaseManager,
    /// Of the function, of a table with one row, and of the connections.
    pub name: String,
    url: String,
    first: i32,
    beside: Mutex<Option<PgConnection>>,
}

impl Ground {
    /// On the shared server, with a superuser's rights.
    pub async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    pub async fn with(change: impl FnOnce(DatabaseConfigBuilder) -> DatabaseConfigBuilder) -> Self {
        Self::at(variable("TEST_DATABASE_ADMIN_URL"), change).await
    }

    /// On the shared server, at the far end of `wire`.
    pub async fn over(wire: &Wire) -> Self {
        let url = variable("TEST_DATABASE_ADMIN_URL");
        let (credentials, rest) = url.rsplit_once('@').unwrap();
        let database = rest.split_once('/').unwrap().1;
        Self::at(format!("{credentials}@localhost:{}/{database}", wire.port), |it| it).await
    }

    /// On the server at `url`.
    pub async fn at(
        url: String,
        change: impl FnOnce(DatabaseConfigBuilder) -> DatabaseConfigBuilder,
    ) -> Self {
        let name = format!("ground-{}-{:x}", std::process::id(), fastrand::u32(..));
        let db = Self::manager(&url, &name, change);
        let mut ground = Self { db, name, url, first: 0, beside: Mutex::default() };
        let name = &ground.name;
        let make = format!(
            "CREATE SEQUENCE \"{name}-runs\";
             CREATE TABLE \"{name}\" AS SELECT 1 AS n;
             CREATE FUNCTION \"{name}\"(what text) RETURNS void LANGUAGE plpgsql AS
             $$ BEGIN PERFORM nextval('\"{name}-runs\"'); EXECUTE what; END $$"
        );
        ground.run(make).await;
        ground.first = ground.backend().await;
        ground
    }

    /// Another manager to the same server, with one attempt.
    pub fn once(&self) -> Self {
        let db = Self::manager(&self.url, &self.name, |it| it.max_retries(0));
        let (name, url) = (self.name.clone(), self.url.clone());
        Self { db, name, url, first: 0, beside: Mutex::default() }
    }

    fn manager(
        url: &str,
        name: &str,
        change: impl FnOnce(DatabaseConfigBuilder) -> DatabaseConfigBuilder,
    ) -> DatabaseManager {
        let mut builder = DatabaseConfig::builder(url)
            .application_name(name)
            .pool_size(1)
            .max_overflow(0)
            .max_retries(1)
            .base_delay(Duration::from_millis(1))
            .deadline(Duration::from_secs(4))
            .fail_max(1_000_000);
        if !url.contains("sslmode=disable") {
            builder = builder.ca_file(variable("DATABASE_CA_FILE"));
        }
        DatabaseManager::connect(change(builder).build().unwrap()).unwrap()
    }

    /// A connection to the same server past all that is under test.
    pub async fn side(&self) -> PgConnection {
        let options = PgConnectOptions::from_str(&self.url).unwrap();
        let options = options.options([("idle_session_timeout", "0"), ("statement_timeout", "0")]);
        options.ssl_root_cert(variable("DATABASE_CA_FILE")).connect().await.unwrap()
    }

    /// The statement that counts itself, then does `what`.
    pub fn counted(&self, what: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(format!("SELECT \"{}\"($what${what}$what$)", self.name))
    }

    /// A write of `what`, outside a transaction.
    pub async fn write(&self, what: &str) -> Told {
        let sql = || self.counted(what);
        let call = self.db.write(async |mut conn: Conn| Ok(conn.execute(sql()).await?)).await;
        self.tell(call).await
    }

    /// `what` in a transaction.
    pub async fn transaction(&self, what: &str) -> Told {
        let sql = || self.counted(what);
        let call = self.db.transaction(async |mut tx: Tx<'static>| Ok(tx.execute(sql()).await?));
        self.tell(call.await).await
    }

    /// What `call`, which failed on this ground, came to.
    pub async fn tell<T: Debug>(&self, call: Result<T, CallError<Error>>) -> Told {
        let Err(CallError::Inner(failed)) = call else { panic!("{call:?}") };
        let code = failed.error.code().map(str::to_owned);
        // Its fate first: the server tells of an error before it has cleaned up after it.
        let fate = self.fate().await;
        Told { code, verdict: failed.verdict, runs: self.runs().await, fate }
    }

    /// How often the server began what is counted.
    pub async fn runs(&self) -> i64 {
        let sql = format!("SELECT last_value - 1 + is_called::int FROM \"{}-runs\"", self.name);
        let mut side = self.beside().await;
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(side.as_mut().unwrap()).await.unwrap()
    }

    /// Runs `sql` beside all that is under test.
    pub async fn run(&self, sql: String) {
        self.beside().await.as_mut().unwrap().execute(AssertSqlSafe(sql)).await.unwrap();
    }

    /// The one connection for that, or another if the last broke.
    async fn beside(&self) -> MutexGuard<'_, Option<PgConnection>> {
        let mut side = self.beside.lock().await;
        let works = match &mut *side {
            Some(side) => side.ping().await.is_ok(),
            None => false,
        };
        if !works {
            *side = Some(self.side().await);
        }
        side
    }

    /// What became of the first connection.
    pub async fn fate(&self) -> Fate {
        assert_eq!(self.db.status().in_use, 0);
        let next = self.backend().await;
        let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name";
        self.until(&format!("SELECT WHERE ({count} = '{}') = 1", self.name)).await;
        if next == self.first { Fate::Kept } else { Fate::Closed }
    }

    /// The backend of the connection that is lent next.
    pub async fn backend(&self) -> i32 {
        let mut conn = self.db.acquire().await.unwrap();
        sqlx::query_scalar("SELECT pg_backend_pid()")
            .persistent(false)
            .fetch_one(&mut conn)
            .await
            .unwrap()
    }

    /// Waits until the server holds no connection of this ground.
    pub async fn until_ended(&self) {
        let there =
            format!("SELECT FROM pg_stat_activity WHERE application_name = '{}'", self.name);
        self.until(&format!("SELECT WHERE NOT EXISTS ({there})")).await;
    }

    /// Runs `sql`, which finds a backend of this ground, until it finds one.
    pub async fn strike(&self, sql: &str) {
        self.until(&format!("{sql} AND application_name = '{}'", self.name)).await;
    }

    /// Runs `sql` beside all that is under test until it finds a row.
    pub async fn until(&self, sql: &str) {
        let mut side = self.beside().await;
        let side = side.as_mut().unwrap();
        // No closure: not each of their futures can be sent, as those inside a call must be.
        let deadline = Instant::now() + Duration::from_secs(20);
        while side.fetch_optional(AssertSqlSafe(sql.to_owned())).await.unwrap().is_none() {
            assert!(Instant::now() < deadline, "in vain: {sql}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it.
    pub async fn leave(&self) {
        let _ = self.db.drain(Deadline::within(Duration::from_secs(5))).await;
    }
}
