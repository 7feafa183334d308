//! Background checks: what may go wrong with them and must not.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use monitoring::{MonitoringManager, Service, ServiceMonitor};
use resilience_core::HealthStatus::{Degraded, Healthy, Unhealthy, Unknown};
use resilience_core::{CircuitBreaker, Deadline, Health, HealthCheck, HealthStatus};
use support::{Does, Puppet, every_second, pass, secs};
use tokio::time::Instant;

fn status(manager: &MonitoringManager, name: &str) -> HealthStatus {
    manager.service(name).unwrap().status
}

#[tokio::test(start_paused = true)]
async fn what_nobody_has_looked_at_is_unknown() {
    let builder = MonitoringManager::builder();
    let manager = builder.critical("database", Puppet::that(Does::Answer)).build().unwrap();
    let summary = manager.get_health_summary();
    assert_eq!(summary.overall_health, Unknown);
    let database = &summary.services["database"];
    assert_eq!((database.status, database.check_status), (Unknown, Unknown));
    assert_eq!((database.age, database.uptime.day, database.checked_at), (None, None, None));
    assert!(manager.service("nobody").is_none());
}

#[tokio::test(start_paused = true)]
async fn the_first_look_is_at_once_and_the_next_ones_keep_their_period() {
    let database = Puppet::that(Does::Answer);
    let manager =
        MonitoringManager::builder().critical("database", database.clone()).build().unwrap();
    let started = Instant::now();
    manager.start();
    manager.start();
    pass(secs(3600)).await;
    let looks = database.looks();
    assert_eq!(looks[0], started);
    let periods: Vec<_> = looks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // tokio's timer counts whole milliseconds.
    let allowed = secs(27)..=secs(33) + Duration::from_millis(1);
    assert!(periods.iter().all(|period| allowed.contains(period)), "{periods:?}");
    assert!(periods.windows(2).any(|pair| pair[0] != pair[1]), "there is no jitter");
    assert!((109..=134).contains(&looks.len()), "{} looks in an hour", looks.len());
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_is_cut_off() {
    let database = Puppet::that(Does::Hang);
    let manager =
        MonitoringManager::builder().critical("database", database.clone()).build().unwrap();
    manager.start();
    pass(Duration::from_millis(4900)).await;
    assert_eq!(status(&manager, "database"), Unknown);
    pass(Duration::from_millis(200)).await;
    let health = manager.service("database").unwrap();
    assert_eq!(health.status, Unhealthy);
    assert_eq!(health.reason.as_deref(), Some("no answer within 5s"));
    database.now(Does::Answer);
    pass(secs(33)).await;
    assert_eq!(status(&manager, "database"), Healthy);
}

#[tokio::test(start_paused = true)]
async fn checks_that_take_longer_than_their_period_never_overlap() {
    let database = Puppet::that(Does::Hang);
    let service = Service::critical("database", database.clone()).interval(secs(1));
    let monitor = ServiceMonitor::new(service).unwrap();
    // Even if two loops run.
    let looping = async { tokio::join!(monitor.run(), monitor.run()) };
    let _ = tokio::time::timeout(secs(60), looping).await;
    assert_eq!(database.most_at_once(), 1);
    assert!(database.looks().len() >= 11, "one each five seconds");
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_has_failed_and_the_next_one_runs() {
    let database = Puppet::that(Does::Panic);
    let manager = every_second().critical("database", database.clone()).build().unwrap();
    manager.start();
    pass(secs(5)).await;
    let health = manager.service("database").unwrap();
    assert_eq!(health.reason.as_deref(), Some("the check panicked"));
    assert_eq!(health.status, Unhealthy);
    assert!(health.consecutive_failures >= 4);
    database.now(Does::Answer);
    pass(secs(2)).await;
    assert_eq!(status(&manager, "database"), Healthy);
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_holds_up_no_other() {
    let (stuck, fine) = (Puppet::that(Does::Hang), Puppet::that(Does::Answer));
    let builder = every_second().optional("stuck", stuck).critical("fine", fine.clone());
    let manager = builder.build().unwrap();
    manager.start();
    pass(secs(30)).await;
    assert!(fine.looks().len() > 25);
    assert_eq!(manager.get_health_summary().overall_health, Degraded);
}

/// The first check of its `database` was answered; one failure makes that unhealthy.
async fn one_second_into_a_check_that_hangs() -> MonitoringManager {
    let database = Puppet::that(Does::Answer);
    let service = Service::critical("database", database.clone()).fall(1).jitter(0.0);
    let manager = MonitoringManager::builder().add_service(service).build().unwrap();
    manager.start();
    pass(secs(29)).await;
    database.now(Does::Hang);
    pass(secs(2)).await;
    assert_eq!(database.looks().len(), 2, "a check is in flight");
    manager
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_this_process_is_not_blamed_on_the_service() {
    let manager = one_second_into_a_check_that_hangs().await;
    tokio::time::advance(secs(600)).await;
    pass(Duration::from_millis(10)).await;
    let health = manager.service("database").unwrap();
    assert_eq!((health.status, health.consecutive_failures), (Healthy, 0));
    assert!(health.stale);
    pass(secs(36)).await;
    assert_eq!(status(&manager, "database"), Unhealthy, "an honest timeout counts");
}

#[tokio::test(start_paused = true)]
async fn a_check_that_lost_much_of_its_time_to_a_blocked_runtime_does_not_count() {
    let manager = one_second_into_a_check_that_hangs().await;
    // It is cut off on time, after five seconds: two of them were not the service's.
    tokio::time::advance(secs(2)).await;
    pass(secs(4)).await;
    let health = manager.service("database").unwrap();
    assert_eq!(
        (health.status, health.check_status, health.consecutive_failures),
        (Healthy, Healthy, 0)
    );
    assert!(manager.alerts().is_empty());
    pass(secs(30)).await;
    assert_eq!(status(&manager, "database"), Unhealthy, "the next one had all of its time");
}

#[tokio::test(start_paused = true)]
async fn a_flapping_service_keeps_its_status_and_alerts_nobody() {
    let database = Puppet::that(Does::Answer);
    let manager = every_second().critical("database", database.clone()).build().unwrap();
    manager.start();
    let mut bad = 0;
    for look in 0..200 {
        let seen = database.looks().len();
        while database.looks().len() == seen {
            pass(Duration::from_millis(10)).await;
        }
        database.now(if look % 2 == 0 { Does::Fail } else { Does::Answer });
        let health = manager.service("database").unwrap();
        assert_eq!(health.status, Healthy);
        bad += u32::from(health.check_status == Unhealthy);
        assert!(manager.alerts().is_empty());
    }
    assert!(bad >= 90, "the raw result shows what goes on");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_manager_ends_its_tasks() {
    let (quick, stuck) = (Puppet::that(Does::Answer), Puppet::that(Does::Hang));
    let builder = every_second().critical("quick", quick.clone()).optional("stuck", stuck.clone());
    let manager = builder.build().unwrap();
    manager.start();
    let clone = manager.clone();
    pass(secs(3)).await;
    drop(manager);
    let before = quick.looks().len();
    pass(secs(3)).await;
    assert!(quick.looks().len() > before, "a clone keeps it alive");
    drop(clone);
    pass(secs(1)).await;
    let after = quick.looks().len();
    pass(secs(60)).await;
    assert_eq!(quick.looks().len(), after);
    assert_eq!((Arc::strong_count(&quick), Arc::strong_count(&stuck)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_comes_later_is_looked_at_at_once() {
    let manager = every_second().critical("database", Puppet::that(Does::Answer)).build().unwrap();
    manager.start();
    pass(secs(10)).await;
    let mail = Puppet::that(Does::Limp);
    manager.add_service(Service::optional("mail", mail)).unwrap();
    pass(Duration::from_millis(1)).await;
    assert_eq!(status(&manager, "mail"), Degraded);
    let twice = manager.add_service(Service::optional("mail", Puppet::that(Does::Answer)));
    assert_eq!(
        twice.unwrap_err().to_string(),
        "name of service \"mail\" is \"mail\"; allowed: a name that no other service has"
    );
}

#[tokio::test(start_paused = true)]
async fn services_without_end_are_refused() {
    let manager = every_second().build().unwrap();
    for number in 0..256 {
        let service = Service::optional(format!("{number}"), Puppet::that(Does::Answer));
        manager.add_service(service).unwrap();
    }
    let refused = manager.add_service(Service::optional("more", Puppet::that(Does::Answer)));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "number of service \"more\" is 257; allowed: 256 at the most"
    );
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_degrades_its_service_and_no_more() {
    let breaker = CircuitBreaker::builder("degrading").fail_max(1).build().unwrap();
    let manager = every_second().critical("database", Puppet::behind(&breaker)).build().unwrap();
    manager.start();
    pass(secs(1)).await;
    assert_eq!(status(&manager, "database"), Healthy);
    breaker.try_acquire().unwrap().failure();
    // Seen at once, not with the next check.
    let health = manager.service("database").unwrap();
    assert_eq!((health.status, health.check_status), (Degraded, Healthy));
    assert_eq!(health.reason.as_deref(), Some("circuit is open"));
    assert_eq!(manager.get_health_summary().overall_health, Degraded);
}

#[test]
fn checks_outlive_the_runtime_that_started_them() {
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let database = Puppet::that(Does::Answer);
    let manager = MonitoringManager::builder()
        .interval(Duration::from_millis(5))
        .critical("database", database.clone())
        .runtime(background.handle().clone())
        .build()
        .unwrap();
    let passing = tokio::runtime::Builder::new_current_thread().build().unwrap();
    passing.block_on(async { manager.start() });
    drop(passing);
    let before = database.looks().len();
    let more = async {
        while database.looks().len() < before + 3 {
            pass(Duration::from_millis(1)).await;
        }
    };
    let in_time = background.block_on(async { tokio::time::timeout(secs(10), more).await });
    assert!(in_time.is_ok(), "no check ran after the runtime was gone");
}

/// A check that gives its thread away to nobody, until it is let go.
struct Blocking {
    looks: AtomicUsize,
    let_go: Mutex<mpsc::Receiver<()>>,
}

#[async_trait::async_trait]
impl HealthCheck for Blocking {
    async fn check(&self, _: Deadline) -> Health {
        self.looks.fetch_add(1, SeqCst);
        let _ = self.let_go.lock().unwrap().recv();
        Health::healthy(Duration::ZERO)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_check_that_blocks_its_thread_is_seen_and_not_joined_by_another() {
    let until = async |what: &str, condition: &dyn Fn() -> bool| {
        let met = async {
            while !condition() {
                pass(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(secs(20), met).await.unwrap_or_else(|_| panic!("never: {what}"));
    };
    let (release, let_go) = mpsc::channel();
    let blocking = Arc::new(Blocking { looks: AtomicUsize::new(0), let_go: Mutex::new(let_go) });
    let fine = Puppet::that(Does::Answer);
    let manager = MonitoringManager::builder()
        .interval(Duration::from_millis(5))
        .timeout(Duration::from_millis(500))
        .optional("blocking", blocking.clone())
        .optional("fine", fine.clone())
        .build()
        .unwrap();
    manager.start();
    until("unhealthy", &|| status(&manager, "blocking") == Unhealthy).await;
    let before = fine.looks().len();
    until("others go on", &|| fine.looks().len() > before + 20).await;
    assert_eq!(blocking.looks.load(SeqCst), 1, "the first still runs");
    drop(release);
    until("recovered", &|| status(&manager, "blocking") == Healthy).await;
    assert!(blocking.looks.load(SeqCst) > 1);
}

/// A check that answers at first, and then never again: it blocks its thread.
struct Stuck {
    looks: AtomicUsize,
    let_go: Mutex<mpsc::Receiver<()>>,
}

#[async_trait::async_trait]
impl HealthCheck for Stuck {
    async fn check(&self, _: Deadline) -> Health {
        if self.looks.fetch_add(1, SeqCst) > 0 {
            let _ = self.let_go.lock().unwrap().recv();
        }
        Health::healthy(Duration::ZERO)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_check_that_never_comes_back_does_not_leave_its_service_healthy_for_ever() {
    let (release, let_go) = mpsc::channel();
    let stuck = Arc::new(Stuck { looks: AtomicUsize::new(0), let_go: Mutex::new(let_go) });
    let manager = MonitoringManager::builder()
        .interval(Duration::from_millis(50))
        .timeout(Duration::from_millis(500))
        .critical("stuck", stuck.clone())
        .build()
        .unwrap();
    manager.start();
    // A worker that blocks may take the clock along, unless another has something to do.
    let busy = tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let condemned = async {
        while status(&manager, "stuck") != Unhealthy {
            pass(Duration::from_millis(1)).await;
        }
    };
    let in_time = tokio::time::timeout(secs(10), condemned).await;
    busy.abort();
    assert_eq!(stuck.looks.load(SeqCst), 2, "the second still runs, and no third");
    drop(release);
    assert!(in_time.is_ok(), "{:?}", manager.service("stuck"));
}

#[test]
fn a_service_that_comes_while_the_watch_starts_is_not_watched_twice() {
    for _ in 0..100 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let builder = every_second().runtime(runtime.handle().clone());
        let manager = builder.critical("first", Puppet::that(Does::Answer)).build().unwrap();
        let late: Vec<_> = (0..20).map(|_| Puppet::that(Does::Answer)).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (number, puppet) in late.iter().enumerate() {
                    let service = Service::optional(format!("late-{number}"), puppet.clone());
                    manager.add_service(service.jitter(0.0)).unwrap();
                }
            });
            scope.spawn(|| manager.start());
        });
        runtime.block_on(pass(Duration::from_millis(9500)));
        for puppet in late {
            assert_eq!(puppet.looks().len(), 10);
        }
    }
}
