//! The fears about a limit that moves by itself: that it misses what the service can take, drifts, or collapses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use resilience_core::{
    AdaptiveLimit, AdaptiveLimitBuilder, AdaptivePlace, Deadline, LimitAlgorithm, Outcome,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long the simulated service works on one request, on average.
const WORK: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);

const BOTH: [LimitAlgorithm; 2] = [LimitAlgorithm::Aimd, LimitAlgorithm::Gradient];

fn builder(algorithm: LimitAlgorithm) -> AdaptiveLimitBuilder {
    AdaptiveLimit::builder("search").algorithm(algorithm).max(1000)
}

/// What a service does with more requests than it works on at once.
#[derive(Clone, Copy, Debug)]
enum Excess {
    /// It queues them.
    Wait,
    /// It refuses them, after a moment.
    Refuse,
}

/// A service that works on so many requests at once, with 300 clients that never rest.
struct Simulation {
    limit: AdaptiveLimit,
    capacity: Arc<Semaphore>,
    served: Arc<AtomicUsize>,
    _clients: JoinSet<()>,
}

impl Simulation {
    fn new(limit: &AdaptiveLimit, capacity: usize, excess: Excess, random: bool) -> Self {
        let capacity = Arc::new(Semaphore::new(capacity));
        let served = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (limit, capacity, served) = (limit.clone(), capacity.clone(), served.clone());
            clients.spawn(async move {
                loop {
                    let Ok(place) = limit.acquire(Deadline::within(60 * SECOND)).await else {
                        continue;
                    };
                    let started = Instant::now();
                    let worker = match excess {
                        Excess::Wait => capacity.acquire().await.ok(),
                        Excess::Refuse => capacity.try_acquire().ok(),
                    };
                    let Some(worker) = worker else {
                        sleep(WORK / 10).await;
                        place.settle(Outcome::Failure, started.elapsed());
                        sleep(WORK).await;
                        continue;
                    };
                    // Exponential: as uneven as services get.
                    let share = if random { -(1.0 - rng.f64()).ln() } else { 1.0 };
                    sleep(WORK.mul_f64(share)).await;
                    drop(worker);
                    served.fetch_add(1, Ordering::Relaxed);
                    place.settle(Outcome::Success, started.elapsed());
                }
            });
        }
        Self { limit: limit.clone(), capacity, served, _clients: clients }
    }

    /// Runs for 20 s, to settle, and for another 20: the mean limit, and how many workers were busy.
    async fn run(&self) -> (f64, f64) {
        sleep(20 * SECOND).await;
        let before = self.served.load(Ordering::Relaxed);
        let mut sum = 0;
        for _ in 0..2000 {
            sleep(SECOND / 100).await;
            sum += self.limit.limit();
        }
        let served = self.served.load(Ordering::Relaxed) - before;
        (sum as f64 / 2000.0, served as f64 * WORK.as_secs_f64() / 20.0)
    }
}

