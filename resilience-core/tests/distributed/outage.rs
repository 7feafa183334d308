//! The store is lost, or a process is.

use resilience_core::{
    CircuitBreaker, CircuitRegistry, CircuitState, Deadline, Exchange, KeyedBreakers, StoreError,
};
use tokio::time::{Instant, sleep, timeout};

use super::opinions::{
    HANGS, MILLI, Process, RAVES, REFUSES, RESET, SECOND, Store, TTL, UP, all_speak,
};

#[tokio::test(start_paused = true)]
async fn a_lost_store_leaves_each_to_what_it_sees_itself() {
    for lost in [REFUSES, HANGS, RAVES] {
        let store = Store::default();
        let processes = Process::some(&store, 4);
        processes[0].fail(5);
        processes[1].fail(5);
        all_speak(&processes).await;
        store.turn(lost);
        let until = Deadline::within(SECOND);
        processes[2].exchange.exchange_once(until).await.unwrap_err();
        assert!(!until.has_passed(Instant::now() - MILLI), "it ends by its deadline");
        assert!(processes[2].is_armed(), "nothing has changed");
        assert_eq!(processes[2].exchange.counts().failures, 1);

        let started = Instant::now();
        while processes[2].is_armed() {
            assert!(started.elapsed() < TTL, "a hint outlives the word of the store");
            let _ = processes[2].exchange.exchange_once(Deadline::within(SECOND / 10)).await;
            processes[2].breaker.try_acquire().unwrap().success();
            sleep(SECOND / 10).await;
        }
        for process in &processes[2..] {
            process.fail(4);
            assert_eq!(process.breaker.state(), CircuitState::Closed);
            process.fail(1);
            assert_eq!(process.breaker.state(), CircuitState::Open);
        }
        store.turn(UP);
        processes[3].speak().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_gone_has_no_say() {
    let store = Store::default();
    let mut processes = Process::some(&store, 5);
    all_speak(&processes).await;
    processes[0].fail(5);
    processes[1].fail(5);
    all_speak(&processes).await;
    assert!(!processes[2].is_armed(), "two of five");
    processes.truncate(4);
    sleep(TTL - MILLI).await;
    processes[2].speak().await;
    assert!(!processes[2].is_armed(), "the one that is gone may still be there");
    sleep(MILLI).await;
    all_speak(&processes).await;
    assert!(processes[2].is_armed(), "two of the four that are left");

    let rest = processes.split_off(2);
    drop(processes);
    sleep(TTL).await;
    all_speak(&rest).await;
    assert!(!rest[0].is_armed(), "those who had it open are gone");
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_is_dropped_or_out_of_time_leaves_nothing_behind() {
    let store = Store::default();
    let process = Process::new(&store);
    store.turn(HANGS);
    let dropped = process.exchange.exchange_once(Deadline::within(RESET));
    assert!(timeout(SECOND, dropped).await.is_err());
    assert_eq!(process.exchange.counts().failures, 0);
    let started = Instant::now();
    let outer = Deadline::within(SECOND);
    let error = outer.scope(process.exchange.exchange_once(Deadline::within(RESET))).await;
    assert!(matches!(error, Err(StoreError::TimedOut)), "{error:?}");
    assert_eq!(started.elapsed(), SECOND, "the nearer deadline holds");
    store.turn(UP);
    process.speak().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_on_to_no_breaker() {
    let template = CircuitBreaker::builder("tenants");
    let tenants = KeyedBreakers::<String>::builder(template).max_keys(1).build().unwrap();
    tenants.breaker("acme");
    CircuitRegistry::global().insert_keyed(tenants.clone());
    let store = Store::default();
    let exchange = Exchange::builder(store.clone()).build().unwrap();
    store.turn(HANGS);
    let hanging =
        tokio::spawn(async move { exchange.exchange_once(Deadline::within(RESET)).await });
    sleep(SECOND).await;
    assert!(store.asked() == 1 && !hanging.is_finished());
    tenants.breaker("initech");
    assert_eq!((tenants.overflowed(), tenants.evicted()), (0, 1), "the idle one made room");
    hanging.abort();
}
