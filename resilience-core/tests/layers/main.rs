//! Fear: layers in another order than promised, and what one of them takes that another never gives back.

#![cfg(all(feature = "chaos", feature = "rate-limit"))]

mod attempts;
mod ends;
mod hedges;
mod refusals;

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use resilience_core::{
    AdaptiveLimit, AnyError, Blame, Bulkhead, Call, CallError, CallOutcome, Chaos, CircuitBreaker,
    CircuitState, Classify, Deadline, Drained, Event, Hedge, Load, LoadShedder, Name, Observe,
    Pipeline, PipelineBuilder, Prioritizer, Priority, Rank, RateLimiter, Replay, RetryBudget,
    RetryPolicy, Throttle, ThrottlePermit, Timeout, Verdict, add_observer,
};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

type Answer = Result<u32, CallError<Refused>>;

/// Fails after `time`.
async fn fail(time: Duration) -> Result<u32, Refused> {
    sleep(time).await;
    Err(Refused)
}

/// Answers with `number` after `time`.
async fn answer(number: u32, time: Duration) -> Result<u32, Refused> {
    sleep(time).await;
    Ok(number)
}

fn retries(count: u32, delay: Duration, budget: &RetryBudget) -> RetryPolicy {
    let policy = RetryPolicy::builder().max_retries(count).base_delay(delay).max_delay(delay);
    policy.jitter(false).budget(budget.clone()).build().unwrap()
}

fn full_budget() -> RetryBudget {
    RetryBudget::new(1.0, 10).unwrap()
}

/// A hedge after a second, paid by `budget`.
fn hedge(budget: &RetryBudget) -> Hedge {
    Hedge::builder().delay(SECOND).budget(budget.clone()).build().unwrap()
}

fn patient(name: &'static str) -> CircuitBreaker {
    CircuitBreaker::builder(name).fail_max(1_000_000).build().unwrap()
}

/// A shedder that refuses the lower part of [`Priority::Low`], and all below it.
async fn shedding(name: &'static str) -> LoadShedder {
    let load = || Load { taken: 100, limit: 1 };
    let shedder = LoadShedder::watching(name, &Prioritizer::new(), load);
    for _ in 0..10_000 {
        if shedder.threshold() > 130 {
            return shedder;
        }
        sleep(MS).await;
        let _ = shedder.admit(Priority::Low);
    }
    panic!("it sheds nothing");
}

/// How calls ended, by the name of their pipeline.
#[derive(Default)]
struct Ends(Mutex<Vec<(Name, CallOutcome, u32)>>);

impl Observe for Ends {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::CallEnded { name, outcome, attempts, .. } = event {
            self.0.lock().unwrap().push(((*name).clone(), *outcome, *attempts));
        }
    }
}

static ENDS: LazyLock<Arc<Ends>> = LazyLock::new(|| {
    let ends = Arc::<Ends>::default();
    add_observer(Arc::clone(&ends) as Arc<dyn Observe>);
    ends
});

/// A pipeline whose ends are noted.
fn noted(name: &'static str) -> PipelineBuilder {
    LazyLock::force(&ENDS);
    Pipeline::builder(name)
}

fn last_end(name: &str) -> (CallOutcome, u32) {
    let ends = ENDS.0.lock().unwrap();
    let (_, outcome, attempts) = ends.iter().rfind(|end| &*end.0 == name).expect("it has ended");
    (*outcome, *attempts)
}

/// Runs a call in a task of its own until everything waits for time.
async fn begin(pipeline: &Pipeline, call: Call) -> tokio::task::JoinHandle<Answer> {
    let pipeline = pipeline.clone();
    let running = tokio::spawn(async move { pipeline.run(call, &AnyError, |_| pending()).await });
    for _ in 0..10 {
        yield_now().await;
    }
    running
}
