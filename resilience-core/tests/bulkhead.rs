//! The fears about a queue for places: lost, doubled or overtaken turns, and a queue without end.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use resilience_core::{Bulkhead, BulkheadFull, Deadline, FullReason, Place, Rejections};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn endless() -> Deadline {
    Deadline::within(Duration::MAX)
}

fn bulkhead(limit: u32, queue: u32) -> Bulkhead {
    Bulkhead::builder("search").limit(limit).queue(queue).wait(3 * SECOND).build().unwrap()
}

fn rejections(bulkhead: &Bulkhead) -> (u64, u64) {
    let Rejections { queue_full, timed_out, .. } = bulkhead.rejected();
    (queue_full, timed_out)
}

type Waiting = Pin<Box<dyn Future<Output = Result<Place<'static>, BulkheadFull>>>>;

/// A call for a place, polled once.
fn call(bulkhead: &Bulkhead) -> (Waiting, Poll<Result<Place<'static>, BulkheadFull>>) {
    let bulkhead = bulkhead.clone();
    let mut call: Waiting = Box::pin(async move { bulkhead.acquire_owned(endless()).await });
    let polled = poll(&mut call);
    (call, polled)
}

fn poll(call: &mut Waiting) -> Poll<Result<Place<'static>, BulkheadFull>> {
    call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_says_so_within_its_wait() {
    let bulkhead = bulkhead(1, 10);
    let _held = bulkhead.acquire(endless()).await.unwrap();
    let started = Instant::now();
    let full = bulkhead.acquire(endless()).await.unwrap_err();
    assert_eq!((full.limit, full.reason), (1, FullReason::TimedOut));
    assert_eq!(started.elapsed(), 3 * SECOND);
    bulkhead.acquire(Deadline::within(SECOND)).await.unwrap_err();
    assert_eq!(started.elapsed(), 4 * SECOND);
    assert_eq!((rejections(&bulkhead), bulkhead.waiting()), ((0, 2), 0));
}

