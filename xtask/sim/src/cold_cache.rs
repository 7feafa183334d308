//! A look-aside cache is flushed in front of a database that bears a tenth of the load.
//!
//! The second example of Bronson et al., "Metastable Failures in Distributed Systems" (HotOS 2021): nine of ten requests are
//! hits, the cache loses its contents, the database is asked for everything, answers later than anybody waits, and what
//! nobody waits for is not put into the cache. The keys are as popular as in Marc Brooker's simulator of it
//! (mbrooker/simulator_example, `cache_sim`): Zipf with an exponent of 1.3, the least recently used goes first.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use resilience_core::{
    AnyError, Bulkhead, Call, CallError, Load, LoadShedder, Pipeline, Prioritizer, Rank,
    RetryBudget, RetryPolicy, RetryPolicyBuilder, SingleFlight,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::service::Station;
use crate::world::{Arrivals, simulate};
use crate::{Row, Simulation, Target};

/// The simulation in full.
pub const SIMULATION: Simulation = Simulation {
    name: "cold-cache",
    about: "1,000 requests a second, 9 of 10 from the cache, over a database of 100 a second (Bronson et al. 2021); the cache is \
            flushed. Attempts of 1 s, 3 tries. Naive clients keep what the first second brought, and then nothing is answered in \
            time; what bounds the queue saves them.",
    run: |seed| run(seed, 120),
};

const RATE: f64 = 1000.0;
/// Workers of the database, and the time that each takes: 100 queries a second.
const WORKERS: u32 = 10;
const QUERY: Duration = Duration::from_millis(100);
const KEYS: u32 = 100_000;
const EXPONENT: f64 = 1.3;
/// Values that the cache holds: as many as make nine of ten requests hits.
const CAPACITY: usize = 2000;
/// Seconds before the flush: with a full cache, then to see it settled.
const SETTLED: Range<usize> = 10..30;

/// Every case, watched for `seconds` after the flush.
#[must_use]
pub fn run(seed: u64, seconds: usize) -> Vec<Row> {
    let naive = [Target::AtLeast(0.99), Target::AtMost(0.8), Target::None];
    let sound = [Target::AtLeast(0.99), Target::AtLeast(0.99), Target::AtMost(60.0)];
    let cases: [(&str, Make, [Target; 3]); 5] = [
        ("3 tries at once", naively, naive),
        ("3 tries at once, single flight", || naively().coalesced(), [Target::None; 3]),
        ("budget, bulkhead", bounded, sound),
        ("budget, bulkhead, single flight", || bounded().coalesced(), sound),
        ("budget, bulkhead, single flight, shedding", || shed().coalesced(), sound),
    ];
    let rows = cases.map(|(case, layers, [before, after, recovery])| {
        let seen = simulate(seed, flushed(layers(), seconds));
        let row = |metric, value| Row::new("cold-cache", case, metric, value);
        let last = SETTLED.end + seconds / 2..SETTLED.end + seconds;
        [
            row("hits before the flush", seen.hits(SETTLED)),
            row("goodput before the flush", seen.goodput(SETTLED)).target(before),
            row("goodput, 10 seconds after", seen.goodput(SETTLED.end..SETTLED.end + 10)),
            row("goodput, second half of the time after", seen.goodput(last)).target(after),
            row("seconds until goodput is 0.99 (120: never)", seen.recovery()).target(recovery),
        ]
    });
    rows.concat()
}

type Make = fn() -> Layers;

/// What stands before the database.
struct Layers {
    shedder: Option<LoadShedder>,
    pipeline: Pipeline,
    flights: Option<SingleFlight<u32, (), Infallible>>,
}

