//! A service that a short spike pushes over, and retries that keep it down: a metastable failure.
//!
//! Bronson, Aghayev, Charapko and Zhu, "Metastable Failures in Distributed Systems" (HotOS 2021), in the set-up of Marc
//! Brooker's "What is Backoff For?" (2022; simulator: mbrooker/simulator_example, `simple_collapse_sim`): 40 calls a
//! second, 80 for 5 s; messages of 100 ms on average; work of 1 s + 10 ms · in flight; an attempt is given up after 3 s, but
//! the service does its work all the same; 3 tries. A run recovers
//! whole or stays down for good, so the figures are means over many runs.

use std::cell::Cell;
use std::convert::Infallible;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use resilience_core::{
    AnyError, Bulkhead, Call, CircuitBreaker, Pipeline, RetryBudget, RetryPolicy,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::report::Judge;
use crate::service::Contended;
use crate::world::{Arrivals, exponential, mean_over, simulate};
use crate::{Row, Simulation, Target};

/// The simulation in full.
pub const SIMULATION: Simulation = Simulation {
    name: "collapse",
    about: "40 calls a second, 80 for 5 s, to a service of 1 s + 10 ms · in flight; attempts of 3 s, 3 tries (Brooker 2022); \
            mean of 200 runs. A run of naive retries recovers whole or stays down for good, so few runs say little: 400 by \
            the script's rules gave a goodput of 0.26 at 2.48 attempts a call. The budget alone holds.",
    run: |seed| run(seed, 200),
};

const SECOND: Duration = Duration::from_secs(1);
const MESSAGE: Duration = Duration::from_millis(100);
/// Seconds from the start.
const SPIKE: Range<u32> = 20..25;
const FIRST_MINUTE: Range<u32> = 25..85;
const SECOND_MINUTE: Range<u32> = 85..145;

/// Every case, each the mean of `runs`.
#[must_use]
pub fn run(seed: u64, runs: u32) -> Vec<Row> {
    let naive = [
        Judge(Some(0.41), Target::AtMost(0.5)),
        Judge(Some(2.2), Target::AtLeast(1.9)),
        Judge::NONE,
    ];
    let sound = [
        Judge(None, Target::AtLeast(0.99)),
        Judge(None, Target::AtMost(1.1)),
        Judge(None, Target::AtMost(0.0)),
    ];
    let cases: [(&str, Layers, [Judge; 3]); 4] = [
        ("3 tries at once", || bare(tries(Duration::from_millis(1), None)), naive),
        ("3 tries, backoff from 1 s", || bare(tries(SECOND, None)), [Judge::NONE; 3]),
        ("3 tries, budget", || bare(tries(SECOND, Some(RetryBudget::default()))), sound),
        ("3 tries, budget, breaker, bulkhead", ours, sound),
    ];
    let rows = cases.map(|(case, layers, judges)| {
        let [first, second, load, down] = mean_over(runs, seed, |seed| {
            let [first, second] = simulate(seed, minutes_after(layers()));
            let down = f64::from(u8::from(second.goodput() < 0.5));
            [first.goodput(), second.goodput(), second.load(), down]
        });
        let row = |metric, value| Row::new("collapse", case, metric, value);
        let judged = [
            row("goodput, second minute after the spike", second),
            row("attempts a call, second minute", load),
            row("share of runs that stay down", down),
        ];
        let judged = judged
            .into_iter()
            .zip(judges)
            .map(|(row, Judge(published, target))| Row { published, ..row }.target(target));
        [row("goodput, first minute", first)].into_iter().chain(judged).collect::<Vec<_>>()
    });
    rows.concat()
}

/// Makes the pipeline of one run.
type Layers = fn() -> Pipeline;

fn tries(wait: Duration, budget: Option<RetryBudget>) -> RetryPolicy {
    let policy = RetryPolicy::builder().max_retries(2).base_delay(wait);
    let policy = match budget {
        Some(budget) => policy.budget(budget),
        None => policy,
    };
    policy.build().expect("the settings are valid")
}

fn bare(retry: RetryPolicy) -> Pipeline {
    let pipeline = Pipeline::builder("service").attempt_timeout(3 * SECOND).retry(retry);
    pipeline.build().expect("the settings are valid")
}

/// All layers, the bulkhead as wide as the service can bear: 100 calls in flight take it 2 s each.
fn ours() -> Pipeline {
    let bulkhead = Bulkhead::new("service", 100, Duration::ZERO).expect("the settings are valid");
    Pipeline::builder("service")
        .attempt_timeout(3 * SECOND)
        .retry(tries(SECOND, Some(RetryBudget::default())))
        .breaker(CircuitBreaker::new("service"))
        .bulkhead(bulkhead)
        .build()
        .expect("the settings are valid")
}

/// What is seen of the first minute after the spike, and of the second.
async fn minutes_after(pipeline: Pipeline) -> [Seen; 2] {
    let start = Instant::now();
    let at = |seconds: &Range<u32>| start + SECOND * seconds.start..start + SECOND * seconds.end;
    let client = Client {
        pipeline,
        service: Rc::new(Contended::new(SECOND, Duration::from_millis(10))),
        minutes: [FIRST_MINUTE, SECOND_MINUTE].map(|minute| (at(&minute), Rc::default())),
    };
    let mut calls = JoinSet::new();
    let mut arrivals = Arrivals::begin();
    while Instant::now() < at(&SECOND_MINUTE).end {
        calls.spawn_local(client.clone().call());
        while calls.try_join_next().is_some() {}
        let spike = at(&SPIKE).contains(&Instant::now());
        arrivals.next(if spike { 80.0 } else { 40.0 }).await;
    }
    calls.join_all().await;
    client.minutes.map(|(_, seen)| seen.get())
}

#[derive(Clone)]
struct Client {
    pipeline: Pipeline,
    service: Rc<Contended>,
    minutes: [(Range<Instant>, Rc<Cell<Seen>>); 2],
}

/// Counts of what began in a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Seen {
    calls: u32,
    successes: u32,
    attempts: u32,
}

impl Seen {
    fn goodput(&self) -> f64 {
        f64::from(self.successes) / f64::from(self.calls)
    }

    fn load(&self) -> f64 {
        f64::from(self.attempts) / f64::from(self.calls)
    }
}

impl Client {
    async fn call(self) {
        let begun = Instant::now();
        let answer = self.pipeline.run(Call::read(), &AnyError, |_| self.attempt()).await;
        self.count(begun, |seen| {
            seen.calls += 1;
            seen.successes += u32::from(answer.is_ok());
        });
    }

    async fn attempt(&self) -> Result<(), Infallible> {
        self.count(Instant::now(), |seen| seen.attempts += 1);
        sleep(exponential(MESSAGE)).await;
        self.service.work().await;
        sleep(exponential(MESSAGE)).await;
        Ok(())
    }

    /// Counts what began then, if that was in one of the minutes.
    fn count(&self, begun: Instant, change: impl Fn(&mut Seen)) {
        for (_, counts) in self.minutes.iter().filter(|(minute, _)| minute.contains(&begun)) {
            let mut seen = counts.get();
            change(&mut seen);
            counts.set(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_result() {
        let run = || simulate(3, minutes_after(ours()));
        assert_eq!(run(), run());
    }

    #[test]
    fn with_all_layers_the_spike_is_over_when_it_is_over() {
        let missed: Vec<_> =
            run(1, 1).into_iter().filter(|row| row.case.contains("budget") && !row.ok).collect();
        assert!(missed.is_empty(), "{missed:?}");
    }
}
