//! What the server sees of our connections: how many, in what state, and how often they are asked anything.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use conn_redis::redis::{AsyncCommands, cmd};
use conn_redis::{Error, RedisConfig, RedisManager};
use resilience_core::{Blame, Event, HealthStatus, Observe, add_observer};
use support::{
    RedisServer, client_id, clients, executed, failed, hasty, lending, settle, soon, until,
};
use tokio::sync::Notify;
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_sockets_are_open_than_allowed_health_check_included() {
    let server = RedisServer::start(&[]).await;
    // The server refuses the socket that would be one too many: ours, and that of the test.
    cmd("CONFIG").arg("SET").arg("maxclients").arg(10 + 1).exec(&mut server.admin()).unwrap();
    let mut admin = server.admin();
    let redis = RedisManager::connect(
        RedisConfig::builder(server.url()).max_connections(10).build().unwrap(),
    )
    .unwrap();
    let calls: Vec<_> = (0..200)
        .map(|number| {
            let mut redis = redis.clone();
            tokio::spawn(async move {
                cmd("BLPOP")
                    .arg(format!("empty:{number}"))
                    .arg(0.02)
                    .exec_async(&mut redis)
                    .await
                    .unwrap();
                redis.health().await.status
            })
        })
        .collect();
    let mut most = 0;
    until("all calls have ended", async || {
        most = most.max(clients(&mut admin).len());
        calls.iter().all(tokio::task::JoinHandle::is_finished)
    })
    .await;
    for call in calls {
        assert_eq!(call.await.unwrap(), HealthStatus::Healthy);
    }
    assert_eq!(most, 10, "nine lent, one for the health check");
    let status = redis.status();
    assert_eq!((status.in_use, status.idle, status.max), (0, 10, 10));
}

#[tokio::test]
async fn an_exhausted_pool_is_our_own_trouble_and_health_sees_past_it() {
    let server = RedisServer::start(&[]).await;
    let config = hasty(&server.url())
        .max_connections(2)
        .acquire_timeout(Duration::from_millis(100))
        .fail_max(1);
    let redis = RedisManager::connect(config.build().unwrap()).unwrap();
    let (lent, done) = (Notify::new(), Notify::new());
    let holder = redis.read(|conn| {
        let (lent, done) = (&lent, &done);
        async move {
            lent.notify_one();
            done.notified().await;
            drop(conn);
            Ok(())
        }
    });
    let others = async {
        lent.notified().await;
        let error = failed(
            redis.read(|mut conn| async move { Ok(conn.get::<_, Option<i64>>("k").await?) }).await,
        );
        let health = redis.health().await;
        let in_use = redis.status().in_use;
        done.notify_one();
        (error, health, in_use)
    };
    let (held, (error, health, in_use)) = tokio::join!(holder, others);
    held.unwrap();
    assert!(matches!(error.error, Error::Exhausted { limit: 1, .. }), "{error}");
    assert_eq!(error.verdict.blame, Blame::Local);
    assert_eq!(redis.breaker().snapshot().calls.failure, 0);
    assert_eq!((health.status, in_use), (HealthStatus::Healthy, 1));
}

#[tokio::test]
async fn a_single_connection_serves_the_health_check_too() {
    let server = RedisServer::start(&[]).await;
    let mut redis =
        RedisManager::connect(hasty(&server.url()).max_connections(1).build().unwrap()).unwrap();
    redis.set::<_, _, ()>("k", 1).await.unwrap();
    assert_eq!(redis.health().await.status, HealthStatus::Healthy);
    assert_eq!(clients(&mut server.admin()).len(), 1);
}

#[tokio::test]
async fn steady_use_costs_no_extra_round_trip() {
    let server = RedisServer::start(&[]).await;
    let mut redis = lending(&server, 4);
    for _ in 0..100 {
        redis.get::<_, Option<String>>("k").await.unwrap();
    }
    let mut admin = server.admin();
    assert_eq!(executed(&mut admin, "get"), 100);
    assert_eq!(executed(&mut admin, "ping"), 1, "that of the login");
    assert_eq!(clients(&mut admin).len(), 1);
}

#[tokio::test]
async fn a_connection_is_tested_after_it_lay_idle() {
    let server = RedisServer::start(&[]).await;
    let config = hasty(&server.url()).test_after(Duration::from_millis(30)).build().unwrap();
    let redis = RedisManager::connect(config).unwrap();
    let first = client_id(&redis).await;
    let used = Instant::now();
    until("it lay idle for long enough", async || used.elapsed() > Duration::from_millis(30)).await;
    assert_eq!(client_id(&redis).await, first);
    assert_eq!(executed(&mut server.admin(), "ping"), 2, "that of the login, and the test");
}

