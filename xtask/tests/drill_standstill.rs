//! Fear: this process is stopped for a while, and on waking blames services that were well all the time.
//!
//! Runs the example service under traffic and stops it by SIGSTOP for longer than any time limit in it, as
//! a debugger, a frozen container or a machine without memory would. No breaker may open, no budget may be
//! spent, no alert may be raised, and what is asked afterwards is answered in time. It runs alone: a
//! machine that is busy with other tests would be trouble of its own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::clock::{Deadline, Stopwatch, pause};
use xtask::demo::{self, App, Client, Outside, Reply};
use xtask::servers::{Backend, Profile, Servers};

/// How long nothing of the service runs, each time: past the deadline of a request, and past every limit.
const STOPS: [Duration; 3] =
    [Duration::from_secs(3), Duration::from_secs(3), Duration::from_secs(30)];
/// Traffic before, between and after them.
const TRAFFIC: Duration = Duration::from_secs(2);
/// The deadline of a request, and what the way to us and back may add.
const LATEST: Duration = Duration::from_millis(2100);
/// Clients of each route, so many requests may be in flight when the service stops.
const CLIENTS: usize = 2;
/// A campaign that the other requests leave alone: a lock on it holds up donations until the service stops.
const LOCKED: u32 = 4_999;

/// A request of one kind; the number makes each one of its own.
type Ask = fn(Client, u32) -> anyhow::Result<Reply>;

/// Every route that needs a server.
const ROUTES: [(&str, Ask); 5] = [
    ("GET /campaigns?q=", |client, _| client.get("/campaigns?q=solar%20lantern")),
    ("GET /campaigns/{id}", |client, turn| client.get(&format!("/campaigns/{}", campaign(turn)))),
    ("POST …/donations", |client, turn| donate(client, campaign(turn), turn)),
    ("POST /session", |client, _| begin(client)),
    ("GET /session", |client, _| {
        let begun = begin(client)?;
        let Ok(session) = begun.json() else { return Ok(begun) };
        let bearer = format!("Bearer {}", session["token"].as_str().unwrap_or_default());
        client.send("GET", "/session", &[("Authorization", &bearer)], None)
    }),
];

fn campaign(turn: u32) -> u32 {
    turn % 4_000 + 1
}

fn donate(client: Client, campaign: u32, turn: u32) -> anyhow::Result<Reply> {
    let key = format!("standstill-{}-{turn}", std::process::id());
    let path = format!("/campaigns/{campaign}/donations");
    let body = json!({ "donor": "Grace", "amount_cents": 1 });
    client.send("POST", &path, &[("Idempotency-Key", &key)], Some(&body))
}

fn begin(client: Client) -> anyhow::Result<Reply> {
    client.send("POST", "/session", &[], Some(&json!({ "user": "grace", "seconds": 60 })))
}

#[test]
fn a_process_that_was_stopped_blames_no_service() {
    let servers = Servers::up(Profile::Single, Backend::Auto).expect("servers");
    let outside = Outside::of(&servers).expect("the servers' own clients");
    let app = demo::start(&servers).expect("the example service");
    until_whole(&app);
    let (app, traffic) = (&app, &Traffic::default());
    std::thread::scope(|scope| {
        for route in ROUTES {
            for _ in 0..CLIENTS {
                scope.spawn(move || traffic.keep_asking(app.client(), route));
            }
        }
        let _ends = Ends(&traffic.over);
        for stop in STOPS {
            keep_watching(app, TRAFFIC);
            let mut lock = lock(&outside);
            for _ in 0..CLIENTS {
                scope.spawn(move || {
                    let held_up: Ask = |client, turn| donate(client, LOCKED, turn);
                    traffic.ask(app.client(), ("a donation that waits for a lock", held_up));
                });
            }
            until_count(&outside, "pg_locks WHERE NOT granted");
            traffic.phase.fetch_add(1, Ordering::AcqRel);
            app.stopped(|| pause(stop)).expect("a stop");
            traffic.phase.fetch_add(1, Ordering::AcqRel);
            for route in ROUTES {
                traffic.ask(app.client(), route);
            }
            until_looked_at(app);
            assert!(lock.wait().expect("psql").success());
        }
        keep_watching(app, TRAFFIC);
    });

    let broken = traffic.broken.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(broken.is_empty(), "asked while the service ran:\n{}", broken.join("\n"));
    let circuits = app.client().get("/health/circuit-breakers").expect("the circuits");
    let circuits: BTreeMap<String, Value> =
        serde_json::from_str(&circuits.body).expect("an object by name");
    assert_eq!(circuits.len(), Profile::Single.services().len());
    let untouched = [
        ("/state", json!("closed")),
        ("/generation", json!(0)),
        ("/consecutive_failures", json!(0)),
        ("/not_permitted", json!(0)),
        ("/calls/failure", json!(0)),
    ];
    let mut excused = 0;
    for (name, circuit) in &circuits {
        for (field, wanted) in &untouched {
            assert_eq!(circuit.pointer(field), Some(wanted), "{field} of {name}: {circuit}");
        }
        excused += circuit["calls"]["excluded"].as_u64().expect("a count");
    }
    let metrics = app.client().get("/metrics").expect("the metrics").body;
    for name in [
        "resilience_circuit_breaker_transitions_total",
        "resilience_retry_budget_exhausted_total",
        "external_service_health_transitions_total",
        "external_service_alert_notifications_total",
    ] {
        assert_eq!(sum(&metrics, name), 0, "{name}");
    }
    let across = traffic.across.load(Ordering::Relaxed);
    let latest = traffic.latest.lock().unwrap_or_else(PoisonError::into_inner);
    let shown = format!(
        "stopped {} times, {} s at the longest: {across} requests in flight, {excused} attempts excused; \
         asked afterwards: all whole, the latest after {} ms\n",
        STOPS.len(),
        STOPS[STOPS.len() - 1].as_secs(),
        latest.as_millis(),
    );
    // Past the test harness, which shows only what failing tests print.
    std::io::stdout().write_all(format!("\n{shown}").as_bytes()).expect("standard output");
    assert!(excused > 0, "nothing was cut off: there was no fault");
}

