//! Fear: a surge of what nobody misses takes the places of what everybody needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use resilience_core::{
    AdaptiveLimit, Bulkhead, Deadline, Load, LoadShedder, Outcome, Prioritizer, Priority, Rank,
    ShedGuard,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, advance, sleep, sleep_until};

/// A service of `limit` places, each taking `time` a request, behind a shedder.
struct Service {
    shedder: LoadShedder,
    bulkhead: Bulkhead,
    time: Duration,
    offered: [AtomicU64; 5],
    served: [AtomicU64; 5],
}

impl Service {
    fn new(limit: u32, time: Duration, prioritizer: &Prioritizer) -> Arc<Self> {
        Self::with_wait(limit, time, time * 4, prioritizer)
    }

    fn with_wait(limit: u32, time: Duration, wait: Duration, by: &Prioritizer) -> Arc<Self> {
        let bulkhead = Bulkhead::new("simulated", limit, wait).unwrap();
        let behind = bulkhead.clone();
        let shedder = LoadShedder::watching("simulated", by, move || Load::from(&behind));
        let (offered, served) = Default::default();
        Arc::new(Self { shedder, bulkhead, time, offered, served })
    }

    fn capacity(&self) -> f64 {
        self.bulkhead.limit() as f64 / self.time.as_secs_f64()
    }

