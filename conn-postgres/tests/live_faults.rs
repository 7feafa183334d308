//! Peers that reset, say nothing, trickle, or leave in mid-message: each a distinct error in time, no capacity lost, no foreign answer.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseManager, Error};
use futures_util::future::join_all;
use resilience_core::CallError;
use support::faults::{Fault, Faulty};
use support::throwaway::Throwaway;
use support::within;

const ATTEMPT: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_millis(1500);

/// A statement whose answer nobody else's statement has.
async fn ask(db: &DatabaseManager, number: i32) -> Result<i32, CallError<Error>> {
    let ask = async |mut conn: Conn| {
        Ok(sqlx::query_scalar("SELECT $1 + 1").bind(number).fetch_one(&mut conn).await?)
    };
    db.read(ask).await
}

/// Eight calls at once over two connections.
async fn eight(db: &DatabaseManager, first: i32) -> Vec<(i32, Result<i32, CallError<Error>>)> {
    join_all((first..first + 8).map(async |number| (number, ask(db, number).await))).await
}

/// Puts `fault` on the way of a pool in use; each call has its own answer or fails with one of `said`. The first
/// of those is what the fault is known by.
async fn suffer(fault: Fault, said: &[&str]) {
    let mut server = Throwaway::new();
    server.start().await;
    let peer = Faulty::before(format!("127.0.0.1:{}", server.port)).await;
    let config = DatabaseConfig::builder(peer.url())
        .pool_size(2)
        .max_overflow(0)
        .attempt_timeout(ATTEMPT)
        .connect_timeout(CONNECT)
        .acquire_timeout(ATTEMPT)
        .max_retries(0)
        .fail_max(1_000_000);
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    for (number, answer) in eight(&db, 0).await {
        assert_eq!(answer.unwrap(), number + 1);
    }
    assert_eq!(db.status().idle, 2);

    peer.set(fault);
    // The first meets connections that were well, the second opens new ones.
    for round in 1..=2 {
        let mut first_error = None;
        for (number, answer) in within(ATTEMPT, eight(&db, round * 100)).await {
            match answer {
                Ok(answer) => assert_eq!(answer, number + 1, "{fault:?}: another's answer"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(said.iter().any(|said| text.contains(said)), "{fault:?}: {text}");
                    first_error.get_or_insert(text);
                }
            }
        }
        let first_error = first_error.expect("the fault hit nobody");
        assert!(first_error.contains(said[0]), "{fault:?}: {first_error}");
        println!("{fault:?}, round {round}: {first_error}");
        assert_eq!(db.status().in_use, 0, "{fault:?}: a place is lost");
    }

    peer.set(Fault::None);
    for (number, answer) in within(ATTEMPT, eight(&db, 1000)).await {
        assert_eq!(answer.unwrap(), number + 1, "{fault:?}");
    }
    let both = within(ATTEMPT, join_all([db.acquire(), db.acquire()])).await;
    assert!(both.iter().all(Result::is_ok), "{fault:?}: a place is lost");
}

#[tokio::test]
async fn a_peer_that_resets() {
    suffer(Fault::Resets, &["onnection reset by peer"]).await;
}

#[tokio::test]
async fn a_peer_that_accepts_and_says_nothing() {
    suffer(Fault::HalfOpen, &["and none to a second look at", "no answer within"]).await;
}

#[tokio::test]
async fn a_peer_that_says_a_byte_now_and_then() {
    suffer(Fault::Slow, &["no answer within"]).await;
}

#[tokio::test]
async fn a_peer_that_leaves_in_the_middle_of_a_message() {
    suffer(Fault::Truncates, &["at EOF"]).await;
}
