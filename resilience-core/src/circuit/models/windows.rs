//! What the windows hold, whoever counts in them at once.

use super::*;

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
fn a_window_counts_every_call() {
    for window in [LAST_CALLS, LAST_SECONDS] {
        explore(move || {
            let world = World::new(watch(window));
            let pass = world.admit(0).unwrap();
            let succeed = move |world: &Arc<World>| world.settle(pass, Success, 0);
            let fail = move |world: &Arc<World>| world.settle(pass, Failure, 0);
            race(&world, succeed, |world| race(world, succeed, fail));
            assert_eq!(world.tally(0), (3, 1));
        });
    }
}

#[test]
fn a_look_at_a_window_sees_each_call_whole() {
    for window in [LAST_CALLS, LAST_SECONDS] {
        explore(move || {
            let world = World::new(watch(window));
            let call_twice = |world: &Arc<World>| {
                world.call(Success, 0);
                world.call(Failure, 0);
            };
            let ((), seen) = race(&world, call_twice, |world| world.tally(0));
            assert!([(0, 0), (1, 0), (2, 1)].contains(&seen));
        });
    }
}

#[test]
fn a_count_window_holds_the_last_calls_and_no_other() {
    explore(|| {
        let world = World::new(watch(SlidingWindow::Calls(2)));
        world.call(Failure, 0);
        let pass = world.admit(0).unwrap();
        let succeed_twice = move |world: &Arc<World>| {
            world.settle(pass, Success, 0);
            world.settle(pass, Success, 0);
        };
        race(&world, succeed_twice, |world| world.settle(pass, Failure, 0));
        // The first failure is too long ago; the second may be.
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
            let (_, (first, second)) = race(&world, begin_anew, |world| (new(world), new(world)));
            assert_eq!(world.tally(0), (1 + first + second, 1));
        });
    }
}

#[test]
fn a_count_window_survives_its_last_number() {
    for left in [0, 1, 2] {
        explore(move || {
            let world = World::new(watch(SlidingWindow::Calls(3)));
            world.circuit.window.fill_up(left);
            let pass = world.admit(0).unwrap();
            let succeed_twice = move |world: &Arc<World>| {
                world.settle(pass, Success, 0);
                world.settle(pass, Success, 0);
            };
            race(&world, succeed_twice, |world| world.settle(pass, Failure, 0));
            assert_eq!(world.tally(0), (3, 1));
            for _ in 0..3 {
                world.call(Success, 0);
            }
            assert_eq!(world.tally(0), (3, 0));
        });
    }
}

#[test]
fn a_time_window_that_turns_loses_no_call() {
    for (early, late) in [(0, 1), (0, 2), (1, 2)] {
        explore(move || {
            let world = World::new(watch(LAST_SECONDS));
            world.call(Success, 0);
            let pass = world.admit(0).unwrap();
            let succeed = move |world: &Arc<World>| world.settle(pass, Success, early);
            race(&world, succeed, |world| world.settle(pass, Failure, late));
            assert_eq!(world.tally(2), (3, 1));
            assert_eq!(world.tally(40), (0, 0));
        });
    }
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
