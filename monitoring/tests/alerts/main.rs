//! Alerts: each that fires ends, and no handler can stop another.

mod delivery;
#[path = "../support/mod.rs"]
mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use monitoring::AlertSeverity::{Critical, Error, Info, Warning};
use monitoring::{AlertThresholds, MonitoringManager, Service};
use resilience_core::{CallOutcome, CircuitBreaker, Deadline, Event, Name, emit};
use support::{Does, Ledger, Puppet, Seen, every_second, pass, secs};
use tokio::time::Instant;

fn fired(key: &str, severity: monitoring::AlertSeverity) -> Seen {
    (key.to_owned(), severity, false)
}

fn resolved(key: &str) -> Seen {
    (key.to_owned(), Info, true)
}

#[tokio::test(start_paused = true)]
async fn a_failed_service_is_told_once_and_so_is_its_recovery() {
    let (redis, ledger) = (Puppet::that(Does::Answer), Ledger::new());
    let builder = every_second().optional("redis", redis.clone()).alert_handler(ledger.clone());
    let manager = builder.build().unwrap();
    manager.start();
    pass(secs(3)).await;
    redis.now(Does::Fail);
    pass(secs(3)).await;
    let alerts = manager.alerts();
    assert_eq!(alerts.len(), 1);
    assert_eq!(alerts[0].summary, "redis is unhealthy: connection refused");
    assert!(alerts[0].notified && !alerts[0].is_resolved());
    redis.now(Does::Answer);
    pass(secs(2)).await;
    assert!(manager.alerts().is_empty());
    assert_eq!(
        ledger.delivered(),
        [fired("service_unhealthy:redis", Error), resolved("service_unhealthy:redis")]
    );
}

#[tokio::test(start_paused = true)]
async fn one_critical_service_down_is_critical() {
    let ledger = Ledger::new();
    let builder = every_second().critical("database", Puppet::that(Does::Fail));
    let manager = builder.alert_handler(ledger.clone()).build().unwrap();
    manager.start();
    pass(secs(2)).await;
    assert_eq!(ledger.delivered(), [fired("service_unhealthy:database", Critical)]);
}

#[tokio::test(start_paused = true)]
async fn two_unhealthy_services_are_critical_and_the_first_is_told_again() {
    let (redis, search) = (Puppet::that(Does::Fail), Puppet::that(Does::Answer));
    let ledger = Ledger::new();
    let mut thresholds = AlertThresholds::default();
    thresholds.consecutive_failures = 1000;
    let manager = every_second()
        .optional("redis", redis.clone())
        .optional("search", search.clone())
        .alert_thresholds(thresholds)
        .alert_handler(ledger.clone())
        .build()
        .unwrap();
    manager.start();
    pass(secs(2)).await;
    assert_eq!(ledger.delivered(), [fired("service_unhealthy:redis", Error)]);
    search.now(Does::Fail);
    pass(Duration::from_millis(2500)).await;
    assert_eq!(
        ledger.delivered()[1..],
        [fired("service_unhealthy:redis", Critical), fired("service_unhealthy:search", Critical)]
    );
    redis.now(Does::Answer);
    search.now(Does::Answer);
    pass(secs(2)).await;
    let mut ends = ledger.delivered()[3..].to_vec();
    ends.sort();
    assert_eq!(ends, [resolved("service_unhealthy:redis"), resolved("service_unhealthy:search")]);
}

