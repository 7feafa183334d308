//! Fear: a setting is wrong and the application finds out one at a time, in production, or in the log with its password.
#![cfg(feature = "full")]

mod support;

use shared_external::{Config, HealthStatus, get_database, get_database_health};
use support::{again, is_child_of, runtime};

const SECRET: &str = "hunter2";

/// Runs the test `name` of this binary again in a process of its own, with that environment.
fn in_a_process(name: &str, variables: &[(&str, &str)]) -> bool {
    again(name, variables).env_remove("DATABASE_CA_FILE").status().unwrap().success()
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
            ("MONITORING_INTERVAL", "soon"),
            ("DISCOVERY_REDIS", "no-port"),
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
        "MONITORING_INTERVAL is \"soon\"",
        "DISCOVERY_REDIS",
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
    let health = runtime().block_on(get_database_health());
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reason.unwrap().contains("DATABASE_URL"));

    let mut config = Config::default();
    config.database = Some(
        shared_external::DatabaseConfig::builder("postgresql://app@localhost/app").build().unwrap(),
    );
    shared_external::init(config).unwrap();
    get_database().unwrap();
}

#[test]
fn what_the_process_is_built_from_shows_no_secret() {
    let mut config = Config::default();
    let user = |scheme| format!("{scheme}://app:{SECRET}@localhost:1/0");
    config.database =
        Some(shared_external::DatabaseConfig::builder(user("postgresql")).build().unwrap());
    config.redis = Some(shared_external::RedisConfig::builder(user("redis")).build().unwrap());
    config.opensearch =
        Some(shared_external::OpenSearchConfig::builder(user("http")).build().unwrap());
    let shown = format!("{config:?} {config:#?}");
    assert!(shown.contains("localhost") && !shown.contains(SECRET), "{shown}");
}

#[test]
fn no_way_of_getting_a_url_wrong_shows_its_password() {
    let ways = [
        "S//app:hunter2@h",
        "S:/app:hunter2@h",
        "app:hunter2@h:1",
        "S://app:hunter2",
        "S://app:hunter2@",
        "S://app:hunter2@h:99999/x",
        "S://app:hunter2@h:port/x",
        "S://app:hunter2/@h",
        "S://app:hunter2?@h",
        "S://app:hunter2#@h",
        "S://app:x@hunter2@h:0",
        "S://:hunter2@",
        "S://hunter2@h:0",
        "S://a:hunter2@h,i:bad",
        "S://a:b,hunter2@h:0",
        "xS://app:hunter2@h",
        "S://app:hunter2 @h:0",
        "S://app:%zzhunter2@h:0",
        "S://app:hunter2%ff@h:0",
        "S://h/d?password=hunter2&x=1",
        "S://h/d?pass=hunter2",
        "S://h:0/d?hunter2=1",
        "S://[::1/app:hunter2@h",
        "S://app:hunter2\\@h:0",
        "S://app:hunter2\n@h:0",
        " S://app:hunter2@h:0 ",
        "S://app:hunter2:x@h:0",
    ];
    for way in ways {
        let url = |scheme| way.replace('S', scheme);
        let told = [
            format!("{:?}", shared_external::DatabaseConfig::builder(url("postgresql")).build()),
            format!("{:?}", shared_external::RedisConfig::builder(url("redis")).build()),
            format!("{:?}", shared_external::OpenSearchConfig::builder(url("https")).build()),
        ];
        for told in told {
            assert!(!told.contains(SECRET), "{way}: {told}");
        }
    }
}
