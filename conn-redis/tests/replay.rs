//! What is sent twice, and what is not: counted by a peer that says what the test wants.

mod support;

use std::time::Duration;

use conn_redis::redis::{self, AsyncCommands, cmd, pipe};
use conn_redis::{CallError, RedisManager};
use resilience_core::{Blame, Replay};
use support::{Answer, Peer, failed, hasty, settle};

fn eager(peer: &Peer) -> RedisManager {
    let config = hasty(&peer.url())
        .max_retries(2)
        .socket_timeout(Duration::from_secs(2))
        .deadline(Duration::from_secs(8));
    RedisManager::connect(config.build().unwrap()).unwrap()
}

fn error(line: &str) -> Answer {
    Answer::Reply(format!("-{line}\r\n"))
}

fn ok() -> Answer {
    Answer::Reply("+OK\r\n".into())
}

#[tokio::test]
async fn a_write_that_was_refused_is_sent_again() {
    for refusal in [
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "MOVED 3999 127.0.0.1:6381",
        "ASK 3999 127.0.0.1:6381",
        "READONLY You can't write against a read only replica.",
    ] {
        let peer =
            Peer::start(move |number, _| if number == 0 { error(refusal) } else { ok() }).await;
        let redis = eager(&peer);
        redis
            .write(|mut conn| async move { Ok(conn.set::<_, _, ()>("k", 1).await?) })
            .await
            .unwrap();
        assert_eq!(peer.received(), ["SET k 1", "SET k 1"], "{refusal}");
    }
}

#[tokio::test]
async fn a_write_whose_reply_was_lost_is_not_sent_again_unless_marked() {
    let peer = Peer::start(|_, _| Answer::Close(String::new())).await;
    let mut redis = eager(&peer);
    let lost =
        redis.write(|mut conn| async move { Ok(conn.incr::<_, _, i64>("k", 1).await?) }).await;
    let lost = failed(lost);
    assert_eq!((lost.verdict.blame, lost.verdict.replay), (Blame::Service, Replay::IfIdempotent));
    assert_eq!(peer.received().len(), 1);
    redis.incr::<_, _, i64>("k", 1).await.unwrap_err();
    assert_eq!(peer.received().len(), 2);
    let lost = redis
        .write_idempotent(|mut conn| async move { Ok(conn.set::<_, _, ()>("k", 1).await?) })
        .await;
    assert_eq!((failed(lost).attempts, peer.received().len()), (3, 5));
}

#[tokio::test]
async fn a_read_whose_reply_was_lost_is_sent_again() {
    let peer = Peer::start(|number, _| match number {
        0 => Answer::Close("$5\r\nhel".into()),
        _ => Answer::Reply("$5\r\nhello\r\n".into()),
    })
    .await;
    let mut redis = eager(&peer);
    assert_eq!(redis.get::<_, String>("k").await.unwrap(), "hello");
    assert_eq!(peer.received(), ["GET k", "GET k"]);
}

#[tokio::test]
async fn a_refusal_after_a_write_does_not_repeat_that_write() {
    let peer = Peer::start(|_, command| match command {
        "INCR visits" => Answer::Reply(":1\r\n".into()),
        _ => error("READONLY You can't write against a read only replica."),
    })
    .await;
    let redis = eager(&peer);
    let refused = redis
        .write(|mut conn| async move {
            let visits: i64 = cmd("INCR").arg("visits").query_async(&mut conn).await?;
            Ok(conn.set::<_, _, ()>("last", visits).await?)
        })
        .await;
    let refused = failed(refused);
    assert_eq!((refused.attempts, refused.verdict.replay), (1, Replay::IfIdempotent));
    assert_eq!(peer.received(), ["INCR visits", "SET last 1"]);
}

