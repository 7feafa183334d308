//! A peer that accepts and stays silent: every await ends all the same, and says why.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use conn_redis::redis::{AsyncCommands, cmd};
use conn_redis::{CallError, Error, RedisManager};
use resilience_core::{Call, CircuitState, Deadline, HealthStatus};
use support::{Answer, Peer, failed, hasty};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep};

/// Accepts connections, as any kernel does, and says nothing.
async fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://:hunter2@{}/0", listener.local_addr().unwrap());
    (listener, url)
}

/// Time enough for a machine with much else to do.
const SLACK: Duration = Duration::from_millis(700);

#[tokio::test]
async fn every_await_ends_by_its_deadline() {
    let (_listener, url) = silent().await;
    let redis = RedisManager::connect(hasty(&url).build().unwrap()).unwrap();
    let limit = Duration::from_millis(200);
    let by = || Deadline::within(limit);
    let started = Instant::now();

    let read = Call::read().by(by());
    let error = redis
        .call(read, |mut conn| async move { Ok(conn.get::<_, i64>("k").await?) })
        .await
        .unwrap_err();
    assert!(started.elapsed() < limit + SLACK, "{error}");

    let started = Instant::now();
    redis.warm_up(by()).await.unwrap_err();
    assert!(started.elapsed() < limit + SLACK);

    let started = Instant::now();
    let health = by().scope(redis.health()).await;
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(started.elapsed() < limit + SLACK);

    let mut connection = redis.clone();
    let started = Instant::now();
    let error = by().scope(connection.get::<_, i64>("k")).await.unwrap_err();
    assert!(started.elapsed() < limit + SLACK, "{error}");

    let hanging = tokio::spawn({
        let redis = redis.clone();
        async move {
            redis.write(|mut conn| async move { Ok(conn.set::<_, _, ()>("k", 1).await?) }).await
        }
    });
    tokio::task::yield_now().await;
    let started = Instant::now();
    let _ = redis.drain(by()).await;
    assert!(started.elapsed() < limit + SLACK);
    assert!(matches!(redis.read(|_| async { Ok(()) }).await, Err(CallError::Draining(_))));
    hanging.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_connect_that_hangs_names_the_endpoint_and_not_the_password() {
    let (listener, url) = silent().await;
    let redis = RedisManager::connect(hasty(&url).build().unwrap()).unwrap();
    let error =
        failed(redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) }).await);
    let text = format!("{error} {error:?} {redis:?}");
    assert!(
        text.contains(&format!("cannot connect to redis at {}", listener.local_addr().unwrap())),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
    assert!(matches!(error.error, Error::Connect(_)));
}

#[tokio::test]
async fn those_who_queue_behind_a_connect_that_hangs_blame_the_server_too() {
    let (_listener, url) = silent().await;
    let config =
        hasty(&url).max_connections(2).acquire_timeout(Duration::from_millis(200)).build().unwrap();
    let redis = RedisManager::connect(config).unwrap();
    let read = || redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) });
    let (first, second) = tokio::join!(read(), read());
    for result in [first, second] {
        let failed = failed(result);
        assert!(matches!(failed.error, Error::Connect(_)), "{failed}");
    }
    assert_eq!(redis.breaker().snapshot().calls.failure, 2);
}

#[tokio::test]
async fn a_reply_that_never_comes_opens_the_breaker_and_frees_the_place() {
    let peer = Peer::start(|_, _| Answer::Silence).await;
    let config =
        hasty(&peer.url()).max_connections(1).socket_timeout(Duration::from_millis(50)).fail_max(2);
    let redis = RedisManager::connect(config.build().unwrap()).unwrap();
    for _ in 0..2 {
        let result = redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) }).await;
        assert!(matches!(result, Err(CallError::AttemptTimeout(_))), "{result:?}");
        assert_eq!(redis.status().in_use, 0);
    }
    assert_eq!(redis.breaker().state(), CircuitState::Open);
}

