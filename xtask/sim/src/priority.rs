//! A surge of work that can wait, in front of work that cannot.
//!
//! Netflix, "Enhancing Netflix Reliability with Service-Level Prioritized Load Shedding" (2024): prefetching rose to twelve
//! times its rate; of the requests of users more than 99.4 % were served, of the prefetches 20 %. Here 100 requests a second of
//! users and 60 of the other kind, 720 in the surge, come to a service that can do 200; whoever is not answered
//! within a second has gone.

use std::cell::RefCell;
use std::convert::Infallible;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use resilience_core::{
    AnyError, Bulkhead, Call, CallError, Load, LoadShedder, Pipeline, Prioritizer, Priority,
    RateLimiter,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::service::Station;
use crate::world::{Arrivals, simulate};
use crate::{Row, Simulation, Target};

/// The simulation in full.
pub const SIMULATION: Simulation = Simulation {
    name: "priority",
    about: "100 important requests a second and 60 others, 720 for a minute, to a service that can do 200 (Netflix 2024). Answers \
            within 1 s; the minute of the surge.",
    run,
};

const SECOND: Duration = Duration::from_secs(1);
const WORKERS: u32 = 10;
const WORK: Duration = Duration::from_millis(50);
const CAPACITY: f64 = 200.0;
/// The longest wait for a place in the bulkhead.
const WAIT: Duration = Duration::from_millis(500);
const HIGH: f64 = 100.0;
const LOW: f64 = 60.0;
const SURGE: f64 = 12.0 * LOW;
/// Seconds from the start.
const SURGING: Range<u32> = 20..80;

/// Every case.
#[must_use]
pub fn run(seed: u64) -> Vec<Row> {
    let cases: [(&str, Make, [Target; 2]); 4] = [
        ("nothing", nothing, [Target::None; 2]),
        ("token bucket of 200 a second", token_bucket, [Target::None; 2]),
        ("fixed bulkhead", bulkhead, [Target::None; 2]),
        (
            "bulkhead, shedding by priority",
            shedding,
            [Target::AtLeast(0.994), Target::AtLeast(0.95 * CAPACITY)],
        ),
    ];
    let rows = cases.map(|(case, layers, [high, throughput])| {
        let seen = simulate(seed, surge(layers()));
        let row = |metric, value| Row::new("priority", case, metric, value);
        let seconds = f64::from(SURGING.end - SURGING.start);
        [
            row("important requests served", seen.high.share()).published(0.994).target(high),
            row("others served", seen.low.share()).published(0.2),
            row("throughput, a second", f64::from(seen.high.served + seen.low.served) / seconds)
                .target(throughput),
        ]
    });
    rows.concat()
}

/// What stands before the service.
struct Layers {
    limiter: Option<RateLimiter>,
    shedder: Option<LoadShedder>,
    pipeline: Pipeline,
}

type Make = fn() -> Layers;

fn nothing() -> Layers {
    let pipeline = Pipeline::builder("service").deadline(SECOND).build();
    Layers { limiter: None, shedder: None, pipeline: pipeline.expect("the settings are valid") }
}

/// As many a second as the service can do, whoever comes first.
fn token_bucket() -> Layers {
    let limiter = RateLimiter::builder("service", 200, SECOND).burst(10).build();
    Layers { limiter: Some(limiter.expect("the settings are valid")), ..nothing() }
}

fn bulkhead() -> Layers {
    behind(Bulkhead::new("service", WORKERS, WAIT).expect("the settings are valid"))
}

fn behind(bulkhead: Bulkhead) -> Layers {
    let pipeline = Pipeline::builder("service").deadline(SECOND).bulkhead(bulkhead).build();
    Layers { limiter: None, shedder: None, pipeline: pipeline.expect("the settings are valid") }
}

fn shedding() -> Layers {
    let bulkhead = Bulkhead::new("service", WORKERS, WAIT).expect("the settings are valid");
    let watched = bulkhead.clone();
    let load = move || Load::from(&watched);
    let shedder = LoadShedder::watching("service", &Prioritizer::new(), load);
    Layers { shedder: Some(shedder), ..behind(bulkhead) }
}

/// Runs until a while after the surge. Only what began in it is counted.
async fn surge(layers: Layers) -> Seen {
    let start = Instant::now();
    let at = |second: u32| start + SECOND * second;
    let world = Rc::new(World {
        layers,
        service: Station::new(WORKERS as usize, WORK),
        surge: at(SURGING.start)..at(SURGING.end),
        seen: RefCell::default(),
    });
    let mut requests = JoinSet::new();
    let mut arrivals = Arrivals::begin();
    while Instant::now() < at(SURGING.end + 5) {
        let low = if world.surge.contains(&Instant::now()) { SURGE } else { LOW };
        arrivals.next(HIGH + low).await;
        // Two processes would arrive in one order wherever they meet in a millisecond.
        let high = fastrand::f64() * (HIGH + low) < HIGH;
        let kind = if high { Kind::High } else { Kind::Low };
        requests.spawn_local(Rc::clone(&world).request(kind));
        while requests.try_join_next().is_some() {}
    }
    requests.join_all().await;
    world.seen.take()
}

#[derive(Clone, Copy)]
enum Kind {
    High,
    Low,
}

struct World {
    layers: Layers,
    service: Station,
    surge: Range<Instant>,
    seen: RefCell<Seen>,
}

impl World {
    async fn request(self: Rc<Self>, kind: Kind) {
        let begun = Instant::now();
        let served = self.serve(kind).await;
        if self.surge.contains(&begun) {
            let mut seen = self.seen.borrow_mut();
            let of_kind = match kind {
                Kind::High => &mut seen.high,
                Kind::Low => &mut seen.low,
            };
            of_kind.requests += 1;
            of_kind.served += u32::from(served);
        }
    }

    async fn serve(&self, kind: Kind) -> bool {
        let Layers { limiter, shedder, pipeline } = &self.layers;
        if limiter.as_ref().is_some_and(|limiter| limiter.try_acquire().is_err()) {
            return false;
        }
        let priority = match kind {
            Kind::High => Priority::High,
            Kind::Low => Priority::Low,
        };
        let guard = match shedder.as_ref().map(|shedder| shedder.admit(priority)).transpose() {
            Ok(guard) => guard,
            Err(_) => return false,
        };
        let work = |_| async {
            self.service.work().await;
            Ok::<_, Infallible>(())
        };
        let answer = pipeline.run(Call::read(), &AnyError, work).await;
        if let (Some(guard), Err(CallError::BulkheadFull(_))) = (guard, &answer) {
            guard.refused_behind();
        }
        answer.is_ok()
    }
}

/// What became of the requests of the surge.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    high: OfKind,
    low: OfKind,
}

#[derive(Debug, Default, PartialEq)]
struct OfKind {
    requests: u32,
    served: u32,
}

impl OfKind {
    fn share(&self) -> f64 {
        f64::from(self.served) / f64::from(self.requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_result() {
        assert_eq!(simulate(1, surge(bulkhead())), simulate(1, surge(bulkhead())));
    }

    #[test]
    fn the_surge_is_twelve_times_what_it_was() {
        let Seen { high, low } = simulate(1, surge(bulkhead()));
        let times = f64::from(low.requests) / f64::from(high.requests) * HIGH / LOW;
        assert!((times - 12.0).abs() < 0.5, "{times}");
    }

    #[test]
    fn important_work_does_not_notice_the_surge() {
        let share = |layers| simulate(2, surge(layers)).high.share();
        assert!(share(shedding()) >= 0.994);
        assert!(share(bulkhead()) < 0.5);
    }
}
