//! Alerts on their way: neither a handler nor a rule can stop another, and the log is one of them.

use monitoring::{AlertRule, Finding, Firing, HealthSummary, LogAlertHandler};
use resilience_core::{Health, HealthCheck, HealthStatus, PoolStatus};
use tracing::subscriber::DefaultGuard;

use super::*;

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

/// A check that answers, but whose pool has a bug.
struct Buggy(Mutex<bool>);

#[async_trait::async_trait]
impl HealthCheck for Buggy {
    async fn check(&self, _: Deadline) -> Health {
        Health::healthy(Duration::ZERO)
    }

    fn pool_status(&self) -> Option<PoolStatus> {
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

/// What this thread logs, until its [`end`](Self::end).
struct Log {
    lines: Lines,
    guard: DefaultGuard,
}

impl Log {
    fn listen() -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self { lines, guard: tracing::subscriber::set_default(subscriber) }
    }

    fn end(self) -> String {
        drop(self.guard);
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_has_each_alert_at_the_level_of_its_severity() {
    let log = Log::listen();
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
    let text = log.end();
    for line in [
        "ERROR shared_external::alert: database is unhealthy: connection refused key=service_unhealthy:database severity=critical state=\"firing\"",
        " WARN shared_external::alert: time to go home key=nothing_works severity=warning state=\"firing\"",
        " INFO shared_external::alert: resolved: database is unhealthy: connection refused key=service_unhealthy:database severity=info state=\"resolved\"",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
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
    let log = Log::listen();
    let manager = every_second().alert_rule(Flood).build().unwrap();
    manager.start();
    pass(secs(60)).await;
    assert_eq!(manager.alerts().len(), 1000);
    let text = log.end();
    assert_eq!(text.lines().filter(|line| line.contains("alerts fire")).count(), 1, "{text}");
}
