//! What retries cost a service that fails a share of its calls, and what bounds them.
//!
//! The set-up is Marc Brooker's, "Fixing retries with token buckets and circuit breakers" (2022; simulator:
//! mbrooker/simulator_example, `retry_sim`): independent clients that together begin 1,000 calls a second for 10 s, each
//! message under way for 10 ms on average, and a service that fails a share of the attempts whatever its load. The figures
//! are the share of calls that succeed, and the attempts that the service sees for each call. The post draws them; those
//! beside ours are a run by its rules, or the closed forms 1 − xⁿ and 1 + x + x² + x³.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use resilience_core::{AnyError, Call, CircuitBreaker, Pipeline, RetryBudget, RetryPolicy};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::report::Judge;
use crate::world::{Arrivals, exponential, simulate};
use crate::{Row, Simulation, Target};

/// The simulation in full.
pub const SIMULATION: Simulation = Simulation {
    name: "retry",
    about: "clients begin 1,000 calls a second for 10 s; the service fails a share of all attempts (Brooker 2022). A bucket for \
            each client leaks one burst a client; ours is one for the process, and bounds that process alone. Our breaker \
            refuses first attempts too, the published one only retries: less load, and fewer successes in a partial outage.",
    run: |seed| run(seed, 10),
};

const RATE: f64 = 1000.0;
/// The mean time that a message is under way.
const MESSAGE: Duration = Duration::from_millis(10);
/// What a call adds to the budget, and what it begins with.
const RATIO: f64 = 0.1;
const BURST: u32 = 5;
const RETRIES: u32 = 3;

/// Every case, each for `seconds` of arrivals.
#[must_use]
pub fn run(seed: u64, seconds: u32) -> Vec<Row> {
    let outcome = |clients, failing, layers: &Layers<'_>| {
        simulate(seed, World { clients, failing, seconds }.outcome(layers))
    };
    let mut rows = Vec::new();
    for (percent, script) in [(10, SCRIPT[0]), (20, SCRIPT[1]), (50, SCRIPT[2]), (100, SCRIPT[3])] {
        let failing = f64::from(percent) / 100.0;
        let clients = 100;
        let mut two =
            |strategy: &str, layers: &Layers<'_>, judge: &dyn Fn(&Outcome) -> [Judge; 2]| {
                let outcome = outcome(clients, failing, layers);
                let case = format!("{percent} % fail: {strategy}");
                let [success, load] = judge(&outcome);
                rows.push(success.of(row(&case, SUCCESS, outcome.success())));
                rows.push(load.of(row(&case, LOAD, outcome.load())));
            };

        two("no retries", &|| without(RetryPolicy::never()), &|_| {
            [near(1.0 - failing, 0.02), near(1.0, 0.0)]
        });
        two("3 retries", &|| without(retries(None)), &|_| {
            let load = 1.0 + failing + failing.powi(2) + failing.powi(3);
            [near(1.0 - failing.powi(4), 0.02), near(load, 0.05)]
        });
        two("a bucket each", &|| without(retries(Some(bucket()))), &|outcome| {
            [near(script.bucket[0], 0.03), Judge(Some(script.bucket[1]), outcome.bound(clients))]
        });
        let process = bucket();
        two("a bucket for all", &|| without(retries(Some(process.clone()))), &|outcome| {
            [Judge::NONE, Judge(None, outcome.bound(1))]
        });
        for (strategy, breaker) in BREAKERS {
            two(strategy, &|| broken(breaker()), &|_| {
                let load = if percent == 100 { Target::AtMost(1.0) } else { Target::None };
                [Judge(Some(script.breaker[0]), Target::None), Judge(Some(script.breaker[1]), load)]
            });
        }
    }
    // The same calls from few clients and from many, of a service that is down.
    for (clients, published) in [(10, 1.1), (1000, 1.54)] {
        let each = outcome(clients, 1.0, &|| without(retries(Some(bucket()))));
        let case = format!("{clients} clients, all fail: a bucket each");
        rows.push(Judge(Some(published), Target::Within(0.05)).of(row(&case, LOAD, each.load())));
        let process = bucket();
        let all = outcome(clients, 1.0, &|| without(retries(Some(process.clone()))));
        let case = format!("{clients} clients, all fail: a bucket for all");
        rows.push(Judge(None, all.bound(1)).of(row(&case, LOAD, all.load())));
    }
    rows
}

/// What a run by the published script's rules with 100 clients gave: calls that succeed, attempts a call.
#[derive(Clone, Copy)]
struct Script {
    bucket: [f64; 2],
    breaker: [f64; 2],
}

const SCRIPT: [Script; 4] = [
    Script { bucket: [0.991, 1.103], breaker: [0.928, 1.029] },
    Script { bucket: [0.907, 1.133], breaker: [0.802, 1.005] },
    Script { bucket: [0.577, 1.143], breaker: [0.496, 1.000] },
    Script { bucket: [0.000, 1.144], breaker: [0.000, 1.000] },
];

const SUCCESS: &str = "calls that succeed";
const LOAD: &str = "attempts a call";

fn row(case: &str, metric: &'static str, value: f64) -> Row {
    Row::new("retry", case, metric, value)
}

fn near(published: f64, most: f64) -> Judge {
    Judge(Some(published), Target::Near(most))
}

