//! Fear: a throttle that starves a healthy service, floods a sick one, or never lets go.

use std::collections::VecDeque;
use std::time::Duration;

use resilience_core::{Outcome, Throttle, ThrottleBuilder};
use tokio::time::advance;

const WINDOW: Duration = Duration::from_secs(120);
/// What the backend accepts, requests a second.
const CAPACITY: u32 = 20;
const STEP: Duration = Duration::from_millis(500);

fn throttle() -> Throttle {
    Throttle::builder("simulated").seed(1).build().unwrap()
}

/// Offers `load` times the capacity for `time` to a backend that accepts `capacity` requests a second and
/// rejects the others. What was sent and what it accepted, in requests a second.
async fn offer(throttle: &Throttle, load: u32, capacity: u32, time: Duration) -> (f64, f64) {
    let (mut sent, mut accepted) = (0, 0);
    let steps = (time.as_secs_f64() / STEP.as_secs_f64()) as u32;
    for _ in 0..steps {
        let mut room = capacity / 2;
        for _ in 0..load * CAPACITY / 2 {
            let Ok(permit) = throttle.try_acquire() else { continue };
            sent += 1;
            if room > 0 {
                room -= 1;
                accepted += 1;
                permit.success();
            } else {
                permit.failure();
            }
        }
        advance(STEP).await;
    }
    (f64::from(sent) / time.as_secs_f64(), f64::from(accepted) / time.as_secs_f64())
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_backend_is_sent_twice_what_it_accepts() {
    for load in 2..=10 {
        let throttle = throttle();
        offer(&throttle, load, CAPACITY, WINDOW * 2).await;
        let (sent, accepted) = offer(&throttle, load, CAPACITY, WINDOW * 2).await;
        let expected = f64::from(2 * CAPACITY);
        assert!((sent / expected - 1.0).abs() < 0.05, "load {load}: {sent} sent a second");
        assert!(accepted > 0.98 * f64::from(CAPACITY), "load {load}: {accepted} accepted a second");
        let book = 1.0 - 2.0 / f64::from(load);
        let ours = throttle.rejection_probability();
        assert!((ours - book).abs() < 0.03, "load {load}: {ours} instead of {book}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_refused_while_all_is_accepted_or_half() {
    let throttle = throttle();
    offer(&throttle, 1, CAPACITY, WINDOW).await;
    offer(&throttle, 1, CAPACITY / 2, WINDOW * 2).await;
    let snapshot = throttle.snapshot();
    assert_eq!((snapshot.refused, snapshot.rejection_probability), (0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_heals_has_all_its_traffic_back_as_soon_as_the_docs_say() {
    for (load, capacity, windows) in [(5, CAPACITY, 1.0), (10, CAPACITY, 1.2), (5, 0, 2.0)] {
        let throttle = throttle();
        offer(&throttle, load, capacity, WINDOW * 2).await;
        assert!(throttle.rejection_probability() > 0.5);
        let healing = WINDOW.mul_f64(windows);
        let mut healed = Duration::ZERO;
        while throttle.rejection_probability() > 0.0 {
            offer(&throttle, load, u32::MAX, STEP).await;
            healed += STEP;
        }
        println!(
            "load {load}, capacity {capacity}: {:.2} windows",
            healed.div_duration_f64(WINDOW)
        );
        assert!(healed <= healing, "load {load}: {healed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_total_outage_still_lets_one_in_ten_through() {
    let throttle = throttle();
    offer(&throttle, 10, 0, WINDOW * 2).await;
    assert_eq!(throttle.rejection_probability(), 0.9);
    let (sent, _) = offer(&throttle, 10, 0, WINDOW).await;
    let tenth = f64::from(CAPACITY);
    assert!((sent / tenth - 1.0).abs() < 0.1, "{sent} sent a second");
}

#[tokio::test(start_paused = true)]
async fn what_says_nothing_of_the_service_counts_as_no_request() {
    let throttle = throttle();
    throttle.try_acquire().unwrap().settle(Outcome::Excluded);
    throttle.try_acquire().unwrap().settle(Outcome::Cancelled);
    drop(throttle.try_acquire());
    assert_eq!(throttle.snapshot().requests, 0);
    throttle.try_acquire().unwrap().failure();
    let snapshot = throttle.snapshot();
    assert_eq!((snapshot.requests, snapshot.accepts), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_here_counts_as_a_request_at_once() {
    let throttle = throttle();
    throttle.try_acquire().unwrap().failure();
    let mut passed = 0;
    for tried in 1..=200 {
        // Unsettled: what passes counts as nothing.
        passed += u64::from(throttle.try_acquire().is_ok());
        let snapshot = throttle.snapshot();
        assert_eq!((snapshot.refused, snapshot.requests), (tried - passed, 1 + tried - passed));
    }
    assert!(passed > 5);
}

#[tokio::test(start_paused = true)]
async fn the_window_slides_by_a_sixtieth_and_forgets_exactly() {
    let throttle = throttle();
    // Against a plain list of the settled requests, each with the bucket in which it settled.
    let mut model: VecDeque<(u64, bool)> = VecDeque::new();
    let mut random = fastrand::Rng::with_seed(5);
    let mut millis = 0_u64;
    for _ in 0..5000 {
        let pause = if random.u8(..100) == 0 { 100_000 } else { random.u64(..1500) };
        advance(Duration::from_millis(pause)).await;
        millis += pause;
        let bucket = millis / 2000;
        model.retain(|(settled, _)| settled + 60 > bucket);
        let accepted = random.bool();
        match throttle.try_acquire() {
            Ok(permit) => {
                permit.settle(if accepted { Outcome::Success } else { Outcome::Failure });
                model.push_back((bucket, accepted));
            }
            Err(_) => model.push_back((bucket, false)),
        }
        let snapshot = throttle.snapshot();
        let accepts = model.iter().filter(|(_, accepted)| *accepted).count() as u64;
        assert_eq!((snapshot.requests, snapshot.accepts), (model.len() as u64, accepts));
    }
    advance(WINDOW).await;
    assert_eq!(throttle.snapshot().requests, 0);
}

#[test]
fn no_count_is_lost_between_threads() {
    let throttle = Throttle::builder("threads").window(Duration::from_secs(3600)).build().unwrap();
    let settled: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let throttle = throttle.clone();
                scope.spawn(move || {
                    let mut settled = 0;
                    for request in 0..10_000 {
                        let Ok(permit) = throttle.try_acquire() else { continue };
                        settled += 1;
                        let failed = (request + thread) % 3 == 0;
                        permit.settle(if failed { Outcome::Failure } else { Outcome::Success });
                    }
                    settled
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let snapshot = throttle.snapshot();
    assert_eq!(snapshot.requests, settled + snapshot.refused);
    assert_eq!(settled + snapshot.refused, 40_000);
}

#[tokio::test(start_paused = true)]
async fn one_seed_is_one_history() {
    let run = || async {
        let throttle = throttle();
        offer(&throttle, 3, CAPACITY, WINDOW).await
    };
    assert_eq!(run().await, run().await);
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let refused = |set: fn(ThrottleBuilder) -> ThrottleBuilder| {
        set(Throttle::builder("invalid")).build().unwrap_err().field
    };
    assert_eq!(refused(|throttle| throttle.window(Duration::ZERO)), "throttle window");
    assert_eq!(refused(|throttle| throttle.window(Duration::MAX)), "throttle window");
    assert_eq!(refused(|throttle| throttle.multiplier(0.99)), "throttle multiplier");
    assert_eq!(refused(|throttle| throttle.multiplier(f64::NAN)), "throttle multiplier");
    assert_eq!(refused(|throttle| throttle.multiplier(f64::INFINITY)), "throttle multiplier");
    assert_eq!(refused(|throttle| throttle.max_rejection(0.0)), "max_rejection");
    assert_eq!(refused(|throttle| throttle.max_rejection(1.0)), "max_rejection");
}