/// What the clients do and see.
#[derive(Default)]
struct Traffic {
    over: AtomicBool,
    /// Even while the service runs, odd while it is stopped; one more each time.
    phase: AtomicU32,
    turn: AtomicU32,
    /// Requests that began before a stop and ended after it.
    across: AtomicU32,
    /// The longest that an answer took after a stop.
    latest: Mutex<Duration>,
    broken: Mutex<Vec<String>>,
}

impl Traffic {
    fn keep_asking(&self, client: Client, route: (&str, Ask)) {
        while !self.over.load(Ordering::Relaxed) {
            self.ask(client, route);
        }
    }

    /// Asks once. Whatever had nothing to do with a stop must be answered in full, and in time.
    fn ask(&self, client: Client, (name, ask): (&str, Ask)) {
        let began = self.phase.load(Ordering::Acquire);
        let reply = ask(client, self.turn.fetch_add(1, Ordering::Relaxed));
        let ended = self.phase.load(Ordering::Acquire);
        if began != ended || began % 2 == 1 {
            self.across.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let (Ok(reply), true) = (&reply, began > 0) {
            let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            *latest = latest.max(reply.took);
        }
        let seen = match reply {
            Ok(reply) if is_whole(&reply) && reply.took <= LATEST => return,
            Ok(Reply { status, body, took, .. }) => format!("{status} after {took:?}: {body}"),
            Err(error) => format!("{error:#}"),
        };
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.push(format!("{name}, after {} stops: {seen}", began / 2));
    }
}

/// Whether the route gives all it has, and not a stand-in for it.
fn is_whole(reply: &Reply) -> bool {
    matches!(reply.status, 200 | 201) && !reply.body.contains("\"degraded\":true")
}

/// Ends the traffic, even if something is not as it should be.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until every route is answered in full: tables and index are there.
fn until_whole(app: &App) {
    let patience = Deadline::after(Duration::from_secs(20));
    let answers = |(name, ask): &(&str, Ask)| {
        let reply = ask(app.client(), u32::MAX).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        is_whole(&reply)
    };
    while !ROUTES.iter().all(answers) {
        assert!(!patience.has_passed(), "no full service before any fault");
        pause(Duration::from_millis(25));
    }
}

/// Locks a campaign, for less long than the shortest stop: what waits for it goes on in the middle of one.
fn lock(outside: &Outside) -> Child {
    let lock = format!(
        "SELECT FROM campaigns WHERE id = {LOCKED} FOR UPDATE; SELECT pg_sleep({})",
        STOPS[0].as_secs() - 1
    );
    let lock = outside.sql_in_background(&lock).expect("psql");
    until_count(outside, "pg_stat_activity WHERE wait_event = 'PgSleep'");
    lock
}

/// Waits until PostgreSQL sees one of those at least.
fn until_count(outside: &Outside, those: &str) {
    let patience = Deadline::after(Duration::from_secs(5));
    while outside.sql(&format!("SELECT count(*) FROM {those}")).expect("a count") == "0" {
        assert!(!patience.has_passed(), "none of {those}");
        pause(Duration::from_millis(5));
    }
}

/// Looks at the services' health for so long: no alert may be raised about any.
fn keep_watching(app: &App, time: Duration) {
    let watch = Stopwatch::start();
    while watch.elapsed() < time {
        detailed(app);
        pause(Duration::from_millis(50));
    }
}

/// Waits until every service has been looked at since now, and is healthy; no alert may be raised meanwhile.
fn until_looked_at(app: &App) {
    let watch = Stopwatch::start();
    let fresh = |service: &Value| {
        let age = service["age_seconds"].as_f64().expect("it was looked at before");
        age < watch.elapsed().as_secs_f64()
    };
    loop {
        let body = detailed(app);
        let services = body["services"].as_object().expect("services by name");
        if services.values().all(fresh) {
            for (name, service) in services {
                assert_eq!(service["check_status"], "healthy", "{name}: {service}");
            }
            assert_eq!(body["status"], "healthy", "{body}");
            return;
        }
        assert!(watch.elapsed() < Duration::from_secs(10), "nobody looks: {body}");
        pause(Duration::from_millis(25));
    }
}

fn detailed(app: &App) -> Value {
    let reply = app.client().get("/health/detailed").expect("an answer");
    let body = reply.json().expect("a body");
    assert_eq!(body["alerts"], json!([]), "{body}");
    body
}

/// The sum of all series of the counter `name`; without any, 0.
fn sum(metrics: &str, name: &str) -> u64 {
    let series = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let series = series.filter(|rest| rest.starts_with(['{', ' ']));
    let value = |rest: &str| rest.rsplit(' ').next()?.parse::<u64>().ok();
    series.map(|rest| value(rest).expect("a counter has a whole number")).sum()
}
