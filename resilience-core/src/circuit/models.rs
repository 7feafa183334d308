//! Every interleaving of two or three threads on one circuit, up to a bound of preemptions, by loom.
//!
//! `cargo xtask models` runs them: with `--cfg circuit_models`, [`sync`](crate::sync) hands out loom's atomics.

mod probes;
mod windows;

use std::sync::Arc;
use std::time::Duration;

use loom::model::Builder;
use loom::thread;

use super::*;
use crate::Outcome::{Cancelled, Failure, Success};

/// What the threads of a model share.
struct World {
    circuit: Circuit,
    begun: Instant,
}

const RESET: u64 = 10;
const LEASE: u64 = 4;
const RECOVERY: u64 = 20;

impl World {
    fn new(change: impl FnOnce(&mut CircuitSettings)) -> Arc<Self> {
        let begun = Instant::now();
        Arc::new(Self { circuit: Circuit::new(settings(change), begun), begun })
    }

    /// A half-open one, and its first probe, admitted at [`RESET`].
    fn half_open(change: impl FnOnce(&mut CircuitSettings)) -> (Arc<Self>, Pass) {
        let world = Self::new(|settings| {
            settings.fail_max = Some(1);
            settings.success_threshold = 1;
            change(settings);
        });
        world.call(Failure, 0);
        let probe = world.admit(RESET).unwrap();
        assert_eq!(world.word().state(), CircuitState::HalfOpen);
        (world, probe)
    }

    fn at(&self, second: u64) -> Instant {
        self.begun + Duration::from_secs(second)
    }

    /// As a breaker does it.
    fn admit(&self, second: u64) -> Option<Pass> {
        let now = self.at(second);
        match self.circuit.admit_fast() {
            Some(pass) => Some(pass),
            None if self.circuit.refuse_fast(now).is_some() => None,
            None => self.circuit.admit(now).decision.ok(),
        }
    }

    /// How often this opened the circuit.
    fn settle(&self, pass: Pass, outcome: Outcome, second: u64) -> usize {
        let transition = self.circuit.settle(pass, outcome, || self.at(second));
        usize::from(transition.is_some_and(|transition| transition.to == CircuitState::Open))
    }

    /// A call that is admitted and ends; under which generation.
    fn call(&self, outcome: Outcome, second: u64) -> u32 {
        let pass = self.admit(second).unwrap();
        self.settle(pass, outcome, second);
        pass.generation()
    }

    fn force(&self, to: CircuitState) {
        self.circuit.force(to, self.begun);
    }

    fn reconfigure(&self, change: impl FnOnce(&mut CircuitSettings)) {
        let mut settings = self.circuit.settings();
        change(&mut settings);
        self.circuit.reconfigure(settings, self.begun);
    }

    fn word(&self) -> Word {
        self.circuit.load()
    }

    /// Calls in the window at `second`, and failures among them.
    fn tally(&self, second: u64) -> (u64, u64) {
        let mut slow = self.circuit.lock();
        let now = self.circuit.nanos(self.at(second));
        let generation = self.word().generation();
        let tally = self.circuit.window.tally(&mut slow.marks, generation, now);
        (tally.calls, tally.failures)
    }
}

/// Nothing opens the circuit but what `change` sets.
fn settings(change: impl FnOnce(&mut CircuitSettings)) -> CircuitSettings {
    let mut settings = CircuitSettings {
        fail_max: None,
        reset_timeout: Duration::from_secs(RESET),
        probe_lease: Duration::from_secs(LEASE),
        ..CircuitSettings::default()
    };
    change(&mut settings);
    settings
}

/// A window that is counted and that nothing comes of.
fn watch(window: SlidingWindow) -> impl Fn(&mut CircuitSettings) {
    move |settings| {
        settings.failure_rate = Some(1.0);
        settings.minimum_calls = 1000;
        settings.window = window;
    }
}

const LAST_CALLS: SlidingWindow = SlidingWindow::Calls(10);
/// A second a bucket.
const LAST_SECONDS: SlidingWindow = SlidingWindow::Time(Duration::from_secs(4));

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(model);
}