/// Settles near what the service can take, and again when that doubles and halves.
async fn follows(algorithm: LimitAlgorithm, excess: Excess, share: std::ops::Range<f64>) {
    for (capacity, random) in [(20, false), (40, true)] {
        let simulation =
            Simulation::new(&builder(algorithm).build().unwrap(), capacity, excess, random);
        for times in [1, 2, 1] {
            match times {
                2 => simulation.capacity.add_permits(capacity),
                _ if simulation.served.load(Ordering::Relaxed) > 0 => {
                    simulation.capacity.acquire_many(capacity as u32).await.unwrap().forget();
                }
                _ => {}
            }
            let (limit, busy) = simulation.run().await;
            let capacity = (capacity * times) as f64;
            assert!(share.contains(&(limit / capacity)), "{capacity}, {random}: limit {limit}");
            assert!(busy / capacity > 0.93, "{capacity}, {random}: busy {busy}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_gradient_does_not_miss_what_the_service_works_on() {
    follows(LimitAlgorithm::Gradient, Excess::Wait, 1.0..1.6).await;
}

#[tokio::test(start_paused = true)]
async fn aimd_does_not_miss_what_the_service_accepts() {
    follows(LimitAlgorithm::Aimd, Excess::Refuse, 0.9..1.05).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_hour_moves_nothing() {
    for algorithm in BOTH {
        let (usual, low) = (builder(algorithm), builder(algorithm).initial(1));
        for (limit, most) in [(usual.build().unwrap(), 20), (low.build().unwrap(), 3)] {
            for second in 0..3600 {
                let place = limit.try_acquire().expect("nobody else is in");
                sleep(SECOND).await;
                // Quicker and slower by turns: with nothing in the way, neither tells anything.
                place.settle(Outcome::Success, WORK * (1 + second % 3));
                assert!(limit.limit() <= most, "{algorithm:?}: {}", limit.limit());
            }
            assert_eq!(limit.limit(), most, "{algorithm:?}");
        }
    }
}

/// As many in flight as may be, settled one after the other.
struct Full<'a> {
    limit: &'a AdaptiveLimit,
    places: std::collections::VecDeque<AdaptivePlace<'a>>,
}

impl<'a> Full<'a> {
    fn new(limit: &'a AdaptiveLimit) -> Self {
        let places = std::iter::from_fn(|| limit.try_acquire()).collect();
        Self { limit, places }
    }

    fn settle(&mut self, outcome: Outcome, elapsed: Duration) {
        self.places.pop_front().expect("the limit is 1 or more").settle(outcome, elapsed);
        self.places.extend(std::iter::from_fn(|| self.limit.try_acquire()));
    }
}

#[test]
fn one_slow_answer_or_one_timeout_does_not_collapse_the_limit() {
    for algorithm in BOTH {
        for (outcome, elapsed) in
            [(Outcome::Success, Duration::MAX), (Outcome::Failure, 600 * SECOND)]
        {
            let limit = builder(algorithm).max(50).build().unwrap();
            let mut full = Full::new(&limit);
            // Far enough to have grown, and not yet to the next look at the service at rest.
            while limit.limit() < 40 {
                full.settle(Outcome::Success, WORK);
            }
            // What began under an earlier limit does not count.
            for _ in 0..45 {
                full.settle(Outcome::Success, WORK);
            }
            full.settle(outcome, elapsed);
            for _ in 0..200 {
                full.settle(Outcome::Success, WORK);
                assert!(limit.limit() >= 38, "{algorithm:?}, {outcome:?}: {}", limit.limit());
            }
        }
    }
}

#[test]
fn one_burst_of_timeouts_is_one_cut() {
    for algorithm in BOTH {
        let limit = builder(algorithm).build().unwrap();
        let burst: Vec<_> = std::iter::from_fn(|| limit.try_acquire()).collect();
        assert_eq!(burst.len(), 20);
        for place in burst {
            place.settle(Outcome::Failure, SECOND);
        }
        assert_eq!((limit.limit(), limit.in_flight()), (18, 0), "{algorithm:?}");
        // The next is another: with half of them timing out, it goes down and down.
        for _ in 0..2000 {
            limit.try_acquire().unwrap().settle(Outcome::Failure, SECOND);
            limit.try_acquire().unwrap().settle(Outcome::Success, WORK);
        }
        assert_eq!(limit.limit(), 1, "{algorithm:?}");
    }
}

#[test]
fn a_long_time_at_the_highest_limit_does_not_delay_the_first_cut() {
    for algorithm in BOTH {
        let limit = builder(algorithm).max(30).build().unwrap();
        let mut full = Full::new(&limit);
        let mut settled = 0;
        // A probe has half of the limit.
        while settled < 20_000 || limit.limit() < 30 {
            full.settle(Outcome::Success, WORK);
            settled += 1;
        }
        drop(full);
        for _ in 0..2 {
            limit.try_acquire().unwrap().settle(Outcome::Failure, SECOND);
        }
        assert_eq!(limit.limit(), 27, "{algorithm:?}");
    }
}

#[test]
fn what_says_nothing_of_load_moves_nothing() {
    for algorithm in BOTH {
        let limit = builder(algorithm).build().unwrap();
        let mut full = Full::new(&limit);
        for _ in 0..1000 {
            full.settle(Outcome::Excluded, SECOND);
            full.settle(Outcome::Cancelled, SECOND);
            drop(full.places.pop_back());
            assert_eq!(limit.limit(), 20);
        }
        drop(full);
        assert_eq!(limit.in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_grows_lets_in_those_who_wait() {
    let limit = builder(LimitAlgorithm::Aimd).initial(2).build().unwrap();
    let endless = || Deadline::within(Duration::MAX);
    for _ in 0..19 {
        let _other = limit.try_acquire().unwrap();
        limit.try_acquire().unwrap().settle(Outcome::Success, WORK);
    }
    let (_held, last) = (limit.try_acquire().unwrap(), limit.try_acquire().unwrap());
    let mut waiting = JoinSet::new();
    for _ in 0..3 {
        let limit = limit.clone();
        waiting.spawn(async move { limit.acquire_owned(endless()).await.unwrap() });
        tokio::task::yield_now().await;
    }
    assert_eq!((limit.limit(), limit.in_flight(), limit.waiting()), (2, 2, 3));
    last.settle(Outcome::Success, WORK);
    assert_eq!((limit.limit(), limit.in_flight(), limit.waiting()), (3, 3, 1));
    drop(waiting.join_next().await.unwrap().unwrap());
    assert_eq!((limit.in_flight(), limit.waiting()), (3, 0));
}

#[test]
fn a_limit_that_shrinks_waits_until_enough_have_left() {
    let limit = builder(LimitAlgorithm::Aimd).build().unwrap();
    let mut places: Vec<_> = std::iter::from_fn(|| limit.try_acquire()).collect();
    for _ in 0..2 {
        places.pop().unwrap().settle(Outcome::Failure, SECOND);
    }
    assert_eq!((limit.limit(), limit.in_flight()), (18, 18));
    assert!(limit.try_acquire().is_none());
    places.pop();
    assert!(limit.try_acquire().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_interleaving_loses_a_place_while_the_limit_moves() {
    let limit = builder(LimitAlgorithm::Gradient).min(2).initial(4).max(8).build().unwrap();
    let inside = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for seed in 0..16 {
        let (limit, inside) = (limit.clone(), Arc::clone(&inside));
        let mut rng = fastrand::Rng::with_seed(seed);
        workers.spawn(async move {
            for _ in 0..2_000 {
                let place = limit.acquire(Deadline::within(60 * SECOND)).await.unwrap();
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 8, "more than the highest limit");
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                let outcome = Outcome::ALL[rng.usize(..4)];
                place.settle(outcome, WORK.mul_f64(rng.f64()));
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

proptest! {
    #[test]
    fn it_never_leaves_its_bounds(
        gradient: bool,
        min in 1_u32..50,
        more in 0_u32..100,
        answers in prop::collection::vec((0_usize..8, any::<u64>(), 1_usize..60), 1..2000),
    ) {
        let algorithm = BOTH[usize::from(gradient)];
        let max = min + more;
        let limit = builder(algorithm).min(min).max(max).initial(min).build().unwrap();
        let mut places = Vec::new();
        for (outcome, nanos, in_flight) in answers {
            while places.len() < in_flight {
                let Some(place) = limit.try_acquire() else { break };
                places.push(place);
            }
            // Mostly answers: else there is no way up.
            let outcome = Outcome::ALL.get(outcome).copied().unwrap_or(Outcome::Success);
            // From nothing to centuries.
            let elapsed = Duration::from_nanos(nanos >> (nanos % 64));
            if let Some(place) = places.pop() {
                place.settle(outcome, elapsed);
            }
            prop_assert!((min as usize..=max as usize).contains(&limit.limit()), "{}", limit.limit());
        }
        let held = places.len();
        prop_assert_eq!(limit.in_flight(), held);
    }
}

#[test]
fn settings_that_make_no_limit_are_refused() {
    let build = |min, max, initial| {
        builder(LimitAlgorithm::Aimd)
            .min(min)
            .max(max)
            .initial(initial)
            .build()
            .map_err(|e| e.field)
    };
    assert_eq!(build(0, 10, 5).unwrap_err(), "min");
    assert_eq!(build(10, 9, 9).unwrap_err(), "max");
    assert_eq!(build(2, 10, 1).unwrap_err(), "initial");
    assert_eq!(build(2, 10, 11).unwrap_err(), "initial");
    assert_eq!(build(7, 7, 7).unwrap().limit(), 7);
    let wait = AdaptiveLimit::builder("search").wait(Duration::MAX).build();
    assert_eq!(wait.unwrap_err().field, "wait");
    assert_eq!(AdaptiveLimit::builder("search").max(5).build().unwrap().limit(), 5);
}
