//! Fear: this process stands still, and a service that was well all the time is blamed for the silence.
//!
//! Where the clock is paused, a jump of it is a process that was stopped: no timer fires meanwhile. Where it
//! is not, a busy loop blocks the runtime, as somebody's long computation would.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use resilience_core::{
    AnyError, Attempt, Blame, Call, CallError, CallOutcome, CircuitBreaker, CircuitState, Deadline,
    Event, Observe, Pipeline, RetryBudget, RetryPolicy, SlidingWindow, Standstill, Throttle,
    add_observer,
};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{Instant, advance, sleep, timeout};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("the driver gave up")]
struct GaveUp;

type Ended = Result<(), CallError<GaveUp>>;

/// A pipeline whose circuit opens at the first failure, and whose budget has two retries and gets no more.
struct Service {
    pipeline: Pipeline,
    breaker: CircuitBreaker,
    budget: RetryBudget,
}

impl Service {
    fn new(name: &'static str) -> Self {
        let breaker = CircuitBreaker::builder(name).fail_max(1).build().unwrap();
        let budget = RetryBudget::new(0.0, 2).unwrap();
        let retry = RetryPolicy::builder().max_retries(1).base_delay(10 * MS).jitter(false);
        let pipeline = Pipeline::builder(name)
            .deadline(10 * SECOND)
            .attempt_timeout(SECOND)
            .retry(retry.budget(budget.clone()).build().unwrap())
            .breaker(breaker.clone())
            .build()
            .unwrap();
        Self { pipeline, breaker, budget }
    }

    /// Five calls in flight.
    async fn calls<F>(&self, call: Call, operation: fn(Attempt) -> F) -> JoinSet<Ended>
    where
        F: Future<Output = Result<(), GaveUp>> + Send + 'static,
    {
        let calls = in_flight(&self.pipeline, 5, call, operation);
        // Until they wait, and the heart beats.
        sleep(MS).await;
        calls
    }

    /// Nobody is blamed, and nothing was paid for.
    fn is_unharmed(&self, excluded: u64) {
        let seen = self.breaker.snapshot();
        assert_eq!((seen.state, seen.generation), (CircuitState::Closed, 0));
        assert_eq!((seen.consecutive_failures, seen.calls.failure, seen.not_permitted), (0, 0, 0));
        assert_eq!(seen.calls.excluded, excluded);
        assert_eq!(self.budget.balance(), 2);
    }

    /// Whoever was excused goes on being judged.
    async fn is_judged_all_the_same(&self) {
        let error = self.pipeline.run(Call::write(), &AnyError, hang).await.unwrap_err();
        assert_eq!(blame(&error), Blame::Service, "{error}");
        assert_eq!(self.breaker.state(), CircuitState::Open);
    }
}

fn in_flight<F>(
    pipeline: &Pipeline,
    count: usize,
    call: Call,
    operation: fn(Attempt) -> F,
) -> JoinSet<Ended>
where
    F: Future<Output = Result<(), GaveUp>> + Send + 'static,
{
    let run = |pipeline: Pipeline| async move { pipeline.run(call, &AnyError, operation).await };
    (0..count).map(|_| run(pipeline.clone())).collect()
}

/// A service that never answers.
async fn hang(_: Attempt) -> Result<(), GaveUp> {
    pending().await
}

async fn answer_after_a_second(_: Attempt) -> Result<(), GaveUp> {
    sleep(SECOND).await;
    Ok(())
}

/// A service that answers the first attempt a moment too late to be heard, and the next at once.
async fn late_at_first(attempt: Attempt) -> Result<(), GaveUp> {
    if attempt.number == 1 { pending().await } else { Ok(()) }
}

/// A driver with a time limit of its own.
async fn give_up(attempt: Attempt) -> Result<(), GaveUp> {
    timeout(500 * MS, late_at_first(attempt)).await.unwrap_or(Err(GaveUp))
}

fn blame(error: &CallError<GaveUp>) -> Blame {
    match error {
        CallError::DeadlineExceeded(over) => over.blame,
        CallError::AttemptTimeout(timeout) => timeout.blame,
        CallError::Inner(failed) => failed.verdict.blame,
        error => panic!("{error}"),
    }
}

