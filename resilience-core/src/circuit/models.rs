//! Every interleaving of two or three threads on one circuit, up to a bound of preemptions, by loom.
//!
//! `cargo xtask models` runs them: with `--cfg circuit_models`, [`sync`](crate::sync) hands out loom's atomics.

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

/// Both windows; late answers of both kinds.
fn late_answers(window: SlidingWindow, late: [Outcome; 2]) {
    explore(move || {
        let world = World::new(|settings| {
            watch(window)(settings);
            settings.fail_max = Some(9);
        });
        // With a failure to its name, so that a success has something to clear.
        world.call(Failure, 0);
        let passes = late.map(|_| world.admit(0).unwrap());
        let begin_anew = |world: &Arc<World>| {
            world.force(CircuitState::Closed);
            world.call(Failure, 0);
            world.call(Success, 0);
            world.call(Failure, 0);
        };
        race(&world, begin_anew, |world| {
            for (pass, outcome) in passes.into_iter().zip(late) {
                world.settle(pass, outcome, 0);
            }
        });
        assert_eq!((world.word().generation(), world.word().failures()), (1, 1));
        assert_eq!(world.tally(0), (3, 2));
    });
}

#[test]
fn a_late_success_changes_nothing_of_the_new_generation() {
    late_answers(LAST_CALLS, [Success, Success]);
    late_answers(LAST_SECONDS, [Success, Success]);
}

#[test]
fn a_late_failure_changes_nothing_of_the_new_generation() {
    late_answers(LAST_CALLS, [Failure, Success]);
    late_answers(LAST_SECONDS, [Failure, Success]);
}

#[test]
fn no_more_probes_are_out_than_may_be() {
    for most in [1, 2] {
        explore(move || {
            let world = World::new(|settings| {
                settings.fail_max = Some(1);
                settings.half_open_max_calls = most;
            });
            world.call(Failure, 0);
            let ask = |world: &Arc<World>| u32::from(world.admit(RESET).is_some());
            let (first, (second, third)) = race(&world, ask, |world| race(world, ask, ask));
            assert_eq!(first + second + third, most);
            let word = world.word();
            assert_eq!((word.state(), word.generation()), (CircuitState::HalfOpen, 2));
        });
    }
}

#[test]
fn the_place_of_a_cancelled_probe_is_given_away_once() {
    explore(|| {
        let (world, probe) = World::half_open(|_| {});
        let ask = |world: &Arc<World>| usize::from(world.admit(RESET).is_some());
        let cancel = move |world: &Arc<World>| {
            world.settle(probe, Cancelled, RESET);
            usize::from(world.admit(RESET).is_some())
        };
        let (first, (second, third)) = race(&world, cancel, |world| race(world, ask, ask));
        assert_eq!(first + second + third, 1);
        assert_eq!(ask(&world), 0);
    });
}

#[test]
fn the_end_of_a_lease_and_the_answer_decide_once() {
    explore(|| {
        let (world, probe) = World::half_open(|_| {});
        let answer = move |world: &Arc<World>| {
            let closed = world.circuit.settle(probe, Success, || world.at(RESET + LEASE - 1));
            closed.map(|transition| transition.to)
        };
        let ask = |world: &Arc<World>| world.admit(RESET + LEASE);
        let (closed, admitted) = race(&world, answer, ask);
        let state = world.word().state();
        match closed {
            Some(CircuitState::Closed) => assert_eq!(state, CircuitState::Closed),
            None => assert_eq!((state, admitted), (CircuitState::Open, None)),
            Some(other) => panic!("an answer in time led to {other:?}"),
        }
    });
}

#[test]
fn an_answer_after_its_lease_closes_nothing() {
    explore(|| {
        let (world, probe) = World::half_open(|_| {});
        let answer = move |world: &Arc<World>| world.settle(probe, Success, RESET + LEASE);
        let ask = |world: &Arc<World>| world.admit(RESET + LEASE);
        let (_, admitted) = race(&world, answer, ask);
        assert_eq!(admitted, None);
        assert_eq!((world.word().state(), world.word().generation()), (CircuitState::Open, 3));
    });
}

#[test]
fn probes_that_succeed_close_the_circuit_and_one_that_fails_opens_it() {
    explore(|| {
        let (world, first) = World::half_open(|settings| {
            settings.half_open_max_calls = 3;
            settings.success_threshold = 2;
        });
        let [second, third] = [0; 2].map(|_| world.admit(RESET).unwrap());
        let (opened, _) = race(
            &world,
            move |world| world.settle(first, Failure, RESET),
            |world| {
                race(
                    world,
                    move |world| world.settle(second, Success, RESET),
                    move |world| world.settle(third, Success, RESET),
                )
            },
        );
        let expected = if opened == 1 { CircuitState::Open } else { CircuitState::Closed };
        assert_eq!((world.word().state(), world.word().generation()), (expected, 3));
    });
}

#[test]
fn a_window_counts_every_call() {
    for window in [LAST_CALLS, LAST_SECONDS] {
        explore(move || {
            let world = World::new(watch(window));
            let succeeding = |world: &Arc<World>| world.call(Success, 0);
            race(&world, succeeding, |world| {
                race(world, succeeding, |world| {
                    world.call(Failure, 0);
                    let (calls, failures) = world.tally(0);
                    assert!(failures == 1 && (1..=3).contains(&calls));
                })
            });
            assert_eq!(world.tally(0), (3, 1));
        });
    }
}