/// Makes one client's pipeline.
type Layers<'a> = dyn Fn() -> Pipeline + 'a;

fn bucket() -> RetryBudget {
    RetryBudget::new(RATIO, BURST).expect("both are in range")
}

fn retries(budget: Option<RetryBudget>) -> RetryPolicy {
    // The published clients do not wait at all; the shortest wait that a policy knows changes nothing here.
    let soon = Duration::from_millis(1);
    let policy = RetryPolicy::builder().max_retries(RETRIES).base_delay(soon).max_delay(soon);
    let policy = match budget {
        Some(budget) => policy.budget(budget),
        None => policy,
    };
    policy.build().expect("the settings are valid")
}

fn without(retry: RetryPolicy) -> Pipeline {
    Pipeline::builder("service").retry(retry).build().expect("the settings are valid")
}

/// The default one, and one that opens at the failure rate at which the published one stops retries.
type Case = (&'static str, fn() -> CircuitBreaker);

const BREAKERS: [Case; 2] = [
    ("a breaker each, 5 in a row", || CircuitBreaker::new("service")),
    ("a breaker each, 10 %", || {
        let breaker = CircuitBreaker::builder("service").without_fail_max().failure_rate(0.1);
        breaker.build().expect("the settings are valid")
    }),
];

/// Three retries, each of which asks the breaker.
fn broken(breaker: CircuitBreaker) -> Pipeline {
    let pipeline = Pipeline::builder("service").retry(retries(None)).breaker(breaker);
    pipeline.build().expect("the settings are valid")
}

struct World {
    clients: u32,
    failing: f64,
    seconds: u32,
}

/// What came of all calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Outcome {
    calls: u32,
    successes: u32,
    attempts: u32,
}

impl World {
    async fn outcome(self, layers: &Layers<'_>) -> Outcome {
        let outcome = Rc::new(Cell::new(Outcome::default()));
        let end = Instant::now() + Duration::from_secs(1) * self.seconds;
        let mut clients = JoinSet::new();
        for _ in 0..self.clients {
            let client =
                Client { pipeline: layers(), failing: self.failing, outcome: Rc::clone(&outcome) };
            clients.spawn_local(client.call_until(end, RATE / f64::from(self.clients)));
        }
        clients.join_all().await;
        outcome.get()
    }
}

impl Outcome {
    fn success(&self) -> f64 {
        f64::from(self.successes) / f64::from(self.calls)
    }

    fn load(&self) -> f64 {
        f64::from(self.attempts) / f64::from(self.calls)
    }

    /// What that many buckets allow: (1 + ratio) · calls + burst · buckets.
    fn bound(&self, buckets: u32) -> Target {
        Target::AtMost(1.0 + RATIO + f64::from(BURST * buckets) / f64::from(self.calls))
    }
}

#[derive(Clone)]
struct Client {
    pipeline: Pipeline,
    failing: f64,
    outcome: Rc<Cell<Outcome>>,
}

impl Client {
    /// Begins `rate` calls a second until `end`, and waits for the last of them.
    async fn call_until(self, end: Instant, rate: f64) {
        let mut calls = JoinSet::new();
        let mut arrivals = Arrivals::begin();
        arrivals.next(rate).await;
        while Instant::now() < end {
            calls.spawn_local(self.clone().call());
            arrivals.next(rate).await;
        }
        calls.join_all().await;
    }

    async fn call(self) {
        self.count(|outcome| outcome.calls += 1);
        let answer = self.pipeline.run(Call::read(), &AnyError, |_| self.attempt()).await;
        self.count(|outcome| outcome.successes += u32::from(answer.is_ok()));
    }

    async fn attempt(&self) -> Result<(), &'static str> {
        sleep(exponential(MESSAGE)).await;
        self.count(|outcome| outcome.attempts += 1);
        let answer = if fastrand::f64() < self.failing { Err("refused") } else { Ok(()) };
        sleep(exponential(MESSAGE)).await;
        answer
    }

    fn count(&self, change: impl FnOnce(&mut Outcome)) {
        let mut outcome = self.outcome.get();
        change(&mut outcome);
        self.outcome.set(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(clients: u32, layers: &Layers<'_>) -> Outcome {
        simulate(1, World { clients, failing: 0.5, seconds: 1 }.outcome(layers))
    }

    #[test]
    fn one_seed_gives_one_result() {
        let layers: &Layers<'_> = &|| without(retries(Some(bucket())));
        assert_eq!(small(10, layers), small(10, layers));
    }

    #[test]
    fn a_client_of_a_sound_service_calls_once() {
        let world = World { clients: 5, failing: 0.0, seconds: 1 };
        let Outcome { calls, successes, attempts } =
            simulate(1, world.outcome(&|| broken(CircuitBreaker::new("service"))));
        assert!((900..1100).contains(&calls), "{calls}");
        assert_eq!((successes, attempts), (calls, calls));
    }

    #[test]
    fn one_bucket_bounds_all_clients_together() {
        let process = bucket();
        let outcome = small(100, &|| without(retries(Some(process.clone()))));
        let Target::AtMost(most) = outcome.bound(1) else { unreachable!("it is a bound") };
        assert!(outcome.load() <= most, "{outcome:?} above {most}");
        assert!(small(100, &|| without(retries(Some(bucket())))).load() > most);
    }
}
