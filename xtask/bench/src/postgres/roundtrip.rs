//! One statement after the other: client and server each on a processor of its own, as far as there are two.

use std::time::Duration;

use conn_postgres::DatabaseManager;
use futures::future::BoxFuture;
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;

use super::server::{Server, sockets};
use super::subjects;
use super::wire::Wire;
use crate::report::Row;
use crate::timing::{Timing, pin, pin_process, quantile};

/// Blocks of each subject.
const BLOCKS: usize = 40;

/// Statements of a block.
const STATEMENTS: usize = 400;

const BENCH: &str = "postgres: SELECT 1, median of one after the other";

enum Subject {
    Raw(PgConnection),
    Ours(DatabaseManager),
    Lent(DatabaseManager),
    PgPool(PgPool),
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Self::Raw(_) => "raw connection",
            Self::Ours(_) => "ours, &db",
            Self::Lent(_) => "ours, acquire()",
            Self::PgPool(_) => "PgPool",
        }
    }

    fn select_one(&mut self) -> BoxFuture<'_, Result<i32, sqlx::Error>> {
        const SQL: &str = "SELECT 1";
        match self {
            Self::Raw(raw) => Box::pin(sqlx::query_scalar(SQL).fetch_one(raw)),
            Self::Ours(db) => Box::pin(sqlx::query_scalar(SQL).fetch_one(&*db)),
            Self::Lent(db) => Box::pin(async {
                let mut conn = db.acquire().await?;
                sqlx::query_scalar(SQL).fetch_one(&mut conn).await
            }),
            Self::PgPool(pool) => Box::pin(sqlx::query_scalar(SQL).fetch_one(&*pool)),
        }
    }

    /// The median time of a statement, in nanoseconds.
    async fn block(&mut self) -> f64 {
        let mut nanos = Vec::with_capacity(STATEMENTS);
        for _ in 0..STATEMENTS {
            let started = Instant::now();
            let one = self.select_one().await.expect("the server answers");
            nanos.push(started.elapsed().as_nanos() as f64);
            assert_eq!(one, 1);
        }
        quantile(nanos, 0.5)
    }
}

/// The medians, ours beside the driver's own connection.
#[must_use]
pub fn times(server: &Server) -> Vec<Row> {
    // Its own runtime on this thread: a statement's answer wakes nobody else.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().expect("it needs no resources");
    runtime.block_on(async {
        pin(0);
        let mut subjects = [
            Subject::Ours(subjects::one_of_ours(server).await),
            Subject::Raw(server.connect().await),
            Subject::Lent(subjects::one_of_ours(server).await),
            Subject::PgPool(subjects::one_pg_pool(server).await),
        ];
        for subject in &mut subjects {
            subject.block().await;
        }
        for process in server.backends().await {
            pin_process(process, 1);
        }
        let mut timings = vec![Timing::default(); subjects.len()];
        for round in 0..BLOCKS {
            for place in 0..subjects.len() {
                let which = (round + place) % subjects.len();
                timings[which].add(subjects[which].block().await);
            }
        }
        let raw = &timings[1];
        let row = |which: usize| Row {
            quartiles: Some(timings[which].quartiles()),
            against: Some("raw connection"),
            ratio: Some(timings[which].ratio(raw)),
            ..Row::new(BENCH, subjects[which].name(), timings[which].median(), "ns")
        };
        let claimed = |which| {
            let row = row(which);
            let ok = row.ratio.is_some_and(|ratio| ratio <= 1.03);
            row.target("≤ 1.03 × raw connection", ok)
        };
        vec![claimed(0), Row { against: None, ratio: None, ..row(1) }, claimed(2), row(3)]
    })
}

/// How often the server is asked for each statement.
#[must_use]
pub fn round_trips(server: &Server) -> Row {
    const STATEMENTS: u32 = 1000;
    let wire = Wire::to(server.port());
    let db = subjects::ours(server, wire.port);
    let asked = sockets().block_on(async {
        let select = async || {
            let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&db).await.expect("it answers");
            assert_eq!(one, 1);
        };
        // Each connection prepares it once.
        let lent: Vec<_> = futures::future::join_all((0..4).map(|_| db.acquire())).await;
        for conn in lent {
            let mut conn = conn.expect("one is idle");
            sqlx::query("SELECT 1").execute(&mut conn).await.expect("it answers");
        }
        let before = wire.round_trips();
        for _ in 0..STATEMENTS {
            select().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        wire.round_trips() - before
    });
    let each = asked as f64 / f64::from(STATEMENTS);
    Row::new("postgres: SELECT 1, on the wire", "ours, &db", each, "round trips")
        .target("1 round trip", asked == u64::from(STATEMENTS))
}
