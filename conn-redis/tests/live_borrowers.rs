//! Fear: what one borrower left on a connection, or left behind on the way, reaches the next.

mod support;

use conn_redis::RedisManager;
use conn_redis::redis::{AsyncCommands, cmd, pipe};
use support::{RedisServer, client_id, clients, lending, poll_n, until};

async fn client_info(redis: &RedisManager) -> String {
    redis
        .read(|mut conn| async move { Ok(cmd("CLIENT").arg("INFO").query_async(&mut conn).await?) })
        .await
        .unwrap()
}

#[tokio::test]
async fn a_blocked_pop_that_was_dropped_swallows_nothing() {
    let server = RedisServer::start(&[]).await;
    let mut admin = server.admin();
    let redis = lending(&server, 1);
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
    let redis = lending(&server, 1);
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
    let redis = lending(&server, 1);
    for polls in 0..100 {
        let transaction = redis.write(|mut conn| async move {
            cmd("WATCH").arg("k").exec_async(&mut conn).await?;
            cmd("MULTI").exec_async(&mut conn).await?;
            cmd("SELECT").arg(5).exec_async(&mut conn).await?;
            cmd("SET").arg("k").arg(1).exec_async(&mut conn).await?;
            Ok(cmd("EXEC").exec_async(&mut conn).await?)
        });
        let _ = poll_n(transaction, polls % 12).await;
        let info = client_info(&redis).await;
        assert!(
            info.contains(" db=0 ") && info.contains(" multi=-1 "),
            "after {polls} polls: {info}"
        );
    }
}

#[tokio::test]
async fn what_one_borrower_did_to_a_connection_no_other_sees() {
    let server = RedisServer::start(&[]).await;
    let redis = lending(&server, 1);
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
        let info = client_info(&redis).await;
        assert!(!info.contains(&format!("id={before} ")), "{line}");
        for part in [" db=0 ", " multi=-1 ", " sub=0 ", " psub=0 ", " name= ", " resp=2"] {
            assert!(info.contains(part), "{line}: {info}");
        }
    }
}

#[tokio::test]
async fn a_transaction_that_ended_keeps_its_connection() {
    let server = RedisServer::start(&[]).await;
    let redis = lending(&server, 1);
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
    let redis = lending(&server, 1);
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
