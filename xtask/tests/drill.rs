//! Fear: a server dies or hangs under traffic, and takes routes with it that could do without.
//!
//! Runs the example service, takes each server away by SIGKILL and by SIGSTOP while every route is
//! being asked, and prints what was seen. It runs alone: it stops the servers of the other tests.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use xtask::clock::{Deadline, Stopwatch, pause};
use xtask::demo::{self, App, Reply};
use xtask::servers::{Backend, Profile, Servers, Service, Signal};

/// How long each fault lasts at the least; a killed server also takes its time to start.
const FAULT: Duration = Duration::from_secs(5);
/// The deadline of a request, and what the way to us and back may add.
const LATEST: Duration = Duration::from_millis(2100);
/// The reset timeout of the breakers here, and what probing may add.
const RECOVERY: Duration = Duration::from_secs(2 + 2);

/// A route, as a client uses it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Route {
    Search,
    Campaign,
    Donate,
    Session,
    Alive,
}

impl Route {
    const ALL: [Self; 5] = [Self::Search, Self::Campaign, Self::Donate, Self::Session, Self::Alive];

    const fn name(self) -> &'static str {
        match self {
            Self::Search => "GET /campaigns?q=",
            Self::Campaign => "GET /campaigns/{id}",
            Self::Donate => "POST …/donations",
            Self::Session => "POST /session",
            Self::Alive => "GET /health",
        }
    }

    /// The server without which there is no honest answer but 503.
    const fn needs(self) -> Option<Service> {
        match self {
            Self::Search | Self::Alive => None,
            Self::Campaign | Self::Donate => Some(Service::Postgres),
            Self::Session => Some(Service::Redis),
        }
    }

    /// Asks once; `turn` makes each request one of its own: another campaign, another donation.
    fn ask(self, app: &App, turn: u32) -> Reply {
        let client = app.client();
        let campaign = turn % 4_000 + 1;
        let reply = match self {
            Self::Search => client.get("/campaigns?q=solar%20lantern"),
            Self::Campaign => client.get(&format!("/campaigns/{campaign}")),
            Self::Donate => {
                let key = format!("outage-{}-{turn}", std::process::id());
                let body = json!({ "donor": "Grace", "amount_cents": 1 });
                let path = format!("/campaigns/{campaign}/donations");
                client.send("POST", &path, &[("Idempotency-Key", &key)], Some(&body))
            }
            Self::Session => client.send(
                "POST",
                "/session",
                &[],
                Some(&json!({ "user": "grace", "seconds": 5 })),
            ),
            Self::Alive => client.get("/health"),
        };
        reply.unwrap_or_else(|error| panic!("{} was not answered at all: {error:#}", self.name()))
    }

    /// Whether the route gives all it has, and not a stand-in for it.
    fn is_whole(self, reply: &Reply) -> bool {
        matches!(reply.status, 200 | 201) && !reply.body.contains("\"degraded\":true")
    }
}

/// What was seen of one route during one fault.
#[derive(Default)]
struct Seen {
    statuses: BTreeMap<u16, u32>,
    degraded: u32,
    latest: Duration,
    without_retry_after: u32,
}

impl Seen {
    fn note(&mut self, reply: &Reply) {
        *self.statuses.entry(reply.status).or_default() += 1;
        self.degraded += u32::from(reply.body.contains("\"degraded\":true"));
        self.latest = self.latest.max(reply.took);
        let no_hint = reply.status == 503 && reply.header("retry-after").is_none();
        self.without_retry_after += u32::from(no_hint);
    }

    fn count(&self, wanted: impl Fn(u16) -> bool) -> u32 {
        self.statuses.iter().filter(|(status, _)| wanted(**status)).map(|(_, count)| count).sum()
    }
}

/// The tests of this file take servers away: one at a time.
static SERVERS: Mutex<()> = Mutex::new(());

#[test]
fn an_application_starts_without_its_servers_and_recovers_by_itself() {
    let _alone = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut servers = Servers::up(Profile::Single, Backend::Auto).expect("servers");
    for &service in Profile::Single.services() {
        servers.stop(service).expect("a stop");
    }
    let app = demo::start(&servers).expect("the example service starts");
    let seen = under_traffic(&app, || {
        let ready = app.client().get("/ready").expect("an answer");
        assert!(ready.status == 503 && ready.header("retry-after").is_some(), "{}", ready.body);
        let fault = Deadline::after(Duration::from_secs(3));
        while !fault.has_passed() {
            pause(Duration::from_millis(50));
        }
    });
    for (route, seen) in Route::ALL.into_iter().zip(&seen) {
        let honest = |status| status == 503 || (route == Route::Alive && status == 200);
        assert_eq!(
            seen.count(|status| !honest(status)),
            0,
            "{}: {:?}",
            route.name(),
            seen.statuses
        );
        assert!(
            seen.latest <= LATEST && seen.without_retry_after == 0,
            "{}: {:?}",
            route.name(),
            seen.latest
        );
    }
    for &service in Profile::Single.services() {
        servers.start(service).expect("a start");
    }
    for &service in Profile::Single.services() {
        servers.wait_ready(service, Duration::from_secs(60)).expect("the server");
    }
    until_whole(&app, RECOVERY).unwrap_or_else(|left| panic!("{left} is not whole"));
}

