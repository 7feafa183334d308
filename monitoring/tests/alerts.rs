//! Alerts: each that fires ends, and no handler can stop another.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use monitoring::AlertSeverity::{Critical, Error, Info, Warning};
use monitoring::{
    AlertRule, AlertThresholds, Finding, Firing, HealthSummary, LogAlertHandler, MonitoringManager,
    Service,
};
use resilience_core::{CallOutcome, CircuitBreaker, Deadline, Event, HealthStatus, Name, emit};
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

#[tokio::test(start_paused = true)]
async fn an_alert_is_not_notified_before_a_handler_delivered_it() {
    let ledger = Ledger::first(Does::Fail, 4);
    let builder = every_second().critical("database", Puppet::that(Does::Fail));
    let manager = builder.alert_handler(ledger.clone()).build().unwrap();
    manager.start();
    let notified = || {
        manager.alerts().iter().find(|alert| &*alert.rule == "service_unhealthy").unwrap().notified
    };
    pass(Duration::from_millis(1)).await;
    while ledger.tries() < 4 {
        assert!(!notified());
        pass(Duration::from_millis(10)).await;
    }
    assert!(ledger.delivered().is_empty());
    pass(secs(61)).await;
    assert!(notified());
    assert_eq!(ledger.delivered()[0], fired("service_unhealthy:database", Critical));
    assert_eq!(ledger.delivered().iter().filter(|seen| seen.0.starts_with("service_")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_handler_nobody_was_notified() {
    let manager = every_second().critical("database", Puppet::that(Does::Fail)).build().unwrap();
    manager.start();
    pass(secs(30)).await;
    assert!(manager.alerts().iter().all(|alert| !alert.notified));
    assert_eq!(manager.alerts().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_or_hangs_stops_neither_others_nor_checks() {
    let (bad, stuck, good) =
        (Ledger::first(Does::Panic, 3), Ledger::first(Does::Hang, 1000), Ledger::new());
    let database = Puppet::that(Does::Fail);
    let manager = every_second()
        .critical("database", database.clone())
        .alert_handler(bad.clone())
        .alert_handler(stuck.clone())
        .alert_handler(good.clone())
        .build()
        .unwrap();
    manager.start();
    pass(secs(1)).await;
    let first = fired("service_unhealthy:database", Critical);
    assert_eq!(good.delivered(), std::slice::from_ref(&first));
    pass(secs(30)).await;
    assert_eq!(bad.delivered()[0], first, "it came again after the panics");
    assert_eq!(stuck.delivered(), []);
    assert!((2..10).contains(&stuck.tries()), "{} tries", stuck.tries());
    let looks = database.looks().len();
    database.now(Does::Answer);
    pass(secs(2)).await;
    assert!(database.looks().len() > looks);
    assert!(good.delivered().contains(&resolved("service_unhealthy:database")));
}

#[tokio::test(start_paused = true)]
async fn an_alert_that_cannot_be_delivered_does_not_hold_up_the_rest_for_ever() {
    let ledger = Ledger::first(Does::Fail, 10);
    let redis = Puppet::that(Does::Fail);
    let builder = every_second().optional("redis", redis.clone()).alert_handler(ledger.clone());
    let manager = builder.build().unwrap();
    manager.start();
    pass(secs(2)).await;
    redis.now(Does::Answer);
    pass(secs(600)).await;
    assert_eq!(ledger.delivered(), [resolved("service_unhealthy:redis")]);
    assert_eq!(ledger.tries(), 11);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_comes_later_hears_what_comes_later() {
    let redis = Puppet::that(Does::Fail);
    let manager = every_second().optional("redis", redis.clone()).build().unwrap();
    manager.start();
    pass(secs(2)).await;
    let ledger = Ledger::new();
    manager.add_alert_handler(ledger.clone());
    redis.now(Does::Answer);
    pass(secs(2)).await;
    assert_eq!(ledger.delivered(), [resolved("service_unhealthy:redis")]);
}

/// An application's own rule.
struct Own {
    panics: Arc<Mutex<bool>>,
}

impl AlertRule for Own {
    fn name(&self) -> &'static str {
        "nothing_works"
    }

    fn judge(&mut self, summary: &HealthSummary, _: &Firing) -> Vec<Finding> {
        assert!(!*self.panics.lock().unwrap(), "a bug in the rule");
        let down = summary.overall_health == HealthStatus::Unhealthy;
        let finding = Finding::overall(Warning, "time to go home");
        down.then_some(finding).into_iter().collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_panics_keeps_its_alerts_and_stops_no_other() {
    let (database, panics) = (Puppet::that(Does::Fail), Arc::new(Mutex::new(false)));
    let ledger = Ledger::new();
    let manager = every_second()
        .critical("database", database.clone())
        .alert_rule(Own { panics: panics.clone() })
        .alert_handler(ledger.clone())
        .build()
        .unwrap();
    manager.start();
    pass(secs(2)).await;
    assert!(ledger.delivered().contains(&fired("nothing_works", Warning)));
    *panics.lock().unwrap() = true;
    database.now(Does::Answer);
    pass(secs(3)).await;
    assert!(ledger.delivered().contains(&resolved("service_unhealthy:database")));
    assert_eq!(manager.alerts().len(), 1);
    *panics.lock().unwrap() = false;
    pass(secs(2)).await;
    assert!(ledger.delivered().contains(&resolved("nothing_works")));
    assert!(manager.alerts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_delivers_what_waits_and_ends_by_its_deadline() {
    let (slow, stuck) = (Ledger::first(Does::Fail, 2), Ledger::first(Does::Hang, 1000));
    let database = Puppet::that(Does::Fail);
    let manager = every_second()
        .critical("database", database.clone())
        .alert_handler(slow.clone())
        .alert_handler(stuck)
        .build()
        .unwrap();
    manager.start();
    pass(Duration::from_millis(1)).await;
    let started = Instant::now();
    manager.shutdown(Deadline::within(secs(20))).await;
    assert!(started.elapsed() <= secs(20) + Duration::from_millis(1));
    assert_eq!(slow.delivered(), [fired("service_unhealthy:database", Critical)]);
    let looks = database.looks().len();
    pass(secs(60)).await;
    assert_eq!(database.looks().len(), looks);
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

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_has_each_alert_at_the_level_of_its_severity() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .without_time()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (database, panics) = (Puppet::that(Does::Fail), Arc::default());
    let manager = every_second()
        .critical("database", database.clone())
        .alert_rule(Own { panics })
        .alert_handler(LogAlertHandler)
        .build()
        .unwrap();
    manager.start();
    pass(secs(2)).await;
    database.now(Does::Answer);
    pass(secs(2)).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for line in [
        "ERROR shared_external::alert: database is unhealthy: connection refused key=service_unhealthy:database severity=critical state=\"firing\"",
        " WARN shared_external::alert: time to go home key=nothing_works severity=warning state=\"firing\"",
        " INFO shared_external::alert: resolved: database is unhealthy: connection refused key=service_unhealthy:database severity=info state=\"resolved\"",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
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

/// A check that answers, but whose pool has a bug.
struct Buggy(Mutex<bool>);

#[async_trait::async_trait]
impl resilience_core::HealthCheck for Buggy {
    async fn check(&self, _: Deadline) -> resilience_core::Health {
        resilience_core::Health::healthy(Duration::ZERO)
    }

    fn pool_status(&self) -> Option<resilience_core::PoolStatus> {
        assert!(!*self.0.lock().unwrap(), "a bug in the pool");
        None
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_what_the_application_wrote_does_not_end_the_alerts() {
    let (buggy, ledger) = (Arc::new(Buggy(Mutex::new(false))), Ledger::new());
    let redis = Puppet::that(Does::Answer);
    let manager = every_second()
        .optional("buggy", buggy.clone())
        .optional("redis", redis.clone())
        .alert_handler(ledger.clone())
        .build()
        .unwrap();
    manager.start();
    pass(secs(2)).await;
    let _ = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let _held = buggy.0.lock().unwrap();
                panic!("poisons the lock: every look at the pool panics from now on");
            })
            .join()
    });
    redis.now(Does::Fail);
    pass(secs(3)).await;
    assert_eq!(ledger.delivered(), [fired("service_unhealthy:redis", Error)]);
    assert!(manager.service("buggy").unwrap().pool.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_alerts_is_not_logged_each_second() {
    struct Flood;
    impl AlertRule for Flood {
        fn name(&self) -> &'static str {
            "flood"
        }
        fn judge(&mut self, _: &HealthSummary, _: &Firing) -> Vec<Finding> {
            let about = |n: u32| Finding::about(&Name::from(n.to_string()), Warning, "wet");
            (0..1010).map(about).collect()
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let manager = every_second().alert_rule(Flood).build().unwrap();
    manager.start();
    pass(secs(60)).await;
    assert_eq!(manager.alerts().len(), 1000);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains("alerts fire")).count(), 1, "{text}");
}
