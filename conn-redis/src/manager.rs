//! The manager: Redis as an application sees it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use deadpool_redis::redis::Value;
use resilience_core::settings::{ConfigError, Held, Problem};
use resilience_core::{
    Attempt, Backend, Bulkhead, Call, CallError, CircuitBreaker, Classify, Deadline, Drained,
    Health, HealthCheck, InvalidSetting, Name, Pipeline, PoolStatus, RetryBudget, Verdict,
    WatchedEndpoints,
};
use tokio::time::timeout_at;

use crate::address::Target;
use crate::classify::{Classifier, uncertain};
use crate::config::RedisConfig;
use crate::conn::{RedisConn, shortly_before};
use crate::error::Error;
use crate::lane::{Lane, look};
use crate::pools::Pools;
use crate::tuning::Tuning;

/// Redis, behind a bounded pool, with breaker, retries and deadlines. Cheap to clone: clones share it all.
///
/// It connects when it is first used, and again whenever it has to: a server that is down when the
/// application starts does not stop it.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use conn_redis::{RedisConfig, RedisManager, redis::AsyncCommands};
///
/// let redis = RedisManager::connect(RedisConfig::from_env()?)?;
/// let seen: Option<String> = redis.read(|mut conn| async move { Ok(conn.get("seen").await?) }).await?;
///
/// // Code that was written for a connection of redis-rs works on the manager itself.
/// let mut redis = redis;
/// let _: () = redis.set_ex("seen", "yes", 60).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisManager {
    shared: Arc<Shared>,
}

struct Shared {
    name: Name,
    tuning: Tuning,
    database: i64,
    backend: Backend,
    pipeline: Pipeline,
    pools: Pools,
    lane: Option<Lane>,
}

impl RedisManager {
    /// A manager for the server of `config`'s URL. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// None at present: a [`RedisConfig`] was validated when it was built.
    pub fn connect(config: RedisConfig) -> Result<Self, ConfigError> {
        Ok(Self::new(config, None))
    }

    /// A manager for whichever of `endpoints` comes first, now and later: host and port of the URL are
    /// replaced by the endpoint's, user, password and database stay. When another comes first, the next
    /// call goes there, and the connections to the one before are closed as they come back.
    ///
    /// With `rediss://`, the certificate must carry the endpoint's
    /// [`server_name`](resilience_core::Endpoint::server_name).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the URL is that of a socket of this machine.
    pub fn connect_to(
        config: RedisConfig,
        endpoints: WatchedEndpoints,
    ) -> Result<Self, ConfigError> {
        if let Target::Unix(path) = &config.url.target {
            let held = Held::Text(format!("unix://{}", path.display()));
            let allowed = "redis:// or rediss://, for endpoints have hosts and ports".to_owned();
            ConfigError::unless_empty(vec![Problem { name: "url".to_owned(), held, allowed }])?;
        }
        Ok(Self::new(config, Some(endpoints)))
    }

    fn new(config: RedisConfig, endpoints: Option<WatchedEndpoints>) -> Self {
        let (name, tuning, database) =
            (config.name.clone(), config.tuning, config.url.login.database);
        let pipeline = pipeline(&name, &tuning).expect("the configuration was validated");
        let sockets = tuning.max_connections as usize;
        // One socket is the health check's, if there is more than one.
        let size = sockets.saturating_sub(1).max(1);
        let lane = (size < sockets).then(Lane::default);
        let backend = config.url.target.backend();
        let pools = Pools::new(config, size, endpoints);
        let shared = Shared { name, tuning, database, backend, pipeline, pools, lane };
        Self { shared: Arc::new(shared) }
    }

