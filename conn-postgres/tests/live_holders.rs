//! Who holds a connection and where it was taken; what is kept open, and what is asked before it is lent.

mod support;

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use conn_postgres::{CallSite, Conn, DatabaseManager, Error, Exhausted, Tx};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use resilience_core::{Call, CallError, Deadline, Event, Observe, add_observer};
use sqlx::PgConnection;
use support::{
    admin, backends, config_at, eventually, is_look, manager_with, server, url_at, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

/// A manager with one connection, and little patience.
fn narrow() -> DatabaseManager {
    let (db, _) = manager_with(|it| {
        it.pool_size(1).acquire_timeout(Duration::from_millis(50)).max_retries(0)
    });
    db
}

/// Who has the one connection of `db`, as another borrower hears it.
async fn holder(db: &DatabaseManager) -> Exhausted {
    match db.acquire().await {
        Err(Error::Exhausted(exhausted)) => exhausted,
        other => panic!("it is not exhausted: {other:?}"),
    }
}

/// Fails unless the connection was taken at the line that called this, or the one before it.
#[track_caller]
fn assert_taken_here(exhausted: &Exhausted) {
    let (here, text) = (Location::caller(), exhausted.to_string());
    let longest = exhausted.longest.unwrap_or_else(|| panic!("nobody holds it: {text}"));
    let CallSite::Line(line) = longest.taken else { panic!("no line: {text}") };
    assert_eq!(line.file(), here.file(), "{text}");
    assert!(line.line().abs_diff(here.line()) <= 1, "{text} is not at {here}");
    assert!(text.contains(&line.to_string()), "{text}");
}

#[tokio::test]
async fn whoever_finds_the_pool_exhausted_learns_the_line_that_holds_it() {
    let db = &narrow();
    let held = db.acquire().await.unwrap();
    assert_taken_here(&holder(db).await);
    drop(held);
    let held = db.begin().await.unwrap();
    assert_taken_here(&holder(db).await);
    drop(held);

    // The closures hold their connection while they ask who does.
    let ask = |conn: Conn| async move {
        let told = holder(db).await;
        drop(conn);
        Ok(told)
    };
    let told = db.read(ask).await;
    assert_taken_here(&told.unwrap());
    let told = db.write(ask).await;
    assert_taken_here(&told.unwrap());
    let told = db.write_idempotent(ask).await;
    assert_taken_here(&told.unwrap());
    let told = db.call(Call::read(), ask).await;
    assert_taken_here(&told.unwrap());
    let told: Result<_, CallError<Error>> = db.read_or(ask, async |error| Err(error)).await;
    assert_taken_here(&told.unwrap());
    let ask = |tx: Tx<'static>| async move {
        let told = holder(db).await;
        drop(tx);
        Ok(told)
    };
    let told = db.transaction(ask).await;
    assert_taken_here(&told.unwrap());
}

#[tokio::test]
async fn a_statement_on_the_manager_is_known_by_its_word() {
    let db = &narrow();
    let sleeping = sqlx::query("SELECT pg_sleep(0.5)").execute(db);
    let asking = async {
        eventually("it runs", async || db.status().in_use == 1).await;
        holder(db).await
    };
    let (slept, told) = tokio::join!(sleeping, asking);
    slept.unwrap();
    assert!(told.to_string().contains("by query;"), "{told}");

    let mut rows = sqlx::query("SELECT 1").fetch(db);
    rows.try_next().await.unwrap();
    let told = holder(db).await;
    assert!(told.to_string().contains("by stream;"), "{told}");
}

#[tokio::test]
async fn a_borrower_learns_whether_the_pool_drains_or_is_closed() {
    let db = narrow();
    let held = db.acquire().await.unwrap();
    let draining = tokio::spawn({
        let db = db.clone();
        async move { db.drain(Deadline::within(Duration::from_secs(20))).await }
    });
    eventually("it drains", async || matches!(db.acquire().await, Err(Error::Draining { .. })))
        .await;
    let refused = sqlx::query("SELECT 1").execute(&db).await.unwrap_err();
    assert!(matches!(Error::from(refused), Error::Draining { .. }));
    drop(held);
    assert_eq!(draining.await.unwrap().abandoned, 0);
    let refused = db.begin().await.unwrap_err();
    assert!(matches!(refused, Error::Closed { .. }), "{refused}");
}

/// Leaks of one pool.
struct Leaks(String, AtomicUsize);

