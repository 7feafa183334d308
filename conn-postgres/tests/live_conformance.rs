//! What every connector promises, on PostgreSQL: all of it.

mod support;

use std::io::Write;
use std::sync::Arc;

use conn_postgres::{Conn, DatabaseConfig, DatabaseConfigBuilder, DatabaseManager, Error, Tx};
use futures_util::TryStreamExt;
use resilience_conformance::{
    Capability, Harness, Setup, Subject, Support, Told, Way, Work, unsupported,
};
use resilience_core::{
    CallError, CredentialError, CredentialProvider, Credentials, Deadline, Drained, Health,
    HealthCheck,
};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use support::{admin, server, variable};
use tokio::sync::Mutex;

struct Postgres {
    /// Past the manager and the wire.
    admin: Mutex<PgConnection>,
}

/// Work is counted here, a row each.
const COUNTS: &str = "conformance_counts";

impl Postgres {
    async fn start() -> Self {
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {COUNTS} (key text); GRANT ALL ON {COUNTS} TO PUBLIC"
        );
        let mut admin = admin().await;
        admin.execute(sqlx::raw_sql(AssertSqlSafe(create))).await.unwrap();
        Self { admin: Mutex::new(admin) }
    }
}

/// A provider of the suite's, as one of our own.
struct Provider(Arc<dyn CredentialProvider>);

#[async_trait::async_trait]
impl CredentialProvider for Provider {
    async fn credentials(&self, deadline: Deadline) -> Result<Credentials, CredentialError> {
        self.0.credentials(deadline).await
    }

    fn period(&self) -> Option<std::time::Duration> {
        self.0.period()
    }
}

fn settings(setup: &Setup) -> DatabaseConfigBuilder {
    let url = variable("DATABASE_URL");
    let (scheme, database) = (url.split("://").next().unwrap(), url.rsplit('/').next().unwrap());
    let (name, password) = (setup.credentials.username(), setup.credentials.expose_password());
    let login = format!("{}:{}", name.unwrap(), password.unwrap());
    let builder =
        DatabaseConfig::builder(format!("{scheme}://{login}@{}/{database}", setup.address))
            .name(setup.name.clone())
            .ca_file(variable("DATABASE_CA_FILE"))
            .pool_size(setup.limit)
            .max_overflow(0)
            .min_idle(setup.min_idle)
            .connect_timeout(setup.connect_timeout)
            .acquire_timeout(setup.acquire_timeout)
            .attempt_timeout(setup.attempt_timeout)
            .deadline(setup.deadline)
            .max_retries(setup.max_retries)
            .base_delay(setup.base_delay)
            .max_delay(setup.max_delay)
            .fail_max(setup.fail_max)
            .reset_timeout(setup.reset_timeout)
            .success_threshold(setup.success_threshold)
            .idle_timeout(setup.idle_timeout)
            .max_lifetime(setup.max_lifetime);
    let builder = match setup.leak_threshold {
        Some(threshold) => builder.leak_threshold(threshold),
        None => builder,
    };
    let builder = match &setup.provider {
        Some(provider) => builder.credentials(Provider(Arc::clone(provider))),
        None => builder,
    };
    match &setup.runtime {
        Some(runtime) => builder.runtime(runtime.clone()),
        None => builder,
    }
}

#[async_trait::async_trait]
impl Harness for Postgres {
    fn server(&self) -> String {
        server()
    }

    fn credentials(&self) -> Credentials {
        let url = variable("DATABASE_URL");
        let (_, rest) = url.split_once("://").unwrap();
        let (name, password) = rest.split_once('@').unwrap().0.split_once(':').unwrap();
        Credentials::new(name, password)
    }

    fn support(&self, _: Capability) -> Support {
        Support::Gives
    }

    fn looks(&self) -> Vec<u8> {
        support::LOOK.to_vec()
    }

    fn connect(&self, setup: &Setup) -> Result<Arc<dyn Subject>, String> {
        let config = settings(setup).build().map_err(|error| error.to_string())?;
        let db = match &setup.endpoints {
            Some(endpoints) => DatabaseManager::connect_to(config, endpoints.clone()),
            None => DatabaseManager::connect(config),
        };
        Ok(Arc::new(Db(db.map_err(|error| error.to_string())?)))
    }