impl Layers {
    fn new(retry: RetryPolicyBuilder, bulkhead: Option<Bulkhead>) -> Self {
        let retry = retry.max_retries(2).build().expect("the settings are valid");
        let pipeline =
            Pipeline::builder("database").attempt_timeout(Duration::from_secs(1)).retry(retry);
        let pipeline = match bulkhead {
            Some(bulkhead) => pipeline.bulkhead(bulkhead),
            None => pipeline,
        };
        let pipeline = pipeline.build().expect("the settings are valid");
        Self { shedder: None, pipeline, flights: None }
    }

    /// The same, asking for each key once at a time.
    fn coalesced(self) -> Self {
        let flights = SingleFlight::new("database", 10_000).expect("the bound is above 0");
        Self { flights: Some(flights), ..self }
    }
}

fn naively() -> Layers {
    let soon = Duration::from_millis(1);
    Layers::new(RetryPolicy::builder().base_delay(soon).max_delay(soon), None)
}

/// As many queries as the database has workers, and a short wait for them.
fn bulkhead() -> Bulkhead {
    Bulkhead::new("database", WORKERS, Duration::from_millis(500)).expect("the settings are valid")
}

fn budgeted() -> RetryPolicyBuilder {
    RetryPolicy::builder().budget(RetryBudget::default())
}

fn bounded() -> Layers {
    Layers::new(budgeted(), Some(bulkhead()))
}

fn shed() -> Layers {
    let bulkhead = bulkhead();
    let watched = bulkhead.clone();
    let load = move || Load::from(&watched);
    let shedder = Some(LoadShedder::watching("database", &Prioritizer::new(), load));
    Layers { shedder, ..Layers::new(budgeted(), Some(bulkhead)) }
}

/// Runs until `seconds` after the flush.
async fn flushed(layers: Layers, seconds: usize) -> Seen {
    let client = Rc::new(Client {
        layers,
        database: Station::new(WORKERS as usize, QUERY),
        cache: RefCell::new(Cache::full()),
        seen: RefCell::default(),
        start: Instant::now(),
    });
    let popularity = Popularity::new();
    let mut requests = JoinSet::new();
    let mut arrivals = Arrivals::begin();
    let mut flush = Some(SETTLED.end);
    while client.second() < SETTLED.end + seconds {
        arrivals.next(RATE).await;
        if flush.take_if(|second| client.second() >= *second).is_some() {
            *client.cache.borrow_mut() = Cache::default();
        }
        let client = Rc::clone(&client);
        requests.spawn_local(client.request(popularity.draw()));
        while requests.try_join_next().is_some() {}
    }
    requests.join_all().await;
    client.seen.take()
}

struct Client {
    layers: Layers,
    database: Station,
    cache: RefCell<Cache>,
    seen: RefCell<Seen>,
    start: Instant,
}

impl Client {
    async fn request(self: Rc<Self>, key: u32) {
        let second = self.second();
        let hit = self.cache.borrow_mut().get(key);
        let served = hit || self.load(key).await;
        self.seen.borrow_mut().count(second, hit, served);
    }

    /// Asks the database, and puts its answer into the cache if it comes in time.
    async fn load(&self, key: u32) -> bool {
        let Layers { shedder, pipeline, flights } = &self.layers;
        let shedder = shedder.as_ref();
        let Ok(guard) = shedder.map(|shedder| shedder.admit(Rank::current())).transpose() else {
            return false;
        };
        let query = |_| async {
            self.database.work().await;
            Ok(())
        };
        let run = || pipeline.run(Call::read(), &AnyError, query);
        let full = |error: &CallError<Infallible>| matches!(error, CallError::BulkheadFull(_));
        let answer = match flights {
            Some(flights) => flights.run(key, run).await.map_err(|error| full(&error)),
            None => run().await.map_err(|error| full(&error)),
        };
        if answer.is_ok() {
            self.cache.borrow_mut().put(key);
        } else if let (Some(guard), Err(true)) = (guard, answer) {
            guard.refused_behind();
        }
        answer.is_ok()
    }

    fn second(&self) -> usize {
        usize::try_from(self.start.elapsed().as_secs()).expect("a run is short")
    }
}

