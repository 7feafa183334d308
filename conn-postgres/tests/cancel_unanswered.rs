//! A server that never answers a cancel request, or ends its connection: nothing piles up, and nobody waits.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseManager};
use futures_util::future::join_all;
use resilience_core::Deadline;
use sqlx::Executor;
use support::script::{Script, Welcome};
use support::{PollN, eventually, figure, within};
use tokio::time::Instant;

const SIZE: usize = 4;

fn manager(script: &Script) -> DatabaseManager {
    let config = DatabaseConfig::builder(script.url()).pool_size(SIZE as u32).max_overflow(0);
    DatabaseManager::connect(config.build().unwrap()).unwrap()
}

/// Cuts that many statements, each on a connection of its own.
async fn cut(db: &DatabaseManager, count: usize) {
    for _ in 0..count {
        let mut conn = db.acquire().await.unwrap();
        assert!(PollN::new(1, conn.execute("silence")).await.is_none());
        drop(conn);
        assert_eq!(db.status().in_use, 0);
    }
}

/// All places can be had at once, and nothing is open but what the pool has.
async fn assert_whole(db: &DatabaseManager, script: &Script) {
    let all = within(Duration::from_secs(1), join_all((0..SIZE).map(|_| db.acquire()))).await;
    assert!(all.iter().all(Result::is_ok), "a place was lost");
    drop(all);
    eventually("nothing else is open", async || script.open() == db.status().idle).await;
}

#[tokio::test]
async fn cancel_requests_that_get_no_answer_do_not_pile_up() {
    let script = Script::with(Welcome::SimpleSession).await;
    let db = manager(&script);
    const CUTS: usize = 3000;
    cut(&db, CUTS).await;
    assert!(script.open() <= db.status().idle + 8, "{} connections are open", script.open());
    eventually("each cut is given up", async || figure(&db, "dropped") == CUTS as u64).await;
    assert_eq!((figure(&db, "cancelled"), figure(&db, "terminated")), (0, 0));
    let requests = script.accepted() - CUTS;
    assert!(requests <= 30, "{requests} connections for {CUTS} cuts");
    assert_whole(&db, &script).await;
}

#[tokio::test]
async fn cancel_requests_that_break_off_do_not_pile_up() {
    let script = Script::with(Welcome::Session).await;
    let db = manager(&script);
    cut(&db, 300).await;
    eventually("each cut is given up", async || figure(&db, "dropped") == 300).await;
    let requests = script.accepted() - 300;
    assert!(requests <= 10, "{requests} connections for 300 cuts");
    assert_whole(&db, &script).await;
}

#[tokio::test]
async fn a_drain_waits_for_no_cancel_request_beyond_its_deadline() {
    let script = Script::with(Welcome::SimpleSession).await;
    let db = manager(&script);
    cut(&db, 1).await;
    let limit = Duration::from_millis(200);
    let started = Instant::now();
    let drained = within(limit, db.drain(Deadline::within(limit))).await;
    assert_eq!(drained.abandoned, 0);
    assert!(started.elapsed() >= limit, "it did not wait at all");
    eventually("nothing is open", async || script.open() == 0).await;
}

#[tokio::test]
async fn while_nothing_is_cut_nothing_is_asked() {
    let script = Script::with(Welcome::Session).await;
    let db = manager(&script);
    for _ in 0..100 {
        db.read(async |mut conn: Conn| Ok(conn.execute("fine").await?)).await.unwrap();
    }
    assert_eq!((script.executed(), script.accepted()), (100, 1));
}
