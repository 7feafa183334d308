//! Fear: a layer refuses and nobody hears of it, or hears of it under the layer's lock.

use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use resilience_core::{
    AdaptiveLimit, Bulkhead, CircuitBreaker, Deadline, Event, Hedge, LoadShedder, Name, Observe,
    Prioritizer, Priority, RefusingLayer, RetryBudget, Throttle, ThrottlePermit, add_observer,
};
use tokio::time::{advance, sleep};

const MS: Duration = Duration::from_millis(1);

/// What was told, by name.
static TOLD: Mutex<Vec<(Name, String)>> = Mutex::new(Vec::new());

/// Asked once more by the observer, while the event is told.
type Again = Box<dyn Fn() + Send>;
static AGAIN: Mutex<Vec<(&'static str, Again)>> = Mutex::new(Vec::new());

struct CallsBack;

impl Observe for CallsBack {
    fn on_event(&self, event: &Event<'_>) {
        let (name, word) = match *event {
            Event::Refused { name, layer } => (name, layer.as_str()),
            Event::HedgeStarted { name } => (name, "hedge started"),
            Event::HedgeWon { name } => (name, "hedge won"),
            Event::HedgeRefused { name } => (name, "hedge refused"),
            _ => return,
        };
        lock(&TOLD).push((name.clone(), word.to_owned()));
        // Taken out: what asks again is refused again, and told again.
        let mut again = lock(&AGAIN);
        let asked = again.iter().position(|(of, _)| **of == **name).map(|at| again.remove(at));
        drop(again);
        if let Some((_, ask)) = asked {
            ask();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Observes, and asks again when something under `name` is refused.
fn observe(name: &'static str, again: impl Fn() + Send + 'static) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| add_observer(Arc::new(CallsBack)));
    lock(&AGAIN).push((name, Box::new(again)));
}

fn told(name: &str) -> Vec<String> {
    lock(&TOLD).iter().filter(|(of, _)| &**of == name).map(|(_, word)| word.clone()).collect()
}

fn poll_once(wait: impl Future) {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::pin::pin!(wait).poll(&mut context).is_ready(), "it was to be refused at once");
}

#[tokio::test(start_paused = true)]
async fn whoever_hears_of_a_refusal_may_ask_the_same_layer() {
    let breaker = CircuitBreaker::builder("shut").fail_max(1).build().unwrap();
    breaker.try_acquire().unwrap().failure();
    let same = breaker.clone();
    observe("shut", move || drop(same.try_acquire().unwrap_err()));
    breaker.try_acquire().unwrap_err();
    assert_eq!(told("shut"), ["breaker"; 2]);
    assert_eq!(breaker.snapshot().not_permitted, 2);

    let throttle = Throttle::builder("slow").multiplier(1.0).max_rejection(0.99).build().unwrap();
    (0..1000).for_each(|_| drop(throttle.try_acquire().map(ThrottlePermit::failure)));
    let same = throttle.clone();
    observe("slow", move || (0..1000).for_each(|_| drop(same.try_acquire())));
    (0..1000).for_each(|_| drop(throttle.try_acquire()));
    assert_eq!(told("slow").len() as u64, throttle.snapshot().refused);
    assert!(told("slow").len() > 2000 && told("slow").iter().all(|word| word == "throttle"));

    let shedder = LoadShedder::new("busy", &Prioritizer::new(), 1).unwrap();
    let same = shedder.clone();
    observe("busy", move || drop(same.admit(Priority::Low)));
    let mut inside = Vec::new();
    for _ in 0..200 {
        advance(10 * MS).await;
        inside.extend(shedder.admit(Priority::Low));
    }
    assert_eq!(told("busy").len() as u64, shedder.refused(Priority::Low));
    assert!(!told("busy").is_empty() && told("busy").iter().all(|word| word == "shed"));
}

#[tokio::test(start_paused = true)]
async fn whoever_hears_of_a_full_limit_may_ask_for_a_place() {
    let now = || Deadline::within(Duration::ZERO);
    let bulkhead = Bulkhead::new("full", 1, Duration::ZERO).unwrap();
    let same = bulkhead.clone();
    observe("full", move || poll_once(same.acquire(now())));
    let place = bulkhead.acquire(now()).await.unwrap();
    bulkhead.acquire(now()).await.unwrap_err();
    bulkhead.acquire_owned(now()).await.unwrap_err();
    assert_eq!(told("full"), ["bulkhead"; 3]);
    assert_eq!(bulkhead.rejected().queue_full, 3);
    drop(place);
    assert_eq!(bulkhead.available(), 1);

    let limit = AdaptiveLimit::builder("tight").initial(1).max(1).wait(Duration::ZERO);
    let limit = limit.build().unwrap();
    let same = limit.clone();
    observe("tight", move || poll_once(same.acquire(now())));
    let place = limit.acquire(now()).await.unwrap();
    limit.acquire(now()).await.unwrap_err();
    assert_eq!(told("tight"), ["adaptive"; 2]);
    drop(place);
    assert_eq!((limit.in_flight(), limit.rejected().queue_full), (0, 2));
}

#[cfg(feature = "rate-limit")]
#[tokio::test(start_paused = true)]
async fn whoever_hears_of_a_rate_limit_may_ask_for_leave() {
    use resilience_core::RateLimiter;

    let limiter = RateLimiter::builder("seldom", 1, Duration::from_secs(60)).build().unwrap();
    let same = limiter.clone();
    observe("seldom", move || drop(same.try_acquire().unwrap_err()));
    limiter.try_acquire().unwrap();
    limiter.acquire(Deadline::within(MS)).await.unwrap_err();
    assert_eq!(told("seldom"), ["rate_limit"; 2]);
    assert_eq!(limiter.rejected(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_caller_gives_up_is_no_refusal() {
    let bulkhead = Bulkhead::new("patient", 1, Duration::from_secs(60)).unwrap();
    observe("patient", || {});
    let _place = bulkhead.try_acquire().unwrap();
    let wait = bulkhead.acquire(Deadline::within(Duration::from_secs(60)));
    tokio::time::timeout(MS, wait).await.unwrap_err();
    assert!(bulkhead.try_acquire().is_none());
    assert!(told("patient").is_empty());
    assert_eq!(bulkhead.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_told_as_it_starts_wins_and_is_denied() {
    observe("late", || {});
    let budget = RetryBudget::new(0.0, 1).unwrap();
    let hedge = Hedge::builder().name("late").delay(50 * MS).budget(budget).build().unwrap();
    for _ in 0..2 {
        let answer = hedge.run(|number| async move {
            sleep(if number == 0 { 200 * MS } else { MS }).await;
            Ok::<_, std::io::Error>(number)
        });
        answer.await.unwrap();
    }
    assert_eq!(told("late"), ["hedge started", "hedge won", "hedge refused"]);
    let counts = hedge.counts();
    assert_eq!((counts.started, counts.won, counts.refused), (1, 1, 1));
}

#[test]
fn every_layer_has_a_word_of_its_own_and_its_place_in_the_list() {
    let words: std::collections::HashSet<_> = RefusingLayer::ALL.map(RefusingLayer::as_str).into();
    assert_eq!(words.len(), RefusingLayer::ALL.len());
    for (place, layer) in RefusingLayer::ALL.into_iter().enumerate() {
        assert_eq!(layer as usize, place);
    }
}
