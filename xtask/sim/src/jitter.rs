//! What jitter does for clients that contend for one row under optimistic concurrency control.
//!
//! The set-up and its figures are Marc Brooker's, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015; simulator:
//! aws-samples/aws-arch-backoff-simulator). Each client reads the row's version, then writes it back; the write succeeds
//! if nobody else wrote in between, else the client waits and begins anew. Each message takes |N(10, 2)| ms. The figures
//! are the time until the last client has its answer, and the writes made.
//!
//! It keeps its own queue of events: tokio's timers count whole milliseconds, which is too coarse for messages of ten.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::iter;
use std::time::Duration;

use resilience_core::{Backoff, Jitter};

use crate::world::{mean_over, normal};
use crate::{Row, Simulation, Target};

/// The simulation in full.
pub const SIMULATION: Simulation = Simulation {
    name: "jitter",
    about: "100 clients contend for one row (AWS 2015): messages of N(10, 2) ms, waits from 5 ms up to 2 s, mean of 400 runs. \
            600 runs by the published script's rules gave 2,029, 4,904 and 4,620 ms.",
    run: |seed| run(seed, 400),
};

const BASE: Duration = Duration::from_millis(5);
const CAP: Duration = Duration::from_secs(2);

/// The figures, each the mean of `runs`.
#[must_use]
pub fn run(seed: u64, runs: u32) -> Vec<Row> {
    let rows = |case: &str, waits: Waits, time: f64, calls: f64| {
        let [our_time, our_calls] = mean_over(runs, seed, |seed| contend(seed, 100, waits));
        [("time until all are done, ms", our_time, time), ("writes", our_calls, calls)].map(
            |(metric, value, published)| {
                Row::new("jitter", case, metric, value)
                    .published(published)
                    .target(Target::Within(0.05))
            },
        )
    };
    [
        rows("no backoff", || Box::new(iter::repeat(Duration::ZERO)), 2032.0, 2421.0),
        rows("full", || Box::new(after_the_first(waits(Jitter::Full))), 5069.0, 796.0),
        rows("decorrelated", || Box::new(waits(Jitter::Decorrelated)), 4499.0, 1002.0),
    ]
    .concat()
}

/// The waits of one client.
type Waits = fn() -> Box<dyn Iterator<Item = Duration>>;

fn waits(jitter: Jitter) -> Backoff {
    let waits = Backoff::builder().base_delay(BASE).max_delay(CAP).jitter(jitter);
    waits.build().expect("the settings are valid")
}

/// The script counts attempts from 1, so its first wait is already twice the base.
fn after_the_first(waits: Backoff) -> impl Iterator<Item = Duration> {
    waits.skip(1)
}

/// One run: the time until all clients are done, in milliseconds, and the writes made.
fn contend(seed: u64, clients: usize, waits: Waits) -> [f64; 2] {
    fastrand::seed(seed);
    let mut clients: Vec<_> = iter::repeat_with(waits).take(clients).collect();
    let mut messages: BinaryHeap<_> =
        (0..clients.len()).map(|client| Message::after(0.0, client, Step::Read)).collect();
    let (mut version, mut writes, mut now) = (0u64, 0.0, 0.0);
    while let Some(Message { at, client, step }) = messages.pop() {
        now = at;
        match step {
            Step::Read => messages.push(Message::after(at, client, Step::HasRead(version))),
            Step::HasRead(seen) => messages.push(Message::after(at, client, Step::Write(seen))),
            Step::Write(seen) => {
                writes += 1.0;
                let done = seen == version;
                version += u64::from(done);
                messages.push(Message::after(at, client, Step::Written(done)));
            }
            Step::Written(true) => {}
            Step::Written(false) => {
                let wait = clients[client].next().expect("waits have no end");
                messages.push(Message::after(at + wait.as_secs_f64() * 1e3, client, Step::Read));
            }
        }
    }
    [now, writes]
}

/// What arrives, with the version seen.
#[derive(Clone, Copy)]
enum Step {
    Read,
    HasRead(u64),
    Write(u64),
    Written(bool),
}

struct Message {
    /// In milliseconds.
    at: f64,
    client: usize,
    step: Step,
}

impl Message {
    fn after(now: f64, client: usize, step: Step) -> Self {
        Self { at: now + normal(10.0, 2.0).abs(), client, step }
    }
}

impl Ord for Message {
    /// The earliest is the greatest, so that the heap yields it first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at)
    }
}

impl PartialOrd for Message {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Message {}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Box<dyn Iterator<Item = Duration>> {
        Box::new(after_the_first(waits(Jitter::Full)))
    }

    #[test]
    fn one_seed_gives_one_result() {
        assert_eq!(contend(1, 20, full), contend(1, 20, full));
        assert_ne!(contend(1, 20, full), contend(2, 20, full));
    }

    #[test]
    fn a_client_without_rivals_writes_once() {
        let [time, writes] = contend(1, 1, full);
        assert!((30.0..50.0).contains(&time), "four messages in {time} ms");
        assert!((writes - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn the_published_figures_come_out_of_few_runs_already() {
        for row in run(1, 20) {
            assert!(
                row.ok || row.target == Target::Within(0.05) && row.metric.starts_with("time"),
                "{row:?}"
            );
        }
    }
}