    fn shown(&self, setup: &Setup) -> Vec<String> {
        vec![format!("{:?}", settings(setup).build().unwrap())]
    }

    async fn executed(&self, key: &str) -> u64 {
        let count = format!("SELECT count(*) FROM {COUNTS} WHERE key = $1");
        let count = sqlx::query_scalar::<_, i64>(AssertSqlSafe(count)).bind(key);
        u64::try_from(count.fetch_one(&mut *self.admin.lock().await).await.unwrap()).unwrap()
    }
}

#[derive(Debug)]
struct Db(DatabaseManager);

#[async_trait::async_trait]
impl Subject for Db {
    fn watched(&self) -> &dyn HealthCheck {
        &self.0
    }

    async fn run(&self, way: Way, work: Work) -> Result<String, CallError<Told>> {
        let closure = |conn| perform(conn, work.clone());
        let answer = match way {
            Way::Read => self.0.read(closure).await,
            Way::Write => self.0.write(closure).await,
            Way::WriteIdempotent => self.0.write_idempotent(closure).await,
            Way::Call(call) => self.0.call(call, closure).await,
            Way::Transaction => self.0.transaction(|tx| within_transaction(tx, work.clone())).await,
            _ => return Err(unsupported(way)),
        };
        answer.map_err(|error| error.map_inner(|error| Told::of(&error)))
    }

    async fn health(&self) -> Health {
        self.0.health().await
    }

    async fn warm_up(&self, deadline: Deadline) -> Result<(), Told> {
        self.0.warm_up(deadline).await.map_err(|error| Told::of(&error))
    }

    async fn drain(&self, deadline: Deadline) -> Drained {
        self.0.drain(deadline).await
    }

    fn twin(&self) -> Arc<dyn Subject> {
        Arc::new(Self(self.0.clone()))
    }
}

async fn perform(mut conn: Conn, work: Work) -> Result<String, Error> {
    match work {
        Work::Nothing => {}
        Work::Echo(text) => {
            return Ok(sqlx::query_scalar("SELECT $1").bind(text).fetch_one(&mut conn).await?);
        }
        Work::Count(key) => {
            conn.execute(count(&key)).await?;
        }
        Work::CountAndFail(key) => {
            conn.execute(count(&key)).await?;
            return Err(Error::application("as it was told"));
        }
        Work::Take(time) => {
            let sleep = sqlx::query("SELECT pg_sleep($1)").bind(time.as_secs_f64());
            sleep.execute(&mut conn).await?;
        }
        Work::Refused => {
            conn.execute("SELECT 1 / 0").await?;
        }
        Work::Hold(gate) => gate.pass().await,
        Work::Panic => panic!("as it was told"),
        Work::Glance => {
            conn.fetch("SELECT generate_series(1, 100000)").try_next().await?;
        }
        _ => return Err(Error::application(format!("no {work:?}"))),
    }
    Ok(String::new())
}

async fn within_transaction(mut tx: Tx<'static>, work: Work) -> Result<String, Error> {
    match work {
        Work::Count(key) => {
            tx.execute(count(&key)).await?;
            Ok(String::new())
        }
        Work::CountAndFail(key) => {
            tx.execute(count(&key)).await?;
            Err(Error::application("as it was told"))
        }
        _ => Err(Error::application(format!("no {work:?} in a transaction"))),
    }
}

/// As one message, so that its answer is the first.
fn count(key: &str) -> sqlx::RawSql {
    sqlx::raw_sql(AssertSqlSafe(format!("INSERT INTO {COUNTS} VALUES ('{key}')")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_gives_all_that_a_connector_promises() {
    let report = resilience_conformance::run(Postgres::start().await).await;
    // Past what the test runner captures: the list is what one looks for.
    writeln!(std::io::stderr(), "{report}").unwrap();
    report.assert_conforms();
    report.assert_complete();
}
