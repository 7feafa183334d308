//! Against the running server: TLS with a private authority, the plain port, a wrong password.

mod support;

use conn_redis::redis::{AsyncCommands, ErrorKind};
use conn_redis::{Error, RedisConfig, RedisManager};
use resilience_core::{Blame, CircuitState, HealthStatus, Replay};
use support::{failed, hasty, soon, variable};

#[tokio::test]
async fn the_environment_alone_leads_to_redis_over_tls() {
    assert!(
        variable("REDIS_URL").starts_with("rediss://") && !variable("REDIS_CA_FILE").is_empty()
    );
    let redis = RedisManager::connect(RedisConfig::from_env().unwrap()).unwrap();
    redis.warm_up(soon()).await.unwrap();
    let key = format!("live:{}:tls", std::process::id());
    let key = key.as_str();
    redis
        .write(|mut conn| async move { Ok(conn.set_ex::<_, _, ()>(key, "value", 60).await?) })
        .await
        .unwrap();
    let value: String =
        redis.read(|mut conn| async move { Ok(conn.get(key).await?) }).await.unwrap();
    assert_eq!(value, "value");
    let mut unchanged = redis.clone();
    assert_eq!(unchanged.del::<_, i64>(key).await.unwrap(), 1);
    assert_eq!(redis.health().await.status, HealthStatus::Healthy);
    let status = redis.status();
    assert_eq!((status.in_use, status.idle, status.max, status.waiting), (0, 2, 100, 0));
}

#[tokio::test]
async fn a_client_certificate_is_taken() {
    let config = RedisConfig::builder(variable("REDIS_URL"))
        .ca_file(variable("REDIS_CA_FILE"))
        .client_cert_file(variable("TEST_CLIENT_CERT_FILE"))
        .client_key_file(variable("TEST_CLIENT_KEY_FILE"));
    let redis = RedisManager::connect(config.build().unwrap()).unwrap();
    redis.warm_up(soon()).await.unwrap();
}

#[tokio::test]
async fn resp3_works_as_well() {
    let config =
        RedisConfig::builder(format!("{}?protocol=resp3", variable("TEST_REDIS_PLAIN_URL")));
    let mut redis = RedisManager::connect(config.build().unwrap()).unwrap();
    let missing: Option<String> = redis.get("live:missing").await.unwrap();
    assert_eq!(missing, None);
}

#[tokio::test]
async fn a_wrong_password_is_said_so_once_and_without_showing_it() {
    let right = variable("TEST_REDIS_PLAIN_URL");
    let host = right.split('@').nth(1).unwrap();
    let config = hasty(&format!("redis://:hunter2@{host}")).max_retries(5).fail_max(1);
    let mut redis = RedisManager::connect(config.build().unwrap()).unwrap();
    let error =
        failed(redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) }).await);
    assert_eq!(
        (error.verdict.blame, error.verdict.replay, error.attempts),
        (Blame::Caller, Replay::Never, 1)
    );
    assert!(matches!(error.error, Error::Connect(_)));
    let text = format!("{error} {error:?} {redis:?}");
    assert!(
        text.contains("WRONGPASS") && text.contains("cannot connect to redis at 127.0.0.1:"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(redis.breaker().state(), CircuitState::Closed);
    let error = redis.get::<_, i64>("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AuthenticationFailed);
    let health = redis.health().await;
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reason.unwrap().contains("WRONGPASS"));
}

#[tokio::test]
async fn a_missing_password_is_asked_for() {
    let right = variable("TEST_REDIS_PLAIN_URL");
    let host = right.split('@').nth(1).unwrap();
    let redis = RedisManager::connect(hasty(&format!("redis://{host}")).build().unwrap()).unwrap();
    let error = redis.warm_up(soon()).await.unwrap_err();
    assert!(error.to_string().contains("NOAUTH"), "{error}");
}

#[tokio::test]
async fn a_plaintext_server_behind_a_tls_url_is_told_apart() {
    let right = variable("TEST_REDIS_PLAIN_URL");
    let url = right.replace("redis://", "rediss://");
    let config = hasty(&url).ca_file(variable("REDIS_CA_FILE")).build().unwrap();
    let redis = RedisManager::connect(config).unwrap();
    let error = redis.warm_up(soon()).await.unwrap_err();
    assert!(error.to_string().contains("no tls handshake within"), "{error}");
}

#[tokio::test]
async fn a_tls_server_behind_a_plain_url_is_told_apart() {
    let url = variable("REDIS_URL").replace("rediss://", "redis://");
    let redis = RedisManager::connect(hasty(&url).build().unwrap()).unwrap();
    let error = redis.warm_up(soon()).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot connect to redis at localhost:"), "{error}");
}