/// Runs `one` beside `other`.
fn race<A: 'static, B>(
    world: &Arc<World>,
    one: impl FnOnce(&Arc<World>) -> A + 'static,
    other: impl FnOnce(&Arc<World>) -> B,
) -> (A, B) {
    let beside = Arc::clone(world);
    let one = thread::spawn(move || one(&beside));
    let other = other(world);
    (one.join().unwrap(), other)
}

#[test]
fn failures_in_a_row_are_neither_lost_nor_minted() {
    explore(|| {
        let world = World::new(|settings| settings.fail_max = Some(9));
        let failing = |world: &Arc<World>| world.call(Failure, 0);
        let then_succeeding = |world: &Arc<World>| {
            world.call(Failure, 0);
            world.call(Success, 0);
        };
        race(&world, then_succeeding, |world| race(world, failing, failing));
        // The success clears the failure before it, and maybe others.
        assert!(world.word().failures() <= 2);
        let before = world.word().failures();
        race(&world, failing, failing);
        assert_eq!(world.word().failures(), before + 2);
    });
}

#[test]
fn a_circuit_opens_exactly_when_it_is_due() {
    explore(|| {
        let world = World::new(|settings| settings.fail_max = Some(2));
        let passes = [0; 3].map(|_| world.admit(0).unwrap());
        let (opened, more) = race(
            &world,
            move |world| world.settle(passes[0], Failure, 0),
            |world| world.settle(passes[1], Failure, 0) + world.settle(passes[2], Success, 0),
        );
        // Unless the success came between the failures, they were two in a row.
        let word = world.word();
        match opened + more {
            0 => assert_eq!((word.state(), word.failures()), (CircuitState::Closed, 1)),
            1 => assert_eq!((word.state(), word.generation()), (CircuitState::Open, 1)),
            more => panic!("opened {more} times"),
        }
    });
}

#[test]
fn a_circuit_opens_once_a_generation() {
    explore(|| {
        let world = World::new(|settings| settings.fail_max = Some(1));
        let passes = [0; 3].map(|_| world.admit(0).unwrap());
        let settle =
            |which: usize| move |world: &Arc<World>| world.settle(passes[which], Failure, 0);
        let (first, (second, third)) =
            race(&world, settle(0), |world| race(world, settle(1), settle(2)));
        assert_eq!(first + second + third, 1);
        assert_eq!((world.word().state(), world.word().generation()), (CircuitState::Open, 1));
    });
}

#[test]
fn other_rules_judge_as_of_when_they_came() {
    explore(|| {
        let world = World::new(|settings| settings.fail_max = Some(9));
        world.call(Failure, 0);
        let passes = [0; 2].map(|_| world.admit(0).unwrap());
        let stricter = |world: &Arc<World>| {
            world.reconfigure(|settings| {
                watch(LAST_CALLS)(settings);
                settings.fail_max = Some(2);
            });
        };
        let (_, (opened, _)) = race(&world, stricter, |world| {
            race(
                world,
                move |world| world.settle(passes[0], Failure, 0),
                move |world| world.settle(passes[1], Success, 0),
            )
        });
        let word = world.word();
        let counted = word.flags().counted;
        match opened {
            0 => assert!(word.state() == CircuitState::Closed && word.failures() <= 2 && counted),
            _ => assert!(word.state() == CircuitState::Open && !counted),
        }
    });
}

#[test]
fn other_rules_change_no_count() {
    for (outcome, in_a_row) in [(Success, 0), (Failure, 2)] {
        explore(move || {
            let world = World::new(|settings| settings.fail_max = Some(9));
            world.call(Failure, 0);
            let other_rules = |world: &Arc<World>| world.reconfigure(watch(LAST_CALLS));
            race(&world, other_rules, |world| world.call(outcome, 0));
            assert_eq!(world.word().failures(), in_a_row);
            assert!(world.word().flags().counted);
        });
    }
}

#[test]
fn an_open_circuit_never_forgets_until_when() {
    explore(|| {
        let world = World::new(|settings| settings.fail_max = Some(1));
        race(
            &world,
            |world| world.call(Failure, 0),
            |world| {
                let open = world.word().state() == CircuitState::Open;
                let wait = world.circuit.refuse_fast(world.at(1));
                assert!(!open || wait == Some(Duration::from_secs(RESET - 1)));
            },
        );
    });
}
