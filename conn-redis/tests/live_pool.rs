//! What the server sees of our connections: how many, in what state, and how often they are asked anything.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use conn_redis::redis::{AsyncCommands, cmd, pipe};
use conn_redis::{Error, RedisConfig, RedisManager};
use resilience_core::{Blame, Event, HealthStatus, Observe, add_observer};
use support::{RedisServer, clients, executed, failed, hasty, poll_n, settle, soon, until};
use tokio::sync::Notify;
use tokio::time::Instant;

/// A manager that lends `lent` connections at once.
fn manager(server: &RedisServer, lent: u32) -> RedisManager {
    let config =
        hasty(&server.url()).max_connections(lent + 1).socket_timeout(Duration::from_secs(5));
    RedisManager::connect(config.build().unwrap()).unwrap()
}

async fn client_id(redis: &RedisManager) -> u64 {
    redis
        .read(|mut conn| async move { Ok(cmd("CLIENT").arg("ID").query_async(&mut conn).await?) })
        .await
        .unwrap()
}

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
async fn a_blocked_pop_that_was_dropped_swallows_nothing() {
    let server = RedisServer::start(&[]).await;
    let mut admin = server.admin();
    let redis = manager(&server, 1);
    let blocked = tokio::spawn({
        let mut redis = redis.clone();
        async move { cmd("BLPOP").arg("queue").arg(0).exec_async(&mut redis).await }
    });
    until("it blocks", async || {
        clients(&mut admin).iter().any(|client| client.contains("cmd=blpop"))
    })
    .await;
    blocked.abort();
    let _ = blocked.await;
    assert_eq!(redis.status().in_use, 0, "its place is free at once");
    until("the server has let go of it", async || {
        !clients(&mut admin).iter().any(|client| client.contains("cmd=blpop"))
    })
    .await;
    cmd("RPUSH").arg("queue").arg("element").exec(&mut admin).unwrap();
    let mut redis = redis;
    let element: String = redis.lpop("queue", None).await.unwrap();
    assert_eq!(element, "element");
}

#[tokio::test]
async fn a_late_reply_never_reaches_the_next_borrower() {
    let server = RedisServer::start(&[]).await;
    let redis = manager(&server, 1);
    for key in ["mine", "theirs"] {
        cmd("SET").arg(key).arg(key).exec(&mut server.admin()).unwrap();
    }
    let mut cancelled = 0;
    for polls in 0..200 {
        let read = redis.read(|mut conn| async move { Ok(conn.get::<_, String>("theirs").await?) });
        cancelled += usize::from(poll_n(read, polls % 8).await.is_none());
        assert_eq!(redis.status().in_use, 0, "after {polls} polls");
        let mine: String =
            redis.read(|mut conn| async move { Ok(conn.get("mine").await?) }).await.unwrap();
        assert_eq!(mine, "mine");
    }
    assert!(cancelled > 20, "only {cancelled} were cut off");
    until("what was dropped is closed", async || clients(&mut server.admin()).len() == 1).await;
}

#[tokio::test]
async fn a_cancelled_transaction_leaves_no_trace() {
    let server = RedisServer::start(&[]).await;
    let redis = manager(&server, 1);
    for polls in 0..100 {
        let transaction = redis.write(|mut conn| async move {
            cmd("WATCH").arg("k").exec_async(&mut conn).await?;
            cmd("MULTI").exec_async(&mut conn).await?;
            cmd("SELECT").arg(5).exec_async(&mut conn).await?;
            cmd("SET").arg("k").arg(1).exec_async(&mut conn).await?;
            Ok(cmd("EXEC").exec_async(&mut conn).await?)
        });
        let _ = poll_n(transaction, polls % 12).await;
        let info: String =
            redis
                .read(|mut conn| async move {
                    Ok(cmd("CLIENT").arg("INFO").query_async(&mut conn).await?)
                })
                .await
                .unwrap();
        assert!(
            info.contains(" db=0 ") && info.contains(" multi=-1 "),
            "after {polls} polls: {info}"
        );
    }
}

#[tokio::test]
async fn what_one_borrower_did_to_a_connection_no_other_sees() {
    let server = RedisServer::start(&[]).await;
    let redis = manager(&server, 1);
    for line in [
        "SELECT 3",
        "WATCH k",
        "MULTI",
        "SUBSCRIBE c",
        "PSUBSCRIBE c*",
        "CLIENT SETNAME x",
        "READONLY",
        "HELLO 3",
        "MONITOR",
    ] {
        let before = client_id(&redis).await;
        let mut words = line.split(' ');
        let mut command = cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        let command = &command;
        // READONLY is refused outside of a cluster: it counts all the same.
        let _ =
            redis.write(|mut conn| async move { Ok(command.exec_async(&mut conn).await?) }).await;
        let info: String =
            redis
                .read(|mut conn| async move {
                    Ok(cmd("CLIENT").arg("INFO").query_async(&mut conn).await?)
                })
                .await
                .unwrap();
        assert!(!info.contains(&format!("id={before} ")), "{line}");
        for part in [" db=0 ", " multi=-1 ", " sub=0 ", " psub=0 ", " name= ", " resp=2"] {
            assert!(info.contains(part), "{line}: {info}");
        }
    }
}

#[tokio::test]
async fn a_transaction_that_ended_keeps_its_connection() {
    let server = RedisServer::start(&[]).await;
    let redis = manager(&server, 1);
    let before = client_id(&redis).await;
    let values: (i64,) = redis
        .write(|mut conn| async move {
            cmd("WATCH").arg("k").exec_async(&mut conn).await?;
            Ok(pipe().atomic().incr("k", 1).query_async(&mut conn).await?)
        })
        .await
        .unwrap();
    assert_eq!((values.0, client_id(&redis).await), (1, before));
    let aborted: Option<(i64,)> = redis
        .write(|mut conn| {
            let mut admin = server.admin();
            async move {
                cmd("WATCH").arg("k").exec_async(&mut conn).await?;
                cmd("SET").arg("k").arg(7).exec(&mut admin)?;
                Ok(pipe().atomic().incr("k", 1).query_async(&mut conn).await?)
            }
        })
        .await
        .unwrap();
    assert_eq!((aborted, client_id(&redis).await), (None, before));
}

#[tokio::test]
async fn a_command_dropped_within_a_closure_costs_the_connection_and_nothing_else() {
    let server = RedisServer::start(&[]).await;
    let redis = manager(&server, 1);
    let before = client_id(&redis).await;
    let value: Option<String> = redis
        .read(|mut conn| async move {
            let _ = poll_n(conn.get::<_, Option<String>>("a"), 1).await;
            Ok(conn.get("b").await?)
        })
        .await
        .unwrap();
    assert_eq!(value, None);
    assert_ne!(client_id(&redis).await, before);
}

#[tokio::test]
async fn steady_use_costs_no_extra_round_trip() {
    let server = RedisServer::start(&[]).await;
    let mut redis = manager(&server, 4);
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
    let redis = manager(&server, 8);
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