#[tokio::test]
async fn a_refusal_after_a_read_leaves_the_write_repeatable() {
    let peer = Peer::start(|number, command| match (number, command) {
        (_, "GET k") => Answer::Reply("$1\r\n1\r\n".into()),
        (1, _) => error("READONLY You can't write against a read only replica."),
        _ => ok(),
    })
    .await;
    let redis = eager(&peer);
    redis
        .write(|mut conn| async move {
            let value: i64 = conn.get("k").await?;
            Ok(conn.set::<_, _, ()>("k", value + 1).await?)
        })
        .await
        .unwrap();
    assert_eq!(peer.received(), ["GET k", "SET k 2", "GET k", "SET k 2"]);
}

#[tokio::test]
async fn a_pipeline_is_sent_again_only_if_all_of_it_was_refused() {
    const BUSY: &str = "BUSY Redis is busy running a script.";
    let all = Peer::start(|number, _| if number < 2 { error(BUSY) } else { ok() }).await;
    let mut redis = eager(&all);
    pipe().set("a", 1).set("b", 2).exec_async(&mut redis).await.unwrap();
    assert_eq!(all.received(), ["SET a 1", "SET b 2", "SET a 1", "SET b 2"]);

    let part = Peer::start(|number, _| if number == 1 { error(BUSY) } else { ok() }).await;
    let mut redis = eager(&part);
    let error = pipe().set("a", 1).set("b", 2).exec_async(&mut redis).await.unwrap_err();
    assert!(error.to_string().contains("BUSY"), "{error}");
    assert_eq!(part.received(), ["SET a 1", "SET b 2"]);
}

#[tokio::test]
async fn the_replies_beside_the_errors_of_a_pipeline_are_not_lost() {
    let peer =
        Peer::start(|number, _| if number == 1 { error("WRONGTYPE no") } else { ok() }).await;
    let mut redis = eager(&peer);
    let mut pipeline = pipe();
    pipeline.set("a", 1).set("b", 2).ignore_errors();
    let replies: Vec<redis::RedisResult<String>> = pipeline.query_async(&mut redis).await.unwrap();
    assert!(replies[0].is_ok() && replies[1].is_err());
    assert_eq!(peer.received().len(), 2);
}

#[tokio::test]
async fn a_transaction_that_was_refused_as_a_whole_is_sent_again() {
    // Queued, then refused when it was to be executed.
    let peer = Peer::start(|number, command| match (number, command) {
        (2, "EXEC") => {
            error("EXECABORT Transaction discarded because of: MASTERDOWN Link with MASTER is down")
        }
        (_, "EXEC") => Answer::Reply("*1\r\n+OK\r\n".into()),
        (_, "MULTI") => ok(),
        _ => Answer::Reply("+QUEUED\r\n".into()),
    })
    .await;
    let redis = eager(&peer);
    redis
        .write(
            |mut conn| async move { Ok(pipe().atomic().set("a", 1).exec_async(&mut conn).await?) },
        )
        .await
        .unwrap();
    assert_eq!(peer.received().len(), 6);
}

#[tokio::test]
async fn a_transaction_with_a_command_that_was_refused_says_why() {
    let peer = Peer::start(|_, command| match command {
        "EXEC" => error("EXECABORT Transaction discarded because of previous errors."),
        "MULTI" => ok(),
        _ => error("OOM command not allowed when used memory > 'maxmemory'."),
    })
    .await;
    let redis = RedisManager::connect(hasty(&peer.url()).build().unwrap()).unwrap();
    let refused = redis
        .write(
            |mut conn| async move { Ok(pipe().atomic().set("a", 1).exec_async(&mut conn).await?) },
        )
        .await;
    let refused = failed(refused);
    assert_eq!((refused.verdict.blame, refused.verdict.replay), (Blame::Service, Replay::Safe));
    assert!(refused.to_string().contains("OOM"), "{refused}");
}

#[tokio::test]
async fn a_connection_found_lost_costs_no_call() {
    let peer = Peer::start(|number, _| match number {
        0 => Answer::Close(":1\r\n".into()),
        _ => Answer::Reply(":2\r\n".into()),
    })
    .await;
    let redis = RedisManager::connect(hasty(&peer.url()).build().unwrap()).unwrap();
    let add = || redis.write(|mut conn| async move { Ok(conn.incr::<_, _, i64>("k", 1).await?) });
    assert_eq!(add().await.unwrap(), 1);
    settle().await;
    assert_eq!(add().await.unwrap(), 2);
    assert_eq!(peer.received().len(), 2);
}