    /// Its name, which is also its breaker's.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.shared.name
    }

    /// The breaker in front of Redis.
    #[must_use]
    pub fn breaker(&self) -> &CircuitBreaker {
        self.shared.pipeline.breaker().expect("the pipeline was built with one")
    }

    /// Runs `f` on a connection, again if that may help: it must change nothing.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the last error of `f`, or why it did not come to that.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection if a reply is on its way; its place in the pool is free at once.
    pub async fn read<T, F, Fut>(&self, f: F) -> Result<T, CallError<Error>>
    where
        F: Fn(RedisConn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.call(Call::read(), f).await
    }

    /// Runs `f` on a connection, again only if it is proven that nothing was changed.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the last error of `f`, or why it did not come to that.
    ///
    /// # Cancel safety
    ///
    /// As [`read`](Self::read). Redis may still execute what was sent.
    pub async fn write<T, F, Fut>(&self, f: F) -> Result<T, CallError<Error>>
    where
        F: Fn(RedisConn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.call(Call::write(), f).await
    }

    /// Runs `f` on a connection, again if that may help: done twice, it must change no more than done once.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the last error of `f`, or why it did not come to that.
    ///
    /// # Cancel safety
    ///
    /// As [`write`](Self::write).
    pub async fn write_idempotent<T, F, Fut>(&self, f: F) -> Result<T, CallError<Error>>
    where
        F: Fn(RedisConn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.call(Call::write_idempotent(), f).await
    }

    /// [`read`](Self::read), and where Redis cannot be had, `fallback`. Redis gets half of the time there is.
    ///
    /// # Errors
    ///
    /// What `fallback` returns, or the error of a request that Redis refused.
    ///
    /// # Cancel safety
    ///
    /// As [`read`](Self::read), and that of the fallback.
    pub async fn read_or<T, E, F, Fut, Alt>(
        &self,
        f: F,
        fallback: impl FnOnce(CallError<Error>) -> Alt,
    ) -> Result<T, E>
    where
        F: Fn(RedisConn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
        Alt: Future<Output = Result<T, E>>,
        E: From<CallError<Error>>,
    {
        let f = &f;
        let operation = |attempt| Box::pin(self.attempt(attempt, f));
        // The pipeline speaks of attempts that have left footprints, the caller of errors.
        let fallback = |error: CallError<Failure>| async {
            fallback(error.map_inner(|failure| failure.error)).await.map_err(Alternative)
        };
        let result = self.shared.pipeline.run_or(Call::read(), &verdict, operation, fallback).await;
        result.map_err(|Alternative(error)| error)
    }

    /// [`read`](Self::read) or [`write`](Self::write) as `call` says, under its name and by its deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the last error of `f`, or why it did not come to that.
    ///
    /// # Cancel safety
    ///
    /// As [`write`](Self::write).
    pub async fn call<T, F, Fut>(&self, call: Call, f: F) -> Result<T, CallError<Error>>
    where
        F: Fn(RedisConn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        let f = &f;
        self.run(call, &verdict, |attempt| Box::pin(self.attempt(attempt, f))).await
    }

    /// Opens a first connection, so that the first call need not wait for it.
    ///
    /// # Errors
    ///
    /// Why there is none, by `deadline`. The manager works all the same: it tries again with each call.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes what was opened so far.
    pub async fn warm_up(&self, deadline: Deadline) -> Result<(), Error> {
        self.shared.pools.checkout(deadline.inherited()).await.map(drop)
    }

    /// Looks at the server: a PING on a connection of its own, past pipeline and pool. Takes 5 s at the
    /// most (`health_timeout`). With `max_connections` of 1, it has to borrow the pool's only connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn health(&self) -> Health {
        self.check(Deadline::within(self.shared.tuning.health_timeout)).await
    }

    /// The pool's figures; the health check's connection counts as idle. Does no I/O.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let status = self.shared.pools.status();
        match &self.shared.lane {
            None => status,
            Some(lane) => PoolStatus {
                idle: status.idle + usize::from(lane.is_open()),
                max: self.shared.tuning.max_connections as usize,
                idle_max: self.shared.tuning.max_connections as usize,
                ..status
            },
        }
    }

    /// Refuses new calls, waits for those that run until `deadline`, and closes the idle connections.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the manager refusing; call it again to finish.
    pub async fn drain(&self, deadline: Deadline) -> Drained {
        let drained = self.shared.pipeline.drain(deadline).await;
        self.shared.pools.close();
        if let Some(lane) = &self.shared.lane {
            // A check that is under way ends by itself, and finds the manager closed the next time.
            let _ = timeout_at(deadline.instant(), lane.close()).await;
        }
        drained
    }

    pub(crate) fn pipeline(&self) -> &Pipeline {
        &self.shared.pipeline
    }

    pub(crate) fn database(&self) -> i64 {
        self.shared.database
    }

    /// Runs `operation` through the pipeline.
    pub(crate) async fn run<T, F, Fut>(
        &self,
        call: Call,
        classifier: &impl Classify<Failure>,
        operation: F,
    ) -> Result<T, CallError<Error>>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let result = self.shared.pipeline.run(call, classifier, operation).await;
        result.map_err(|error| error.map_inner(|failure| failure.error))
    }

    /// One attempt at `f`. Large: box it, for each layer around it would hold it by value.
    pub(crate) async fn attempt<T, F, Fut>(&self, attempt: Attempt, f: &F) -> Result<T, Failure>
    where
        F: Fn(RedisConn) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let in_all = attempt.deadline.remaining();
        let lease = self
            .shared
            .pools
            .checkout(shortly_before(attempt.deadline))
            .await
            .map_err(Failure::unsent)?;
        let waited = lease.queued;
        let conn = RedisConn::new(lease, attempt.deadline);
        let footprint = conn.footprint();
        let result = if waited <= in_all / 4 {
            f(conn).await
        } else {
            // What is left of the attempt is short because of us: its end must not count against Redis.
            let until = shortly_before(attempt.deadline).instant();
            timeout_at(until, f(conn)).await.unwrap_or(Err(Error::Starved { waited }))
        };
        result.map_err(|error| Failure { wrote: footprint.wrote(), ..Failure::unsent(error) })
    }
}

