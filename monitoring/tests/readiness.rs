//! Whether the process should get traffic: at its start, at its end, and when services fail.

mod support;

use monitoring::{MonitoringManager, ReadinessPolicy, ReadyStatus, Service};
use resilience_core::Deadline;
use resilience_core::HealthStatus::{Degraded, Healthy, Unhealthy, Unknown};
use support::{Does, Puppet, every_second, pass, secs};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn no_traffic_before_every_service_was_looked_at_once() {
    let (database, redis) = (Puppet::that(Does::Answer), Puppet::that(Does::Hang));
    let builder = MonitoringManager::builder().readiness(ReadinessPolicy::Lifecycle);
    let manager = builder.critical("database", database).optional("redis", redis).build().unwrap();
    assert_eq!(manager.readiness().status, ReadyStatus::Starting);
    manager.start();
    pass(secs(3)).await;
    let readiness = manager.readiness();
    assert_eq!((readiness.status, readiness.retry_after), (ReadyStatus::Starting, Some(secs(1))));
    pass(secs(3)).await;
    let readiness = manager.readiness();
    assert_eq!((readiness.status, readiness.retry_after), (ReadyStatus::Ready, None));
    assert_eq!(readiness.services["redis"].status, Unhealthy);
    let mail = Service::optional("mail", Puppet::that(Does::Hang));
    manager.add_service(mail).unwrap();
    assert_eq!(manager.readiness().status, ReadyStatus::Ready, "it has started already");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_first_look_ends_with_it_or_by_the_deadline() {
    let (database, redis) = (Puppet::that(Does::Answer), Puppet::that(Does::Hang));
    let builder = MonitoringManager::builder().critical("database", database);
    let manager = builder.optional("redis", redis).build().unwrap();
    let started = Instant::now();
    assert!(!manager.first_look(Deadline::within(secs(1))).await, "nobody looks yet");
    manager.start();
    assert!(!manager.first_look(Deadline::within(secs(2))).await, "redis hangs");
    assert!(manager.first_look(Deadline::within(secs(9))).await);
    assert!((secs(6)..secs(7)).contains(&started.elapsed()), "cut off after 5 s");
}

#[tokio::test(start_paused = true)]
async fn no_traffic_while_draining_though_all_is_well() {
    let manager = every_second().critical("database", Puppet::that(Does::Answer)).build().unwrap();
    manager.start();
    pass(secs(1)).await;
    assert_eq!(manager.readiness().status, ReadyStatus::Ready);
    manager.set_draining();
    let readiness = manager.readiness();
    assert_eq!(readiness.status, ReadyStatus::Draining);
    assert_eq!(readiness.services["database"].status, Healthy);
    assert!(readiness.retry_after.is_some());
}

#[tokio::test(start_paused = true)]
async fn each_policy_refuses_what_it_says_and_nothing_else() {
    use Does::{Answer, Fail, Limp};
    use ReadinessPolicy::{All, Critical, Lifecycle};
    for (database, redis, refusing) in [
        (Answer, Answer, &[][..]),
        (Limp, Limp, &[]),
        (Answer, Fail, &[All]),
        (Fail, Answer, &[Critical, All]),
        (Fail, Fail, &[Critical, All]),
    ] {
        for policy in [Critical, All, Lifecycle] {
            let (database, redis) = (Puppet::that(database), Puppet::that(redis));
            let builder = every_second().readiness(policy);
            let builder = builder.critical("database", database).optional("redis", redis);
            let manager = builder.build().unwrap();
            manager.start();
            pass(secs(1)).await;
            let refuses = manager.readiness().status == ReadyStatus::NotReady;
            assert_eq!(
                refuses,
                refusing.contains(&policy),
                "{policy:?}: {:?}",
                manager.readiness()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_overall_health_weighs_critical_services_heavier() {
    use Does::{Answer, Fail, Limp};
    for (database, redis, overall) in [
        (Answer, Answer, Healthy),
        (Answer, Limp, Degraded),
        (Answer, Fail, Degraded),
        (Limp, Answer, Degraded),
        (Fail, Answer, Unhealthy),
        (Fail, Fail, Unhealthy),
    ] {
        let (database, redis) = (Puppet::that(database), Puppet::that(redis));
        let builder = every_second().critical("database", database).optional("redis", redis);
        let manager = builder.build().unwrap();
        manager.start();
        pass(secs(1)).await;
        assert_eq!(manager.get_health_summary().overall_health, overall);
    }
    let (stuck, down) = (Puppet::that(Does::Hang), Puppet::that(Fail));
    let manager =
        every_second().critical("database", stuck).optional("redis", down).build().unwrap();
    manager.start();
    pass(secs(1)).await;
    assert_eq!(manager.get_health_summary().overall_health, Unknown, "unknown outweighs degraded");
}