    async fn request(&self, rank: Rank) {
        let index = rank.priority() as usize;
        self.offered[index].fetch_add(1, Ordering::Relaxed);
        let Ok(guard) = self.shedder.admit(rank) else { return };
        match self.bulkhead.acquire(Deadline::within(Duration::MAX)).await {
            Ok(_place) => {
                sleep(self.time).await;
                self.served[index].fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => guard.refused_behind(),
        }
    }

    /// Offers what `shares` says of the capacity, with exponential gaps, until `count` requests could
    /// have been served.
    async fn offer(self: &Arc<Self>, shares: &[(Priority, f64)], count: f64, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let whole: f64 = shares.iter().map(|(_, share)| share).sum();
        let started = Instant::now();
        let end = started + Duration::from_secs_f64(count / self.capacity());
        let mut at = started;
        while at < end {
            let gap = -(1.0 - random.f64()).ln() / (whole * self.capacity());
            at += Duration::from_secs_f64(gap);
            sleep_until(at).await;
            let mut pick = random.f64() * whole;
            let chosen = shares.iter().find(|(_, share)| {
                pick -= share;
                pick < 0.0
            });
            let (priority, _) = *chosen.unwrap_or(&shares[0]);
            let service = Arc::clone(self);
            tokio::spawn(async move { service.request(priority.into()).await });
        }
    }

    fn served(&self) -> u64 {
        self.served.iter().map(|served| served.load(Ordering::Relaxed)).sum()
    }
}

fn share(service: &Service, priority: Priority) -> f64 {
    let of = |counts: &[AtomicU64; 5]| counts[priority as usize].load(Ordering::Relaxed) as f64;
    of(&service.served) / of(&service.offered)
}

/// Twelve times the capacity in low priority on top of half of it in high.
const SURGE: [(Priority, f64); 2] = [(Priority::High, 0.5), (Priority::Low, 12.0)];
const CALM: [(Priority, f64); 1] = [(Priority::High, 0.5)];

#[tokio::test(start_paused = true)]
async fn a_surge_of_low_priority_costs_neither_high_priority_nor_throughput() {
    for (limit, millis) in [(10, 10), (64, 10), (16, 100), (64, 1000)] {
        for seed in 0..2 {
            let service = Service::new(limit, Duration::from_millis(millis), &Prioritizer::new());
            service.offer(&CALM, 2000.0, seed).await;
            let before = service.served();
            service.offer(&SURGE, 6000.0, seed + 100).await;
            let throughput = (service.served() - before) as f64 / 6000.0;
            assert!(throughput >= 0.95, "{limit} × {millis} ms: throughput {throughput}");
            sleep(service.time * 10).await;
            let high = share(&service, Priority::High);
            println!("{limit} × {millis} ms: high {high:.4}, throughput {throughput:.4}");
            assert!(high >= 0.994, "{limit} × {millis} ms: high priority {high}");
            let shed = service.shedder.refused(Priority::Low);
            assert!(shed > 60_000, "{limit} × {millis} ms: only {shed} shed");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_shed_below_the_capacity() {
    // Nearer to it a small service has by chance a whole limit waiting, which is an overload.
    for (limit, millis, load) in [(10, 10, 0.7), (10, 1000, 0.7), (64, 10, 0.9), (64, 1000, 0.9)] {
        let service = Service::new(limit, Duration::from_millis(millis), &Prioritizer::new());
        let shares = [(Priority::Background, load / 2.0), (Priority::High, load / 2.0)];
        service.offer(&shares, 10_000.0, 7).await;
        for priority in Priority::ALL {
            let refused = service.shedder.refused(priority);
            assert_eq!(refused, 0, "{limit} × {millis} ms, {priority:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_slows_down_is_sent_less() {
    let wait = Duration::from_millis(400);
    let by = Prioritizer::new();
    let service = Service::with_wait(10, Duration::from_millis(10), wait, &by);
    service.offer(&CALM, 2000.0, 1).await;
    // The same arrivals as at half the capacity of the fast one are five times that of the slow.
    let slow = Arc::new(Service {
        shedder: service.shedder.clone(),
        bulkhead: service.bulkhead.clone(),
        time: Duration::from_millis(100),
        offered: Default::default(),
        served: Default::default(),
    });
    slow.offer(&[(Priority::High, 0.5), (Priority::Low, 4.5)], 3000.0, 2).await;
    sleep(Duration::from_secs(1)).await;
    let high = share(&slow, Priority::High);
    assert!(high > 0.98, "high priority {high}");
    assert!(slow.served() > 2850, "{} served", slow.served());
}

/// Fills `shedder`'s limit twice over and keeps asking until it sheds at `rank`.
async fn overload(shedder: &LoadShedder, rank: Rank, limit: usize) -> Vec<ShedGuard<'_>> {
    let mut held = Vec::new();
    for _ in 0..100 * limit {
        held.extend(shedder.admit(rank).ok());
        // One ends in the time in which ten come.
        if held.len() > limit && fastrand::u8(..10) == 0 {
            held.pop();
        }
        advance(Duration::from_millis(1)).await;
    }
    held
}

#[tokio::test(start_paused = true)]
async fn what_one_limiter_must_shed_the_other_sheds_too_but_nothing_critical() {
    let prioritizer = Prioritizer::new();
    let busy = LoadShedder::new("busy", &prioritizer, 8).unwrap();
    let idle = LoadShedder::new("idle", &prioritizer, 8).unwrap();
    let apart = LoadShedder::new("apart", &Prioritizer::new(), 8).unwrap();
    let _held = overload(&busy, Priority::Critical.level(127), 8).await;
    assert!(busy.threshold() > 512, "threshold {}", busy.threshold());
    assert_eq!(idle.threshold(), 512);
    assert!(idle.admit(Priority::High.level(127)).is_err());
    assert!(idle.admit(Priority::Critical.level(0)).is_ok());
    assert_eq!((idle.refused(Priority::High), idle.refused(Priority::Critical)), (1, 0));
    assert!(apart.admit(Priority::Background).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_moves_tells_of_those_who_wait_and_of_what_it_is_now() {
    let limit = AdaptiveLimit::builder("moving").initial(2).max(9).build().unwrap();
    let load = |taken, limit| Load { taken, limit };
    assert_eq!(Load::from(&limit), load(0, 2));
    let held = [limit.try_acquire().unwrap(), limit.try_acquire().unwrap()];
    let mut waiting = JoinSet::new();
    for _ in 0..4 {
        let limit = limit.clone();
        let endless = Deadline::within(Duration::MAX);
        waiting.spawn(async move { drop(limit.acquire_owned(endless).await.unwrap()) });
        tokio::task::yield_now().await;
    }
    assert_eq!(Load::from(&limit), load(6, 2));
    let watched = limit.clone();
    let shedder =
        LoadShedder::watching("moving", &Prioritizer::new(), move || Load::from(&watched));
    let _held = overload(&shedder, Priority::Normal.level(5), 2).await;
    assert!(shedder.threshold() > 0, "a queue is no pressure");
    for place in held {
        place.settle(Outcome::Failure, Duration::from_secs(1));
    }
    waiting.join_all().await;
    assert_eq!((Load::from(&limit), limit.max()), (load(0, 1), 9));
}

#[tokio::test(start_paused = true)]
async fn the_threshold_falls_when_pressure_ends_even_if_nobody_calls() {
    let prioritizer = Prioritizer::new();
    let shedder = LoadShedder::new("simulated", &prioritizer, 8).unwrap();
    let other = LoadShedder::new("other", &prioritizer, 8).unwrap();
    for caller in [&shedder, &other] {
        let held = overload(&shedder, Priority::Normal.level(5), 8).await;
        assert!(shedder.threshold() > 0);
        drop(held);
        assert_eq!(shedder.in_flight(), 0);
        advance(Duration::from_secs(10)).await;
        assert!(caller.admit(Priority::Background.level(0)).is_ok(), "a refusal out of the past");
        assert_eq!((shedder.threshold(), other.threshold()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lower_rank_never_passes_where_a_higher_is_refused() {
    let shedder = LoadShedder::new("simulated", &Prioritizer::new(), 4).unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let mut held = Vec::new();
    let (mut refused, mut passed) = (0, 0);
    for _ in 0..20_000 {
        let (priority, level) = (random.usize(..5), random.u8(..128));
        let rank = Priority::ALL[priority].level(level);
        let place = priority as u16 * 128 + u16::from(level);
        match shedder.admit(rank) {
            Ok(guard) => {
                assert!(place >= shedder.threshold(), "{rank:?} passed");
                passed += 1;
                held.push(guard);
            }
            Err(_) => {
                assert!(place < shedder.threshold(), "{rank:?} was refused");
                refused += 1;
            }
        }
        if random.u8(..4) == 0 && !held.is_empty() {
            drop(held.swap_remove(random.usize(..held.len())));
        }
        advance(Duration::from_micros(random.u64(..2000))).await;
    }
    assert!(refused > 5000 && passed > 2000, "{refused} refused, {passed} passed");
    let counted: u64 = Priority::ALL.iter().map(|priority| shedder.refused(*priority)).sum();
    assert_eq!((counted, shedder.in_flight()), (refused, held.len()));
}

#[tokio::test(start_paused = true)]
async fn of_equal_priority_some_users_lose_all_and_the_others_nothing() {
    let prioritizer = Prioritizer::new();
    let service = Service::new(16, Duration::from_millis(100), &prioritizer);
    let users: Vec<Rank> =
        (0..200).map(|user| Priority::Normal.user(&format!("user-{user}"))).collect();
    let mut random = fastrand::Rng::with_seed(11);
    let mut fates = vec![(0_u32, 0_u32); users.len()];
    // Twice the capacity, evenly spaced; judged once the threshold has settled.
    for request in 0..20_000 {
        let user = random.usize(..users.len());
        let before = service.shedder.refused(Priority::Normal);
        let service = Arc::clone(&service);
        let rank = users[user];
        let running = Arc::clone(&service);
        tokio::spawn(async move { running.request(rank).await });
        sleep(Duration::from_millis(3)).await;
        if request > 2000 {
            let refused = service.shedder.refused(Priority::Normal) > before;
            if refused { fates[user].1 += 1 } else { fates[user].0 += 1 }
        }
    }
    let torn = fates.iter().filter(|(passed, refused)| passed.min(refused) * 10 > passed + refused);
    let torn = torn.count();
    let lost = fates.iter().filter(|(passed, refused)| passed * 10 <= *refused).count();
    println!("{lost} of 200 users lost all, {torn} some");
    assert!(torn < 30, "{torn} of 200 users were refused some of their requests");
    assert!((70..130).contains(&lost), "{lost} of 200 users were refused nearly all");
}
