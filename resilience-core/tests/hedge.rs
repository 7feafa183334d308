//! Fear: hedges that double the load, leave losers behind, or learn from what they have cut short.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use resilience_core::{CircuitBreaker, Hedge, HedgeBuilder, InvalidSetting, RetryBudget};
use tokio::time::{Instant, sleep};

const MS: Duration = Duration::from_millis(1);

/// Counts what is in flight; dropping one is the end of it.
#[derive(Clone, Default)]
struct Flights(Arc<AtomicU32>);

impl Flights {
    fn start(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.clone()
    }

    fn in_flight(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Landing(Flights);

impl Drop for Landing {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn after(delay: Duration) -> HedgeBuilder {
    Hedge::builder().delay(delay)
}

fn generous() -> RetryBudget {
    RetryBudget::new(1.0, 1_000_000).unwrap()
}

/// An answer after `time`; an error with the attempt's number if `fails`.
async fn answer(number: u32, time: Duration, fails: bool) -> Result<u32, u32> {
    sleep(time).await;
    if fails { Err(number) } else { Ok(number) }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_hedged_before_the_delay() {
    let hedge = after(50 * MS).build().unwrap();
    for (time, fails) in
        [(Duration::ZERO, false), (50 * MS, false), (Duration::ZERO, true), (49 * MS, true)]
    {
        let result = hedge.run(|number| answer(number, time, fails)).await;
        assert_eq!(result, if fails { Err(0) } else { Ok(0) });
    }
    assert_eq!(hedge.counts().started, 0);
}

#[tokio::test(start_paused = true)]
async fn the_slower_is_dropped_at_once_whichever_it_is() {
    let hedge = after(50 * MS).max_hedges(2).build().unwrap();
    for (first, second, third, winner, end) in [
        (1000, 10, 1000, 1, 60),
        (120, 500, 500, 0, 120),
        (1000, 1000, 5, 2, 105),
        (60, 10, 1000, 0, 60),
    ] {
        let flights = Flights::default();
        let times = [first, second, third];
        let started = Instant::now();
        let result = hedge.run(|number| {
            let landing = Landing(flights.start());
            async move {
                let result = answer(number, times[number as usize] * MS, false).await;
                drop(landing);
                result
            }
        });
        assert_eq!(result.await, Ok(winner));
        assert_eq!((flights.in_flight(), started.elapsed()), (0, end * MS));
    }
    let counts = hedge.counts();
    assert_eq!((counts.started, counts.won), (6, 2));
}

#[tokio::test(start_paused = true)]
async fn the_loser_counts_as_cancelled_in_its_breaker() {
    let breaker = CircuitBreaker::builder("hedged").fail_max(1).build().unwrap();
    let hedge = after(50 * MS).build().unwrap();
    let time = |number| if number == 0 { 1000 * MS } else { 10 * MS };
    let result = hedge.run(|number| {
        let breaker = &breaker;
        async move { breaker.call(|| answer(number, time(number), false)).await }
    });
    assert_eq!(result.await.unwrap(), 1);
    let calls = breaker.snapshot().calls;
    assert_eq!((calls.success, calls.cancelled, calls.failure), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_waits_for_the_other_and_starts_no_third() {
    let hedge = after(50 * MS).max_hedges(2).budget(generous()).build().unwrap();
    let started = Instant::now();
    // The first fails at 60 ms, the hedge at 90 ms: the second hedge, due at 100 ms, is not started.
    let times = [60 * MS, 40 * MS, Duration::ZERO];
    let result = hedge.run(|number| answer(number, times[number as usize], true)).await;
    assert_eq!((result, started.elapsed()), (Err(1), 90 * MS));
    let result = hedge.run(|number| answer(number, times[number as usize], number == 0)).await;
    assert_eq!(result, Ok(1));
    let times = [80 * MS, 10 * MS, Duration::ZERO];
    let result = hedge.run(|number| answer(number, times[number as usize], number == 1)).await;
    assert_eq!(result, Ok(0));
    assert_eq!(hedge.counts().started, 3);
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_starts_no_hedge_and_says_so() {
    let hedge = after(50 * MS).budget(RetryBudget::new(0.0, 0).unwrap()).build().unwrap();
    let started = Instant::now();
    assert_eq!(hedge.run(|number| answer(number, 1000 * MS, false)).await, Ok(0));
    let counts = hedge.counts();
    assert_eq!((counts.started, counts.refused), (0, 1));
    assert_eq!(started.elapsed(), 1000 * MS);
}

#[tokio::test(start_paused = true)]
async fn hedges_never_exceed_their_share_of_ten_thousand_calls() {
    let budget = RetryBudget::new(0.1, 10).unwrap();
    let hedge = after(50 * MS).max_hedges(2).budget(budget).build().unwrap();
    let attempts = AtomicU32::new(0);
    for _ in 0..10_000 {
        let run = hedge.run(|number| {
            attempts.fetch_add(1, Ordering::Relaxed);
            answer(number, 1000 * MS, false)
        });
        run.await.unwrap();
    }
    let (attempts, counts) = (attempts.into_inner(), hedge.counts());
    // 10 % of the calls and the 10 to begin with, less the first deposits, which found it full.
    assert!((11_000..=11_010).contains(&attempts), "{attempts} attempts");
    assert_eq!(counts.started + 10_000, u64::from(attempts));
    assert_eq!(counts.started + counts.refused, 20_000);
}

#[tokio::test(start_paused = true)]
async fn a_learned_delay_follows_the_latency_both_ways() {
    let hedge = Hedge::builder().build().unwrap();
    assert_eq!(hedge.delay(), None);
    for (time, calls) in [(20 * MS, 100), (200 * MS, 1200), (20 * MS, 1200)] {
        for _ in 0..calls {
            hedge.run(|number| answer(number, time, false)).await.unwrap();
        }
        let delay = hedge.delay().unwrap();
        assert!(delay >= time && delay <= time + time / 64, "{delay:?} for {time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_learned_delay_does_not_sink_with_the_answers_that_hedges_cut_short() {
    for give_up in [None, Some(700 * MS)] {
        let hedge = Hedge::builder().budget(generous()).build().unwrap();
        let mut rng = fastrand::Rng::with_seed(4);
        // One in ten is slow, from 100 ms to 1 s: the 95th percentile is 550 ms, and hedges win.
        let mut time = || match rng.u32(0..10) {
            0 => Duration::from_micros(rng.u64(100_000..1_000_000)),
            _ => Duration::from_micros(rng.u64(1_000..10_000)),
        };
        let (mut lowest, mut calls) = (Duration::MAX, 0);
        while calls < 20_000 {
            let times = [time(), time()];
            let run = hedge.run(|number| answer(number, times[number as usize], false));
            match give_up {
                Some(give_up) => drop(tokio::time::timeout(give_up, run).await),
                None => drop(run.await),
            }
            calls += 1;
            lowest = hedge.delay().filter(|_| calls > 1000).map_or(lowest, |now| lowest.min(now));
        }
        let share = hedge.counts().started as f64 / f64::from(calls);
        println!("give up {give_up:?}: lowest delay {lowest:?}, {share} hedged");
        assert!(lowest > 300 * MS && share < 0.06, "{lowest:?}, {share} hedged");
    }
}

#[tokio::test(start_paused = true)]
async fn quick_errors_do_not_shorten_a_learned_delay() {
    let hedge = Hedge::builder().build().unwrap();
    for call in 0..5000 {
        let fails = call > 1024;
        let time = if fails { Duration::ZERO } else { 20 * MS };
        let _ = hedge.run(|number| answer(number, time, fails)).await;
    }
    assert!(hedge.delay().unwrap() >= 20 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_hedge_leaves_every_count_right() {
    for while_made in [true, false] {
        let breaker = CircuitBreaker::builder("panics").fail_max(5).build().unwrap();
        let hedge = after(50 * MS).build().unwrap();
        let flights = Flights::default();
        let panicked = tokio::spawn({
            let (breaker, hedge, flights) = (breaker.clone(), hedge.clone(), flights.clone());
            async move {
                let run = hedge.run(|number| {
                    assert!(number == 0 || !while_made, "as it should in this test");
                    let landing = Landing(flights.start());
                    let breaker = &breaker;
                    async move {
                        let attempt = || async {
                            assert!(number == 0, "as it should in this test");
                            answer(number, 1000 * MS, false).await
                        };
                        let result = breaker.call(attempt).await;
                        drop(landing);
                        result
                    }
                });
                run.await
            }
        });
        assert!(panicked.await.unwrap_err().is_panic());
        let calls = breaker.snapshot().calls;
        // The panic is a failure of the attempt that panicked; the other one is nobody's.
        assert_eq!((calls.failure, calls.cancelled), (u64::from(!while_made), 1));
        assert_eq!((flights.in_flight(), hedge.counts().started), (0, 1));
        assert_eq!(hedge.run(|number| answer(number, MS, false)).await, Ok(0));
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_call_leaves_nothing_in_flight() {
    let hedge = after(50 * MS).max_hedges(4).build().unwrap();
    let flights = Flights::default();
    let run = hedge.run(|number| {
        let landing = Landing(flights.start());
        async move {
            let result = answer(number, 1000 * MS, false).await;
            drop(landing);
            result
        }
    });
    let mut run = Box::pin(run);
    tokio::time::timeout(220 * MS, run.as_mut()).await.unwrap_err();
    assert_eq!(flights.in_flight(), 5);
    drop(run);
    assert_eq!(flights.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_blocked_runtime_spends_no_budget_and_teaches_nothing() {
    for (time, started) in [(2030, 0), (3000, 1)] {
        let hedge = Hedge::builder().budget(generous()).build().unwrap();
        for _ in 0..100 {
            hedge.run(|number| answer(number, 50 * MS, false)).await.unwrap();
        }
        let delay = hedge.delay();
        let calls: Vec<_> = (0..40)
            .map(|_| {
                let hedge = hedge.clone();
                tokio::spawn(async move { hedge.run(|n| answer(n, time * MS, false)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        // As if something had kept the thread for two seconds.
        tokio::time::advance(2000 * MS).await;
        for call in calls {
            assert_eq!(call.await.unwrap(), Ok(0));
        }
        assert_eq!((hedge.counts().started, hedge.delay()), (40 * started, delay));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_at_the_95th_percentile_cures_the_slow_two_in_a_hundred() {
    const CALLS: usize = 10_000;
    let mut tails = Vec::new();
    for hedged in [false, true] {
        let budget =
            if hedged { RetryBudget::default() } else { RetryBudget::new(0.0, 0).unwrap() };
        let hedge = Hedge::builder().quantile(0.95).budget(budget).build().unwrap();
        let mut rng = fastrand::Rng::with_seed(2013);
        let (mut times, mut attempts) = (Vec::with_capacity(CALLS), 0);
        for _ in 0..CALLS {
            let started = Instant::now();
            let run = hedge.run(|number| {
                attempts += 1;
                answer(number, if rng.f64() < 0.02 { 1000 * MS } else { 10 * MS }, false)
            });
            run.await.unwrap();
            times.push(started.elapsed());
        }
        times.sort_unstable();
        let [p95, p99] = [95, 99].map(|percent| times[CALLS * percent / 100]);
        let load = f64::from(attempts) / CALLS as f64;
        println!("hedged: {hedged}; p95 {p95:?}, p99 {p99:?}, load {load}");
        tails.push((p95, p99, load));
    }
    let [(p95, p99, load), (_, hedged, hedged_load)] = tails[..] else { unreachable!() };
    assert_eq!((p95, p99, load), (10 * MS, 1000 * MS, 1.0));
    // Twice the 95th percentile, and the tick by which the timer rounds up.
    assert!(hedged <= 2 * p95 + MS, "{hedged:?}");
    assert!(hedged_load <= 1.06, "{hedged_load}");
}

#[test]
fn a_hedge_of_a_send_operation_is_send() {
    fn assert_send<T: Send>(_: T) {}
    let hedge = Hedge::builder().build().unwrap();
    assert_send(hedge.run(|number| answer(number, MS, false)));
}

#[test]
fn a_hedge_that_cannot_be_meant_is_refused() {
    let refused = |hedge: Result<Hedge, InvalidSetting>| hedge.unwrap_err().field;
    for delay in [Duration::ZERO, Duration::MAX] {
        assert_eq!(refused(after(delay).build()), "delay");
    }
    for quantile in [0.0, 1.0, f64::NAN] {
        assert_eq!(refused(Hedge::builder().quantile(quantile).build()), "quantile");
    }
    for max_hedges in [0, 5] {
        assert_eq!(refused(Hedge::builder().max_hedges(max_hedges).build()), "max_hedges");
    }
}