impl Observe for Leaks {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::ConnectionLeaked { pool, .. } = event
            && ***pool == self.0
        {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn a_leak_is_told_and_costs_the_borrower_nothing() {
    let threshold = Duration::from_millis(200);
    let (db, name) = manager_with(|it| it.name("leaky-live").leak_threshold(threshold));
    let leaks = Arc::new(Leaks("leaky-live".to_owned(), AtomicUsize::new(0)));
    add_observer(Arc::<Leaks>::clone(&leaks));
    let told = || leaks.1.load(Ordering::Relaxed);
    let mut held = db.acquire().await.unwrap();
    eventually("it is told", async || told() == 1).await;
    sqlx::query("SELECT 1").execute(&mut held).await.unwrap();
    drop(held);

    let mut admin = admin().await;
    assert_eq!(backends(&mut admin, &name).await, 1, "it was taken away");
    let held = db.acquire().await.unwrap();
    eventually("the next is told too", async || told() == 2).await;
    drop(held);
}

#[tokio::test]
async fn a_warm_up_opens_what_shall_be_idle_and_does_not_wait_for_one_after_the_other() {
    let (db, name) = manager_with(|it| it.pool_size(6).min_idle(5));
    let mut admin = admin().await;
    let limit = Duration::from_secs(10);
    db.warm_up(Deadline::within(limit)).await.unwrap();
    assert_eq!(backends(&mut admin, &name).await, 5);
    assert_eq!((db.status().in_use, db.status().idle, db.status().idle_min), (0, 5, 5));
    db.warm_up(Deadline::within(limit)).await.unwrap();
    assert_eq!(backends(&mut admin, &name).await, 5, "a warm pool was warmed up");

    let way = Way::to(server(), Duration::from_millis(200)).await;
    let (builder, _) = config_at(url_at(&way.address));
    let config = builder.pool_size(20).min_idle(12).build().unwrap();
    let slow = DatabaseManager::connect(config).unwrap();
    slow.warm_up(Deadline::within(2 * limit)).await.unwrap();
    assert_eq!(slow.status().idle, 12);
    assert_eq!(way.most_on_the_way(), 8);
}

#[tokio::test]
async fn a_server_that_is_down_is_asked_once_by_a_warm_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&accepted);
    let refusing = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    let (builder, _) = config_at(url_at(&address));
    let config = builder.pool_size(5).min_idle(5).max_retries(0).build().unwrap();
    let db = DatabaseManager::connect(config).unwrap();
    let error = db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("cannot connect to {address}")), "{text}");
    assert_eq!(accepted.load(Ordering::Relaxed), 1);
    refusing.abort();
}

async fn pids(admin: &mut PgConnection, name: &str) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY pid";
    sqlx::query_scalar(sql).bind(name).fetch_all(admin).await.unwrap()
}

#[tokio::test]
async fn what_shall_be_idle_outlives_the_idle_timeout_and_is_replaced_when_it_is_old_or_lost() {
    let tick = Duration::from_millis(100);
    let (db, name) = manager_with(|it| it.pool_size(4).min_idle(2).idle_timeout(2 * tick));
    let mut admin = admin().await;
    let lent: Vec<_> = join_all((0..4).map(|_| db.acquire())).await;
    drop(lent);
    assert_eq!(backends(&mut admin, &name).await, 4);
    eventually("the rest is closed", async || backends(&mut admin, &name).await == 2).await;
    let kept = pids(&mut admin, &name).await;
    let since = Instant::now();
    while since.elapsed() < 10 * tick {
        assert_eq!(pids(&mut admin, &name).await, kept, "the idle timeout went below the least");
        sleep(tick).await;
    }
    // One that was kept is lent, however long it lay there.
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&db).await.unwrap();
    assert!(kept.contains(&pid));

    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
    sqlx::query(sql).bind(&name).execute(&mut admin).await.unwrap();
    // Nobody has heard of it yet: the next borrower may be the one who finds out.
    let _found_out = sqlx::query("SELECT 1").execute(&db).await;
    eventually("the lost are replaced", async || {
        let now = pids(&mut admin, &name).await;
        now.len() == 2 && now.iter().all(|pid| !kept.contains(pid))
    })
    .await;

    let (db, name) = manager_with(|it| it.pool_size(4).min_idle(2).max_lifetime(3 * tick));
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();
    let first = pids(&mut admin, &name).await;
    assert_eq!(first.len(), 2);
    eventually("the old are replaced", async || {
        let now = pids(&mut admin, &name).await;
        now.len() == 2 && now.iter().all(|pid| !first.contains(pid))
    })
    .await;
}

#[tokio::test]
async fn what_shall_be_idle_never_makes_more_than_the_limit() {
    let tick = Duration::from_millis(50);
    let (db, name) = manager_with(|it| it.pool_size(3).min_idle(3).idle_timeout(2 * tick));
    let mut admin = admin().await;
    let _held = db.acquire().await.unwrap();
    eventually("the rest of the limit is idle", async || db.status().idle == 2).await;
    let since = Instant::now();
    while since.elapsed() < 20 * tick {
        let status = db.status();
        assert_eq!((status.in_use, status.idle), (1, 2));
        assert_eq!(backends(&mut admin, &name).await, 3);
        sleep(tick / 5).await;
    }
}

