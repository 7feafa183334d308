//! Fear: clients that failed together come back together, too soon, or never.

use std::time::Duration;

use proptest::prelude::*;
use resilience_core::{Backoff, BackoffBuilder, BackoffShape, InvalidSetting, Jitter, Polling};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const SHAPES: [BackoffShape; 4] = [
    BackoffShape::Constant,
    BackoffShape::Linear,
    BackoffShape::Exponential { factor: 2.0 },
    BackoffShape::Fibonacci,
];

fn settings(jitter: Jitter) -> BackoffBuilder {
    Backoff::builder().jitter(jitter).seed(7)
}

fn seconds(shape: BackoffShape) -> Vec<u64> {
    let waits = settings(Jitter::None).shape(shape).max_delay(20 * SECOND).build().unwrap();
    waits.take(8).map(|wait| wait.as_secs()).collect()
}

#[test]
fn each_shape_grows_as_its_name_says_up_to_the_cap() {
    let [constant, linear, exponential, fibonacci] = SHAPES;
    assert_eq!(seconds(constant), [1; 8]);
    assert_eq!(seconds(linear), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(seconds(exponential), [1, 2, 4, 8, 16, 20, 20, 20]);
    assert_eq!(seconds(fibonacci), [1, 1, 2, 3, 5, 8, 13, 20]);
}

#[test]
fn a_tiny_wait_grows_by_a_tiny_factor_too() {
    let tiny = Duration::from_nanos(1);
    let waits = Backoff::exponential(tiny, SECOND, 1.2).take(200);
    assert_eq!(waits.last(), Some(SECOND));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_wait_exceeds_the_cap(
        base in 1..=31_536_000_000_000_000u64,
        max in 2..=31_536_000_000_000_000u64,
        factor in 1.0..1e9f64,
        shape in 0..4usize,
        jitter in 0..4usize,
        seed: u64,
    ) {
        let (base, max) = (Duration::from_nanos(base.min(max - 1)), Duration::from_nanos(max));
        let jitter = [Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Decorrelated][jitter];
        let shape = match SHAPES[shape] {
            _ if jitter == Jitter::Decorrelated => BackoffShape::Exponential { factor },
            BackoffShape::Exponential { .. } => BackoffShape::Exponential { factor },
            other => other,
        };
        let waits = Backoff::builder().base_delay(base).max_delay(max).shape(shape);
        let waits = waits.jitter(jitter).seed(seed).build().unwrap();
        let least = match jitter {
            Jitter::Full => Duration::ZERO,
            Jitter::Equal => base / 2,
            _ => base,
        };
        // Doubles hold 53 bits; a year in nanoseconds has 55.
        let rounding = Duration::from_nanos(4);
        for wait in waits.take(60) {
            prop_assert!(wait <= max, "{wait:?} of {max:?}");
            prop_assert!(wait + rounding >= least, "{wait:?}, at the least {least:?}");
        }
    }

    #[test]
    fn the_plain_constructor_takes_whatever_it_is_given(
        base in 0..u64::MAX, max in 0..u64::MAX, factor: f64, seed: u64,
    ) {
        let (base, max) = (Duration::from_nanos(base), Duration::from_nanos(max));
        let waits = Backoff::exponential(base, max, factor);
        prop_assert!(waits.clone().take(40).all(|wait| wait <= max));
        prop_assert!(waits.jittered_with_seed(seed).take(40).all(|wait| wait <= max));
    }
}

/// Mean, deviation, and the share of the most frequent value.
fn figures(waits: &[f64]) -> (f64, f64, f64) {
    let count = waits.len() as f64;
    let mean = waits.iter().sum::<f64>() / count;
    let variance = waits.iter().map(|wait| (wait - mean).powi(2)).sum::<f64>() / count;
    let mut sorted = waits.to_vec();
    sorted.sort_by(f64::total_cmp);
    let most = sorted.chunk_by(|a, b| a == b).map(<[f64]>::len).max().unwrap();
    (mean, variance.sqrt(), most as f64 / count)
}

/// What many waits at a cap of 1 look like: past the growth, as seconds.
fn at_the_cap(jitter: Jitter) -> Vec<f64> {
    let waits = settings(jitter).base_delay(SECOND / 100).max_delay(SECOND).build().unwrap();
    waits.skip(50).take(200_000).map(|wait| wait.as_secs_f64()).collect()
}

#[track_caller]
fn near(what: &str, value: f64, expected: f64) {
    assert!((value - expected).abs() <= 0.004, "{what} is {value}, not {expected}");
}

#[test]
fn full_jitter_is_even_from_zero_to_the_wait() {
    let (mean, deviation, most) = figures(&at_the_cap(Jitter::Full));
    near("mean", mean, 0.5);
    near("deviation", deviation, 1.0 / 12f64.sqrt());
    near("share of the most frequent wait", most, 0.0);
}

#[test]
fn equal_jitter_is_even_over_the_upper_half() {
    let waits = at_the_cap(Jitter::Equal);
    let (mean, deviation, most) = figures(&waits);
    near("mean", mean, 0.75);
    near("deviation", deviation, 0.5 / 12f64.sqrt());
    near("share of the most frequent wait", most, 0.0);
    assert!(waits.iter().all(|wait| *wait >= 0.5));
}

#[test]
fn decorrelated_jitter_follows_its_formula_and_is_spread_where_that_would_be_the_cap() {
    let waits = at_the_cap(Jitter::Decorrelated);
    // The published walk, by other random numbers; what it would cut to the cap is even over the upper half.
    let mut rng = fastrand::Rng::with_seed(11);
    let mut sleep = 0.01;
    let walk = (0..200_050).map(|_| {
        let drawn = 0.01 + (sleep * 3.0 - 0.01) * rng.f64();
        sleep = f64::min(1.0, drawn);
        if drawn > 1.0 { 0.5 + 0.5 * rng.f64() } else { drawn }
    });
    let walk: Vec<f64> = walk.skip(50).collect();
    let share = |waits: &[f64], from: f64, to: f64| {
        waits.iter().filter(|wait| (from..to).contains(*wait)).count() as f64 / waits.len() as f64
    };
    for tenth in 0..10 {
        let (from, to) = (f64::from(tenth) / 10.0, f64::from(tenth + 1) / 10.0);
        near(&format!("share from {from}"), share(&waits, from, to), share(&walk, from, to));
    }
    let (mean, deviation, most) = figures(&waits);
    let (walk_mean, walk_deviation, _) = figures(&walk);
    near("mean", mean, walk_mean);
    near("deviation", deviation, walk_deviation);
    near("share of the most frequent wait", most, 0.0);
}

#[test]
fn decorrelated_jitter_begins_between_its_base_and_three_times_that() {
    let first = |seed| {
        let waits = Backoff::builder().jitter(Jitter::Decorrelated).seed(seed).build();
        waits.unwrap().next().unwrap().as_secs_f64()
    };
    let firsts: Vec<f64> = (0..20_000).map(first).collect();
    assert!(firsts.iter().all(|wait| (1.0..=3.0).contains(wait)));
    let (mean, deviation, _) = figures(&firsts);
    assert!((mean - 2.0).abs() < 0.02, "{mean}");
    assert!((deviation - 2.0 / 12f64.sqrt()).abs() < 0.02, "{deviation}");
}

#[test]
fn one_seed_gives_one_sequence_and_no_seed_gives_many() {
    for jitter in [Jitter::Full, Jitter::Equal, Jitter::Decorrelated] {
        let waits =
            |seed| -> Vec<_> { settings(jitter).seed(seed).build().unwrap().take(8).collect() };
        assert_eq!(waits(3), waits(3), "{jitter:?}");
        assert_ne!(waits(3), waits(4), "{jitter:?}");
        let own = || Backoff::builder().jitter(jitter).build().unwrap();
        assert_ne!(own().take(8).collect::<Vec<_>>(), own().take(8).collect::<Vec<_>>());
    }
}

#[test]
fn endless_settings_do_not_panic() {
    let centuries = Duration::from_secs(500 * 365 * 24 * 3600);
    let mut waits = Backoff::exponential(Duration::MAX, Duration::MAX, f64::INFINITY);
    assert!(waits.next().unwrap() > centuries && waits.next().unwrap() > centuries);
    let mut waits = Backoff::exponential(Duration::ZERO, SECOND, f64::INFINITY).skip(1);
    assert_eq!(waits.next(), Some(Duration::ZERO));
}

#[test]
fn waits_that_make_no_sense_cannot_be_built() {
    let field = |result: Result<Backoff, InvalidSetting>| result.unwrap_err().field;
    let decorrelated = || settings(Jitter::Decorrelated);
    assert_eq!(field(settings(Jitter::Full).max_delay(Duration::ZERO).build()), "max_delay");
    assert_eq!(field(settings(Jitter::Full).max_delay(Duration::MAX).build()), "max_delay");
    assert_eq!(field(settings(Jitter::Full).base_delay(61 * SECOND).build()), "base_delay");
    assert_eq!(field(settings(Jitter::Full).base_delay(Duration::MAX).build()), "base_delay");
    for factor in [0.99, 0.0, -2.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let shape = BackoffShape::Exponential { factor };
        assert_eq!(field(settings(Jitter::Full).shape(shape).build()), "exponential_base");
    }
    for shape in [BackoffShape::Linear, BackoffShape::Fibonacci] {
        let still = settings(Jitter::None).shape(shape).base_delay(Duration::ZERO);
        assert_eq!(field(still.build()), "base_delay");
        assert_eq!(field(decorrelated().shape(shape).build()), "shape");
    }
    assert_eq!(field(decorrelated().base_delay(Duration::ZERO).build()), "base_delay");
    assert_eq!(field(decorrelated().base_delay(60 * SECOND).build()), "base_delay");
    let at_once = settings(Jitter::Full).base_delay(Duration::ZERO).build().unwrap();
    assert!(at_once.take(5).all(|wait| wait.is_zero()));
}

#[tokio::test(start_paused = true)]
async fn a_loop_without_a_budget_does_not_turn_hot() {
    let waits = settings(Jitter::None).max_delay(8 * SECOND).build().unwrap();
    let mut polling = Polling::new(waits);
    let mut gaps = Vec::new();
    for _ in 0..6 {
        let began = Instant::now();
        polling.failed(None).await;
        gaps.push(began.elapsed().as_secs());
    }
    assert_eq!((gaps, polling.failures()), (vec![1, 2, 4, 8, 8, 8], 6));
    polling.succeeded();
    assert_eq!((polling.wait(None), polling.wait(None)), (SECOND, 2 * SECOND));
    assert_eq!(
        polling.wait(Some(30 * SECOND)),
        30 * SECOND,
        "what the service asks for may be longer"
    );
    assert_eq!(polling.wait(Some(SECOND)), 8 * SECOND);
}

#[test]
fn a_loop_that_recovers_now_and_then_starts_small_again() {
    for jitter in [Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Decorrelated] {
        for shape in SHAPES {
            let Ok(waits) = settings(jitter).shape(shape).build() else { continue };
            let mut polling = Polling::new(waits);
            for _ in 0..50 {
                let _ = polling.wait(None);
            }
            polling.succeeded();
            let first = polling.wait(None);
            assert!(first <= 3 * SECOND, "{jitter:?} {shape:?}: {first:?}");
        }
    }
}
