//! Fear: a change is told too late, or too often, or not at all after an outage.
#![cfg(feature = "distributed")]

#[path = "support/log.rs"]
mod log;
#[path = "support/opinions.rs"]
mod opinions;

use log::Log;
use opinions::*;
use resilience_core::{CircuitBreaker, CircuitState};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// Any circuit that changes wakes every exchange of the process. To a paused clock, one that is being woken
/// from another thread does not exist: it runs ahead.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(start_paused = true)]
async fn left_to_themselves_they_hear_within_a_period() {
    let _alone = ALONE.lock().await;
    let store = Store::default();
    let processes = Process::some(&store, 3);
    let running: Vec<_> = processes
        .iter()
        .map(|Process { exchange, .. }| {
            let exchange = exchange.clone();
            tokio::spawn(async move { exchange.run().await })
        })
        .collect();
    for round in 0..20 {
        sleep(TTL + round * 77 * MILLI).await;
        assert!(!processes[2].is_armed());
        let started = Instant::now();
        processes[..2].iter().for_each(|process| process.fail(5));
        while !processes[2].is_armed() {
            processes[2].breaker.try_acquire().unwrap().success();
            sleep(MILLI).await;
        }
        let took = started.elapsed();
        assert!(took <= 1_100 * MILLI, "{took:?}, but a period is a second, give or take a tenth");
        processes.iter().for_each(|process| process.breaker.reset());
    }
    assert_eq!(processes[2].breaker.snapshot().not_permitted, 0);
    running.iter().for_each(tokio::task::JoinHandle::abort);
    sleep(TTL).await;
    let after = store.asked();
    sleep(RESET).await;
    assert_eq!(store.asked(), after, "dropped, it has ended");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_told_at_once_but_one_that_flaps_not_each_time() {
    let _alone = ALONE.lock().await;
    let store = Store::default();
    let breaker = breaker().build().unwrap();
    let exchange = exchange(&store, &breaker).period(100 * SECOND).build().unwrap();
    let running = tokio::spawn(async move { exchange.run().await });
    sleep(50 * SECOND).await;
    assert_eq!(store.asked(), 1);
    breaker.force_closed();
    breaker.reset();
    CircuitBreaker::new("none of its business").force_open();
    sleep(10 * SECOND).await;
    assert_eq!(store.asked(), 1, "there is nothing new to be said");
    for _ in 0..5 {
        breaker.try_acquire().unwrap().failure();
    }
    sleep(MILLI).await;
    assert_eq!(store.asked(), 2);
    let mut rolls = fastrand::Rng::with_seed(3);
    let started = Instant::now();
    while started.elapsed() < 100 * SECOND {
        match breaker.state() {
            CircuitState::Closed => (0..5).for_each(|_| breaker.try_acquire().unwrap().failure()),
            _ => breaker.reset(),
        }
        sleep(rolls.u32(1..10) * MILLI).await;
    }
    let asked = store.asked();
    assert!((5..=13).contains(&asked), "{asked} exchanges in a period");
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_logged_once_and_counted_and_ends_by_itself() {
    let _alone = ALONE.lock().await;
    let log = Log::listen("info");
    let store = Store::default();
    let Process { exchange, .. } = Process::new(&store);
    let running = tokio::spawn({
        let exchange = exchange.clone();
        async move { exchange.run().await }
    });
    for state in [REFUSES, UP, HANGS, UP] {
        sleep(100 * SECOND).await;
        store.turn(state);
    }
    sleep(100 * SECOND).await;
    running.abort();
    let counts = exchange.counts();
    assert!((290..320).contains(&counts.exchanges), "{counts:?}");
    assert!((180..220).contains(&counts.failures), "{counts:?}");
    let text = log.end();
    let told = |what: &str| text.matches(what).count();
    let (lost, found) = (told(" WARN "), told("opinions are exchanged again"));
    assert_eq!((lost, found), (2, 2), "{text}");
    assert_eq!(told("error=connection refused"), 1, "{text}");
}
