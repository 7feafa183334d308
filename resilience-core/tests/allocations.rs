//! Fear: a healthy call that allocates. Counted exactly, once everything is warm; and how large a call's future is.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use resilience_core::{
    AnyError, Bulkhead, Call, CallError, CircuitBreaker, CircuitBreakerBuilder, CircuitState,
    Deadline, Event, Hedge, LoadShedder, Lookout, Observe, Pipeline, PipelineBuilder, Prioritizer,
    Priority, RetryBudget, RetryPolicy, SlidingWindow, Throttle, Timeout, add_observer,
};

#[derive(Debug)]
struct Refused;

const HOUR: Duration = Duration::from_secs(3600);
const CALLS: u32 = 1000;

/// Nobody becomes an observer in the middle of a count: a thread's first event allocates.
static OBSERVERS: RwLock<()> = RwLock::new(());

/// Allocations of 1,000 runs of `call`, after as many.
fn allocations(mut call: impl FnMut()) -> u64 {
    let _same_observers = OBSERVERS.read().unwrap_or_else(PoisonError::into_inner);
    (0..CALLS).for_each(|_| call());
    allocation_counter::measure(|| (0..CALLS).for_each(|_| call())).count_total
}

/// The same for a future that needs no driver to end, polled where there is a runtime with timers:
/// what tokio allocates to run a task is none of ours.
fn allocations_of_future(mut call: impl AsyncFnMut()) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let mut context = Context::from_waker(Waker::noop());
    allocations(|| {
        let mut call = pin!(call());
        while call.as_mut().poll(&mut context).is_pending() {}
    })
}

/// Pending once, so that whatever is around it arms its timers.
async fn pause() {
    let mut paused = false;
    poll_fn(|_| if mem::replace(&mut paused, true) { Poll::Ready(()) } else { Poll::Pending })
        .await;
}

fn built(builder: CircuitBreakerBuilder) -> CircuitBreaker {
    builder.build().unwrap()
}

/// Breakers for every way to judge a closed circuit.
fn closed() -> Vec<(&'static str, CircuitBreaker)> {
    let by_rate = || CircuitBreaker::builder("counted").failure_rate(0.5);
    let time = SlidingWindow::Time(Duration::from_millis(100));
    vec![
        ("consecutive", CircuitBreaker::new("counted")),
        ("count window", built(by_rate().window(SlidingWindow::Calls(100)))),
        ("time window", built(by_rate().window(time))),
        ("slow calls", built(by_rate().slow_call_rate(0.5, HOUR))),
        ("slow calls, time window", built(by_rate().window(time).slow_call_rate(0.5, HOUR))),
    ]
}

#[test]
fn a_closed_breaker_allocates_nothing() {
    for (name, breaker) in closed() {
        let blocking = allocations(|| breaker.call_blocking(|| Ok::<_, Refused>(())).unwrap());
        let permits = allocations(|| breaker.try_acquire().unwrap().success());
        let futures = allocations_of_future(async || {
            breaker.call(|| async { Ok::<_, Refused>(()) }).await.unwrap();
        });
        assert_eq!((blocking, permits, futures), (0, 0, 0), "{name}");
    }
}

#[test]
fn a_failure_that_opens_nothing_allocates_nothing() {
    for (name, breaker) in closed() {
        let failures = allocations(|| {
            let _ = breaker.call_blocking(|| Err::<(), _>(Refused)).unwrap_err();
            (0..3).for_each(|_| breaker.call_blocking(|| Ok::<_, Refused>(())).unwrap());
        });
        assert_eq!(failures, 0, "{name}");
    }
}

