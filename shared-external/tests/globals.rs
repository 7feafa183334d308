//! Fear: what belongs to the process is set up twice, half, or on the wrong runtime.
#![cfg(feature = "full")]

mod support;

use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use shared_external::monitoring::Service;
use shared_external::{
    Config, Deadline, Health, HealthCheck, SetupError, get_monitoring_manager, init,
    setup_default_monitoring,
};
use support::{again, is_child_of, runtime};

/// Runs the test `name` again in a process of its own, in which nobody answers.
fn in_a_process(name: &str) {
    let nowhere = [
        ("DATABASE_URL", "postgresql://app@127.0.0.1:1/app"),
        ("REDIS_URL", "redis://127.0.0.1:1/0"),
        ("OPENSEARCH_URL", "http://127.0.0.1:1"),
    ];
    let mut child = again(name, &nowhere);
    for backend in ["DATABASE", "REDIS", "OPENSEARCH"] {
        child.env_remove(format!("{backend}_CA_FILE"));
    }
    assert!(child.status().unwrap().success());
}

/// A service that knows on which thread it was last looked at.
#[derive(Default)]
struct Thread(Mutex<Option<String>>);

#[async_trait::async_trait]
impl HealthCheck for Thread {
    async fn check(&self, _: Deadline) -> Health {
        *self.0.lock().unwrap() = thread::current().name().map(str::to_owned);
        Health::healthy(Duration::ZERO)
    }
}

#[test]
fn the_monitoring_runs_where_the_configuration_says() {
    let name = "the_monitoring_runs_where_the_configuration_says";
    if !is_child_of(name) {
        return in_a_process(name);
    }
    let mine = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("mine")
        .enable_all()
        .build()
        .unwrap();
    let mut config = Config::default();
    config.runtime = Some(mine.handle().clone());
    init(config).unwrap();
    let (manager, looked) = (get_monitoring_manager(), Arc::new(Thread::default()));
    manager.add_service(Service::critical("thread", looked.clone())).unwrap();
    manager.start();
    assert!(runtime().block_on(manager.first_look(Deadline::within(Duration::from_secs(10)))));
    assert_eq!(looked.0.lock().unwrap().as_deref(), Some("mine"));
}

#[test]
fn init_after_the_monitoring_was_made_is_an_error_and_not_without_effect() {
    let name = "init_after_the_monitoring_was_made_is_an_error_and_not_without_effect";
    if !is_child_of(name) {
        return in_a_process(name);
    }
    let _ = get_monitoring_manager();
    assert!(matches!(init(Config::default()), Err(SetupError::AlreadyInUse)));
}

#[test]
fn a_second_init_changes_nothing() {
    let name = "a_second_init_changes_nothing";
    if !is_child_of(name) {
        return in_a_process(name);
    }
    let database = |name: &str| {
        let url = "postgresql://app@127.0.0.1:1/app";
        let mut config = Config::default();
        let builder = shared_external::DatabaseConfig::builder(url);
        config.database = Some(builder.name(name.to_owned()).build().unwrap());
        config
    };
    init(database("first")).unwrap();
    assert!(matches!(init(database("second")), Err(SetupError::AlreadyInUse)));
    assert_eq!(&**shared_external::get_database().unwrap().name(), "first");
}

#[test]
fn many_threads_that_set_the_monitoring_up_at_once_get_the_same() {
    let name = "many_threads_that_set_the_monitoring_up_at_once_get_the_same";
    if !is_child_of(name) {
        return in_a_process(name);
    }
    let together = Barrier::new(16);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                together.wait();
                runtime().block_on(setup_default_monitoring()).unwrap();
            });
        }
    });
    assert_eq!(get_monitoring_manager().get_health_summary().services.len(), 3);
}