#[tokio::test(start_paused = true)]
async fn failures_that_go_on_are_an_alert_of_their_own() {
    let (redis, ledger) = (Puppet::that(Does::Fail), Ledger::new());
    let service = Service::optional("redis", redis.clone()).jitter(0.0);
    let manager =
        every_second().add_service(service).alert_handler(ledger.clone()).build().unwrap();
    manager.start();
    pass(Duration::from_millis(3500)).await;
    assert_eq!(ledger.delivered(), [fired("service_unhealthy:redis", Error)]);
    pass(secs(1)).await;
    assert_eq!(ledger.delivered()[1..], [fired("consecutive_failures:redis", Error)]);
    redis.now(Does::Answer);
    pass(secs(1)).await;
    assert_eq!(
        ledger.delivered()[2..],
        [resolved("service_unhealthy:redis"), resolved("consecutive_failures:redis")]
    );
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opened_is_told_until_it_closes() {
    let breaker = CircuitBreaker::builder("alert-breaker")
        .fail_max(1)
        .reset_timeout(secs(10))
        .success_threshold(1)
        .build()
        .unwrap();
    let ledger = Ledger::new();
    let builder = every_second().optional("redis", Puppet::behind(&breaker));
    let manager = builder.alert_handler(ledger.clone()).build().unwrap();
    manager.start();
    pass(secs(1)).await;
    breaker.try_acquire().unwrap().failure();
    pass(secs(15)).await;
    assert_eq!(ledger.delivered(), [fired("circuit_opened:redis", Error)]);
    let probe = breaker.try_acquire().unwrap();
    pass(secs(2)).await;
    assert_eq!(ledger.delivered().len(), 1, "half-open is not over yet");
    probe.success();
    pass(secs(2)).await;
    assert_eq!(ledger.delivered()[1..], [resolved("circuit_opened:redis")]);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_was_open_for_a_blink_is_told_all_the_same() {
    let breaker = CircuitBreaker::builder("blink")
        .fail_max(1)
        .reset_timeout(Duration::from_millis(1))
        .success_threshold(1)
        .build()
        .unwrap();
    let ledger = Ledger::new();
    let builder = MonitoringManager::builder().optional("redis", Puppet::behind(&breaker));
    let manager = builder.alert_handler(ledger.clone()).build().unwrap();
    manager.start();
    pass(Duration::from_millis(1100)).await;
    breaker.try_acquire().unwrap().failure();
    tokio::time::advance(Duration::from_millis(2)).await;
    breaker.try_acquire().unwrap().success();
    pass(secs(3)).await;
    let both = [fired("circuit_opened:redis", Error), resolved("circuit_opened:redis")];
    assert_eq!(ledger.delivered(), both);
}

/// Ends that many calls to `name`.
fn calls(name: &str, outcome: CallOutcome, count: usize) {
    let name = &Name::from(name.to_owned());
    let elapsed = Duration::from_millis(3);
    for _ in 0..count {
        emit(&Event::CallEnded { name, operation: "read", outcome, attempts: 1, elapsed });
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_rate_alert_needs_samples_and_does_not_flap_around_its_threshold() {
    let manager =
        every_second().optional("hysteresis", Puppet::that(Does::Answer)).build().unwrap();
    manager.start();
    let fires = async |why: &str| {
        pass(secs(1)).await;
        let rate = manager.service("hysteresis").unwrap().metrics;
        let alerts = manager.alerts();
        let fires = alerts.iter().find(|alert| &*alert.key == "error_rate:hysteresis");
        assert!(fires.is_none_or(|alert| alert.severity == Warning));
        println!("{why}: {rate:?}");
        fires.is_some()
    };
    calls("hysteresis", CallOutcome::ServiceError, 19);
    assert!(!fires("19 of 19 are too few to judge").await);
    calls("hysteresis", CallOutcome::Success, 171);
    assert!(!fires("19 of 190 are exactly 10 %").await);
    calls("hysteresis", CallOutcome::Timeout, 1);
    assert!(fires("20 of 191 are above 10 %").await);
    calls("hysteresis", CallOutcome::Success, 100);
    assert!(fires("20 of 291 are below 10 %, above 5 %").await);
    calls("hysteresis", CallOutcome::Success, 109);
    assert!(fires("20 of 400 are exactly 5 %").await);
    calls("hysteresis", CallOutcome::Success, 1);
    assert!(!fires("20 of 401 are below 5 %").await);
    calls("hysteresis", CallOutcome::ServiceError, 10);
    assert!(!fires("30 of 411 are above 5 %, below 10 %").await);
}

#[tokio::test(start_paused = true)]
async fn an_error_rate_alert_ends_when_the_traffic_does() {
    let manager = every_second().optional("silence", Puppet::that(Does::Answer)).build().unwrap();
    manager.start();
    calls("silence", CallOutcome::ServiceError, 50);
    pass(secs(2)).await;
    assert_eq!(manager.alerts().len(), 1);
    pass(secs(62)).await;
    assert!(manager.alerts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_caller_and_of_this_process_are_not_the_services() {
    let manager = every_second().optional("blameless", Puppet::that(Does::Answer)).build().unwrap();
    manager.start();
    for outcome in [CallOutcome::CallerError, CallOutcome::LocalError, CallOutcome::Rejected] {
        calls("blameless", outcome, 100);
    }
    pass(secs(2)).await;
    assert!(manager.alerts().is_empty());
    assert_eq!(manager.service("blameless").unwrap().metrics.error_rate, Some(0.0));
}

#[test]
fn thresholds_that_cannot_be_are_named() {
    let refused = |change: fn(&mut AlertThresholds)| {
        let mut thresholds = AlertThresholds::default();
        change(&mut thresholds);
        MonitoringManager::builder().alert_thresholds(thresholds).build().unwrap_err().to_string()
    };
    assert_eq!(
        refused(|t| t.error_rate = 1.5),
        "error_rate of alert thresholds is 1.5; allowed: 0 to 1"
    );
    assert_eq!(
        refused(|t| t.error_rate_clear = 0.2),
        "error_rate_clear of alert thresholds is 0.2; allowed: 0 to error_rate"
    );
    assert!(refused(|t| t.error_rate = f64::NAN).contains("NaN"));
    assert!(refused(|t| t.min_samples = 0).contains("1 or more"));
    assert!(refused(|t| t.consecutive_failures = 0).contains("1 or more"));
}

#[tokio::test(start_paused = true)]
async fn an_error_rate_alert_without_tolerance_ends_too() {
    let mut thresholds = AlertThresholds::default();
    (thresholds.error_rate, thresholds.error_rate_clear) = (0.0, 0.0);
    let manager = every_second()
        .optional("spotless", Puppet::that(Does::Answer))
        .alert_thresholds(thresholds)
        .build()
        .unwrap();
    manager.start();
    calls("spotless", CallOutcome::ServiceError, 20);
    pass(secs(2)).await;
    assert_eq!(manager.alerts().len(), 1);
    for _ in 0..70 {
        calls("spotless", CallOutcome::Success, 10);
        pass(secs(1)).await;
    }
    assert!(manager.alerts().is_empty(), "no call has failed for a minute");
}