#[tokio::test]
async fn a_write_that_was_never_sent_is_sent() {
    let peer = Peer::start(|number, _| match number {
        0 => Answer::Close("$1\r\n1\r\n".into()),
        1 => Answer::Reply("$1\r\n1\r\n".into()),
        _ => ok(),
    })
    .await;
    let redis = eager(&peer);
    redis
        .write(|mut conn| async move {
            let value: i64 = conn.get("k").await?;
            // The connection ends before the write is on its way.
            settle().await;
            Ok(conn.set::<_, _, ()>("k", value + 1).await?)
        })
        .await
        .unwrap();
    assert_eq!(peer.received(), ["GET k", "GET k", "SET k 2"]);
}

#[tokio::test]
async fn bytes_that_are_no_reply_are_not_taken_for_the_callers_mistake() {
    let peer = Peer::start(|_, _| Answer::Reply("what is this\r\n".into())).await;
    let redis = RedisManager::connect(hasty(&peer.url()).build().unwrap()).unwrap();
    let garbled =
        failed(redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) }).await);
    assert_eq!(
        (garbled.verdict.blame, garbled.verdict.replay),
        (Blame::Service, Replay::IfIdempotent)
    );
    let peer = Peer::start(|_, _| Answer::Reply("+text\r\n".into())).await;
    let redis = RedisManager::connect(hasty(&peer.url()).build().unwrap()).unwrap();
    let mismatch =
        failed(redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) }).await);
    assert_eq!((mismatch.verdict.blame, mismatch.verdict.replay), (Blame::Caller, Replay::Never));
}

#[tokio::test]
async fn a_script_that_is_not_loaded_is_loaded_without_delay() {
    let peer = Peer::start(|number, command| match (number, command.split(' ').next()) {
        (0, _) => error("NOSCRIPT No matching script."),
        (_, Some("SCRIPT")) => Answer::Reply("$3\r\nsha\r\n".into()),
        _ => Answer::Reply(":7\r\n".into()),
    })
    .await;
    let mut redis = eager(&peer);
    let started = tokio::time::Instant::now();
    let seven: i64 = cmd("EVALSHA").arg("abc").arg(0).query_async(&mut redis).await.unwrap_or(-1);
    assert_eq!(seven, -1, "the caller is told, for it alone has the script");
    let text: String =
        cmd("SCRIPT").arg("LOAD").arg("return 7").query_async(&mut redis).await.unwrap();
    assert_eq!(text, "sha");
    assert!(started.elapsed() < Duration::from_millis(400));
    assert_eq!(peer.received().len(), 2);
}

#[tokio::test]
async fn a_command_that_needs_its_own_connection_is_refused_before_it_does_harm() {
    let peer = Peer::start(|_, _| ok()).await;
    let mut redis = eager(&peer);
    for name in ["WATCH", "MULTI", "SELECT", "SUBSCRIBE", "MONITOR"] {
        let error = cmd(name).arg("x").exec_async(&mut redis).await.unwrap_err();
        assert!(
            error.to_string().contains(name) && error.to_string().contains("RedisManager::write"),
            "{error}"
        );
    }
    assert!(peer.received().is_empty());
}

#[tokio::test]
async fn an_open_circuit_sends_nothing_and_says_when_to_come_back() {
    let peer = Peer::start(|_, _| error("LOADING Redis is loading the dataset in memory")).await;
    let config = hasty(&peer.url()).fail_max(2).build().unwrap();
    let mut redis = RedisManager::connect(config).unwrap();
    for _ in 0..2 {
        redis.get::<_, Option<String>>("k").await.unwrap_err();
    }
    let error = redis.get::<_, Option<String>>("k").await.unwrap_err();
    let call = conn_redis::call_error(&error).unwrap();
    assert!(matches!(call, CallError::CircuitOpen(_)) && call.retry_after().is_some(), "{error}");
    assert_eq!(peer.received().len(), 2);
}