#[test]
fn an_open_breaker_refuses_without_allocation() {
    let breaker = built(CircuitBreaker::builder("counted").fail_max(1).reset_timeout(HOUR));
    let _ = breaker.call_blocking(|| Err::<(), _>(Refused));
    assert_eq!(breaker.state(), CircuitState::Open);
    let refusals = allocations(|| {
        breaker.call_blocking(|| Ok::<_, Refused>(())).unwrap_err();
        breaker.try_acquire().unwrap_err();
    });
    assert_eq!(refusals, 0);
    breaker.force_open();
    assert_eq!(allocations(|| drop(breaker.try_acquire().unwrap_err())), 0);
}

#[test]
fn a_probe_allocates_nothing() {
    let builder = CircuitBreaker::builder("counted").fail_max(1).success_threshold(u32::MAX);
    let breaker = built(builder.reset_timeout(Duration::from_nanos(1)).probe_lease(HOUR));
    let _ = breaker.call_blocking(|| Err::<(), _>(Refused));
    let probes = allocations(|| {
        let probe = breaker.try_acquire().unwrap();
        breaker.try_acquire().unwrap_err();
        probe.success();
    });
    assert_eq!((probes, breaker.state()), (0, CircuitState::HalfOpen));
}

#[test]
fn a_circuit_that_opens_and_closes_allocates_nothing() {
    for builder in [
        CircuitBreaker::builder("counted"),
        CircuitBreaker::builder("counted").failure_rate(0.5).recovery(Duration::from_nanos(1)),
    ] {
        let builder = builder.fail_max(1).success_threshold(1);
        let breaker = built(builder.reset_timeout(Duration::from_nanos(1)).probe_lease(HOUR));
        let cycles = allocations(|| {
            let _ = breaker.call_blocking(|| Err::<(), _>(Refused));
            breaker.call_blocking(|| Ok::<_, Refused>(())).unwrap();
            assert_eq!(breaker.state(), CircuitState::Closed);
        });
        assert_eq!(cycles, 0);
    }
}

/// Every layer that a connector puts around a call.
fn whole() -> PipelineBuilder {
    let retry = RetryPolicy::builder().budget(RetryBudget::default()).build();
    Pipeline::builder("counted")
        .deadline(Duration::from_secs(60))
        .attempt_timeout(Duration::from_secs(30))
        .retry(retry.unwrap())
        .breaker(CircuitBreaker::new("counted"))
        .bulkhead(Bulkhead::new("counted", 64, Duration::from_secs(1)).unwrap())
}

fn shedder() -> LoadShedder {
    LoadShedder::new("counted", &Prioritizer::new(), 64).unwrap()
}

/// Pipelines by what is special about them.
fn pipelines() -> Vec<(&'static str, PipelineBuilder)> {
    let bare = Pipeline::builder("counted");
    let learned = Timeout::learned().min_samples(1).build().unwrap();
    vec![
        ("bare", bare.clone()),
        ("whole", whole()),
        ("throttle", bare.throttle(Throttle::new("counted"))),
        ("shed", whole().shedder(shedder())),
        ("learned timeout", whole().attempt_timeout(learned)),
    ]
}

async fn call(pipeline: &Pipeline, call: Call, waits: bool) {
    let operation = |_| async {
        if waits {
            pause().await;
        }
        Ok::<_, Refused>(())
    };
    pipeline.run(call, &AnyError, operation).await.unwrap();
}

/// Allocations of calls through `pipeline` that are ready at once, and of those that have to wait.
fn ready_and_waiting(pipeline: &Pipeline) -> (u64, u64) {
    (
        allocations_of_future(async || call(pipeline, Call::read(), false).await),
        allocations_of_future(async || call(pipeline, Call::read(), true).await),
    )
}

#[test]
fn a_pipeline_allocates_nothing() {
    for (name, pipeline) in pipelines() {
        assert_eq!(ready_and_waiting(&pipeline.build().unwrap()), (0, 0), "{name}");
    }
}

