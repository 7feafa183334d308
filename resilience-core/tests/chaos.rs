//! Fear: chaos that strikes when it should not, or not as it said it would.
#![cfg(feature = "chaos")]

use std::time::Duration;

use resilience_core::{Chaos, ChaosBuilder, Replay, Verdict};
use tokio::time::{Instant, timeout};

const MILLI: Duration = Duration::from_millis(1);
const DECISIONS: usize = 100_000;

fn chaos(seed: u64) -> ChaosBuilder {
    let range = 10 * MILLI..=20 * MILLI;
    Chaos::builder("payments").faults(0.05).latency(0.2, range).seed(seed).enabled(true)
}

/// One strike: how long it took, and whether it failed.
async fn strike(chaos: &Chaos) -> (Duration, bool) {
    let started = Instant::now();
    let struck = chaos.strike().await;
    (started.elapsed(), struck.is_err())
}

async fn strikes(chaos: &Chaos, count: usize) -> Vec<(Duration, bool)> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(strike(chaos).await);
    }
    all
}

/// The share of `hits`, within five standard deviations of what was asked for.
fn assert_share(hits: usize, of: usize, asked: f64) {
    let share = hits as f64 / of as f64;
    let tolerance = 5.0 * (asked * (1.0 - asked) / of as f64).sqrt();
    assert!((share - asked).abs() <= tolerance, "{share} for {asked}");
}

#[tokio::test(start_paused = true)]
async fn the_shares_are_what_was_asked_for_and_independent() {
    for seed in [0, 1, 42] {
        let all = strikes(&chaos(seed).build().unwrap(), DECISIONS).await;
        let faults = all.iter().filter(|(_, fault)| *fault).count();
        let delayed = all.iter().filter(|(delay, _)| !delay.is_zero()).count();
        let both = all.iter().filter(|(delay, fault)| *fault && !delay.is_zero()).count();
        assert_share(faults, DECISIONS, 0.05);
        assert_share(delayed, DECISIONS, 0.2);
        assert_share(both, DECISIONS, 0.05 * 0.2);
    }
}

#[tokio::test(start_paused = true)]
async fn delays_fill_their_range_and_keep_to_it() {
    let chaos = chaos(7).latency(1.0, 10 * MILLI..=20 * MILLI).build().unwrap();
    let all = strikes(&chaos, 1_000).await;
    // Timers are exact to a millisecond, upwards.
    assert!(all.iter().all(|(delay, _)| (10 * MILLI..=21 * MILLI).contains(delay)));
    let upper = all.iter().filter(|(delay, _)| *delay > 15 * MILLI).count();
    assert!((400..=600).contains(&upper), "{upper}");
}

#[tokio::test(start_paused = true)]
async fn a_seed_repeats_and_another_does_not() {
    let all = |seed: u64| async move { strikes(&chaos(seed).build().unwrap(), 500).await };
    assert_eq!(all(7).await, all(7).await);
    assert_ne!(all(7).await, all(8).await);
}

#[tokio::test(start_paused = true)]
async fn interleaved_clones_share_one_sequence() {
    let alone = strikes(&chaos(7).build().unwrap(), 500).await;
    let shared = chaos(7).build().unwrap();
    let mut together = Vec::new();
    for clone in [shared.clone(), shared.clone()].iter().cycle().take(500) {
        together.push(strike(clone).await);
    }
    assert_eq!(alone, together);
}

#[tokio::test(start_paused = true)]
async fn one_share_does_not_move_what_the_other_hits() {
    let faults =
        |all: Vec<(Duration, bool)>| all.into_iter().map(|(_, fault)| fault).collect::<Vec<_>>();
    let with = strikes(&chaos(7).build().unwrap(), 500).await;
    let without = chaos(7).latency(0.0, MILLI..=MILLI).build().unwrap();
    assert_eq!(faults(with), faults(strikes(&without, 500).await));
}

#[tokio::test(start_paused = true)]
async fn switched_off_it_decides_nothing() {
    let chaos = chaos(7).faults(1.0).latency(1.0, MILLI..=MILLI).enabled(false).build().unwrap();
    assert_eq!(strike(&chaos).await, (Duration::ZERO, false));
    assert_eq!(chaos.decisions(), 0);
    chaos.clone().set_enabled(true);
    assert_eq!(strike(&chaos).await, (MILLI, true));
    chaos.set_enabled(false);
    assert_eq!(strike(&chaos).await, (Duration::ZERO, false));
    assert_eq!(chaos.decisions(), 1);
    assert!(!Chaos::builder("payments").build().unwrap().is_enabled());
}

#[tokio::test(start_paused = true)]
async fn all_and_none_are_exact() {
    let all = Chaos::builder("x").faults(1.0).enabled(true).build().unwrap();
    assert!(strikes(&all, 1_000).await.iter().all(|struck| *struck == (Duration::ZERO, true)));
    let none = Chaos::builder("x").enabled(true).build().unwrap();
    assert!(strikes(&none, 1_000).await.iter().all(|struck| *struck == (Duration::ZERO, false)));
}

#[tokio::test(start_paused = true)]
async fn a_strike_dropped_in_its_delay_leaves_the_next_one_be() {
    let chaos = chaos(7).latency(1.0, 10 * MILLI..=10 * MILLI).faults(0.0).build().unwrap();
    assert!(timeout(MILLI, chaos.strike()).await.is_err());
    assert_eq!(strike(&chaos).await, (10 * MILLI, false));
    assert_eq!(chaos.decisions(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_injected_fault_is_the_services_and_was_never_executed() {
    let chaos = Chaos::builder("payments").faults(1.0).enabled(true).build().unwrap();
    let injected = chaos.strike().await.unwrap_err();
    assert_eq!(injected.verdict(), Verdict::service(Replay::Safe));
    assert_eq!(
        injected.to_string(),
        "chaos \"payments\" failed the attempt; the service was not called"
    );
}

#[test]
fn shares_and_delays_that_are_none_are_refused() {
    let refused = |builder: ChaosBuilder| builder.build().unwrap_err().field;
    for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert_eq!(refused(chaos(7).faults(share)), "faults");
        assert_eq!(refused(chaos(7).latency(share, MILLI..=MILLI)), "latency");
    }
    let swapped = 2 * MILLI..=MILLI;
    assert_eq!(refused(chaos(7).latency(0.1, swapped)), "latency");
    assert_eq!(refused(chaos(7).latency(0.1, MILLI..=Duration::MAX)), "latency");
}