impl fmt::Debug for RedisManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisManager")
            .field("name", &self.name())
            .field("status", &self.status())
            .field("circuit", &self.breaker().state())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl HealthCheck for RedisManager {
    async fn check(&self, deadline: Deadline) -> Health {
        let limit = Deadline::within(self.shared.tuning.health_timeout);
        look(&self.shared.pools, self.shared.lane.as_ref(), deadline.min(limit).inherited()).await
    }

    fn pool_status(&self) -> Option<PoolStatus> {
        Some(self.status())
    }

    fn pipeline(&self) -> Option<Pipeline> {
        Some(self.shared.pipeline.clone())
    }

    fn backend(&self) -> Option<Backend> {
        Some(self.shared.backend.clone())
    }
}

/// How an attempt ended, and whether it may have changed something before.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) wrote: bool,
    /// Those of a redis-rs pipeline, some of which are errors. Of anything else, none.
    pub(crate) replies: Vec<Value>,
}

impl Failure {
    fn unsent(error: Error) -> Self {
        Self { error, wrote: false, replies: Vec::new() }
    }
}

/// What a failed attempt means: once something may have been written, "not executed" is not the whole truth.
pub(crate) fn verdict(failure: &Failure) -> Verdict {
    let verdict = Classifier.verdict(&failure.error);
    if failure.wrote { uncertain(verdict) } else { verdict }
}

/// The error of a fallback on its way through the pipeline.
struct Alternative<E>(E);

impl<E: From<CallError<Error>>> From<CallError<Failure>> for Alternative<E> {
    fn from(error: CallError<Failure>) -> Self {
        Self(error.map_inner(|failure| failure.error).into())
    }
}

fn pipeline(name: &Name, tuning: &Tuning) -> Result<Pipeline, InvalidSetting> {
    let Tuning { resilience, bulkhead, acquire_timeout, .. } = tuning;
    resilience
        .pipeline(name, *acquire_timeout, RetryBudget::default())?
        .bulkhead(Bulkhead::new(name.clone(), *bulkhead, *acquire_timeout)?)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_watches_sees_the_pool_and_the_breaker_and_no_secret() {
        let config =
            RedisConfig::builder("redis://:hunter2@localhost/3").name("cache").max_connections(7);
        let redis = RedisManager::connect(config.build().unwrap()).unwrap();
        let watched: &dyn HealthCheck = &redis;
        assert_eq!(&**watched.breaker().unwrap().name(), "cache");
        assert_eq!(watched.pool_status().unwrap().max, 7);
        let settings = redis.breaker().settings();
        let Tuning { acquire_timeout, resilience, .. } = Tuning::default();
        assert_eq!(settings.probe_lease, acquire_timeout + resilience.attempt_timeout);
        assert!(!format!("{redis:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_socket_of_this_machine_has_no_endpoints() {
        let (_sender, endpoints) =
            tokio::sync::watch::channel(resilience_core::EndpointSet::fixed([]));
        let config = RedisConfig::builder("unix:///run/redis.sock").build().unwrap();
        let error = RedisManager::connect_to(config, endpoints).unwrap_err().to_string();
        assert!(
            error.contains("url is \"unix:///run/redis.sock\"; allowed: redis:// or rediss://"),
            "{error}"
        );
    }
}
