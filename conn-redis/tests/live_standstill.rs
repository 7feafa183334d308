//! This process stands still; what the server does meanwhile, nobody here hears.

mod support;

use std::time::Duration;

use conn_redis::redis::{AsyncCommands, cmd};
use conn_redis::{CallError, Error, RedisManager};
use resilience_core::CircuitState;
use support::{RedisServer, clients, hasty};
use tokio::task::{JoinSet, yield_now};
use tokio::time::Instant;

type Answer = Result<Option<i64>, CallError<Error>>;

/// Blocks this thread, and with it the test's runtime.
fn block(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Five calls at once, of two commands each.
fn five(redis: &RedisManager) -> JoinSet<Answer> {
    let ask = |redis: RedisManager| async move {
        let twice = redis.read(|mut conn| async move {
            let _: Option<i64> = conn.get("count").await?;
            Ok(conn.get("count").await?)
        });
        twice.await
    };
    (0..5).map(|_| ask(redis.clone())).collect()
}

fn manager(server: &RedisServer) -> RedisManager {
    RedisManager::connect(hasty(&server.url()).fail_max(1).build().unwrap()).unwrap()
}

#[tokio::test]
async fn connections_that_ended_unheard_fail_no_call() {
    let server = RedisServer::start(&[]).await;
    let redis = manager(&server);
    assert!(five(&redis).join_all().await.iter().all(Result::is_ok));
    let mut admin = server.admin();
    assert!(clients(&mut admin).len() > 1);

    let mut kill = cmd("CLIENT");
    kill.arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec(&mut admin).unwrap();
    block(Duration::from_millis(1200));
    for answer in five(&redis).join_all().await {
        assert_eq!(answer.unwrap(), None);
    }
    assert_eq!(redis.breaker().snapshot().calls.failure, 0);
}

#[tokio::test]
async fn what_is_cut_off_by_a_standstill_opens_no_breaker() {
    let server = RedisServer::start(&[]).await;
    let redis = manager(&server);
    // First while they connect, then with a command on its way: its reply may be read late, but is read.
    for warm in [false, true] {
        let calls = five(&redis);
        while redis.status().in_use == 0 {
            yield_now().await;
        }
        block(Duration::from_secs(2));
        let answers = calls.join_all().await;
        assert!(warm || answers.iter().any(Result::is_err), "nothing was cut off");
        let seen = redis.breaker().snapshot();
        assert_eq!((seen.state, seen.calls.failure), (CircuitState::Closed, 0));
        assert!(five(&redis).join_all().await.iter().all(Result::is_ok));
    }
}
