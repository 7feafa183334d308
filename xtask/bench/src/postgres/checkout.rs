//! Borrowing an idle connection and giving it back, with metrics on: no I/O should be in it.

use tokio::runtime::{Builder, Runtime};

use super::server::Server;
use super::wire::Wire;
use super::{CONNECTIONS, subjects};
use crate::case::{Case, Claim, Subject};
use crate::report::Row;

const OPERATIONS: u64 = 1000;

/// What it costs.
#[must_use]
pub fn case(server: &Server) -> Case {
    let db = subjects::ours(server, server.port());
    let (pool, tested) = (subjects::pg_pool(server, false), subjects::pg_pool(server, true));
    let deadpool = subjects::deadpool(server);
    let subjects = vec![
        Subject::polls("ours", async move |_| db.acquire().await.expect("one is idle")),
        Subject::polls("deadpool", async move |_| deadpool.get().await.expect("one is idle")),
        Subject::runs("PgPool, untested", driven(), async move |_| {
            pool.acquire().await.expect("one is idle")
        }),
        Subject::runs("PgPool", driven(), async move |_| {
            tested.acquire().await.expect("one is idle")
        }),
    ];
    Case::new("postgres: checkout and return, metrics on", subjects)
        .claim(Claim::AtMost(120.0))
        .claim(Claim::Compared("deadpool"))
        .claim(Claim::Compared("PgPool, untested"))
        .claim(Claim::Compared("PgPool"))
        .allocates_nothing()
}

/// Of a pool whose connections come back by tasks of their own.
fn driven() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("it needs no resources")
}

/// How often the server was asked while connections came and went.
#[must_use]
pub fn round_trips(server: &Server) -> Row {
    let wire = Wire::to(server.port());
    let db = subjects::ours(server, wire.port);
    let before = wire.round_trips();
    let subject = Subject::polls("ours", async move |_| db.acquire().await.expect("one is idle"));
    subject.run(OPERATIONS);
    let asked = (wire.round_trips() - before) as f64;
    assert!(before >= u64::from(CONNECTIONS), "the wire sees what is asked");
    Row::new(
        "postgres: checkout and return, on the wire",
        "ours",
        asked / OPERATIONS as f64,
        "round trips",
    )
    .target("0 round trips", asked == 0.0)
}
