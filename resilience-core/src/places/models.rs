//! Those who take places, wait for them, leave the queue and give back, in every order, by loom.
//!
//! `cargo xtask models` runs them: with `--cfg circuit_models`, [`sync`](crate::sync) hands out loom's atomics.

use std::pin::pin;

use loom::future::block_on;
use loom::model::Builder;
use loom::thread;

use super::*;

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(model);
}

/// As many places, with as long a queue.
fn places(limit: u32, max_waiting: u32) -> Arc<Places> {
    Arc::new(Places::new(limit, Line { max_waiting, wait: Duration::from_secs(1) }))
}

/// Takes a place, however long that takes. One who is never woken is a deadlock, which loom reports.
fn take(places: &Places) -> Result<(), FullReason> {
    if !places.try_take()
        && let Some(turn) = places.queue_up()?
    {
        block_on(turn);
    }
    assert!((1..=places.limit()).contains(&places.in_flight()));
    Ok(())
}

fn work(places: &Places) {
    take(places).unwrap();
    places.give_back();
}

/// Joins the queue, looks once, and leaves, or gives back what it has got.
fn leave(places: &Places) {
    if let Some(turn) = places.queue_up().unwrap() {
        let mut turn = pin!(turn);
        let mut context = Context::from_waker(Waker::noop());
        if turn.as_mut().poll(&mut context).is_pending() {
            return;
        }
    }
    places.give_back();
}

/// Runs `one` beside `other`.
fn race(places: &Arc<Places>, one: fn(&Places), other: impl FnOnce(&Arc<Places>)) {
    let beside = Arc::clone(places);
    let one = thread::spawn(move || one(&beside));
    other(places);
    one.join().unwrap();
}

fn assert_all_free(places: &Places) {
    assert_eq!((places.in_flight(), places.waiting()), (0, 0));
    assert!(places.lock().waiters.is_empty());
}

#[test]
fn everyone_who_waits_is_served_and_none_beyond_the_limit() {
    for limit in [1, 2] {
        explore(move || {
            let places = places(limit, 2);
            race(&places, work, |places| race(places, work, |places| work(places)));
            assert_all_free(&places);
        });
    }
}

#[test]
fn one_who_leaves_the_queue_takes_no_place_along() {
    explore(|| {
        let places = places(1, 2);
        take(&places).unwrap();
        race(&places, leave, |places| race(places, work, |places| places.give_back()));
        assert_all_free(&places);
    });
}

#[test]
fn a_limit_that_rises_lets_in_all_that_it_may() {
    explore(|| {
        let places = places(1, 2);
        take(&places).unwrap();
        // Both hold their place at the end, so neither waits for the other's.
        let stay = |places: &Places| take(places).unwrap();
        race(&places, stay, |places| {
            race(places, stay, |places| {
                places.set_limit(2);
                places.give_back();
            });
        });
        assert_eq!((places.in_flight(), places.waiting()), (2, 0));
    });
}

#[test]
fn the_queue_has_no_more_than_its_bound() {
    explore(|| {
        let places = places(1, 1);
        take(&places).unwrap();
        let beside = Arc::clone(&places);
        let waits = thread::spawn(move || take(&beside).map(|()| beside.give_back()).is_ok());
        let turn = places.queue_up().map(Option::unwrap);
        assert!(places.waiting() <= 1);
        let waited = turn.map(drop).is_ok();
        places.give_back();
        let refused = u64::from(!waits.join().unwrap()) + u64::from(!waited);
        assert!(refused <= 1);
        assert_eq!(places.rejected().queue_full, refused);
        assert_all_free(&places);
    });
}

#[test]
fn nobody_overtakes_who_waits() {
    explore(|| {
        let places = places(1, 1);
        take(&places).unwrap();
        let mut turn = pin!(places.queue_up().unwrap().unwrap());
        race(&places, Places::give_back, |places| assert!(!places.try_take()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(turn.as_mut().poll(&mut context).is_ready());
        places.give_back();
    });
}
