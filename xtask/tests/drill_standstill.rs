//! Fear: this process is stopped for a while, and on waking blames services that were well all the time.
//!
//! Runs the example service under traffic and stops it by SIGSTOP for longer than any time limit in it, as
//! a debugger, a frozen container or a machine without memory would. No breaker may open, no budget may be
//! spent, no alert may be raised, and what is asked afterwards is answered at once. It runs alone: a
//! machine that is busy with other tests would be trouble of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::clock::{Deadline, Stopwatch, pause};
use xtask::demo::{self, App, Client, Reply};
use xtask::servers::{Backend, Profile, Servers, Service};

/// How long nothing of the service runs, each time: past the deadline of a request, and past every limit.
const STOPS: [Duration; 3] =
    [Duration::from_secs(3), Duration::from_secs(3), Duration::from_secs(30)];
/// Traffic before, between and after them.
const TRAFFIC: Duration = Duration::from_secs(2);
/// The latest that a request after a stop may be answered: it may have to open a connection.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Clients of each route, so many requests may be in flight when the service stops.
const CLIENTS: usize = 4;

/// A request of one kind; the number makes each one of its own.
type Ask = fn(Client, u32) -> anyhow::Result<Reply>;

/// Every route that needs a server.
const ROUTES: [(&str, Ask); 5] = [
    ("GET /campaigns?q=", |client, _| client.get("/campaigns?q=solar%20lantern")),
    ("GET /campaigns/{id}", |client, turn| client.get(&format!("/campaigns/{}", campaign(turn)))),
    ("POST …/donations", |client, turn| {
        let key = format!("standstill-{}-{turn}", std::process::id());
        let path = format!("/campaigns/{}/donations", campaign(turn));
        let body = json!({ "donor": "Grace", "amount_cents": 1 });
        client.send("POST", &path, &[("Idempotency-Key", &key)], Some(&body))
    }),
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

fn begin(client: Client) -> anyhow::Result<Reply> {
    client.send("POST", "/session", &[], Some(&json!({ "user": "grace", "seconds": 60 })))
}

#[test]
fn a_process_that_was_stopped_blames_no_service() {
    let servers = Servers::up(Profile::Single, Backend::Auto).expect("servers");
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
            traffic.phase.fetch_add(1, Ordering::AcqRel);
            app.stopped(|| pause(stop)).expect("a stop");
            traffic.phase.fetch_add(1, Ordering::AcqRel);
            for route in ROUTES {
                traffic.ask(app.client(), route);
            }
            until_looked_at(app);
        }
        keep_watching(app, TRAFFIC);
    });

    let broken = traffic.broken.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(broken.is_empty(), "asked while the service ran:\n{}", broken.join("\n"));
    assert!(
        traffic.across.load(Ordering::Relaxed) > 0,
        "nothing was in flight: there was no fault"
    );
    let circuits = app.client().get("/health/circuit-breakers").expect("the circuits");
    let circuits: BTreeMap<String, Value> =
        serde_json::from_str(&circuits.body).expect("an object by name");
    let metrics = app.client().get("/metrics").expect("metrics").body;
    for l in metrics.lines() {
        if (l.contains("error_type") && l.contains("_count")) || l.starts_with("resilience_") {
            println!("{l}");
        }
    }
    println!("across {}", traffic.across.load(Ordering::Relaxed));
    assert_eq!(circuits.len(), Service::ALL.len());
    for (name, circuit) in &circuits {
        for (field, wanted) in [
            ("/state", json!("closed")),
            ("/generation", json!(0)),
            ("/consecutive_failures", json!(0)),
            ("/not_permitted", json!(0)),
            ("/calls/failure", json!(0)),
        ] {
            assert_eq!(circuit.pointer(field), Some(&wanted), "{field} of {name}: {circuit}");
        }
    }
    let metrics = app.client().get("/metrics").expect("metrics").body;
    for name in [
        "resilience_circuit_breaker_transitions_total",
        "resilience_retry_budget_exhausted_total",
        "external_service_health_transitions_total",
        "external_service_alert_notifications_total",
    ] {
        println!("{name} {}", sum(&metrics, name));
    }
    for l in metrics.lines() {
        if (l.contains("error_type") && l.contains("_count")) || l.starts_with("resilience_") {
            println!("{l}");
        }
    }
    println!("across {}", traffic.across.load(Ordering::Relaxed));
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
    broken: Mutex<Vec<String>>,
}

impl Traffic {
    fn keep_asking(&self, client: Client, route: (&str, Ask)) {
        while !self.over.load(Ordering::Relaxed) {
            self.ask(client, route);
        }
    }

    /// Asks once. Whatever had nothing to do with a stop must be answered in full, and at once.
    fn ask(&self, client: Client, (name, ask): (&str, Ask)) {
        let began = self.phase.load(Ordering::Acquire);
        let reply = ask(client, self.turn.fetch_add(1, Ordering::Relaxed));
        let ended = self.phase.load(Ordering::Acquire);
        if began != ended || began % 2 == 1 {
            self.across.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let whole = |reply: &Reply| {
            matches!(reply.status, 200 | 201)
                && reply.took <= AT_ONCE
                && !reply.body.contains("\"degraded\":true")
        };
        let seen = match reply {
            Ok(reply) if whole(&reply) => return,
            Ok(Reply { status, body, took, .. }) => format!("{status} after {took:?}: {body}"),
            Err(error) => format!("{error:#}"),
        };
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.push(format!("{name}, after {} stops: {seen}", began / 2));
    }
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
    let is_whole = |(name, ask): &(&str, Ask)| {
        let reply = ask(app.client(), u32::MAX).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        matches!(reply.status, 200 | 201) && !reply.body.contains("\"degraded\":true")
    };
    while !ROUTES.iter().all(is_whole) {
        assert!(!patience.has_passed(), "no full service before any fault");
        pause(Duration::from_millis(25));
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
fn sum(metrics: &str, name: &str) -> f64 {
    let of_name =
        |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    metrics.lines().filter(of_name).filter_map(value).sum()
}
