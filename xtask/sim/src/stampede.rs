//! A service comes back, and a thousand breakers let their calls through again.
//!
//! 1,000 processes with a breaker each make 2 calls a second. The service goes down for 20 s; all circuits open within
//! seconds of each other. It comes back with half of its capacity, as one does whose caches are cold and whose
//! connections are closed, which is less than it is asked for; the other half follows after 30 s. Nobody has
//! published figures for this set-up: breakers that probe at the same time stand for what is commonly done.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use resilience_core::{AnyError, Call, CircuitBreaker, CircuitBreakerBuilder, Pipeline};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::service::Station;
use crate::world::{Arrivals, simulate};
use crate::{Row, Simulation, Target};

/// The simulation in full.
pub const SIMULATION: Simulation = Simulation {
    name: "stampede",
    about: "1,000 processes, a breaker each (open for 20 s), make 2,000 calls a second to a service that bears 3,000; down for \
            20 s, it comes back bearing 1,500, and 3,000 after 30 s. Attempts of 1 s. At a fixed time all probe and return at \
            once, and open again. Jitter spreads the probes; a share of calls that rises over 30 s spreads what comes after.",
    run: |seed| run(seed, 1000),
};

const SECOND: Duration = Duration::from_secs(1);
/// Calls a second of each client.
const RATE: f64 = 2.0;
/// Seconds from the start.
const DOWN: Range<usize> = 10..30;
const HALF: Range<usize> = 30..60;
const END: usize = 100;
/// Time of each piece of work, with one worker for every 33 clients: 3 calls a second for each client.
const WORK: Duration = Duration::from_millis(10);
/// Over which traffic rises once a circuit has closed: as long as the service bears half.
const RECOVERY: Duration = Duration::from_secs(30);

/// Every case, for that many clients.
#[must_use]
pub fn run(seed: u64, clients: usize) -> Vec<Row> {
    let half = f64::from(u32::try_from(clients).expect("few clients")) * 1.5;
    let borne = Target::AtMost(half);
    let cases: [(&str, Settings, [Target; 2]); 4] = [
        ("fixed reset timeout", |breaker| breaker, [Target::None; 2]),
        ("jittered", |breaker| breaker.reset_timeout_jitter(0.5), [borne, Target::None]),
        (
            "progressive recovery",
            |breaker| breaker.recovery(RECOVERY),
            [borne, Target::AtLeast(0.9)],
        ),
        (
            "jittered, progressive",
            |breaker| breaker.reset_timeout_jitter(0.5).recovery(RECOVERY),
            [borne, Target::AtLeast(0.9)],
        ),
    ];
    let rows = cases.map(|(case, settings, [peak, whole])| {
        let seen = simulate(seed, outage(clients, settings));
        let row = |metric, value| Row::new("stampede", case, metric, value);
        let first = HALF.start..HALF.start + 10;
        [
            row("peak load of the first 10 s, attempts a second", seen.peak(first)).target(peak),
            row("goodput, first 30 s back", seen.goodput(HALF)),
            row("goodput, next 30 s", seen.goodput(HALF.end..HALF.end + 30)).target(whole),
        ]
    });
    rows.concat()
}

/// What makes the case different.
type Settings = fn(CircuitBreakerBuilder) -> CircuitBreakerBuilder;

fn pipeline(settings: Settings) -> Pipeline {
    let breaker = CircuitBreaker::builder("service").fail_max(5).reset_timeout(20 * SECOND);
    Pipeline::builder("service")
        .attempt_timeout(SECOND)
        .breaker(settings(breaker).build().expect("the settings are valid"))
        .build()
        .expect("the settings are valid")
}

async fn outage(clients: usize, settings: Settings) -> Seen {
    let world = Rc::new(World {
        service: Station::new(clients * 3 / 100, WORK),
        down: Cell::new(false),
        start: Instant::now(),
        seen: RefCell::new(Seen { seconds: vec![Second::default(); END + 10] }),
    });
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let client = Client { world: Rc::clone(&world), pipeline: pipeline(settings) };
        tasks.spawn_local(client.call_until_the_end());
    }
    for (second, down, time) in
        [(DOWN.start, true, WORK), (HALF.start, false, 2 * WORK), (HALF.end, false, WORK)]
    {
        sleep(world.at(second).duration_since(Instant::now())).await;
        world.down.set(down);
        world.service.set_time(time);
    }
    tasks.join_all().await;
    world.seen.take()
}

struct World {
    service: Station,
    down: Cell<bool>,
    start: Instant,
    seen: RefCell<Seen>,
}

impl World {
    fn at(&self, second: usize) -> Instant {
        self.start + SECOND * u32::try_from(second).expect("a run is short")
    }

    fn count(&self, begun: Instant, change: impl FnOnce(&mut Second)) {
        let second = begun.duration_since(self.start).as_secs();
        let second = usize::try_from(second).expect("a run is short");
        change(&mut self.seen.borrow_mut().seconds[second]);
    }
}

#[derive(Clone)]
struct Client {
    world: Rc<World>,
    pipeline: Pipeline,
}

impl Client {
    async fn call_until_the_end(self) {
        let mut calls = JoinSet::new();
        let mut arrivals = Arrivals::begin();
        while Instant::now() < self.world.at(END) {
            arrivals.next(RATE).await;
            calls.spawn_local(self.clone().call());
            while calls.try_join_next().is_some() {}
        }
        calls.join_all().await;
    }

    async fn call(self) {
        let begun = Instant::now();
        let answer = self.pipeline.run(Call::read(), &AnyError, |_| self.attempt()).await;
        self.world.count(begun, |second| {
            second.calls += 1;
            second.served += u32::from(answer.is_ok());
        });
    }

    async fn attempt(&self) -> Result<(), &'static str> {
        self.world.count(Instant::now(), |second| second.attempts += 1);
        if self.world.down.get() {
            return Err("connection refused");
        }
        self.world.service.work().await;
        Ok(())
    }
}

/// What happened in each second.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    seconds: Vec<Second>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Second {
    calls: u32,
    served: u32,
    attempts: u32,
}

impl Seen {
    fn peak(&self, seconds: Range<usize>) -> f64 {
        f64::from(self.seconds[seconds].iter().map(|second| second.attempts).max().unwrap_or(0))
    }

    fn goodput(&self, seconds: Range<usize>) -> f64 {
        let seconds = &self.seconds[seconds];
        let sum = |of: fn(&Second) -> u32| f64::from(seconds.iter().map(of).sum::<u32>());
        sum(|second| second.served) / sum(|second| second.calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_result() {
        let run = || simulate(1, outage(100, |breaker| breaker));
        assert_eq!(run(), run());
    }

    #[test]
    fn a_service_that_is_down_is_hardly_asked() {
        let seen = simulate(1, outage(100, |breaker| breaker));
        assert!(seen.goodput(0..DOWN.start) > 0.999);
        assert!(seen.peak(20..DOWN.end) < 10.0, "{:?}", &seen.seconds[DOWN]);
    }

    #[test]
    fn nobody_stampedes_who_returns_by_and_by() {
        let missed: Vec<_> = run(1, 100).into_iter().filter(|row| !row.ok).collect();
        assert!(missed.is_empty(), "{missed:?}");
        let fixed = simulate(1, outage(100, |breaker| breaker)).peak(HALF.start..HALF.start + 10);
        assert!(fixed > 150.0, "{fixed} is no stampede");
    }
}