#[tokio::test]
async fn a_connection_in_steady_use_is_never_asked_and_one_that_lay_idle_is() {
    let way = Way::to(server(), Duration::ZERO).await;
    let (builder, _) = config_at(url_at(&way.address));
    let quiet = Duration::from_millis(300);
    let config = builder.pool_size(1).test_after(quiet).build().unwrap();
    let db = DatabaseManager::connect(config).unwrap();
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();

    let opened = way.sent();
    assert!(opened > 0);
    for _ in 0..100 {
        drop(db.acquire().await.unwrap());
        db.read(async |_| Ok(())).await.unwrap();
    }
    assert_eq!(way.sent(), opened, "lending costs bytes on the wire");
    let since = Instant::now();
    while since.elapsed() < 2 * quiet {
        assert_eq!(way.sent(), opened, "an idle connection is asked without need");
        sleep(quiet / 10).await;
    }
    drop(db.acquire().await.unwrap());
    let tested = way.sent();
    assert!(tested > opened, "one that lay idle is not asked");
    drop(db.acquire().await.unwrap());
    assert_eq!(way.sent(), tested, "it is asked again at once");
}

#[tokio::test]
async fn a_connection_that_was_lost_in_a_quiet_spell_fails_no_call() {
    let quiet = Duration::from_millis(50);
    let (db, name) = manager_with(|it| it.pool_size(3).test_after(quiet).max_retries(0));
    let mut admin = admin().await;
    let lent: Vec<_> = join_all((0..3).map(|_| db.acquire())).await;
    drop(lent);
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
    sqlx::query(sql).bind(&name).execute(&mut admin).await.unwrap();
    let since = Instant::now();
    eventually("they are gone, and it was quiet", async || {
        backends(&mut admin, &name).await == 0 && since.elapsed() > 2 * quiet
    })
    .await;
    for _ in 0..3 {
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
    }
    assert_eq!(db.status().idle, 1, "the others were lost too");
}

#[tokio::test]
async fn connections_that_a_firewall_forgot_cost_one_wait_and_not_one_each() {
    let quiet = Duration::from_millis(50);
    let way = Way::to(server(), Duration::ZERO).await;
    let (builder, _) = config_at(url_at(&way.address));
    let config = builder.pool_size(4).test_after(quiet).max_retries(0).build().unwrap();
    let db = DatabaseManager::connect(config).unwrap();
    let lent: Vec<_> = join_all((0..4).map(|_| db.acquire())).await;
    drop(lent);
    way.forget();
    let since = Instant::now();
    eventually("it was quiet", async || since.elapsed() > 2 * quiet).await;
    within(Duration::from_secs(1), async { sqlx::query("SELECT 1").execute(&db).await.unwrap() })
        .await;
    assert_eq!(db.status().idle, 1);
}

/// A port that leads to another, with a delay for each new connection; it counts what clients send, and can
/// forget the connections it has.
struct Way {
    address: String,
    sent: Arc<AtomicUsize>,
    /// Connections up to this number are forgotten: what is sent on them goes nowhere.
    forgotten: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    /// The most connections that were held up at once.
    most_on_the_way: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Way {
    async fn to(target: String, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let [sent, forgotten, accepted, most, delayed] =
            [0; 5].map(|it| Arc::new(AtomicUsize::new(it)));
        let counts = [&sent, &forgotten, &accepted, &most].map(Arc::clone);
        let task = tokio::spawn(async move {
            let [sent, forgotten, accepted, most] = counts;
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let number = accepted.fetch_add(1, Ordering::Relaxed) + 1;
                let (target, sent) = (target.clone(), Arc::clone(&sent));
                let forgotten = Arc::clone(&forgotten);
                let (delayed, most) = (Arc::clone(&delayed), Arc::clone(&most));
                tokio::spawn(async move {
                    if !is_look(&near).await {
                        let now = delayed.fetch_add(1, Ordering::Relaxed) + 1;
                        most.fetch_max(now, Ordering::Relaxed);
                        sleep(delay).await;
                        delayed.fetch_sub(1, Ordering::Relaxed);
                    }
                    let far = TcpStream::connect(target).await.unwrap();
                    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
                        (near.into_split(), far.into_split());
                    let back = tokio::io::copy(&mut from_far, &mut to_near);
                    let there = async {
                        let mut buffer = vec![0; 16 * 1024];
                        while let Ok(length @ 1..) = from_near.read(&mut buffer).await {
                            sent.fetch_add(length, Ordering::Relaxed);
                            if forgotten.load(Ordering::Relaxed) < number
                                && to_far.write_all(&buffer[..length]).await.is_err()
                            {
                                break;
                            }
                        }
                    };
                    tokio::select! { _ = back => {}, () = there => {} }
                });
            }
        });
        Self { address, sent, forgotten, accepted, most_on_the_way: most, task }
    }

    /// Bytes that clients have sent so far.
    fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    fn most_on_the_way(&self) -> usize {
        self.most_on_the_way.load(Ordering::Relaxed)
    }

    fn forget(&self) {
        self.forgotten.store(self.accepted.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}
