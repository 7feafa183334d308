//! Servers that are down, die, hang, move or are left behind; and a manager that is told to stop.

mod support;

use std::time::Duration;

use conn_redis::redis::{AsyncCommands, cmd};
use conn_redis::{CallError, Error, RedisManager};
use resilience_core::{
    Address, Blame, Call, CircuitState, Deadline, Drained, Endpoint, EndpointSet, HealthStatus,
    Replay,
};
use support::{RedisServer, clients, failed, free_port, hasty, poll_n, soon, until};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

async fn add(redis: &RedisManager) -> Result<i64, CallError<Error>> {
    redis.write(|mut conn| async move { Ok(conn.incr("count", 1).await?) }).await
}

async fn get(redis: &RedisManager) -> Result<Option<i64>, CallError<Error>> {
    redis.read(|mut conn| async move { Ok(conn.get("count").await?) }).await
}

#[tokio::test]
async fn a_server_that_is_down_at_the_start_is_found_once_it_is_up() {
    let mut server = RedisServer::stopped(free_port(), &[]);
    let config = hasty(&server.url())
        .fail_max(2)
        .reset_timeout(Duration::from_millis(100))
        .success_threshold(1);
    let redis = RedisManager::connect(config.build().unwrap()).unwrap();

    let started = Instant::now();
    let error = failed(get(&redis).await);
    assert!(started.elapsed() < Duration::from_millis(400), "it fails at once");
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("cannot connect to redis at 127.0.0.1:{}: ", server.port)),
        "{text}"
    );
    assert!(text.contains("refused"), "{text}");
    assert_eq!((error.verdict.blame, error.verdict.replay), (Blame::Service, Replay::Safe));
    assert!(redis.warm_up(soon()).await.is_err());
    assert_eq!(redis.health().await.status, HealthStatus::Unhealthy);
    failed(get(&redis).await);
    assert!(matches!(get(&redis).await, Err(CallError::CircuitOpen(_))));

    server.start_again().await;
    until("it has recovered by itself", async || get(&redis).await.is_ok()).await;
    assert_eq!(redis.breaker().state(), CircuitState::Closed);
    assert_eq!(redis.health().await.status, HealthStatus::Healthy);
}

