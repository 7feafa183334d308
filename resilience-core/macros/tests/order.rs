//! Both attributes on one function: they nest as written, the first outermost.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use resilience_core::{
    CircuitBreaker, CircuitOpen, CircuitRegistry, CircuitState, circuit_breaker, with_retry,
};

#[derive(Debug, PartialEq)]
enum MyError {
    Io(u32),
    Invalid,
    Open,
}

impl From<CircuitOpen> for MyError {
    fn from(_: CircuitOpen) -> Self {
        Self::Open
    }
}

fn fail(calls: &AtomicU32) -> Result<(), MyError> {
    Err(MyError::Io(calls.fetch_add(1, Ordering::Relaxed) + 1))
}

fn breaker(name: &str) -> CircuitBreaker {
    CircuitRegistry::global().get(name).expect("the first call lists it")
}

#[tokio::test(start_paused = true)]
async fn a_call_with_its_retries_counts_once_under_an_outer_breaker() {
    #[circuit_breaker("outer", fail_max = 2)]
    #[with_retry(max_retries = 3, jitter = false)]
    async fn call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    #[circuit_breaker("outer-sync", fail_max = 2)]
    #[with_retry(max_retries = 3, base_delay = 0)]
    fn sync_call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    let calls = AtomicU32::new(0);
    assert_eq!(call(&calls).await, Err(MyError::Io(4)));
    assert_eq!(breaker("outer").snapshot().calls.failure, 1);
    assert_eq!(call(&calls).await, Err(MyError::Io(8)));
    assert_eq!(call(&calls).await, Err(MyError::Open));
    assert_eq!(calls.into_inner(), 8, "a refused call makes no attempt");

    let calls = AtomicU32::new(0);
    assert_eq!(sync_call(&calls), Err(MyError::Io(4)));
    assert_eq!(breaker("outer-sync").snapshot().calls.failure, 1);
}

#[tokio::test(start_paused = true)]
async fn every_attempt_counts_under_an_inner_breaker() {
    #[with_retry(max_retries = 3, jitter = false)]
    #[circuit_breaker("inner", fail_max = 9)]
    async fn call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    #[with_retry(max_retries = 3, base_delay = 0)]
    #[circuit_breaker("inner-sync", fail_max = 9)]
    fn sync_call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    assert_eq!(call(&AtomicU32::new(0)).await, Err(MyError::Io(4)));
    assert_eq!(breaker("inner").snapshot().calls.failure, 4);
    assert_eq!(sync_call(&AtomicU32::new(0)), Err(MyError::Io(4)));
    assert_eq!(breaker("inner-sync").snapshot().calls.failure, 4);
}

#[tokio::test(start_paused = true)]
async fn an_inner_breaker_that_opens_ends_the_retries() {
    #[with_retry(max_retries = 9, jitter = false)]
    #[circuit_breaker("ends-retries", fail_max = 2, reset_timeout = 60)]
    async fn call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    let (calls, began) = (AtomicU32::new(0), tokio::time::Instant::now());
    assert_eq!(call(&calls).await, Err(MyError::Io(2)), "the last real error");
    assert_eq!(began.elapsed(), Duration::from_secs(1), "no wait for what can only be refused");
    assert_eq!(call(&calls).await, Err(MyError::Open), "else the refusal");
    assert_eq!(began.elapsed(), Duration::from_secs(1), "which is not repeated");
    assert_eq!(breaker("ends-retries").snapshot().not_permitted, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_between_attempts_gives_the_last_real_error() {
    #[with_retry(max_retries = 9, base_delay = 5, jitter = false)]
    #[circuit_breaker("others-open-it", fail_max = 2, reset_timeout = 60)]
    async fn call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    let calls = AtomicU32::new(0);
    let others = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        breaker("others-open-it").try_acquire().unwrap().failure();
    };
    let (result, ()) = tokio::join!(call(&calls), others);
    assert_eq!(result, Err(MyError::Io(1)));
    assert_eq!(breaker("others-open-it").state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_half_open_circuit_whose_probe_is_out_is_not_retried() {
    #[with_retry(max_retries = 9, jitter = false)]
    #[circuit_breaker("probe-is-out", fail_max = 1, reset_timeout = 10)]
    async fn call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    let calls = AtomicU32::new(0);
    call(&calls).await.unwrap_err();
    tokio::time::advance(Duration::from_secs(10)).await;
    let probe = breaker("probe-is-out").try_acquire().unwrap();
    let began = tokio::time::Instant::now();
    assert_eq!(call(&calls).await, Err(MyError::Open));
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(breaker("probe-is-out").snapshot().not_permitted, 1);
    probe.success();
}

#[tokio::test(start_paused = true)]
async fn excluded_and_retryable_are_told_apart() {
    #[circuit_breaker("both-lists", fail_max = 1, excluded(MyError::Invalid))]
    #[with_retry(retryable(MyError::Io(_)))]
    async fn call(calls: &AtomicU32) -> Result<(), MyError> {
        calls.fetch_add(1, Ordering::Relaxed);
        Err(MyError::Invalid)
    }

    let calls = AtomicU32::new(0);
    assert_eq!(call(&calls).await, Err(MyError::Invalid));
    assert_eq!(calls.into_inner(), 1);
    assert_eq!(breaker("both-lists").snapshot().calls.excluded, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_while_it_waits_to_retry_frees_its_probe() {
    #[circuit_breaker("dropped-in-wait", fail_max = 1, reset_timeout = 10)]
    #[with_retry(base_delay = 5, jitter = false)]
    async fn call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    let calls = AtomicU32::new(0);
    tokio::time::timeout(Duration::from_secs(1), call(&calls)).await.unwrap_err();
    let snapshot = breaker("dropped-in-wait").snapshot();
    assert_eq!((snapshot.state, snapshot.calls.cancelled), (CircuitState::Closed, 1));
}

#[tokio::test(start_paused = true)]
async fn attributes_written_by_their_path_nest_as_well() {
    #[resilience_core::circuit_breaker("by-path", fail_max = 9)]
    #[resilience_core::with_retry(max_retries = 1)]
    async fn call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    assert_eq!(call(&AtomicU32::new(0)).await, Err(MyError::Io(2)));
    assert_eq!(breaker("by-path").snapshot().calls.failure, 1);
}

#[tokio::test(start_paused = true)]
async fn an_attribute_under_a_condition_nests_as_well() {
    #[circuit_breaker("conditional", fail_max = 9)]
    #[cfg_attr(all(), with_retry(max_retries = 1))]
    async fn call(calls: &AtomicU32) -> Result<(), MyError> {
        fail(calls)
    }

    assert_eq!(call(&AtomicU32::new(0)).await, Err(MyError::Io(2)));
    assert_eq!(breaker("conditional").snapshot().calls.failure, 1);
}
