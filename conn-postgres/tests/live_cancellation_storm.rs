//! Thousands of cancellations at random points: no borrower finds another's work, no place is lost, and the
//! server holds no crowd of backends that nobody waits for.
//!
//! `CANCELLATIONS` says how many; 1,500 where it is not set. `cargo xtask nightly` makes 10,000.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use conn_postgres::{Conn, DatabaseManager, Tx};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use sqlx::{Connection, Executor, PgConnection};
use support::throwaway::Throwaway;
use support::{PollN, backends, config_at, eventually, figure};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const SIZE: u32 = 3;
const OVERFLOW: u32 = 2;
const TASKS: usize = 8;

/// How many backends the server may hold, beside for a moment: the pool's, one that cancels, and one to spare.
const BOUND: i64 = (SIZE + OVERFLOW + 2) as i64;

/// That moment.
const MOMENT: Duration = Duration::from_millis(100);

fn cancellations() -> usize {
    std::env::var("CANCELLATIONS").map_or(1500, |text| text.parse().expect("a number"))
}

/// What the server held, looked at every 10 ms from a thread of its own.
#[derive(Debug, Default)]
struct Held {
    samples: usize,
    most: i64,
    /// Samples above the bound.
    above: usize,
    /// The longest time that it was above the bound in every sample.
    longest: Duration,
}

impl Held {
    /// Looks until `is_over`.
    fn sample(url: String, name: String, is_over: Arc<AtomicBool>) -> thread::JoinHandle<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let looking = async move {
            let mut admin = PgConnection::connect(&url).await.unwrap();
            let mut ticks = interval(Duration::from_millis(10));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (mut held, mut since) = (Self::default(), None);
            while !is_over.load(Ordering::Relaxed) {
                ticks.tick().await;
                let count = backends(&mut admin, &name).await;
                held.samples += 1;
                held.most = held.most.max(count);
                if count <= BOUND {
                    since = None;
                    continue;
                }
                held.above += 1;
                let since = *since.get_or_insert_with(Instant::now);
                held.longest = held.longest.max(since.elapsed());
            }
            held
        };
        thread::spawn(move || runtime.block_on(looking))
    }
}

/// What is cut. Each leaves something behind that the next borrower would find if it could.
async fn operation(db: &DatabaseManager, kind: usize, id: i64) -> Result<(), BoxError> {
    let insert = "INSERT INTO storm SELECT $1, pg_advisory_xact_lock_shared(815)::text";
    match kind {
        0 => drop(sqlx::query("SELECT $1").bind(id).fetch_all(db).await?),
        1 => drop(db.begin().await?),
        2 => {
            let mut tx = db.begin().await?;
            sqlx::query(insert).bind(id).execute(&mut *tx).await?;
            sqlx::query(insert).bind(id).execute(&mut *tx).await?;
            tx.commit().await?;
        }
        3 => {
            db.transaction(async |mut tx: Tx<'static>| {
                sqlx::query(insert).bind(id).execute(&mut *tx).await?;
                Ok(sqlx::query(insert).bind(id).execute(&mut *tx).await?)
            })
            .await?;
        }
        4 => {
            let mut rows = sqlx::query("SELECT generate_series(1, 20000)").fetch(db);
            while rows.try_next().await?.is_some() {}
        }
        5 => {
            let mut conn = db.acquire().await?;
            conn.raw(async |raw: &mut PgConnection| {
                let mut copy = raw.copy_in_raw("COPY storm FROM STDIN").await?;
                copy.send(format!("{id}\tcopied\n").as_bytes()).await?;
                tokio::task::yield_now().await;
                copy.send(format!("{id}\tcopied\n").as_bytes()).await?;
                copy.finish().await
            })
            .await?;
        }
        6 => {
            let mut conn = db.acquire().await?;
            conn.execute("SET application.mark = 'foreign'").await?;
        }
        7 => {
            let mut conn = db.acquire().await?;
            conn.raw(async |raw: &mut PgConnection| {
                let mut tx = raw.begin().await?;
                sqlx::query(insert).bind(id).execute(&mut *tx).await?;
                sqlx::query(insert).bind(id).execute(&mut *tx).await?;
                tx.commit().await
            })
            .await?;
        }
        8 => {
            db.read(async |mut conn: Conn| Ok(conn.execute("SELECT 1").await?)).await?;
        }
        _ => {
            db.execute("SELECT pg_advisory_xact_lock_shared(815), pg_sleep(60)").await?;
        }
    }
    Ok(())
}

