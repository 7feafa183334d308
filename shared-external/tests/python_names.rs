//! Fear: someone who comes from the Python module does not find what it had.
#![cfg(feature = "full")]

use std::sync::Arc;
use std::time::Duration;

use shared_external::monitoring::{Alert, AlertError, Criticality, Service};
use shared_external::{
    AlertHandler, CircuitBreaker, CircuitBreakerError, CircuitOpen, CircuitState, Deadline, Health,
    HealthCheck, HealthStatus, LogAlertHandler, MonitoringManager, RetryManager, ServiceMonitor,
    ServiceRegistry,
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

#[tokio::test(start_paused = true)]
async fn monitors_handlers_and_registries_have_their_old_names() {
    struct Mail;

    #[async_trait::async_trait]
    impl AlertHandler for Mail {
        async fn handle(&self, _: &Alert) -> Result<(), AlertError> {
            Ok(())
        }
    }

    struct Ledger;

    #[async_trait::async_trait]
    impl HealthCheck for Ledger {
        async fn check(&self, _: Deadline) -> Health {
            Health::unhealthy(Duration::ZERO, "closed for the night")
        }
    }

    let ledger = Service::new("ledger", Arc::new(Ledger), Criticality::Critical);
    let builder = MonitoringManager::builder().add_service(ledger.clone());
    let manager = builder.alert_handler(Mail).alert_handler(LogAlertHandler).build().unwrap();
    manager.start();
    assert!(manager.first_look(Deadline::within(Duration::from_secs(5))).await);
    assert_eq!(manager.get_health_summary().overall_health, HealthStatus::Unhealthy);

    let monitor = ServiceMonitor::new(ledger).unwrap();
    assert_eq!(monitor.health().status, HealthStatus::Unknown);

    let services = ServiceRegistry::new();
    services.register_static("ledger", ["ledger.internal:80"]).unwrap();
    assert_eq!(services.pick("ledger").unwrap().address.to_string(), "ledger.internal:80");
}