#[tokio::test]
async fn a_server_that_is_killed_opens_the_breaker_and_one_that_returns_closes_it() {
    let mut server = RedisServer::start(&[]).await;
    let config = hasty(&server.url())
        .fail_max(3)
        .reset_timeout(Duration::from_millis(100))
        .success_threshold(2);
    let redis = RedisManager::connect(config.build().unwrap()).unwrap();
    add(&redis).await.unwrap();
    assert_eq!(redis.health().await.status, HealthStatus::Healthy);
    server.kill();
    until("the breaker is open", async || {
        matches!(add(&redis).await, Err(CallError::CircuitOpen(_)))
    })
    .await;
    assert_eq!(redis.health().await.status, HealthStatus::Unhealthy);
    server.start_again().await;
    until("the breaker is closed", async || {
        let _ = get(&redis).await;
        redis.breaker().state() == CircuitState::Closed
    })
    .await;
    assert_eq!(redis.health().await.status, HealthStatus::Healthy);
    assert_eq!(add(&redis).await.unwrap(), 1);
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_on_and_health_says_so() {
    let server = RedisServer::start(&[]).await;
    let config = hasty(&server.url())
        .socket_timeout(Duration::from_millis(100))
        .health_timeout(Duration::from_millis(100));
    let redis = RedisManager::connect(config.build().unwrap()).unwrap();
    add(&redis).await.unwrap();
    assert_eq!(redis.health().await.status, HealthStatus::Healthy);
    server.signal("-STOP");
    let started = Instant::now();
    assert!(matches!(get(&redis).await, Err(CallError::AttemptTimeout(_))));
    let health = redis.health().await;
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(started.elapsed() < Duration::from_secs(1));
    server.signal("-CONT");
    until("it answers again", async || get(&redis).await.is_ok()).await;
    assert_eq!(redis.health().await.status, HealthStatus::Healthy);
}

#[tokio::test]
async fn a_write_into_a_dying_server_is_executed_once_or_not_at_all() {
    let mut server = RedisServer::start(&[]).await;
    let redis =
        RedisManager::connect(hasty(&server.url()).max_retries(3).build().unwrap()).unwrap();
    add(&redis).await.unwrap();
    server.signal("-STOP");
    let dying = tokio::spawn({
        let redis = redis.clone();
        async move { add(&redis).await }
    });
    until("the write is on its way", async || redis.status().in_use == 1).await;
    server.kill();
    let error = failed(dying.await.unwrap());
    assert_eq!((error.attempts, error.verdict.replay), (1, Replay::IfIdempotent), "{error}");
}

fn set(server: &RedisServer) -> EndpointSet {
    EndpointSet::fixed([Endpoint::new(Address::new("127.0.0.1", server.port))])
}

#[tokio::test]
async fn a_server_that_moves_is_followed_without_a_restart() {
    let old = RedisServer::start(&["--requirepass", "secret"]).await;
    let new = RedisServer::start(&["--requirepass", "secret"]).await;
    let (sender, endpoints) = watch::channel(set(&old));
    let config = hasty("redis://:secret@nowhere.invalid/2").build().unwrap();
    let redis = RedisManager::connect_to(config, endpoints).unwrap();
    add(&redis).await.unwrap();
    redis.health().await;

    let through = Notify::new();
    let moved = Notify::new();
    let outlasting = redis.write(|mut conn| {
        let (through, moved) = (&through, &moved);
        async move {
            through.notify_one();
            moved.notified().await;
            Ok(conn.incr::<_, _, i64>("count", 1).await?)
        }
    });
    let moving = async {
        through.notified().await;
        sender.send_replace(set(&new));
        let there = add(&redis).await;
        moved.notify_one();
        there
    };
    let (outlasting, there) = tokio::join!(outlasting, moving);
    assert_eq!(there.unwrap(), 1, "the next call goes to the new server");
    assert_eq!(outlasting.unwrap(), 2, "one that had begun ends where it began");
    assert_eq!(redis.health().await.status, HealthStatus::Healthy);

    let admin = |server: &RedisServer| {
        let url = server.url().replace("redis://", "redis://:secret@");
        conn_redis::redis::Client::open(url).unwrap().get_connection().unwrap()
    };
    until("the old server has none of our connections", async || {
        clients(&mut admin(&old)).is_empty()
    })
    .await;
    cmd("SELECT").arg(2).exec(&mut admin(&new)).unwrap();
    let mut direct = admin(&new);
    cmd("SELECT").arg(2).exec(&mut direct).unwrap();
    assert_eq!(
        cmd("GET").arg("count").query::<i64>(&mut direct).unwrap(),
        1,
        "the database of the url stays"
    );
}

#[tokio::test]
async fn those_who_queue_at_the_old_server_are_served_by_the_new_one() {
    let old = RedisServer::start(&[]).await;
    let new = RedisServer::start(&[]).await;
    let (sender, endpoints) = watch::channel(set(&old));
    let redis = RedisManager::connect_to(
        hasty("redis://nowhere.invalid").max_connections(1).build().unwrap(),
        endpoints,
    )
    .unwrap();
    let (lent, moved) = (Notify::new(), Notify::new());
    let holder = redis.read(|conn| {
        let (lent, moved) = (&lent, &moved);
        async move {
            lent.notify_one();
            moved.notified().await;
            drop(conn);
            Ok(())
        }
    });
    let queued = async {
        lent.notified().await;
        add(&redis).await
    };
    let moving = async {
        until("another waits", async || {
            let status = redis.status();
            (status.in_use, status.waiting) == (1, 1)
        })
        .await;
        sender.send_replace(set(&new));
        // Whoever looks next sees it, and closes the queue.
        redis.warm_up(soon()).await.unwrap();
    };
    // The one that was lent is not given back before the other has been served.
    let served = async {
        let (queued, ()) = tokio::join!(queued, moving);
        moved.notify_one();
        queued
    };
    let (held, queued) = tokio::join!(holder, served);
    held.unwrap();
    assert_eq!(queued.unwrap(), 1);
    assert_eq!(cmd("GET").arg("count").query::<i64>(&mut new.admin()).unwrap(), 1);
}

#[tokio::test]
async fn without_any_endpoint_a_call_says_so() {
    let (_sender, endpoints) = watch::channel(EndpointSet::fixed([]));
    let redis =
        RedisManager::connect_to(hasty("redis://nowhere.invalid").build().unwrap(), endpoints)
            .unwrap();
    let error = failed(get(&redis).await);
    assert_eq!(error.to_string(), "no endpoint of \"redis\" is known");
    assert_eq!(redis.health().await.status, HealthStatus::Unhealthy);
    assert_eq!(redis.status().max, 100);
}

#[tokio::test]
async fn a_drain_waits_for_what_runs_refuses_the_rest_and_closes_every_connection() {
    let server = RedisServer::start(&[]).await;
    let redis = RedisManager::connect(
        hasty(&server.url()).socket_timeout(Duration::from_secs(5)).build().unwrap(),
    )
    .unwrap();
    redis.health().await;
    let mut admin = server.admin();
    let running = tokio::spawn({
        let redis = redis.clone();
        async move {
            redis
                .write(|mut conn| async move {
                    Ok(cmd("BLPOP")
                        .arg("queue")
                        .arg(0)
                        .query_async::<Vec<String>>(&mut conn)
                        .await?)
                })
                .await
        }
    });
    until("it blocks", async || {
        clients(&mut admin).iter().any(|client| client.contains("cmd=blpop"))
    })
    .await;
    let draining = tokio::spawn({
        let redis = redis.clone();
        async move { redis.drain(soon()).await }
    });
    until("new calls are refused", async || {
        matches!(get(&redis).await, Err(CallError::Draining(_)))
    })
    .await;
    assert!(!draining.is_finished());
    cmd("RPUSH").arg("queue").arg("element").exec(&mut admin).unwrap();
    assert_eq!(running.await.unwrap().unwrap(), ["queue", "element"]);
    assert_eq!(draining.await.unwrap(), Drained { abandoned: 0 });
    until("nothing is connected", async || clients(&mut admin).is_empty()).await;
    assert!(matches!(redis.warm_up(soon()).await, Err(Error::Closed { .. })));
    assert_eq!(redis.health().await.status, HealthStatus::Unhealthy);
}

#[tokio::test]
async fn a_drain_ends_by_its_deadline_and_counts_what_it_abandons() {
    let server = RedisServer::start(&[]).await;
    let redis = RedisManager::connect(
        hasty(&server.url()).socket_timeout(Duration::from_secs(5)).build().unwrap(),
    )
    .unwrap();
    let mut admin = server.admin();
    let stuck = tokio::spawn({
        let redis = redis.clone();
        async move {
            redis
                .read(|mut conn| async move {
                    Ok(cmd("BLPOP").arg("queue").arg(0).exec_async(&mut conn).await?)
                })
                .await
        }
    });
    until("it blocks", async || {
        clients(&mut admin).iter().any(|client| client.contains("cmd=blpop"))
    })
    .await;
    let started = Instant::now();
    assert_eq!(
        redis.drain(Deadline::within(Duration::from_millis(50))).await,
        Drained { abandoned: 1 }
    );
    assert!(started.elapsed() < Duration::from_millis(500));
    stuck.abort();
    let _ = stuck.await;
    until("nothing is connected", async || clients(&mut admin).is_empty()).await;
}

#[tokio::test]
async fn cancellation_at_any_point_loses_no_place() {
    let server = RedisServer::start(&[]).await;
    let redis =
        RedisManager::connect(hasty(&server.url()).max_connections(3).build().unwrap()).unwrap();
    let mut cut = 0;
    for polls in 0..150 {
        if polls % 10 == 0 {
            // So that connecting is cut off as well.
            let _ = cmd("CLIENT")
                .arg("KILL")
                .arg("TYPE")
                .arg("normal")
                .query::<i64>(&mut server.admin());
        }
        cut += usize::from(poll_n(add(&redis), polls % 15).await.is_none());
        cut += usize::from(poll_n(redis.health(), polls % 15).await.is_none());
        cut += usize::from(poll_n(redis.warm_up(soon()), polls % 15).await.is_none());
        assert_eq!((redis.status().in_use, redis.status().waiting), (0, 0), "after {polls} polls");
    }
    assert!(cut > 50, "only {cut} were cut off");
    until("what was dropped is closed", async || clients(&mut server.admin()).len() <= 3).await;
    redis.warm_up(soon()).await.unwrap();
    assert_eq!(redis.health().await.status, HealthStatus::Healthy);
}

#[test]
fn a_manager_outlives_the_runtime_that_first_used_it() {
    let own = tokio::runtime::Runtime::new().unwrap();
    let server = own.block_on(RedisServer::start(&[]));
    let config = hasty(&server.url()).runtime(own.handle().clone()).build().unwrap();
    let redis = RedisManager::connect(config).unwrap();
    for round in 1..=3 {
        let short = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(short.block_on(add(&redis)).unwrap(), round);
        assert_eq!(short.block_on(redis.health()).status, HealthStatus::Healthy);
    }
    assert_eq!(
        clients(&mut server.admin()).len(),
        2,
        "the first connection, and that of the health check"
    );
}

#[tokio::test]
async fn a_fallback_answers_when_redis_cannot_and_within_the_same_deadline() {
    let server = RedisServer::stopped(free_port(), &[]);
    let redis = server.manager();
    let answer: Result<i64, CallError<Error>> = redis
        .read_or(|mut conn| async move { Ok(conn.get("count").await?) }, |_| async { Ok(7) })
        .await;
    assert_eq!(answer.unwrap(), 7);
    let mut server = server;
    server.start_again().await;
    cmd("LPUSH").arg("count").arg(1).exec(&mut server.admin()).unwrap();
    let refused: Result<i64, CallError<Error>> = redis
        .read_or(|mut conn| async move { Ok(conn.get("count").await?) }, |_| async { Ok(7) })
        .await;
    assert!(
        failed(refused).to_string().contains("WRONGTYPE")
            || redis.breaker().state() != CircuitState::Closed
    );
}

#[tokio::test]
async fn a_call_of_its_own_name_ends_by_its_own_deadline() {
    let server = RedisServer::start(&[]).await;
    let redis = server.manager();
    server.signal("-STOP");
    let started = Instant::now();
    let call = Call::read().named("lookup").by(Deadline::within(Duration::from_millis(60)));
    redis
        .call(call, |mut conn| async move { Ok(conn.get::<_, i64>("k").await?) })
        .await
        .unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(450));
    server.signal("-CONT");
}