const KINDS: usize = 10;

/// The next borrower finds no transaction (in one, `now()` stands still), no lock, no setting, and the reply to
/// its own question.
async fn assert_clean(db: &DatabaseManager, id: i64) {
    let sql = "SELECT pg_current_xact_id_if_assigned() IS NULL \
               AND coalesce(current_setting('application.mark', true), '') = '' AND NOT EXISTS \
               (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'), \
               now()::text, $1";
    let mut conn = db.acquire().await.unwrap();
    let mut last = String::new();
    for question in [id, -id] {
        let (clean, now, echo): (bool, String, i64) =
            sqlx::query_as(sql).bind(question).fetch_one(&mut conn).await.unwrap();
        assert!(clean && now != last, "something foreign on the connection");
        assert_eq!(echo, question, "the reply to another's question");
        last = now;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_cancellations_leave_nothing_foreign_lose_no_place_and_crowd_no_server() {
    // A server that lets in whoever comes, without TLS: it is the connects that hold a storm up.
    let mut server = Throwaway::new();
    server.start().await;
    let (builder, name) = config_at(server.url());
    let builder = builder.pool_size(SIZE).max_overflow(OVERFLOW).fail_max(1_000_000);
    let db = DatabaseManager::connect(builder.build().unwrap()).unwrap();
    let mut admin = PgConnection::connect(&server.url()).await.unwrap();
    db.execute("CREATE TABLE storm (id bigint, what text)").await.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let sampler = Held::sample(server.url(), name.clone(), Arc::clone(&is_over));

    let (wanted, done, whole) =
        (cancellations(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let started = Instant::now();
    let tasks = (0..TASKS).map(|_| {
        let (db, done, whole) = (db.clone(), Arc::clone(&done), Arc::clone(&whole));
        tokio::spawn(async move {
            loop {
                let kind = fastrand::usize(..KINDS);
                let id = fastrand::i64(1..);
                let operation = operation(&db, kind, id);
                // By the poll or by the clock, whichever comes first.
                let polls = if fastrand::bool() { fastrand::usize(..16) } else { usize::MAX };
                let time = Duration::from_micros(fastrand::u64(..12_000));
                let result = timeout(time, PollN::new(polls, operation)).await.ok().flatten();
                match result {
                    Some(result) => {
                        result.unwrap();
                        whole.fetch_add(1, Ordering::Relaxed);
                    }
                    None if done.fetch_add(1, Ordering::Relaxed) >= wanted => return,
                    None => {}
                }
                assert_clean(&db, id).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let elapsed = started.elapsed();
    assert_eq!(db.status().in_use, 0);
    let all = join_all((0..SIZE + OVERFLOW).map(|_| db.acquire()));
    let all = timeout(Duration::from_secs(5), all).await.expect("a place was lost");
    assert!(all.iter().all(Result::is_ok) && db.status().in_use == (SIZE + OVERFLOW) as usize);
    drop(all);
    is_over.store(true, Ordering::Relaxed);
    let held = sampler.join().unwrap();
    println!(
        "{wanted} cancellations beside {} whole operations in {elapsed:?}; at the server {held:?}; \
         cancelled {}, terminated {}, dropped {}",
        whole.load(Ordering::Relaxed),
        figure(&db, "cancelled"),
        figure(&db, "terminated"),
        figure(&db, "dropped"),
    );
    assert!(held.longest <= MOMENT, "more than {BOUND} backends for {:?}", held.longest);

    let sql = "SELECT count(*) FROM (SELECT FROM storm GROUP BY id HAVING count(*) <> 2) AS halves";
    let halves: i64 = sqlx::query_scalar(sql).fetch_one(&mut admin).await.unwrap();
    assert_eq!(halves, 0, "half a transaction was committed");
    let sql = "SELECT count(*) FILTER (WHERE state LIKE 'idle in transaction%'), count(*) \
               FROM pg_stat_activity WHERE application_name = $1";
    eventually("none is in a transaction, and no more are left than may be idle", async || {
        let (open, all): (i64, i64) =
            sqlx::query_as(sql).bind(&name).fetch_one(&mut admin).await.unwrap();
        open == 0 && all <= i64::from(SIZE)
    })
    .await;
}
