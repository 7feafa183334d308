//! A half-open circuit, and one that has just closed, with several at it at once.

use super::*;

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
        let early = (RESET..).find_map(|second| world.admit(second)).unwrap();
        assert!(world.word().flags().recovering);
        let end = RESET + RECOVERY;
        let succeed = move |world: &Arc<World>| world.settle(early, Success, end);
        let (_, last) = race(&world, succeed, |world| world.admit(end));
        assert!(last.is_some());
        assert_eq!((world.word().flags(), world.word().failures()), (Flags::default(), 0));
    });
}