/// How often each key is asked for.
struct Popularity {
    /// The share of requests for this key and those before it.
    up_to: Vec<f64>,
}

impl Popularity {
    fn new() -> Self {
        let mut sum = 0.0;
        let weights = (1..=KEYS).map(|key| f64::from(key).powf(-EXPONENT));
        let up_to = weights.map(|weight| {
            sum += weight;
            sum
        });
        Self { up_to: up_to.collect() }
    }

    fn draw(&self) -> u32 {
        let all = self.up_to.last().expect("there are keys");
        let drawn = fastrand::f64() * all;
        let key = self.up_to.partition_point(|up_to| *up_to < drawn);
        u32::try_from(key).expect("as many as keys")
    }
}

/// Forgets what was used least recently.
#[derive(Default)]
struct Cache {
    used: HashMap<u32, u64>,
    by_use: BTreeMap<u64, u32>,
    uses: u64,
}

impl Cache {
    /// Holding the most popular keys.
    fn full() -> Self {
        let mut cache = Self::default();
        (0..KEYS).take(CAPACITY).for_each(|key| cache.put(key));
        cache
    }

    fn get(&mut self, key: u32) -> bool {
        let hit = self.used.contains_key(&key);
        if hit {
            self.put(key);
        }
        hit
    }

    fn put(&mut self, key: u32) {
        self.uses += 1;
        if let Some(before) = self.used.insert(key, self.uses) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.uses, key);
        if self.used.len() > CAPACITY {
            let (_, last) = self.by_use.pop_first().expect("it holds as many as are used");
            self.used.remove(&last);
        }
    }
}

/// What became of the requests of each second.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    seconds: Vec<Second>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Second {
    requests: u32,
    hits: u32,
    served: u32,
}

impl Seen {
    fn count(&mut self, second: usize, hit: bool, served: bool) {
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        let second = &mut self.seconds[second];
        second.requests += 1;
        second.hits += u32::from(hit);
        second.served += u32::from(served);
    }

    fn share(&self, seconds: Range<usize>, of: fn(&Second) -> u32) -> f64 {
        let seconds = &self.seconds[seconds];
        let requests: u32 = seconds.iter().map(|second| second.requests).sum();
        f64::from(seconds.iter().map(of).sum::<u32>()) / f64::from(requests)
    }

    fn hits(&self, seconds: Range<usize>) -> f64 {
        self.share(seconds, |second| second.hits)
    }

    fn goodput(&self, seconds: Range<usize>) -> f64 {
        self.share(seconds, |second| second.served)
    }

    /// Seconds from the flush until every ten of them have a goodput of 0.99; all there are, if the last ten have not.
    fn recovery(&self) -> f64 {
        const SPAN: usize = 10;
        let after = SETTLED.end..self.seconds.len() - SPAN;
        let last = after.clone().rev().find(|from| self.goodput(*from..from + SPAN) < 0.99);
        let until = match last {
            None => after.start,
            Some(last) if last + 1 == after.end => self.seconds.len() - 1,
            Some(last) => last + 1,
        };
        f64::from(u32::try_from(until - after.start).expect("a run is short"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_result() {
        let run = || simulate(1, flushed(bounded(), 3));
        assert_eq!(run(), run());
    }

    #[test]
    fn the_cache_forgets_what_was_used_least_recently() {
        let mut cache = Cache::full();
        assert!(cache.get(0) && cache.used.len() == CAPACITY);
        cache.put(KEYS);
        assert!(cache.get(0) && !cache.get(1) && cache.get(2) && cache.get(KEYS));
    }

    #[test]
    fn what_bounds_the_queue_brings_the_cache_back() {
        let recovery = |layers| simulate(1, flushed(layers, 30)).recovery();
        assert!(recovery(shed().coalesced()) < 20.0);
        assert!(recovery(naively()) >= 30.0);
    }
}
