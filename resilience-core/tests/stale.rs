//! Fear: a cache that serves what it should not, hides an outage, or sends every caller to the service at once.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resilience_core::{
    Call, CallError, CircuitBreaker, Deadline, Pipeline, Replay, StaleCache, Verdict,
};
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Error {
    #[error("no such thing")]
    NotFound,
    #[error("gone away")]
    Away,
}

fn verdict(error: &Error) -> Verdict {
    match error {
        Error::NotFound => Verdict::caller(Replay::Never),
        Error::Away => Verdict::service(Replay::IfIdempotent),
    }
}

type Cache = StaleCache<u32, Arc<str>, Error>;

/// Up to 3 values, fresh for 10 s and stale for 20 s more.
fn cache() -> Cache {
    let builder = StaleCache::builder("prices").capacity(3);
    builder.fresh_for(10 * SECOND).stale_for(20 * SECOND).build().unwrap()
}

/// One call through a pipeline of its own.
async fn call(answer: Result<&str, Error>) -> Result<Arc<str>, CallError<Error>> {
    let pipeline = Pipeline::builder("prices").build().unwrap();
    pipeline.run(Call::read(), &verdict, |_| async { answer.map(Arc::from) }).await
}

async fn not_called() -> Result<Arc<str>, CallError<Error>> {
    panic!("the service was called")
}

