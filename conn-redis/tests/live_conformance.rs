//! What every connector promises, on Redis: and what it does not give yet, with the reasons.

use std::io::Write;
use std::sync::Arc;

use conn_redis::redis::{Client, Commands, cmd};
use conn_redis::{Error, RedisConfig, RedisConfigBuilder, RedisConn, RedisManager};
use resilience_conformance::{
    Capability, Harness, Setup, Subject, Support, Told, Way, Work, unsupported,
};
use resilience_core::{CallError, Credentials, Deadline, Drained, Health, HealthCheck};

struct Redis;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by `cargo xtask test`"))
}

/// What a key of this suite begins with.
const PREFIX: &str = "conformance-";

/// A connection past the manager and the wire.
fn direct() -> conn_redis::redis::Connection {
    Client::open(variable("TEST_REDIS_PLAIN_URL")).unwrap().get_connection().unwrap()
}

fn settings(setup: &Setup) -> RedisConfigBuilder {
    let name = setup.credentials.username().unwrap_or_default();
    let password = setup.credentials.expose_password().unwrap();
    // One socket more, for the health check's own; none at all stays none.
    let sockets = if setup.limit == 0 { 0 } else { setup.limit + 1 };
    let builder = RedisConfig::builder(format!("rediss://{name}:{password}@{}/0", setup.address))
        .name(setup.name.clone())
        .ca_file(variable("REDIS_CA_FILE"))
        .max_connections(sockets)
        .connect_timeout(setup.connect_timeout)
        .acquire_timeout(setup.acquire_timeout)
        .socket_timeout(setup.attempt_timeout)
        .deadline(setup.deadline)
        .max_retries(setup.max_retries)
        .base_delay(setup.base_delay)
        .max_delay(setup.max_delay)
        .fail_max(setup.fail_max)
        .reset_timeout(setup.reset_timeout)
        .success_threshold(setup.success_threshold)
        .idle_timeout(setup.idle_timeout)
        .max_lifetime(setup.max_lifetime);
    match &setup.runtime {
        Some(runtime) => builder.runtime(runtime.clone()),
        None => builder,
    }
}

#[async_trait::async_trait]
impl Harness for Redis {
    fn server(&self) -> String {
        variable("REDIS_URL").rsplit_once('@').unwrap().1.split('/').next().unwrap().to_owned()
    }

    fn credentials(&self) -> Credentials {
        let url = variable("REDIS_URL");
        let login = url.split_once("://").unwrap().1.split_once('@').unwrap().0;
        Credentials::token(login.split_once(':').unwrap().1)
    }

    fn support(&self, capability: Capability) -> Support {
        use Support::{Gives, Lacks};
        match capability {
            Capability::Pool | Capability::PoolEvents | Capability::MaxLifetime => Gives,
            Capability::Holders => Lacks("the pool counts its borrowers, and does not know them"),
            Capability::IdleTimeout => {
                Lacks("idle connections are looked through only when one is borrowed")
            }
            Capability::MinIdle => Lacks("nobody opens connections but who borrows them"),
            Capability::LeakDetection => Lacks("the pool does not know since when each is held"),
            Capability::SeveralEndpoints => {
                Lacks("all connections lead to the first usable endpoint")
            }
            Capability::CredentialRotation => Lacks("the password is the URL's, for ever"),
            Capability::Transactions => {
                Lacks("MULTI is a command like another: there is no method for it")
            }
            Capability::Streams => Lacks("the server has one answer to a command, and it is whole"),
            _ => Lacks("it is not known here"),
        }
    }

    fn connect(&self, setup: &Setup) -> Result<Arc<dyn Subject>, String> {
        let config = settings(setup).build().map_err(|error| error.to_string())?;
        let redis = match &setup.endpoints {
            Some(endpoints) => RedisManager::connect_to(config, endpoints.clone()),
            None => RedisManager::connect(config),
        };
        Ok(Arc::new(Cache(redis.map_err(|error| error.to_string())?)))
    }

    fn shown(&self, setup: &Setup) -> Vec<String> {
        let builder = settings(setup);
        vec![format!("{builder:?}"), format!("{:?}", builder.build().unwrap())]
    }

    async fn executed(&self, key: &str) -> u64 {
        direct().get::<_, Option<u64>>(key).unwrap().unwrap_or_default()
    }
}

#[derive(Debug)]
struct Cache(RedisManager);

#[async_trait::async_trait]
impl Subject for Cache {
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

async fn perform(mut conn: RedisConn, work: Work) -> Result<String, Error> {
    match work {
        Work::Nothing => {}
        Work::Echo(text) => return Ok(cmd("ECHO").arg(text).query_async(&mut conn).await?),
        Work::Count(key) => cmd("INCR").arg(key).exec_async(&mut conn).await?,
        Work::CountAndFail(key) => {
            cmd("INCR").arg(key).exec_async(&mut conn).await?;
            return Err(Error::other("as it was told"));
        }
        Work::Take(time) => {
            let nothing = format!("{PREFIX}never");
            cmd("BLPOP").arg(nothing).arg(time.as_secs_f64()).exec_async(&mut conn).await?;
        }
        Work::Refused => cmd("INCR").exec_async(&mut conn).await?,
        Work::Hold(gate) => gate.pass().await,
        Work::Panic => panic!("as it was told"),
        _ => return Err(Error::other(format!("no {work:?}"))),
    }
    Ok(String::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_gives_what_it_says_it_gives() {
    let report = resilience_conformance::run(Redis).await;
    // Past what the test runner captures: the list is what one looks for.
    writeln!(std::io::stderr(), "{report}").unwrap();
    let mut direct = direct();
    let own = format!("{PREFIX}{}-*", std::process::id());
    let keys: Vec<String> = direct.scan_match(own).unwrap().map(Result::unwrap).collect();
    for key in keys {
        let () = direct.del(key).unwrap();
    }
    report.assert_conforms();
}
