//! Fear: a setting is wrong and the application finds out one at a time, in production, or in the log with its password.
#![cfg(feature = "full")]

use std::process::Command;

use shared_external::{Config, HealthStatus, get_database, get_database_health};

const SECRET: &str = "hunter2";

/// Runs the test `name` of this binary again in a process of its own, with that environment.
fn in_a_process(name: &str, variables: &[(&str, &str)]) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("CHILD_OF", name)
        .envs(variables.iter().copied())
        .env_remove("DATABASE_CA_FILE")
        .status();
    status.unwrap().success()
}

fn is_child_of(name: &str) -> bool {
    std::env::var("CHILD_OF").is_ok_and(|parent| parent == name)
}

#[test]
fn everything_wrong_in_every_section_is_told_at_once() {
    let name = "everything_wrong_in_every_section_is_told_at_once";
    if !is_child_of(name) {
        let wrong = [
            ("DATABASE_URL", ""),
            ("DATABASE_POOL_SIZE", "-1"),
            ("DATABASE_MAX_OVERFLOW", "99999999999"),
            ("REDIS_URL", "redis//:hunter2@nowhere"),
            ("REDIS_SOCKET_TIMEOUT", "0"),
            ("OPENSEARCH_USERNAME", "admin"),
            ("OPENSEARCH_PASSWORD", ""),
            ("OPENSEARCH_CA_FILE", "/nonexistent.pem"),
        ];
        assert!(in_a_process(name, &wrong));
        return;
    }
    let text = Config::from_env().unwrap_err().to_string();
    for variable in [
        "DATABASE_URL is not set",
        "DATABASE_POOL_SIZE is \"-1\"",
        "DATABASE_MAX_OVERFLOW is \"99999999999\"",
        "REDIS_URL",
        "REDIS_SOCKET_TIMEOUT is \"0\"",
        "OPENSEARCH_PASSWORD",
        "OPENSEARCH_CA_FILE",
    ] {
        assert!(text.contains(variable), "{variable} is not in: {text}");
    }
    assert!(!text.contains(SECRET), "{text}");
}

#[test]
fn a_failure_is_not_remembered() {
    let name = "a_failure_is_not_remembered";
    if !is_child_of(name) {
        assert!(in_a_process(name, &[("DATABASE_URL", "mysql://app:hunter2@localhost/app")]));
        return;
    }
    let text = get_database().unwrap_err().to_string();
    assert!(text.contains("DATABASE_URL") && !text.contains(SECRET), "{text}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let health = runtime.block_on(get_database_health());
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reason.unwrap().contains("DATABASE_URL"));

    let mut config = Config::default();
    config.database = Some(
        shared_external::DatabaseConfig::builder("postgresql://app@localhost/app").build().unwrap(),
    );
    shared_external::init(config).unwrap();
    get_database().unwrap();
}