#[tokio::test(start_paused = true)]
async fn a_fresh_value_costs_no_call_and_an_old_one_does() {
    let cache = cache();
    let first = cache.get_or(1, || call(Ok("a"))).await.unwrap();
    assert_eq!((&*first.value, first.age, first.stale), ("a", Duration::ZERO, false));
    advance(10 * SECOND - Duration::from_nanos(1)).await;
    let fresh = cache.get_or(1, not_called).await.unwrap();
    assert!(!fresh.stale && fresh.age == 10 * SECOND - Duration::from_nanos(1));
    advance(Duration::from_nanos(1)).await;
    let anew = cache.get_or(1, || call(Ok("b"))).await.unwrap();
    assert_eq!((&*anew.value, anew.stale), ("b", false));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_bridged_and_said_to_be_until_the_value_is_too_old() {
    let cache = cache();
    cache.insert(1, "a".into());
    advance(30 * SECOND - Duration::from_nanos(1)).await;
    let stale = cache.get_or(1, || call(Err(Error::Away))).await.unwrap();
    assert!(stale.stale && &*stale.value == "a");
    assert_eq!(stale.age, 30 * SECOND - Duration::from_nanos(1));
    advance(Duration::from_nanos(1)).await;
    assert_eq!(cache.get(&1), None);
    let error = cache.get_or(1, || call(Err(Error::Away))).await.unwrap_err();
    assert!(matches!(error.inner(), Some(Error::Away)));
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_gets_its_refusal_and_no_old_value() {
    let cache = cache();
    cache.insert(1, "a".into());
    advance(15 * SECOND).await;
    let error = cache.get_or(1, || call(Err(Error::NotFound))).await.unwrap_err();
    assert!(matches!(error.inner(), Some(Error::NotFound)));
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_bridged_at_once() {
    let cache = cache();
    cache.insert(1, "a".into());
    advance(15 * SECOND).await;
    let breaker = CircuitBreaker::builder("prices").fail_max(1).build().unwrap();
    breaker.try_acquire().unwrap().failure();
    let fetch = || breaker.call(|| async { Ok("b".into()) });
    assert!(cache.get_or(1, fetch).await.unwrap().stale);
}

#[tokio::test(start_paused = true)]
async fn a_flushed_cache_makes_one_call_for_each_key() {
    let cache = cache();
    let calls: Arc<[AtomicUsize; 3]> = Arc::default();
    let mut callers = Vec::new();
    for n in 0..300 {
        let (cache, calls) = (cache.clone(), Arc::clone(&calls));
        callers.push(tokio::spawn(async move {
            let key = n % 3;
            // Some come when the first call is over, or as it ends.
            sleep(SECOND * (n / 100)).await;
            let fetch = || async {
                calls[key as usize].fetch_add(1, Ordering::SeqCst);
                sleep(SECOND).await;
                call(Ok("a")).await
            };
            cache.get_or(key, fetch).await.is_ok_and(|cached| !cached.stale)
        }));
    }
    for caller in callers {
        assert!(caller.await.unwrap());
    }
    let calls = [0, 1, 2].map(|key: usize| calls[key].load(Ordering::SeqCst));
    assert_eq!((calls, cache.flights().uncoalesced()), ([1; 3], 0));
}

thread_local! {
    /// What happens on another thread while this one clones its key: after the look, before the start.
    static MEANWHILE: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

#[derive(Eq, Hash, PartialEq)]
struct Key;

impl Clone for Key {
    fn clone(&self) -> Self {
        if let Some(happens) = MEANWHILE.take() {
            happens();
        }
        Self
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ends_between_look_and_start_is_not_made_again() {
    let cache: StaleCache<Key, Arc<str>, Error> = StaleCache::builder("prices").build().unwrap();
    let other = cache.clone();
    MEANWHILE.set(Some(Box::new(move || drop(other.insert(Key, "a".into())))));
    assert_eq!(&*cache.get_or(Key, not_called).await.unwrap().value, "a");
    assert!(MEANWHILE.take().is_none());
}

#[tokio::test(start_paused = true)]
async fn everyone_who_waited_for_a_failing_call_gets_the_stale_value() {
    let cache = cache();
    cache.insert(1, "a".into());
    advance(15 * SECOND).await;
    let fetch = || async {
        sleep(SECOND).await;
        call(Err(Error::Away)).await
    };
    let (one, other) = tokio::join!(cache.get_or(1, fetch), cache.get_or(1, not_called));
    assert!(one.unwrap().stale && other.unwrap().stale);
}

#[tokio::test(start_paused = true)]
async fn a_follower_out_of_time_takes_the_stale_value_and_leaves_the_leader_be() {
    let cache = cache();
    cache.insert(1, "a".into());
    advance(15 * SECOND).await;
    let leader = tokio::spawn({
        let cache = cache.clone();
        let fetch = || async {
            sleep(5 * SECOND).await;
            call(Ok("b")).await
        };
        async move { cache.get_or(1, fetch).await }
    });
    yield_now().await;
    let started = Instant::now();
    let follower = Deadline::within(SECOND).scope(cache.get_or(1, not_called)).await.unwrap();
    assert!(follower.stale && started.elapsed() == SECOND);
    assert_eq!(&*leader.await.unwrap().unwrap().value, "b");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_fetch_fails_nobody_and_a_panicking_one_leaves_the_cache_whole() {
    let cache = cache();
    let spawn = |panics: bool| {
        let cache = cache.clone();
        let fetch = move || async move {
            sleep(SECOND).await;
            assert!(!panics, "of the fetch");
            call(Ok("a")).await
        };
        tokio::spawn(async move { cache.get_or(1, fetch).await.map(|cached| cached.value) })
    };
    let (cancelled, panicking, waiting) = (spawn(false), spawn(true), spawn(false));
    yield_now().await;
    cancelled.abort();
    assert!(panicking.await.unwrap_err().is_panic());
    assert_eq!(&*waiting.await.unwrap().unwrap(), "a");
    assert_eq!((cache.len(), cache.flights().in_flight()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_cache_lets_go_of_the_oldest_and_counts_it() {
    let cache = cache();
    for key in 0..3 {
        cache.insert(key, "a".into());
        advance(SECOND).await;
    }
    // Stored anew, it is no longer the oldest; nor does it need room.
    cache.insert(0, "b".into());
    assert_eq!((cache.len(), cache.evicted()), (3, 0));
    cache.insert(3, "a".into());
    assert_eq!((cache.len(), cache.evicted()), (3, 1));
    assert!(cache.get(&1).is_none() && cache.get(&0).is_some() && cache.get(&2).is_some());
}

#[tokio::test(start_paused = true)]
async fn values_too_old_to_be_served_make_room_unlamented() {
    let cache = cache();
    cache.insert(0, "a".into());
    cache.insert(1, "a".into());
    advance(30 * SECOND).await;
    cache.insert(2, "a".into());
    assert_eq!((cache.len(), cache.evicted()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_long_life_of_many_keys_stays_within_the_bound() {
    let cache = cache();
    let mut rng = fastrand::Rng::with_seed(7);
    for n in 0..10_000 {
        cache.insert(rng.u32(..50), "a".into());
        assert!(cache.len() <= 3, "after {n}");
        advance(SECOND * rng.u32(..20)).await;
    }
    assert!(cache.evicted() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_value_is_dropped_outside_the_lock() {
    struct CallsBack(StaleCache<u32, Arc<Self>, Error>, Arc<AtomicUsize>);
    impl Drop for CallsBack {
        fn drop(&mut self) {
            // Under the lock it would wait for ever.
            self.1.store(self.0.len(), Ordering::SeqCst);
        }
    }
    let cache = StaleCache::builder("prices").capacity(1).build().unwrap();
    let seen = Arc::new(AtomicUsize::new(9));
    for key in [1, 1, 2] {
        seen.store(9, Ordering::SeqCst);
        drop(cache.insert(key, Arc::new(CallsBack(cache.clone(), Arc::clone(&seen)))));
    }
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_fallback_of_a_pipeline_says_that_it_is_stale() {
    let cache = cache();
    cache.insert(1, "a".into());
    advance(15 * SECOND).await;
    let pipeline = Pipeline::builder("prices").deadline(4 * SECOND).build().unwrap();
    let started = Instant::now();
    let operation = |_| async {
        sleep(60 * SECOND).await;
        Ok(cache.insert(1, "b".into()))
    };
    let fallback = |error| async { cache.get(&1).ok_or(error) };
    let cached = pipeline.run_or(Call::read(), &verdict, operation, fallback).await.unwrap();
    assert!(cached.stale && &*cached.value == "a");
    assert_eq!(started.elapsed(), 2 * SECOND);
}

#[test]
fn a_cache_without_room_or_time_cannot_be_built() {
    let refused = |builder: resilience_core::StaleCacheBuilder<u32, u32, Error>| {
        builder.build().unwrap_err().field
    };
    let builder = || StaleCache::builder("prices");
    assert_eq!(refused(builder().capacity(0)), "capacity");
    assert_eq!(refused(builder().fresh_for(Duration::MAX)), "fresh_for");
    assert_eq!(refused(builder().stale_for(Duration::ZERO)), "stale_for");
    assert_eq!(refused(builder().stale_for(Duration::MAX)), "stale_for");
    assert!(builder().fresh_for(Duration::ZERO).build().is_ok());
}