#[tokio::test]
async fn a_blocking_command_that_finds_nothing_opens_no_breaker() {
    let peer = Peer::start(|_, _| Answer::Silence).await;
    let config = hasty(&peer.url()).socket_timeout(Duration::from_millis(50)).fail_max(1);
    let mut redis = RedisManager::connect(config.build().unwrap()).unwrap();
    let error = cmd("BLPOP").arg("queue").arg(0).exec_async(&mut redis).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(redis.breaker().state(), CircuitState::Closed);
    assert_eq!(redis.breaker().snapshot().calls.excluded, 1);
    assert_eq!(redis.status().in_use, 0);
}

#[tokio::test]
async fn the_time_spent_in_our_own_queue_is_not_held_against_the_server() {
    let peer = Peer::start(|_, _| Answer::Silence).await;
    let config = hasty(&peer.url())
        .max_connections(1)
        .socket_timeout(Duration::from_millis(400))
        .acquire_timeout(Duration::from_millis(400))
        .fail_max(1);
    let redis = RedisManager::connect(config.build().unwrap()).unwrap();
    let blocking = Call::read().by(Deadline::within(Duration::from_millis(200)));
    let held = redis.call(blocking, |mut conn| async move {
        Ok(cmd("BLPOP").arg("queue").arg(0).exec_async(&mut conn).await?)
    });
    let late = redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) });
    let (held, late) = tokio::join!(held, late);
    held.unwrap_err();
    assert!(matches!(failed(late).error, Error::Starved { .. }));
    assert_eq!(redis.breaker().state(), CircuitState::Closed);
}

#[tokio::test]
async fn a_server_that_is_slow_to_let_us_in_and_then_silent_is_to_blame() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/0", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        sleep(Duration::from_millis(200)).await;
        stream.write_all(b"+PONG\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let config = hasty(&url).socket_timeout(Duration::from_millis(400)).fail_max(1);
    let redis = RedisManager::connect(config.build().unwrap()).unwrap();
    let read = redis.write(|mut conn| async move { Ok(conn.set::<_, _, ()>("k", 1).await?) });
    assert!(matches!(read.await, Err(CallError::AttemptTimeout(_))));
    assert_eq!(redis.breaker().state(), CircuitState::Open);
}

/// Opens two connections, and leaves them idle.
async fn two_idle(redis: &RedisManager) {
    let both = Barrier::new(2);
    let hold = || {
        redis.read(|conn| {
            let both = &both;
            async move {
                both.wait().await;
                drop(conn);
                Ok(())
            }
        })
    };
    let (first, second) = tokio::join!(hold(), hold());
    first.and(second).unwrap();
    assert_eq!(redis.status().idle, 2);
}

#[tokio::test]
async fn one_observed_loss_closes_the_idle_ones() {
    let peer = Peer::start(|_, _| Answer::Close(String::new())).await;
    let redis = RedisManager::connect(hasty(&peer.url()).build().unwrap()).unwrap();
    two_idle(&redis).await;
    failed(redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) }).await);
    let status = redis.status();
    assert_eq!((status.in_use, status.idle), (0, 0));
}

#[tokio::test]
async fn after_a_silent_attempt_the_idle_ones_are_tested_and_not_just_lent() {
    let peer = Peer::start(|number, _| match number {
        0 => Answer::Silence,
        _ => Answer::Reply(":1\r\n".into()),
    })
    .await;
    let config = hasty(&peer.url()).socket_timeout(Duration::from_millis(100)).build().unwrap();
    let redis = RedisManager::connect(config).unwrap();
    two_idle(&redis).await;
    let read = || redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) });
    assert!(matches!(read().await, Err(CallError::AttemptTimeout(_))));
    assert_eq!((redis.status().idle, peer.pings.load(Ordering::Relaxed)), (1, 2), "two logins");
    for _ in 0..3 {
        assert_eq!(read().await.unwrap(), 1);
    }
    assert_eq!(peer.pings.load(Ordering::Relaxed), 3, "and one test");
    assert_eq!(redis.status().idle, 1);
}