#[test]
fn a_rank_and_a_deadline_cost_no_allocation() {
    let pipeline = whole().shedder(shedder()).build().unwrap();
    let counted = allocations_of_future(async || {
        let deadline = Deadline::within(Duration::from_secs(1));
        let ranked = Call::read().rank(Priority::High).by(deadline);
        deadline.scope(async { call(&pipeline, ranked, true).await }).await;
    });
    assert_eq!(counted, 0);
}

#[test]
fn a_pipeline_within_another_allocates_nothing() {
    let (outer, inner) = (whole().build().unwrap(), whole().build().unwrap());
    let counted = allocations_of_future(async || {
        let operation = |_| async {
            call(&inner, Call::read(), true).await;
            Ok::<_, Refused>(())
        };
        outer.run(Call::write(), &AnyError, operation).await.unwrap();
    });
    assert_eq!(counted, 0);
}

#[test]
fn an_installed_observer_costs_no_allocation() {
    #[derive(Default)]
    struct Ended(AtomicU64);

    impl Observe for Ended {
        fn on_event(&self, event: &Event<'_>) {
            if let Event::CallEnded { .. } = event {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    let ended = Arc::new(Ended::default());
    {
        let _nobody_counts = OBSERVERS.write().unwrap_or_else(PoisonError::into_inner);
        add_observer(ended.clone());
    }
    for (name, pipeline) in pipelines() {
        assert_eq!(ready_and_waiting(&pipeline.build().unwrap()), (0, 0), "{name}");
    }
    assert!(ended.0.load(Ordering::Relaxed) >= u64::from(4 * CALLS));
}

#[test]
fn a_hedge_that_is_not_needed_allocates_nothing_and_in_a_pipeline_its_box() {
    let hedge = Hedge::builder().delay(HOUR).build().unwrap();
    let alone = allocations_of_future(async || {
        let operation = |_| async {
            pause().await;
            Ok::<_, Refused>(())
        };
        hedge.run(operation).await.unwrap();
    });
    assert_eq!(alone, 0);
    let each = u64::from(CALLS);
    let pipeline = whole().deadline(2 * HOUR).hedge(hedge).build().unwrap();
    assert_eq!(ready_and_waiting(&pipeline), (each, each));
    let write = allocations_of_future(async || call(&pipeline, Call::write(), true).await);
    assert_eq!(write, 0, "what is not hedged has no box");
}

#[test]
fn a_call_under_watch_allocates_nothing() {
    let lookout = Lookout::new("db:5432", || async { Ok(()) });
    let ready = allocations_of_future(async || lookout.watch(async {}).await.unwrap());
    let waiting = allocations_of_future(async || {
        lookout.watch(pause()).await.unwrap();
        lookout.answered();
    });
    assert_eq!((ready, waiting), (0, 0));
}

#[test]
fn a_refused_call_allocates_the_box_of_its_error_and_no_more() {
    let pipeline = whole().build().unwrap();
    pipeline.breaker().unwrap().force_open();
    let counted = allocations_of_future(async || {
        let refused = pipeline.run(Call::read(), &AnyError, |_| async { Ok::<_, Refused>(()) });
        assert!(matches!(refused.await, Err(CallError::CircuitOpen(_))));
    });
    assert_eq!(counted, u64::from(CALLS));
}

/// Bytes of a call's future beyond twice those of its operation, which holds so many `BYTES`.
fn overhead<const BYTES: usize>(pipeline: &Pipeline) -> usize {
    let operation = async || {
        let held = [0_u8; BYTES];
        pause().await;
        Ok::<_, Refused>(held[0])
    };
    let own = size_of_val(&operation());
    let call = size_of_val(&pipeline.run(Call::read(), &AnyError, |_| operation()));
    println!("{own} bytes of operation, {call} of call");
    call.saturating_sub(2 * own)
}

#[test]
fn a_calls_future_has_room_for_its_operation_twice_and_little_more() {
    let pipeline = whole().build().unwrap();
    assert!(overhead::<1>(&pipeline) < 2048);
    assert!(overhead::<1000>(&pipeline) < 2048);
}