#[test]
fn a_count_window_holds_the_last_calls_and_no_other() {
    explore(|| {
        let world = World::new(|settings| {
            watch(SlidingWindow::Calls(2))(settings);
            settings.fail_max = None;
        });
        world.call(Failure, 0);
        let succeeding = |world: &Arc<World>| world.call(Success, 0);
        race(&world, succeeding, |world| {
            race(world, succeeding, |world| {
                world.call(Failure, 0);
                assert!(world.tally(0).1 <= 2);
            })
        });
        // Four calls; of the two failures one is the first.
        let (calls, failures) = world.tally(0);
        assert!(calls == 2 && failures <= 1);
        world.call(Success, 0);
        world.call(Success, 0);
        assert_eq!(world.tally(0), (2, 0));
    });
}

#[test]
fn a_new_generation_begins_empty_and_loses_nothing() {
    for window in [LAST_CALLS, LAST_SECONDS] {
        explore(move || {
            let world = World::new(watch(window));
            world.call(Failure, 0);
            let new = |world: &Arc<World>| u64::from(world.call(Success, 0));
            let begin_anew = |world: &Arc<World>| {
                world.force(CircuitState::Closed);
                world.call(Failure, 0);
            };
            let (_, (first, second)) = race(&world, begin_anew, |world| race(world, new, new));
            assert_eq!(world.tally(0), (1 + first + second, 1));
        });
    }
}

#[test]
fn a_count_window_survives_its_last_number() {
    for left in [0, 1, 2] {
        explore(move || {
            let world = World::new(watch(LAST_CALLS));
            world.circuit.window.fill_up(left);
            let succeeding = |world: &Arc<World>| world.call(Success, 0);
            race(&world, succeeding, |world| {
                race(world, succeeding, |world| world.call(Failure, 0))
            });
            assert_eq!(world.tally(0), (10, 1));
            for _ in 0..9 {
                world.call(Success, 0);
            }
            assert!(world.tally(0).1 <= 1);
            world.call(Success, 0);
            assert_eq!(world.tally(0), (10, 0));
        });
    }
}

#[test]
fn a_time_window_that_turns_loses_no_call() {
    explore(|| {
        let world = World::new(watch(LAST_SECONDS));
        world.call(Success, 0);
        race(
            &world,
            |world| world.call(Success, 0),
            |world| race(world, |world| world.call(Success, 1), |world| world.call(Failure, 2)),
        );
        assert_eq!(world.tally(2), (4, 1));
        assert_eq!(world.tally(40), (0, 0));
    });
}

#[test]
fn a_time_window_forgets_what_it_has_passed() {
    explore(|| {
        let world = World::new(watch(LAST_SECONDS));
        world.call(Failure, 0);
        race(&world, |world| world.call(Success, 0), |world| world.call(Failure, 17));
        let (calls, failures) = world.tally(17);
        // A success that comes late is one of now.
        assert!(failures == 1 && (1..=2).contains(&calls));
        world.call(Success, 17);
        assert_eq!(world.tally(17), (calls + 1, 1));
    });
}

#[test]
fn other_rules_lose_no_failure_in_a_row() {
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
fn a_window_of_another_kind_counts_right_at_once() {
    for (old, new) in [(LAST_CALLS, LAST_SECONDS), (LAST_SECONDS, LAST_CALLS)] {
        for generation in [0, 1] {
            explore(move || {
                let world = World::new(watch(old));
                (0..generation).for_each(|_| world.force(CircuitState::Closed));
                let change = move |world: &Arc<World>| world.reconfigure(watch(new));
                let succeeding = |world: &Arc<World>| world.call(Success, 1);
                race(&world, change, |world| race(world, succeeding, succeeding));
                let (calls, failures) = world.tally(1);
                assert!(calls <= 2 && failures == 0);
                world.call(Success, 1);
                assert_eq!(world.tally(1), (calls + 1, 0));
                world.call(Failure, 1);
                assert_eq!(world.tally(1), (calls + 2, 1));
            });
        }
    }
}

#[test]
fn the_recovery_flag_is_that_of_the_recovery() {
    for to in [CircuitState::Closed, CircuitState::ForcedOpen] {
        explore(move || {
            let (world, probe) = World::half_open(|settings| {
                settings.recovery = Some(Duration::from_secs(RECOVERY));
            });
            race(
                &world,
                move |world| world.settle(probe, Success, RESET),
                |world| {
                    race(world, move |world| world.force(to), |world| world.admit(RESET + RECOVERY))
                },
            );
            let recovers = world.circuit.lock().recovery.is_some();
            assert_eq!(world.word().flags().recovering, recovers);
        });
    }
}

#[test]
fn the_end_of_a_recovery_disturbs_no_count() {
    explore(|| {
        let (world, probe) = World::half_open(|settings| {
            settings.recovery = Some(Duration::from_secs(RECOVERY));
        });
        world.settle(probe, Success, RESET);
        world.reconfigure(|settings| settings.fail_max = Some(9));
        world.call(Failure, RESET);
        let end = RESET + RECOVERY;
        let (first, second) = race(
            &world,
            move |world| world.admit(end),
            |world| {
                world.call(Success, end);
                world.admit(end)
            },
        );
        assert!(first.is_some() && second.is_some());
        assert_eq!((world.word().flags(), world.word().failures()), (Flags::default(), 0));
    });
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
