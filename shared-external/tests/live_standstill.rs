//! Fear: somebody blocks the runtime, and what is cut off meanwhile is held against the servers.
#![cfg(feature = "full")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use shared_external::monitoring::{MonitoringBuilder, MonitoringManager, Service};
use shared_external::opensearch::OpenSearchConfig;
use shared_external::postgres::DatabaseConfig;
use shared_external::redis::RedisConfig;
use shared_external::redis::redis::AsyncCommands;
use shared_external::{
    CircuitBreaker, CircuitState, DatabaseManager, HealthCheck, HealthStatus, OpenSearchManager,
    RedisManager,
};
use support::{again, is_child_of, runtime};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep};

/// Twice as long as an attempt, a connect or a check may take.
const BLOCKED: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(1);

/// Everything that one runtime has to do with the servers.
struct Backends {
    database: DatabaseManager,
    redis: RedisManager,
    opensearch: OpenSearchManager,
    monitoring: MonitoringManager,
}

impl Backends {
    /// With sockets, timers and checks on this runtime: nothing runs while it is blocked.
    fn from_env() -> Self {
        let database = DatabaseManager::connect(DatabaseConfig::from_env().unwrap()).unwrap();
        let redis = RedisManager::connect(RedisConfig::from_env().unwrap()).unwrap();
        let opensearch = OpenSearchManager::connect(OpenSearchConfig::from_env().unwrap()).unwrap();
        let checks: [(&str, Arc<dyn HealthCheck>); 3] = [
            ("database", Arc::new(database.clone())),
            ("redis", Arc::new(redis.clone())),
            ("opensearch", Arc::new(opensearch.clone())),
        ];
        // One bad check is enough, and one is nearly always under way.
        let watched = |(name, check)| {
            Service::critical(name, check).interval(LIMIT / 20).timeout(LIMIT).fall(1)
        };
        let builder = MonitoringManager::builder();
        let builder = checks.map(watched).into_iter().fold(builder, MonitoringBuilder::add_service);
        let monitoring = builder.build().unwrap();
        monitoring.start();
        Self { database, redis, opensearch, monitoring }
    }

    /// Three calls to each, of two round trips: one that is answered meanwhile has another before it.
    fn calls(&self) -> JoinSet<Result<(), String>> {
        let mut calls = JoinSet::new();
        for _ in 0..3 {
            let (database, mut redis, opensearch) =
                (self.database.clone(), self.redis.clone(), self.opensearch.clone());
            calls.spawn(async move {
                let twice = database.read(async |mut conn: shared_external::postgres::Conn| {
                    sqlx::query("SELECT pg_sleep(0.01)").execute(&mut conn).await?;
                    Ok(sqlx::query("SELECT 1").execute(&mut conn).await.map(drop)?)
                });
                twice.await.map_err(|error| format!("{error:?}"))
            });
            calls.spawn(async move {
                redis
                    .get::<_, Option<i64>>("standstill")
                    .await
                    .map_err(|error| format!("{error:?}"))?;
                let again = redis.get::<_, Option<i64>>("standstill").await;
                again.map(drop).map_err(|error| format!("{error:?}"))
            });
            calls.spawn(async move {
                let twice = opensearch.read(async |node: shared_external::opensearch::Node| {
                    node.ping().send().await?;
                    Ok(node.ping().send().await.map(drop)?)
                });
                twice.await.map_err(|error| format!("{error:?}"))
            });
        }
        calls
    }

    fn breakers(&self) -> [&CircuitBreaker; 3] {
        [self.database.breaker(), self.redis.breaker(), self.opensearch.breaker()]
    }

    /// Attempts that ended in a way that says nothing of their service.
    fn excused(&self) -> u64 {
        self.breakers().iter().map(|breaker| breaker.snapshot().calls.excluded).sum()
    }

    fn are_not_blamed(&self) {
        for breaker in self.breakers() {
            let seen = breaker.snapshot();
            assert_eq!((seen.state, seen.generation), (CircuitState::Closed, 0), "{seen:?}");
            assert_eq!((seen.calls.failure, seen.not_permitted), (0, 0), "{seen:?}");
        }
        let summary = self.monitoring.get_health_summary();
        assert!(summary.alerts.is_empty(), "{:?}", summary.alerts);
        for (name, service) in &summary.services {
            let seen = (service.check_status, service.consecutive_failures);
            assert_eq!(seen, (HealthStatus::Healthy, 0), "{name}: {:?}", service.reason);
        }
    }
}

/// Blocks this thread, and with it the runtime.
fn block() {
    let until = Instant::now() + BLOCKED;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

async fn block_again_and_again() {
    let backends = Backends::from_env();
    // At first nothing is open; later, each time at another point of the calls.
    for turns in [1, 20, 5, 100, 10, 1000] {
        let calls = backends.calls();
        for _ in 0..turns {
            yield_now().await;
        }
        block();
        for ended in calls.join_all().await {
            ended.unwrap();
        }
        let woken = Instant::now();
        for ended in backends.calls().join_all().await {
            ended.unwrap();
        }
        assert!(woken.elapsed() < LIMIT, "{:?}", woken.elapsed());
        // Until every service has been looked at since.
        let fresh = |age: Option<Duration>| age.is_some_and(|age| age < woken.elapsed());
        while !backends.monitoring.get_health_summary().services.values().all(|it| fresh(it.age)) {
            sleep(LIMIT / 100).await;
        }
        backends.are_not_blamed();
    }
    assert!(backends.excused() > 0, "nothing was cut off: there was no fault");
}

#[test]
fn a_runtime_that_is_blocked_blames_no_server_and_is_whole_at_once() {
    let name = "a_runtime_that_is_blocked_blames_no_server_and_is_whole_at_once";
    if is_child_of(name) {
        return runtime().block_on(block_again_and_again());
    }
    let hasty = [
        ("DATABASE_ATTEMPT_TIMEOUT", "1"),
        ("DATABASE_CONNECT_TIMEOUT", "1"),
        ("DATABASE_BASE_DELAY", "0.01"),
        ("DATABASE_FAIL_MAX", "1"),
        ("REDIS_SOCKET_TIMEOUT", "1"),
        ("REDIS_CONNECT_TIMEOUT", "1"),
        ("REDIS_BASE_DELAY", "0.01"),
        ("REDIS_FAIL_MAX", "1"),
        ("OPENSEARCH_TIMEOUT", "1"),
        ("OPENSEARCH_BASE_DELAY", "0.01"),
        ("OPENSEARCH_FAIL_MAX", "1"),
    ];
    let output = again(name, &hasty).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
