//! Fear: what other processes say refuses a call here, or losing touch with them changes anything.
#![cfg(feature = "distributed")]

#[path = "../support/opinions.rs"]
mod opinions;
mod outage;

use std::time::Duration;

use opinions::*;
use resilience_core::{
    CircuitBreaker, CircuitState, Deadline, Exchange, MemoryOpinions, Name, Opinion, OpinionStore,
    Tally,
};
use tokio::time::{Instant, advance, sleep};

#[tokio::test(start_paused = true)]
async fn what_two_of_three_have_seen_the_third_need_not_suffer_five_times() {
    let processes = Process::some(&Store::default(), 3);
    processes[0].fail(5);
    processes[1].fail(5);
    all_speak(&processes).await;
    assert!(processes[2].is_armed());
    assert_eq!(processes[2].breaker.state(), CircuitState::Closed);
    processes[2].fail(1);
    assert_eq!(processes[2].breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn the_trouble_of_too_few_is_their_own() {
    for (open, all, armed) in
        [(1, 1, false), (1, 2, false), (1, 3, false), (2, 4, true), (2, 5, false), (3, 6, true)]
    {
        let processes = Process::some(&Store::default(), all);
        all_speak(&processes).await;
        processes[..open].iter().for_each(|process| process.fail(5));
        all_speak(&processes).await;
        for process in &processes[open..] {
            assert_eq!(process.is_armed(), armed, "{open} of {all}");
            process.fail(if armed { 1 } else { 4 });
            let opened = process.breaker.state() == CircuitState::Open;
            assert_eq!(opened, armed, "{open} of {all}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_call_is_refused_by_what_others_say() {
    let store = Store::default();
    let ours = Process::new(&store);
    let names = [ours.breaker.name().clone(), "other".into()];
    let others: Vec<_> = Process::some(&store, 9).iter().map(|p| p.exchange.process()).collect();
    let mut rolls = fastrand::Rng::with_seed(7);
    let (mut armed, mut unarmed) = (0, 0);
    for _ in 0..20_000 {
        advance(rolls.u32(1..=1_500) * MILLI).await;
        let opinion =
            |(circuit, is_open): (&Name, bool)| Opinion { circuit: circuit.clone(), is_open };
        for other in &others[..rolls.usize(0..=9)] {
            let said = names.each_ref().map(|name| opinion((name, rolls.bool())));
            store.opinions.exchange(*other, &said, TTL).await.unwrap();
        }
        ours.speak().await;
        *if ours.is_armed() { &mut armed } else { &mut unarmed } += 1;
        for _ in 0..rolls.usize(0..4) {
            ours.breaker.try_acquire().unwrap().success();
        }
    }
    assert!(armed > 1_000 && unarmed > 1_000, "{armed} armed, {unarmed} not");
    let snapshot = ours.breaker.snapshot();
    assert_eq!((snapshot.not_permitted, snapshot.generation), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_set_by_hand_is_no_opinion_and_takes_no_hint() {
    let store = Store::default();
    let processes = Process::some(&store, 4);
    processes[0].fail(5);
    processes[1].breaker.force_open();
    all_speak(&processes).await;
    assert!(!processes[2].is_armed(), "one has seen it fail, the other was told to refuse");

    processes[1].breaker.reset();
    processes[1].fail(5);
    for switch in
        [CircuitBreaker::force_closed, CircuitBreaker::disable, CircuitBreaker::metrics_only]
    {
        switch(&processes[3].breaker);
        sleep(TTL).await;
        all_speak(&processes).await;
        assert!(!processes[3].is_armed());
        let said = [Opinion { circuit: "payments".into(), is_open: false }];
        let asker = Process::new(&store).exchange.process();
        let tallies = store.opinions.exchange(asker, &said, MILLI).await.unwrap();
        assert_eq!(tallies, [Tally { processes: 4, open: 2 }], "three, and who asks");
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_nobody_has_asked_since_its_timeout_says_nothing_of_today() {
    let processes = Process::some(&Store::default(), 3);
    processes[0].fail(5);
    processes[1].fail(5);
    sleep(RESET).await;
    all_speak(&processes).await;
    assert_eq!(processes[0].breaker.state(), CircuitState::Open);
    assert!(!processes[2].is_armed());
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_has_found_the_service_well_is_not_talked_out_of_it() {
    let store = Store::default();
    let processes = Process::some(&store, 4);
    processes[..2].iter().for_each(|process| process.fail(5));
    all_speak(&processes).await;
    processes[2].fail(1);
    processes[..2].iter().for_each(|process| process.breaker.reset());
    sleep(RESET - SECOND).await;
    processes[..2].iter().for_each(|process| process.fail(5));
    processes[2].speak().await;
    sleep(SECOND).await;
    all_speak(&processes).await;
    assert!(processes[3].is_armed());
    processes[2].breaker.try_acquire().unwrap().success();
    for _ in 0..10 {
        sleep(SECOND).await;
        all_speak(&processes).await;
        assert_eq!(processes[2].breaker.state(), CircuitState::Closed);
        assert!(!processes[2].is_armed());
    }
    processes[..2].iter().for_each(|process| process.breaker.reset());
    all_speak(&processes).await;
    processes[..2].iter().for_each(|process| process.fail(5));
    all_speak(&processes).await;
    assert!(processes[2].is_armed(), "a new quorum is a new hint");
}

/// Ten processes call a service that fails one call in five, after half of them were cut off from it for
/// a moment. How many circuits are open in the end.
async fn open_after(time: Duration, seed: u64) -> usize {
    let store = Store::default();
    let processes: Vec<_> = (0..10)
        .map(|_| {
            let breaker = breaker().fail_max(12).build().unwrap();
            let exchange = exchange(&store, &breaker).build().unwrap();
            Process { breaker, exchange }
        })
        .collect();
    let mut rolls = fastrand::Rng::with_seed(seed);
    let started = Instant::now();
    for tick in 0_usize.. {
        if started.elapsed() >= time {
            break;
        }
        for (number, process) in processes.iter().enumerate() {
            let is_cut_off = number < 5 && tick < 60;
            if let Ok(permit) = process.breaker.try_acquire() {
                if is_cut_off || rolls.u8(0..5) == 0 { permit.failure() } else { permit.success() }
            }
            if (tick + number) % 10 == 0 {
                process.speak().await;
            }
        }
        advance(SECOND / 10).await;
    }
    processes.iter().filter(|process| process.breaker.state() != CircuitState::Closed).count()
}

#[tokio::test(start_paused = true)]
async fn circuits_do_not_keep_each_other_open_by_hearsay() {
    for seed in 0..20 {
        assert_eq!(open_after(10 * RESET, seed).await, 0, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn names_without_end_are_bounded_and_counted() {
    let store = Store::default();
    let process = || {
        let named = |name| CircuitBreaker::builder(name).fail_max(1).build().unwrap();
        let mut breakers: Vec<_> = (0..300).map(|n| named(format!("tenant-{n:03}"))).collect();
        breakers.push(named("tenant-000".to_owned()));
        let exchange = Exchange::builder(store.clone()).breakers(breakers.clone());
        (breakers, exchange.quorum(0.5, 1).build().unwrap())
    };
    let (theirs, ours) = (process(), process());
    theirs.0.iter().for_each(|breaker| breaker.try_acquire().unwrap().failure());
    for (_, exchange) in [&theirs, &ours] {
        exchange.exchange_once(Deadline::within(SECOND)).await.unwrap();
        assert_eq!(exchange.counts().left_out, 45);
    }
    let is_armed = |breaker: &CircuitBreaker| breaker.snapshot().armed;
    assert!(ours.0[..256].iter().all(is_armed) && !ours.0[256..].iter().any(is_armed));
    assert_eq!(ours.1.counts().hints, 256);
}

#[test]
fn no_rule_out_of_range_can_be_built() {
    let b = || Exchange::builder(MemoryOpinions::default());
    for (builder, field) in [
        (b().period(Duration::ZERO), "exchange period"),
        (b().period(9 * MILLI), "exchange period"),
        (b().period(Duration::MAX), "exchange period"),
        (b().ttl(1_999 * MILLI), "exchange ttl"),
        (b().ttl(Duration::MAX), "exchange ttl"),
        (b().quorum(0.0, 2), "quorum share"),
        (b().quorum(1.1, 2), "quorum share"),
        (b().quorum(f64::NAN, 2), "quorum share"),
        (b().quorum(0.5, 0), "quorum at_least"),
    ] {
        assert_eq!(builder.build().unwrap_err().field, field);
    }
    let ids = [b().build().unwrap().process(), b().seed(1).build().unwrap().process()];
    assert_ne!(ids[0], ids[1]);
}