/// How the calls of one pipeline ended, as observers are told.
#[derive(Clone)]
struct Outcomes {
    of: &'static str,
    seen: Arc<Mutex<Vec<CallOutcome>>>,
}

impl Outcomes {
    fn of(name: &'static str) -> Self {
        let outcomes = Self { of: name, seen: Arc::default() };
        add_observer(Arc::new(outcomes.clone()));
        outcomes
    }

    fn all(&self) -> Vec<CallOutcome> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Observe for Outcomes {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::CallEnded { name, outcome, .. } = event
            && **name == self.of
        {
            self.seen.lock().unwrap().push(*outcome);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_in_flight_while_this_process_stops_are_nobodys_fault() {
    let outcomes = Outcomes::of("stopped");
    for standstill in [2 * SECOND, 30 * SECOND] {
        let service = Service::new("stopped");
        let calls = service.calls(Call::write(), hang).await;
        advance(standstill).await;
        for ended in calls.join_all().await {
            let error = ended.unwrap_err();
            // The deadline of the call is 10 s.
            let over = matches!(error, CallError::DeadlineExceeded(_));
            assert_eq!((over, blame(&error)), (standstill > 10 * SECOND, Blame::Local), "{error}");
        }
        assert_eq!(outcomes.all(), [CallOutcome::LocalError; 5]);
        service.is_unharmed(5);
        service.is_judged_all_the_same().await;
        assert_eq!(outcomes.all(), [CallOutcome::Timeout]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_repeated_because_of_a_standstill_is_not_paid_for() {
    let service = Service::new("repeated");
    let calls = service.calls(Call::read(), late_at_first).await;
    advance(2 * SECOND).await;
    assert!(calls.join_all().await.into_iter().all(|ended| ended.is_ok()));
    service.is_unharmed(5);
    service.is_judged_all_the_same().await;
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_gives_up_because_of_a_standstill_is_excused_too() {
    let service = Service::new("driver");
    let calls = service.calls(Call::write(), give_up).await;
    advance(2 * SECOND).await;
    for ended in calls.join_all().await {
        let error = ended.unwrap_err();
        assert!(matches!(error, CallError::Inner(_)), "{error}");
        assert_eq!(blame(&error), Blame::Local);
    }
    service.is_unharmed(5);
    // With all of its time, it is the service that was slow.
    let error = service.pipeline.run(Call::write(), &AnyError, give_up).await.unwrap_err();
    assert_eq!((blame(&error), service.breaker.state()), (Blame::Service, CircuitState::Open));
}

#[tokio::test(start_paused = true)]
async fn a_standstill_before_the_attempt_excuses_nothing() {
    let service = Service::new("before");
    let earlier = service.calls(Call::write(), hang).await;
    advance(30 * SECOND).await;
    earlier.join_all().await;
    service.is_unharmed(5);
    // Nobody has noticed yet that it is over: the attempt is the first thing that runs.
    advance(5 * SECOND).await;
    service.is_judged_all_the_same().await;
}

#[tokio::test(start_paused = true)]
async fn a_standstill_that_took_little_of_the_attempt_excuses_nothing() {
    let quarter = SECOND / 4;
    for (jump, blamed) in [(300 * MS, Blame::Service), (400 * MS, Blame::Local)] {
        let service = Service::new("little");
        let standstill = Standstill::watch();
        let calls = service.calls(Call::write(), hang).await;
        // A beat is due within the first 100 ms of it.
        advance(jump).await;
        assert_eq!(standstill.time() > quarter, blamed == Blame::Local, "{:?}", standstill.time());
        for ended in calls.join_all().await {
            assert_eq!(blame(&ended.unwrap_err()), blamed);
        }
        let opened = service.breaker.state() == CircuitState::Open;
        assert_eq!(opened, blamed == Blame::Service);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_could_not_even_ask_blames_nobody() {
    let outcomes = Outcomes::of("unasked");
    let service = Service::new("unasked");
    let deadline = Deadline::within(2 * SECOND);
    advance(30 * SECOND).await;
    let call = Call::read().by(deadline);
    let error = service.pipeline.run(call, &AnyError, hang).await.unwrap_err();
    assert!(matches!(&error, CallError::DeadlineExceeded(over) if over.attempts == 0), "{error}");
    assert_eq!((blame(&error), outcomes.all()), (Blame::Local, vec![CallOutcome::LocalError]));
    service.is_unharmed(0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_lay_there_while_this_process_stopped_is_not_slow() {
    let breaker = CircuitBreaker::builder("lay-there")
        .without_fail_max()
        .slow_call_rate(0.5, SECOND)
        .window(SlidingWindow::Calls(5))
        .build()
        .unwrap();
    let pipeline = Pipeline::builder("lay-there").breaker(breaker.clone()).build().unwrap();
    let calls = || in_flight(&pipeline, 5, Call::read(), answer_after_a_second);
    let stopped = calls();
    sleep(MS).await;
    advance(30 * SECOND).await;
    assert!(stopped.join_all().await.into_iter().all(|ended| ended.is_ok()));
    assert_eq!((breaker.state(), breaker.snapshot().calls.success), (CircuitState::Closed, 5));
    assert_eq!(breaker.snapshot().slow_call_ratio, Some(0.0));
    assert!(calls().join_all().await.into_iter().all(|ended| ended.is_ok()));
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_throttle_refuses_nobody_because_of_a_standstill() {
    let throttle = Throttle::builder("throttled").seed(1).build().unwrap();
    let pipeline = Pipeline::builder("throttled").throttle(throttle.clone());
    let pipeline = pipeline.attempt_timeout(SECOND).build().unwrap();
    let calls = || in_flight(&pipeline, 50, Call::write(), hang);
    let stopped = calls();
    sleep(MS).await;
    advance(30 * SECOND).await;
    for ended in stopped.join_all().await {
        assert_eq!(blame(&ended.unwrap_err()), Blame::Local);
    }
    assert_eq!(throttle.rejection_probability(), 0.0);
    assert!(calls().join_all().await.into_iter().all(|ended| ended.is_err()));
    assert!(throttle.rejection_probability() > 0.0);
}

/// Blocks this thread for two seconds.
fn block() {
    let until = Instant::now() + 2 * SECOND;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

fn on(runtime: Runtime, name: &'static str, blocked: impl AsyncFnOnce()) {
    runtime.block_on(async {
        let outcomes = Outcomes::of(name);
        let service = Service::new(name);
        let calls = service.calls(Call::write(), hang).await;
        blocked().await;
        for ended in calls.join_all().await {
            assert_eq!(blame(&ended.unwrap_err()), Blame::Local);
        }
        assert_eq!(outcomes.all(), [CallOutcome::LocalError; 5]);
        service.is_unharmed(5);
        // A machine that is busy may stand still once more, but not for ever.
        while service.breaker.state() == CircuitState::Closed {
            service.pipeline.run(Call::write(), &AnyError, hang).await.unwrap_err();
        }
    });
}

#[test]
fn a_runtime_that_is_blocked_for_two_seconds_blames_nobody() {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    on(runtime, "blocked", async || block());
}

#[test]
fn a_runtime_all_of_whose_workers_are_blocked_blames_nobody() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    on(runtime, "all-blocked", async || {
        let blocked: JoinSet<()> = (0..2).map(|_| async { block() }).collect();
        blocked.join_all().await;
    });
}

#[test]
fn a_call_whose_own_task_is_blocked_blames_nobody_though_the_runtime_runs() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let service = Service::new("own-task");
        let pipeline = service.pipeline.clone();
        let call = tokio::spawn(async move {
            let calling = pipeline.run(Call::write(), &AnyError, hang);
            let blocking = async {
                sleep(10 * MS).await;
                block();
            };
            tokio::join!(calling, blocking).0
        });
        assert_eq!(blame(&call.await.unwrap().unwrap_err()), Blame::Local);
        service.is_unharmed(1);
    });
}
