//! Fear: a circuit that is forgotten while it matters, or a list that grows with every key it ever saw.

use std::collections::BTreeSet;
use std::time::Duration;

use resilience_core::{CircuitBreaker, CircuitRegistry, CircuitState, KeyedBreakers};
use tokio::time::advance;

const SECOND: Duration = Duration::from_secs(1);

/// Breakers that open at the first failure for 30 s; 3 keys, idle for 100 s.
fn keyed() -> KeyedBreakers<String> {
    let template = CircuitBreaker::builder("svc").fail_max(1).reset_timeout(30 * SECOND);
    KeyedBreakers::builder(template).max_keys(3).idle(100 * SECOND).build().unwrap()
}

fn fail(breaker: &CircuitBreaker) {
    breaker.try_acquire().unwrap().failure();
}

fn keys<K: Ord + Clone + Eq + std::hash::Hash + std::fmt::Display>(
    keyed: &KeyedBreakers<K>,
) -> BTreeSet<K> {
    keyed.all().into_iter().map(|(key, _)| key).collect()
}

fn set(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn one_key_that_fails_stops_no_other() {
    let keyed = keyed();
    fail(&keyed.breaker("a"));
    assert!(keyed.breaker("a").try_acquire().is_err());
    assert!(keyed.breaker("b").try_acquire().is_ok());
    assert_eq!(&**keyed.breaker("a").name(), "svc/a");
    assert_eq!(keyed.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_key_goes_when_it_was_idle_for_long_enough_and_not_before() {
    let keyed = keyed();
    keyed.breaker("a");
    keyed.breaker("b");
    advance(50 * SECOND).await;
    keyed.breaker("b");
    advance(50 * SECOND - Duration::from_nanos(1)).await;
    assert_eq!(keys(&keyed), set(&["a", "b"]));
    advance(10 * SECOND).await;
    assert_eq!(keys(&keyed), set(&["b"]));
    advance(100 * SECOND).await;
    assert_eq!((keys(&keyed), keyed.evicted()), (set(&[]), 2));
}

#[tokio::test(start_paused = true)]
async fn a_new_key_sweeps_the_idle_ones_out() {
    let keyed = keyed();
    keyed.breaker("a");
    advance(100 * SECOND).await;
    keyed.breaker("b");
    assert_eq!((keyed.len(), keyed.evicted()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_not_forgotten_for_being_idle() {
    let keyed = keyed();
    fail(&keyed.breaker("a"));
    advance(1_000 * SECOND).await;
    assert_eq!(keys(&keyed), set(&["a"]));
    // Its timeout is over: a probe.
    let probe = keyed.breaker("a").try_acquire().unwrap();
    assert_eq!(keyed.breaker("a").state(), CircuitState::HalfOpen);
    drop(probe);
    advance(1_000 * SECOND).await;
    assert_eq!(keys(&keyed), set(&["a"]));
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_out_keeps_its_circuit() {
    let keyed = keyed();
    let permit = keyed.breaker("a").try_acquire().unwrap();
    advance(1_000 * SECOND).await;
    for key in ["b", "c", "d", "e"] {
        keyed.breaker(key);
    }
    assert!(keys(&keyed).contains("a"));
    permit.failure();
    assert_eq!(keyed.breaker("a").state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn what_was_held_begins_its_idle_time_when_that_was_last_seen() {
    let keyed = keyed();
    let held = keyed.breaker("a");
    advance(1_000 * SECOND).await;
    assert_eq!(keys(&keyed), set(&["a"]));
    drop(held);
    advance(99 * SECOND).await;
    assert_eq!(keys(&keyed), set(&["a"]));
    advance(10 * SECOND).await;
    assert_eq!(keys(&keyed), set(&[]));
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_the_longest_idle_closed_one_goes() {
    let keyed = keyed();
    fail(&keyed.breaker("open"));
    for key in ["a", "b"] {
        advance(SECOND).await;
        keyed.breaker(key);
    }
    advance(SECOND).await;
    keyed.breaker("a");
    keyed.breaker("new");
    assert_eq!(keys(&keyed), set(&["open", "a", "new"]));
    assert_eq!((keyed.evicted(), keyed.overflowed()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn when_nothing_can_go_keys_share_the_overflow_and_are_counted() {
    let keyed = keyed();
    for key in ["a", "b"] {
        fail(&keyed.breaker(key));
    }
    let held = keyed.breaker("c");
    let overflow = keyed.breaker("d");
    assert_eq!(&**overflow.name(), "svc/_OTHER");
    assert_eq!((keyed.len(), keyed.overflowed()), (3, 1));
    // It works as any other.
    fail(&overflow);
    assert!(keyed.breaker("e").try_acquire().is_err());
    assert_eq!(keyed.overflowed(), 2);
    // Once there is room, a key has its own.
    drop(held);
    advance(SECOND).await;
    assert_eq!(&**keyed.breaker("d").name(), "svc/_OTHER");
    assert!(keyed.breaker("d").try_acquire().is_ok());
    assert_eq!(keys(&keyed), set(&["a", "b", "d"]));
    assert_eq!(keyed.overflowed(), 2);
}

#[tokio::test(start_paused = true)]
async fn hosts_that_died_do_not_keep_the_living_out_for_ever() {
    let keyed = keyed();
    for key in ["a", "b", "c"] {
        fail(&keyed.breaker(key));
        advance(SECOND).await;
    }
    keyed.breaker("d");
    assert_eq!((keyed.len(), keyed.overflowed()), (3, 1));
    advance(29 * SECOND).await;
    keyed.breaker("d");
    assert_eq!(keys(&keyed), set(&["b", "c", "d"]));
}

#[tokio::test(start_paused = true)]
async fn names_are_bounded_however_many_keys_come_and_go() {
    let keyed = keyed();
    let mut names = BTreeSet::new();
    for n in 0..1_000 {
        names.insert(keyed.breaker(&format!("tenant-{n}")).name().to_string());
        assert!(keyed.len() <= 3);
    }
    assert_eq!(names, set(&["svc/tenant-0", "svc/tenant-1", "svc/tenant-2", "svc/_OTHER"]));
    assert_eq!(keyed.evicted(), 997);
    // One that had a name has it again.
    assert_eq!(&**keyed.breaker("tenant-0").name(), "svc/tenant-0");
}

#[test]
fn no_interleaving_gives_a_key_two_circuits_or_breaks_the_bound() {
    let template = CircuitBreaker::builder("svc").fail_max(1);
    let keyed: KeyedBreakers<u8> = KeyedBreakers::builder(template).max_keys(8).build().unwrap();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let keyed = &keyed;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                for _ in 0..20_000 {
                    let key = rng.u8(..16);
                    let mine = keyed.breaker(&key);
                    if keyed.overflow().name() == mine.name() {
                        continue;
                    }
                    let before = mine.snapshot().calls.cancelled;
                    drop(keyed.breaker(&key).try_acquire());
                    // While it is held, the key's circuit is this one.
                    assert!(mine.snapshot().calls.cancelled > before);
                    assert!(keyed.len() <= 8);
                }
            });
        }
    });
    assert!(keyed.evicted() > 0);
}

#[tokio::test(start_paused = true)]
async fn the_registry_lists_the_keys_beside_the_others() {
    let registry = CircuitRegistry::default();
    let keyed = keyed();
    registry.insert_keyed(keyed.clone());
    registry.insert_keyed(keyed.clone());
    registry.insert(CircuitBreaker::new("t"));
    registry.insert(CircuitBreaker::new("a"));
    keyed.breaker("x");
    let names =
        || registry.all().iter().map(|breaker| breaker.name().to_string()).collect::<Vec<_>>();
    assert_eq!(names(), ["a", "svc/x", "t"]);
    let _held = ["x", "y", "z"].map(|key| keyed.breaker(key));
    keyed.breaker("w");
    assert_eq!(names(), ["a", "svc/_OTHER", "svc/x", "svc/y", "svc/z", "t"]);
}

#[test]
fn keys_without_room_or_time_and_bad_templates_cannot_be_built() {
    let template = CircuitBreaker::builder("svc");
    let builder = || KeyedBreakers::builder(template.clone());
    let refused =
        |builder: resilience_core::KeyedBreakersBuilder<String>| builder.build().unwrap_err().field;
    assert_eq!(refused(builder().max_keys(0)), "max_keys");
    assert_eq!(refused(builder().idle(Duration::ZERO)), "idle");
    assert_eq!(refused(builder().idle(Duration::MAX)), "idle");
    let bad = template.clone().fail_max(0);
    assert_eq!(refused(KeyedBreakers::builder(bad)), "fail_max");
}
