//! Many tasks on few connections: who lends them on soonest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use conn_postgres::DatabaseManager;
use futures::future::{BoxFuture, join_all};
use sqlx::{PgConnection, PgPool};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::server::{CONNECTIONS, Server};
use super::subjects;
use super::wire::Wire;
use crate::report::Row;
use crate::timing::Timing;

/// Blocks of each subject.
const BLOCKS: usize = 24;

/// The length of a block.
const BLOCK: Duration = Duration::from_millis(200);

/// Tasks that want a connection each.
const TASKS: usize = 32;

const BENCH: &str = "postgres: SELECT 1 by 32 tasks on 4 connections";

/// Who runs a statement.
#[derive(Clone)]
enum Subject {
    Ours(DatabaseManager),
    PgPool(&'static str, PgPool),
    /// As many tasks as connections, and no pool: what the driver and the server can do.
    Raw(Vec<Arc<Mutex<PgConnection>>>),
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "ours, &db",
            Self::PgPool(name, _) => name,
            Self::Raw(_) => "raw connections",
        }
    }

    fn tasks(&self) -> usize {
        match self {
            Self::Raw(connections) => connections.len(),
            Self::Ours(_) | Self::PgPool(..) => TASKS,
        }
    }

    fn select_one(&self, task: usize) -> BoxFuture<'_, Result<i32, sqlx::Error>> {
        const SQL: &str = "SELECT 1";
        match self {
            Self::Ours(db) => Box::pin(sqlx::query_scalar(SQL).fetch_one(db)),
            Self::PgPool(_, pool) => Box::pin(sqlx::query_scalar(SQL).fetch_one(pool)),
            Self::Raw(connections) => Box::pin(async move {
                // Nobody else wants it.
                let mut raw = connections[task].lock().await;
                sqlx::query_scalar(SQL).fetch_one(&mut *raw).await
            }),
        }
    }

    /// Nanoseconds for each statement, all tasks together.
    async fn block(&self) -> f64 {
        let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        let started = Instant::now();
        for task in 0..self.tasks() {
            let (subject, over, done) = (self.clone(), Arc::clone(&over), Arc::clone(&done));
            tasks.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let one = subject.select_one(task).await.expect("the server answers");
                    assert_eq!(one, 1);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        sleep(BLOCK).await;
        over.store(true, Ordering::Relaxed);
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no task panics");
        }
        started.elapsed().as_nanos() as f64 / done.load(Ordering::Relaxed) as f64
    }
}

/// The times, as ratios of throughput.
#[must_use]
pub fn times(server: &Server) -> Vec<Row> {
    let raw = subjects::on_sockets(join_all((0..CONNECTIONS).map(|_| server.connect())));
    let subjects = [
        Subject::Ours(subjects::ours(server, server.port())),
        Subject::PgPool("PgPool", subjects::pg_pool(server, true)),
        Subject::PgPool("PgPool, untested", subjects::pg_pool(server, false)),
        Subject::Raw(raw.into_iter().map(|raw| Arc::new(Mutex::new(raw))).collect()),
    ];
    let mut timings = vec![Timing::default(); subjects.len()];
    subjects::on_sockets(async {
        for subject in &subjects {
            subject.block().await;
        }
        for round in 0..BLOCKS {
            for place in 0..subjects.len() {
                let which = (round + place) % subjects.len();
                timings[which].add(subjects[which].block().await);
            }
        }
    });
    let row = |which: usize| Row {
        quartiles: Some(timings[which].quartiles()),
        ..Row::new(BENCH, subjects[which].name(), timings[which].median(), "ns")
    };
    let against = |which: usize, least: f64| {
        let name = subjects[which].name();
        // How much more is done in the same time.
        let ratio = timings[which].ratio(&timings[0]);
        let row = Row { against: Some(name), ratio: Some(ratio), ..row(0) };
        row.target(format!("≥ {least} × {name}, as throughput"), ratio >= least)
    };
    vec![against(1, 2.0), against(2, 1.5), against(3, 0.85), row(1), row(2), row(3)]
}

/// How often the server is asked beyond one round trip for each statement.
#[must_use]
pub fn pings(server: &Server) -> Row {
    const STATEMENTS: usize = 200;
    let wire = Wire::to(server.port());
    let db = subjects::ours(server, wire.port);
    let one = async |db: DatabaseManager| {
        let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&db).await.expect("it answers");
        assert_eq!(one, 1);
    };
    let asked = subjects::on_sockets(async {
        let lent = join_all((0..CONNECTIONS).map(|_| db.acquire())).await;
        for conn in lent {
            // Each connection prepares it once.
            let mut conn = conn.expect("one is idle");
            let prepared = sqlx::query("SELECT 1").execute(&mut conn).await;
            prepared.expect("it answers");
        }
        let before = wire.round_trips();
        let task = || async {
            for _ in 0..STATEMENTS {
                one(db.clone()).await;
            }
        };
        join_all((0..TASKS).map(|_| task())).await;
        wire.round_trips() - before
    });
    let pings = asked as f64 - (TASKS * STATEMENTS) as f64;
    Row::new("postgres: 32 tasks on 4 connections, on the wire", "ours, &db", pings, "pings")
        .target("0 pings", pings == 0.0)
}
