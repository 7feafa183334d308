//! Fear: someone who comes from the Python module does not find what it had.
#![cfg(feature = "macros")]

use std::time::Duration;

use shared_external::{
    CircuitBreaker, CircuitBreakerError, CircuitOpen, CircuitState, RetryManager,
};

#[derive(Debug, thiserror::Error)]
enum MyError {
    #[error("invalid")]
    Validation,
    #[error("io")]
    Io,
    #[error(transparent)]
    Open(#[from] CircuitOpen),
}

#[shared_external::circuit_breaker("my_service", fail_max = 5, reset_timeout = 60)]
#[shared_external::with_retry(max_retries = 3, base_delay = 1.0)]
async fn my_external_call() -> Result<&'static str, MyError> {
    Ok("reply")
}

#[shared_external::circuit_breaker(
    name = "strict",
    fail_max = 2,
    reset_timeout = 30,
    success_threshold = 3,
    excluded(MyError::Validation)
)]
async fn strict(fails: bool) -> Result<(), MyError> {
    Err(if fails { MyError::Io } else { MyError::Validation })
}

#[tokio::test(start_paused = true)]
async fn the_quick_start_of_the_python_module_reads_the_same() {
    assert_eq!(my_external_call().await.unwrap(), "reply");
}

#[tokio::test(start_paused = true)]
async fn excluded_errors_open_nothing_and_others_do() {
    for _ in 0..10 {
        assert!(matches!(strict(false).await, Err(MyError::Validation)));
    }
    for _ in 0..2 {
        assert!(matches!(strict(true).await, Err(MyError::Io)));
    }
    let Err(MyError::Open(open)) = strict(true).await else { panic!("the circuit is closed") };
    assert_eq!((&*open.name, open.retry_after), ("strict", Duration::from_secs(30)));
}

#[tokio::test(start_paused = true)]
async fn the_old_type_names_still_name_the_types() {
    let breaker = CircuitBreaker::builder("test").fail_max(2).build().unwrap();
    let fail = || async { Err::<(), _>(MyError::Io) };
    for _ in 0..2 {
        let error: CircuitBreakerError<MyError> = breaker.call(fail).await.unwrap_err();
        assert!(error.inner().is_some());
    }
    assert_eq!(breaker.state(), CircuitState::Open);
    let retry: RetryManager = RetryManager::builder().max_retries(2).build().unwrap();
    let mut attempts = 0;
    let result = retry
        .run(
            || {
                attempts += 1;
                async { Err::<(), _>(MyError::Io) }
            },
            |_| true,
        )
        .await;
    assert!(result.is_err());
    assert_eq!(attempts, 3);
}