#[tokio::test(start_paused = true)]
async fn a_queue_does_not_grow_without_end() {
    let bulkhead = bulkhead(1, 2);
    let _held = bulkhead.acquire(endless()).await.unwrap();
    let queued = [call(&bulkhead), call(&bulkhead)];
    assert_eq!(bulkhead.waiting(), 2);
    let started = Instant::now();
    let full = bulkhead.acquire(endless()).await.unwrap_err();
    assert_eq!(
        full.to_string(),
        r#"all 1 places of bulkhead "search" are taken, and so is its queue"#
    );
    assert_eq!((full.reason, started.elapsed()), (FullReason::QueueFull, Duration::ZERO));
    assert_eq!((rejections(&bulkhead), bulkhead.waiting()), ((1, 0), 2));
    drop(queued);
    assert_eq!(bulkhead.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_without_a_wait_turns_away_at_once() {
    let bulkhead = Bulkhead::new("search", 1, Duration::ZERO).unwrap();
    let held = bulkhead.acquire(endless()).await.unwrap();
    assert_eq!(bulkhead.acquire(endless()).await.unwrap_err().reason, FullReason::QueueFull);
    drop(held);
    assert!(bulkhead.acquire(endless()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_loses_no_place() {
    let bulkhead = bulkhead(1, 10);
    let held = bulkhead.acquire(endless()).await.unwrap();
    let (first, _) = call(&bulkhead);
    let (mut second, _) = call(&bulkhead);
    drop(first);
    assert_eq!(bulkhead.waiting(), 1);
    drop(held);
    assert!(matches!(poll(&mut second), Poll::Ready(Ok(_))));
    drop(second);
    assert_eq!((bulkhead.available(), bulkhead.waiting()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_place_handed_to_one_who_is_gone_goes_to_the_next() {
    let bulkhead = bulkhead(1, 10);
    let held = bulkhead.acquire(endless()).await.unwrap();
    let (first, _) = call(&bulkhead);
    let (mut second, _) = call(&bulkhead);
    drop(held);
    assert_eq!((bulkhead.available(), bulkhead.waiting()), (0, 1));
    assert!(poll(&mut second).is_pending(), "the place is the first one's");
    drop(first);
    assert!(matches!(poll(&mut second), Poll::Ready(Ok(_))));
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_those_who_wait() {
    let bulkhead = bulkhead(2, 10);
    let (held, also_held) = (bulkhead.try_acquire(), bulkhead.try_acquire());
    let (mut first, _) = call(&bulkhead);
    let (mut second, _) = call(&bulkhead);
    drop(held);
    // The place is handed over, though nobody has come for it.
    assert!(bulkhead.try_acquire().is_none());
    let (_late, polled) = call(&bulkhead);
    assert!(polled.is_pending() && poll(&mut second).is_pending());
    let Poll::Ready(Ok(place)) = poll(&mut first) else { panic!("it is the first one's turn") };
    drop((place, also_held));
    assert!(bulkhead.try_acquire().is_none());
    assert!(matches!(poll(&mut second), Poll::Ready(Ok(_))));
}

#[tokio::test(start_paused = true)]
async fn a_panic_gives_its_place_back() {
    let bulkhead = bulkhead(1, 10);
    let worker = tokio::spawn({
        let bulkhead = bulkhead.clone();
        async move {
            let _place = bulkhead.acquire(endless()).await.unwrap();
            panic!("as the test wants it");
        }
    });
    worker.await.unwrap_err();
    assert_eq!(bulkhead.available(), 1);
}

#[test]
fn settings_that_make_no_bulkhead_are_refused() {
    assert_eq!(Bulkhead::new("x", 0, SECOND).unwrap_err().field, "bulkhead limit");
    assert_eq!(Bulkhead::new("x", 1, Duration::MAX).unwrap_err().field, "wait");
    Bulkhead::new("x", u32::MAX, Duration::ZERO).unwrap();
}

/// Threads that take, hold, give up waiting and are dropped, all at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_interleaving_loses_or_doubles_a_place() {
    const LIMIT: u32 = 3;
    let bulkhead =
        Bulkhead::builder("stress").limit(LIMIT).queue(64).wait(60 * SECOND).build().unwrap();
    let inside = Arc::new(AtomicUsize::new(0));
    let served = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for seed in 0..16 {
        let (bulkhead, inside, served) = (bulkhead.clone(), inside.clone(), served.clone());
        let mut rng = fastrand::Rng::with_seed(seed);
        workers.spawn(async move {
            for _ in 0..3_000 {
                let mut waiting = Box::pin(bulkhead.acquire(endless()));
                // Some are dropped after a few polls, at whatever point they are.
                let patience = rng.usize(1..6);
                let mut polls = 0;
                let place = std::future::poll_fn(|cx| {
                    polls += 1;
                    match waiting.as_mut().poll(cx) {
                        Poll::Ready(place) => Poll::Ready(Some(place)),
                        Poll::Pending if polls == patience => Poll::Ready(None),
                        Poll::Pending => {
                            if patience < 4 {
                                cx.waker().wake_by_ref();
                            }
                            Poll::Pending
                        }
                    }
                });
                let Some(place) = place.await else { continue };
                let place = place.expect("the queue has room and nobody holds for a minute");
                assert!(inside.fetch_add(1, Ordering::SeqCst) < LIMIT as usize, "too many inside");
                if rng.bool() {
                    tokio::task::yield_now().await;
                }
                inside.fetch_sub(1, Ordering::SeqCst);
                served.fetch_add(1, Ordering::SeqCst);
                drop(place);
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    assert!(served.load(Ordering::SeqCst) > 10_000);
    assert_eq!((bulkhead.available(), bulkhead.waiting()), (LIMIT as usize, 0));
    assert_eq!(rejections(&bulkhead), (0, 0));
}

/// What happens to a bulkhead, one after the other; numbers pick among those concerned.
#[derive(Clone, Copy, Debug)]
enum Step {
    Call,
    Try,
    Release(usize),
    Poll(usize),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Call),
        1 => Just(Step::Try),
        2 => any::<usize>().prop_map(Step::Release),
        2 => any::<usize>().prop_map(Step::Poll),
        1 => any::<usize>().prop_map(Step::Drop),
    ]
}

/// The plain model: who holds, who was handed a place and has not come for it, who waits, in order.
#[derive(Default)]
struct Model {
    holders: usize,
    handed: Vec<usize>,
    queue: Vec<usize>,
}

impl Model {
    fn taken(&self) -> usize {
        self.holders + self.handed.len()
    }

    fn hand_out(&mut self, limit: usize) {
        while self.taken() < limit && !self.queue.is_empty() {
            let first = self.queue.remove(0);
            self.handed.push(first);
        }
    }
}

proptest! {
    #[test]
    fn it_behaves_like_a_plain_queue(
        limit in 1_u32..4,
        room in 0_u32..4,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        let _inside = runtime.enter();
        let bulkhead = bulkhead(limit, room);
        let limit = limit as usize;
        let mut model = Model::default();
        let mut places: Vec<Place<'static>> = Vec::new();
        let mut calls: Vec<(usize, Waiting)> = Vec::new();
        let mut refused = 0;
        for (id, step) in steps.into_iter().enumerate() {
            let free = model.taken() < limit;
            match step {
                Step::Call => match call(&bulkhead) {
                    (_, Poll::Ready(Ok(place))) => {
                        prop_assert!(free, "it got a place that was not free");
                        places.push(place);
                        model.holders += 1;
                    }
                    (_, Poll::Ready(Err(full))) => {
                        prop_assert!(!free && model.queue.len() == room as usize);
                        prop_assert_eq!(full.reason, FullReason::QueueFull);
                        refused += 1;
                    }
                    (waiting, Poll::Pending) => {
                        prop_assert!(!free && model.queue.len() < room as usize);
                        model.queue.push(id);
                        calls.push((id, waiting));
                    }
                },
                Step::Try => prop_assert_eq!(bulkhead.try_acquire().is_some(), free),
                Step::Release(pick) if !places.is_empty() => {
                    drop(places.swap_remove(pick % places.len()));
                    model.holders -= 1;
                    model.hand_out(limit);
                }
                Step::Poll(pick) if !calls.is_empty() => {
                    let pick = pick % calls.len();
                    let id = calls[pick].0;
                    let handed = model.handed.iter().position(|&other| other == id);
                    match (poll(&mut calls[pick].1), handed) {
                        (Poll::Ready(Ok(place)), Some(at)) => {
                            model.handed.remove(at);
                            model.holders += 1;
                            places.push(place);
                            drop(calls.swap_remove(pick));
                        }
                        (Poll::Pending, None) => {}
                        (polled, _) => prop_assert!(false, "{polled:?}, handed: {handed:?}"),
                    }
                }
                Step::Drop(pick) if !calls.is_empty() => {
                    let (id, _) = calls.swap_remove(pick % calls.len());
                    model.handed.retain(|&other| other != id);
                    model.queue.retain(|&other| other != id);
                    model.hand_out(limit);
                }
                Step::Release(_) | Step::Poll(_) | Step::Drop(_) => {}
            }
            prop_assert_eq!(bulkhead.waiting(), model.queue.len());
            prop_assert_eq!(bulkhead.available(), limit - model.taken());
            prop_assert_eq!(rejections(&bulkhead), (refused, 0));
        }
        drop((places, calls));
        prop_assert_eq!((bulkhead.available(), bulkhead.waiting()), (limit, 0));
    }
}

/// Each is woken by its own turn, not by a poll of chance: with real wakers, in order.
#[tokio::test(start_paused = true)]
async fn those_who_wait_are_served_in_the_order_they_came() {
    let bulkhead = bulkhead(1, 100);
    let held = bulkhead.acquire(endless()).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (bulkhead, order) = (bulkhead.clone(), Arc::clone(&order));
        tasks.spawn(async move {
            let _place = bulkhead.acquire(endless()).await.unwrap();
            order.lock().unwrap().push(number);
            tokio::time::sleep(Duration::from_millis(1)).await;
        });
        tokio::task::yield_now().await;
    }
    drop(held);
    tasks.join_all().await;
    assert_eq!(*order.lock().unwrap(), (0..100).collect::<Vec<_>>());
}