#[test]
fn no_server_takes_a_route_with_it_that_can_do_without() {
    let _alone = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut servers = Servers::up(Profile::Single, Backend::Auto).expect("servers");
    let app = demo::start(&servers).expect("the example service");
    until_whole(&app, Duration::from_secs(20)).expect("full service before any fault");
    let mut table =
        format!("{:22}{:12}{:9}{:34}{:>9}\n", "route", "without", "by", "seen", "latest");
    let mut broken = Vec::new();
    for &service in Profile::Single.services() {
        for (signal, name) in [(Signal::KILL, "SIGKILL"), (Signal::STOP, "SIGSTOP")] {
            let seen = under_traffic(&app, || {
                servers.kill(service, signal).expect("the fault");
                let fault = Deadline::after(FAULT);
                while !fault.has_passed() {
                    pause(Duration::from_millis(50));
                }
                assert!(servers.check(service).is_err(), "{service} answers: there was no fault");
            });
            if signal == Signal::STOP {
                servers.kill(service, Signal::CONT).expect("the end of the fault");
            } else {
                servers.start(service).expect("a restart");
            }
            servers.wait_ready(service, Duration::from_secs(60)).expect("the server's return");
            let back = until_whole(&app, RECOVERY);
            for (route, seen) in Route::ALL.into_iter().zip(&seen) {
                let statuses: Vec<_> = seen
                    .statuses
                    .iter()
                    .map(|(status, count)| format!("{status} × {count}"))
                    .collect();
                let degraded = if seen.degraded > 0 {
                    format!(" ({} degraded)", seen.degraded)
                } else {
                    String::new()
                };
                let shown = statuses.join(", ") + &degraded;
                let latest = format!("{} ms", seen.latest.as_millis());
                let _ = writeln!(
                    table,
                    "{:22}{:12}{name:9}{shown:34}{latest:>9}",
                    route.name(),
                    service.name()
                );
                broken.extend(judge(route, service, name, seen));
            }
            match back {
                Ok(time) => {
                    let _ = writeln!(
                        table,
                        "{:22}full service {} ms after its return",
                        "",
                        time.as_millis()
                    );
                }
                Err(left) => broken.push(format!(
                    "{left} is not whole {RECOVERY:?} after the return of {service} from {name}"
                )),
            }
        }
    }
    // Past the test harness, which shows only what failing tests print.
    std::io::stdout().write_all(format!("\n{table}").as_bytes()).expect("standard output");
    assert!(broken.is_empty(), "\n{table}\n{}", broken.join("\n"));
}

/// What the promises say of one cell of the table.
fn judge(route: Route, service: Service, fault: &str, seen: &Seen) -> Vec<String> {
    let cell = format!("{} without {service} by {fault}", route.name());
    let mut broken = Vec::new();
    let mut promise = |holds: bool, what: &str| {
        if !holds {
            broken.push(format!("{cell}: {what}"));
        }
    };
    promise(seen.count(|_| true) >= 3, "hardly asked");
    promise(seen.latest <= LATEST, "an answer came too late");
    promise(seen.without_retry_after == 0, "a 503 without Retry-After");
    if route.needs() == Some(service) {
        promise(seen.count(|status| status == 503) > 0, "the fault was not felt");
        promise(
            seen.count(|status| status != 503 && status >= 400) == 0,
            "an answer other than success or 503",
        );
    } else {
        promise(
            seen.count(|status| status >= 400) == 0,
            "a failure on a route that can do without",
        );
    }
    if route == Route::Search && service == Service::Opensearch {
        promise(seen.degraded > 0, "nothing was said of being degraded");
    }
    broken
}

/// Keeps asking every route, each on a thread of its own, while `work` runs; in the order of `Route::ALL`.
fn under_traffic(app: &App, work: impl FnOnce()) -> Vec<Seen> {
    static TURN: AtomicU32 = AtomicU32::new(0);
    let over = AtomicBool::new(false);
    let seen: Vec<_> = Route::ALL.iter().map(|_| Mutex::new(Seen::default())).collect();
    std::thread::scope(|scope| {
        for (route, seen) in Route::ALL.into_iter().zip(&seen) {
            let over = &over;
            // Two clients a route: while one waits for a deadline, the other sees an open circuit.
            for _ in 0..2 {
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let reply = route.ask(app, TURN.fetch_add(1, Ordering::Relaxed));
                        seen.lock().unwrap().note(&reply);
                        pause(Duration::from_millis(25));
                    }
                });
            }
        }
        // The threads end even if the work does not.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
    seen.into_iter().map(|seen| seen.into_inner().unwrap()).collect()
}

/// Asks until every route is whole and every circuit closed: how long that took, or what is not so within `patience`.
fn until_whole(app: &App, patience: Duration) -> Result<Duration, String> {
    static TURN: AtomicU32 = AtomicU32::new(1_000_000);
    let watch = Stopwatch::start();
    loop {
        let ask = |route: &Route| route.ask(app, TURN.fetch_add(1, Ordering::Relaxed));
        let partial = Route::ALL.into_iter().find(|route| !route.is_whole(&ask(route)));
        let left = match partial {
            Some(route) => route.name().to_owned(),
            None if circuits_are_closed(app) => return Ok(watch.elapsed()),
            None => "a circuit".to_owned(),
        };
        if watch.elapsed() > patience {
            return Err(left);
        }
        pause(Duration::from_millis(25));
    }
}

fn circuits_are_closed(app: &App) -> bool {
    let body = app.client().get("/health/circuit-breakers").expect("an answer").body;
    body.matches("\"state\":\"closed\"").count() == Profile::Single.services().len()
}
