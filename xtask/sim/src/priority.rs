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

use resilience_core::{AnyError, Bulkhead, Call, Pipeline};
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
const WORKERS: usize = 10;
/// 200 a second by all workers.
const WORK: Duration = Duration::from_millis(50);
const HIGH: f64 = 100.0;
const LOW: f64 = 60.0;
const SURGE: f64 = 12.0 * LOW;
/// Seconds from the start.
const SURGING: Range<u32> = 20..80;

/// Every case.
#[must_use]
pub fn run(seed: u64) -> Vec<Row> {
    let cases: [(&str, Make, [Target; 2]); 2] = [
        (
            "nothing",
            || Pipeline::builder("service").deadline(SECOND).build().expect("valid"),
            [Target::None; 2],
        ),
        ("fixed bulkhead", bulkhead, [Target::None; 2]),
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

type Make = fn() -> Pipeline;

fn bulkhead() -> Pipeline {
    let bulkhead = Bulkhead::new("service", WORKERS, SECOND / 2).expect("the settings are valid");
    let pipeline = Pipeline::builder("service").deadline(SECOND).bulkhead(bulkhead);
    pipeline.build().expect("the settings are valid")
}

/// Runs until a while after the surge. Only what began in it is counted.
async fn surge(pipeline: Pipeline) -> Seen {
    let start = Instant::now();
    let at = |second: u32| start + SECOND * second;
    let world = Rc::new(World {
        pipeline,
        service: Station::new(WORKERS, WORK),
        surge: at(SURGING.start)..at(SURGING.end),
        seen: RefCell::default(),
    });
    let end = at(SURGING.end + 5);
    let mut kinds = JoinSet::new();
    kinds.spawn_local(Rc::clone(&world).requests(Kind::High, end));
    kinds.spawn_local(Rc::clone(&world).requests(Kind::Low, end));
    kinds.join_all().await;
    world.seen.take()
}

#[derive(Clone, Copy)]
enum Kind {
    High,
    Low,
}

struct World {
    pipeline: Pipeline,
    service: Station,
    surge: Range<Instant>,
    seen: RefCell<Seen>,
}

impl World {
    async fn requests(self: Rc<Self>, kind: Kind, end: Instant) {
        let mut requests = JoinSet::new();
        let mut arrivals = Arrivals::begin();
        while Instant::now() < end {
            let surging = self.surge.contains(&Instant::now());
            let rate = match kind {
                Kind::High => HIGH,
                Kind::Low if surging => SURGE,
                Kind::Low => LOW,
            };
            arrivals.next(rate).await;
            requests.spawn_local(Rc::clone(&self).request(kind));
            while requests.try_join_next().is_some() {}
        }
        requests.join_all().await;
    }

    async fn request(self: Rc<Self>, kind: Kind) {
        let begun = Instant::now();
        let work = |_| async {
            self.service.work().await;
            Ok::<_, Infallible>(())
        };
        let answer = self.pipeline.run(Call::read(), &AnyError, work).await;
        if self.surge.contains(&begun) {
            let mut seen = self.seen.borrow_mut();
            let of_kind = match kind {
                Kind::High => &mut seen.high,
                Kind::Low => &mut seen.low,
            };
            of_kind.requests += 1;
            of_kind.served += u32::from(answer.is_ok());
        }
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
}
