//! A network that swallows everything, under calls in flight: how soon they notice, and how soon all places serve again.

use std::time::Duration;

use conn_postgres::{DatabaseConfig, DatabaseManager};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::load::{ROUNDS, TASKS, at_most, runtime};
use super::network::Network;
use super::throwaway::Throwaway;
use super::{eventually, subjects};
use crate::report::Row;

/// Long enough for the calls to have been looked at before, and found slow but well.
const BEFORE: Duration = Duration::from_secs(2);

/// How long the network is still away once all calls have noticed.
const AWAY: Duration = Duration::from_millis(1500);

const NOTICED: &str = "postgres: a silent network, noticed by all calls in flight";
const BACK: &str = "postgres: a silent network, full capacity after its return";

/// The worst of a few rounds: a cable that is pulled where one can be made, else a server that is stopped.
///
/// # Panics
///
/// If nobody felt it.
#[must_use]
pub fn rows() -> Vec<Row> {
    let network = Network::allowed().ok();
    let mut server = network.as_ref().map_or_else(Throwaway::new, Throwaway::beyond);
    let (noticed, back): (Vec<_>, Vec<_>) = runtime().block_on(async {
        server.start().await;
        // Nothing but the second look ends a call in time.
        let config = DatabaseConfig::builder(server.url())
            .pool_size(TASKS)
            .max_overflow(0)
            .attempt_timeout(Duration::from_secs(30));
        let db = subjects::connected(config).await;
        let silence = |silent: bool| match &network {
            Some(network) => network.set_up(!silent),
            None => server.signal(if silent { "STOP" } else { "CONT" }),
        };
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let noticed = noticed(&db, || silence(true)).await;
            rounds.push((noticed, back(&db, || silence(false)).await));
        }
        rounds.into_iter().unzip()
    });
    let subject = if network.is_some() { "ours, cable pulled" } else { "ours, server stopped" };
    vec![at_most(1000.0, NOTICED, subject, &noticed), at_most(1000.0, BACK, subject, &back)]
}

/// How long the last call in flight took to notice.
async fn noticed(db: &DatabaseManager, fall_silent: impl FnOnce()) -> Duration {
    let calls = join_all((0..TASKS).map(async |_| {
        let mut conn = db.acquire().await.expect("the server answers");
        let slept = sqlx::query("SELECT pg_sleep(60)").execute(&mut conn).await;
        slept.expect_err("the silence was not felt");
        Instant::now()
    }));
    let mishap = async {
        eventually("all are in flight", async || db.status().in_use == TASKS as usize).await;
        sleep(BEFORE).await;
        let since = Instant::now();
        fall_silent();
        since
    };
    let (ended, fell_silent) = tokio::join!(calls, mishap);
    let first = ended.iter().min().expect("there are calls");
    assert!(*first >= fell_silent, "a call ended before the silence");
    ended.into_iter().max().expect("there are calls") - fell_silent
}

/// How long after the return every place was borrowed and used, all at once.
async fn back(db: &DatabaseManager, come_back: impl FnOnce()) -> Duration {
    // Each holds what it was lent until the last has one.
    let tasks = join_all((0..TASKS).map(async |_| {
        loop {
            if let Ok(mut conn) = db.acquire().await
                && sqlx::query("SELECT 1").execute(&mut conn).await.is_ok()
            {
                return (Instant::now(), conn);
            }
            sleep(Duration::from_millis(10)).await;
        }
    }));
    let come = async {
        sleep(AWAY).await;
        let since = Instant::now();
        come_back();
        since
    };
    let (served, since) = tokio::join!(tasks, come);
    assert!(served.iter().all(|(at, _)| *at >= since), "it was served in silence");
    served.iter().map(|(at, _)| *at).max().expect("there are tasks") - since
}
