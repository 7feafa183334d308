//! Fear: a policy that repeats too often, too soon, too late, or what nobody pays for.

use std::sync::Mutex;
use std::time::Duration;

use resilience_core::{
    BackoffShape, Call, Deadline, Jitter, Pipeline, Replay, RetryBudget, RetryPolicy,
    RetryPolicyBuilder, Verdict,
};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

/// When the attempts of one call were made, where each is refused with `verdict`.
async fn attempts(policy: &RetryPolicy, verdict: Verdict, deadline: Duration) -> Vec<Duration> {
    let pipeline = Pipeline::builder("svc").retry(policy.clone()).build().unwrap();
    let (made, began) = (Mutex::new(Vec::new()), Instant::now());
    let call = Call::read().by(Deadline::within(deadline));
    let classifier = move |_: &Refused| verdict;
    let result = pipeline.run(call, &classifier, |_| {
        made.lock().unwrap().push(began.elapsed());
        async { Err::<(), _>(Refused) }
    });
    assert!(result.await.unwrap_err().inner().is_some(), "the last real error comes back");
    made.into_inner().unwrap()
}

fn refused() -> Verdict {
    Verdict::service(Replay::Safe)
}

fn still() -> RetryPolicyBuilder {
    RetryPolicy::builder().jitter(false)
}

#[tokio::test(start_paused = true)]
async fn a_policy_waits_by_its_shape() {
    let times = |shape| {
        let policy = still().max_retries(5).max_delay(4 * SECOND).shape(shape).build().unwrap();
        async move {
            let times = attempts(&policy, refused(), 60 * SECOND).await;
            times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect::<Vec<_>>()
        }
    };
    assert_eq!(times(BackoffShape::Constant).await, [1, 1, 1, 1, 1]);
    assert_eq!(times(BackoffShape::Linear).await, [1, 2, 3, 4, 4]);
    assert_eq!(times(BackoffShape::Exponential { factor: 2.0 }).await, [1, 2, 4, 4, 4]);
    assert_eq!(times(BackoffShape::Fibonacci).await, [1, 1, 2, 3, 4]);
}

#[test]
fn python_s_names_mean_exponential_with_full_jitter() {
    let python = RetryPolicy::builder().exponential_base(3.0).jitter(true).seed(5);
    let ours = RetryPolicy::builder().shape(BackoffShape::Exponential { factor: 3.0 });
    let ours = ours.jitter(Jitter::Full).seed(5);
    let waits =
        |policy: RetryPolicyBuilder| policy.build().unwrap().backoff().take(9).collect::<Vec<_>>();
    assert_eq!(waits(python), waits(ours));
    let waits: Vec<_> = still().exponential_base(3.0).build().unwrap().backoff().take(5).collect();
    assert_eq!(waits, [1, 3, 9, 27, 60].map(Duration::from_secs));
}

#[tokio::test(start_paused = true)]
async fn what_the_service_asks_for_may_exceed_the_cap_but_not_the_deadline() {
    let policy = still().max_retries(9).max_delay(2 * SECOND).build().unwrap();
    let later = refused().after(20 * SECOND);
    let times = attempts(&policy, later, 50 * SECOND).await;
    assert_eq!(times, [0, 20, 40].map(Duration::from_secs));
    assert_eq!(attempts(&policy, later, 20 * SECOND).await, [Duration::ZERO]);
}

#[tokio::test(start_paused = true)]
async fn clients_told_the_same_time_do_not_come_back_at_the_same_time() {
    let mut seconds = Vec::new();
    for seed in 0..300 {
        let policy = RetryPolicy::builder().max_retries(1).seed(seed).build().unwrap();
        let times = attempts(&policy, refused().after(10 * SECOND), 60 * SECOND).await;
        seconds.push(times[1].as_secs_f64());
    }
    assert!(seconds.iter().all(|wait| (10.0..=15.001).contains(wait)), "{seconds:?}");
    for (from, to) in [(10.0, 11.25), (11.25, 12.5), (12.5, 13.75), (13.75, 15.1)] {
        let there = seconds.iter().filter(|wait| (from..to).contains(*wait)).count();
        assert!((50..100).contains(&there), "{there} of 300 from {from} to {to}");
    }
    // Where it just fits, spreading it must not cost the call its retry.
    let policy = RetryPolicy::builder().max_retries(1).build().unwrap();
    for _ in 0..100 {
        let times =
            attempts(&policy, refused().after(10 * SECOND), 10 * SECOND + SECOND / 100).await;
        assert_eq!(times.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_says_never_is_obeyed() {
    let policy = still().max_retries(9).build().unwrap();
    assert_eq!(attempts(&policy, Verdict::service(Replay::Never), 60 * SECOND).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn throttled_calls_draw_from_their_own_share() {
    let budget = RetryBudget::builder().ratio(0.0).burst(4).throttling(0.0, 2).build().unwrap();
    let policy = still().max_retries(9).base_delay(SECOND / 1000).budget(budget.clone()).build();
    let policy = policy.unwrap();
    let throttled = attempts(&policy, refused().after(SECOND), 60 * SECOND).await;
    assert_eq!((throttled.len(), budget.balance()), (1 + 2, 4));
    assert_eq!(
        (attempts(&policy, refused(), 60 * SECOND).await.len(), budget.balance()),
        (1 + 4, 0)
    );
    // Our own trouble costs nothing, and is not refused for what others spent.
    let local = attempts(&policy, Verdict::local(Replay::Safe), 60 * SECOND).await;
    assert_eq!(local.len(), 1 + 9);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_succeeds_deposits_once_and_spends_nothing() {
    let budget = RetryBudget::new(0.5, 5).unwrap();
    while budget.try_withdraw() {}
    let policy = RetryPolicy::builder().budget(budget.clone()).build().unwrap();
    for _ in 0..4 {
        policy.run(|| async { Ok::<_, Refused>(()) }, |_| true).await.unwrap();
    }
    assert_eq!(budget.balance(), 2);
    assert_eq!(policy.budget().unwrap().balance(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_reaches_the_deadline_costs_no_retry() {
    let budget = RetryBudget::new(0.0, 1).unwrap();
    let policy = still().base_delay(2 * SECOND).budget(budget.clone()).build().unwrap();
    let began = Instant::now();
    let call = policy.run(|| async { Err::<(), _>(Refused) }, |_| true);
    Deadline::within(2 * SECOND).scope(call).await.unwrap_err();
    assert_eq!((began.elapsed(), budget.balance()), (Duration::ZERO, 1));
}

#[test]
fn what_the_waits_refuse_the_policy_refuses() {
    let field = |policy: RetryPolicyBuilder| policy.build().unwrap_err().field;
    assert_eq!(field(still().max_delay(Duration::ZERO).base_delay(Duration::ZERO)), "max_delay");
    assert_eq!(field(still().max_delay(Duration::MAX)), "max_delay");
    assert_eq!(field(still().base_delay(61 * SECOND)), "base_delay");
    for base in [0.5, f64::NAN, f64::INFINITY] {
        let error = still().exponential_base(base).build().unwrap_err();
        assert_eq!((error.field, error.allowed), ("exponential_base", "1 or more, finite"));
        assert_eq!(error.value, format!("{base:?}"));
    }
    assert_eq!(field(still().shape(BackoffShape::Linear).base_delay(Duration::ZERO)), "base_delay");
    assert_eq!(field(still().shape(BackoffShape::Linear).jitter(Jitter::Decorrelated)), "shape");
}