#[tokio::test]
async fn a_connection_whose_time_is_over_is_replaced() {
    let server = RedisServer::start(&[]).await;
    let config = hasty(&server.url()).max_lifetime(Duration::from_millis(50)).build().unwrap();
    let redis = RedisManager::connect(config).unwrap();
    let first = client_id(&redis).await;
    until("it is replaced", async || client_id(&redis).await != first).await;
    until("the old one is closed", async || clients(&mut server.admin()).len() == 1).await;
}

#[tokio::test]
async fn connections_that_the_server_closed_cost_no_call() {
    let server = RedisServer::start(&[]).await;
    let redis = lending(&server, 8);
    let barrier = tokio::sync::Barrier::new(8);
    let barrier = &barrier;
    let hold = || {
        redis.read(|mut conn| async move {
            barrier.wait().await;
            Ok(conn.get::<_, Option<String>>("k").await?)
        })
    };
    tokio::join!(hold(), hold(), hold(), hold(), hold(), hold(), hold(), hold()).0.unwrap();
    let mut admin = server.admin();
    assert_eq!(clients(&mut admin).len(), 8);
    cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .exec(&mut admin)
        .unwrap();
    until("the server has closed them", async || clients(&mut admin).is_empty()).await;
    settle().await;
    for _ in 0..20 {
        redis
            .read(|mut conn| async move { Ok(conn.get::<_, Option<String>>("k").await?) })
            .await
            .unwrap();
    }
    assert!(clients(&mut admin).len() <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_killed_under_load_execute_nothing_twice() {
    let server = RedisServer::start(&[]).await;
    let config = hasty(&server.url())
        .max_connections(8)
        .max_retries(3)
        .fail_max(1_000_000)
        .deadline(Duration::from_secs(5))
        .build()
        .unwrap();
    let redis = RedisManager::connect(config).unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let redis = redis.clone();
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for number in 0..200 {
                    let key = format!("once:{task}:{number}");
                    let key = key.as_str();
                    let result = redis
                        .write(|mut conn| async move { Ok(conn.incr::<_, _, i64>(key, 1).await?) })
                        .await;
                    acknowledged.extend(result.is_ok().then(|| key.to_owned()));
                }
                acknowledged
            })
        })
        .collect();
    let mut admin = server.admin();
    let mut killed = 0;
    until("all tasks have ended", async || {
        killed +=
            cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").query::<usize>(&mut admin).unwrap();
        tasks.iter().all(tokio::task::JoinHandle::is_finished)
    })
    .await;
    let mut acknowledged = Vec::new();
    for task in tasks {
        acknowledged.extend(task.await.unwrap());
    }
    let keys: Vec<String> = cmd("KEYS").arg("once:*").query(&mut admin).unwrap();
    let values: Vec<i64> = cmd("MGET").arg(&keys).query(&mut admin).unwrap();
    assert!(values.iter().all(|&value| value == 1), "something was executed twice");
    assert!(acknowledged.iter().all(|key| keys.contains(key)), "something acknowledged is missing");
    assert!(
        killed > 8 && acknowledged.len() < 3200,
        "the fault did hit: {killed}, {}",
        acknowledged.len()
    );
    assert_eq!(redis.status().in_use, 0);
}

#[derive(Default)]
struct Counts {
    created: AtomicUsize,
    acquired: AtomicUsize,
    released: AtomicUsize,
    timed_out: AtomicUsize,
}

impl Observe for Counts {
    fn on_event(&self, event: &Event<'_>) {
        let (pool, count) = match event {
            Event::ConnectionCreated { pool, .. } => (pool, &self.created),
            Event::ConnectionAcquired { pool, .. } => (pool, &self.acquired),
            Event::ConnectionReleased { pool, .. } => (pool, &self.released),
            Event::AcquireTimedOut { pool } => (pool, &self.timed_out),
            _ => return,
        };
        if &***pool == "observed" {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

static COUNTS: LazyLock<Arc<Counts>> = LazyLock::new(Arc::default);

#[tokio::test]
async fn observers_are_told_of_each_connection() {
    let server = RedisServer::start(&[]).await;
    add_observer(Arc::<Counts>::clone(&COUNTS));
    let config = hasty(&server.url())
        .name("observed")
        .max_connections(2)
        .acquire_timeout(Duration::from_millis(50));
    let redis = RedisManager::connect(config.build().unwrap()).unwrap();
    let refused = AtomicBool::new(false);
    redis
        .read(|conn| {
            let (redis, refused) = (&redis, &refused);
            async move {
                let second = redis.read(|_conn| async { Ok(()) }).await;
                refused.store(second.is_err(), Ordering::Relaxed);
                drop(conn);
                Ok(())
            }
        })
        .await
        .unwrap();
    redis.warm_up(soon()).await.unwrap();
    let seen = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    assert!(refused.load(Ordering::Relaxed));
    assert_eq!((seen(&COUNTS.created), seen(&COUNTS.acquired), seen(&COUNTS.released)), (1, 2, 2));
    assert_eq!(seen(&COUNTS.timed_out), 1);
}
