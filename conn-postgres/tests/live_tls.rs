//! Who is let in, and who is believed: private CA, client certificate, wrong password, wrong name.

mod support;

use std::time::Duration;

use conn_postgres::{DatabaseConfig, DatabaseManager, Error};
use resilience_core::{
    Address, Blame, CallError, Endpoint, EndpointSet, HealthStatus, Replay, Verdict,
};
use sqlx::Row;
use support::{manager, server, url_at, variable};

async fn is_encrypted(db: &DatabaseManager) -> (bool, Option<String>, String) {
    let sql =
        "SELECT ssl, client_dn, current_user::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = sqlx::query(sql).fetch_one(db).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

async fn refusal(config: DatabaseConfig) -> (Verdict, String) {
    let db = DatabaseManager::connect(config).unwrap();
    match db.write(async |_| Ok(())).await {
        Err(CallError::Inner(failed)) => {
            assert_eq!(failed.attempts, 1);
            let health = db.health().await;
            assert_eq!(health.status, HealthStatus::Unhealthy);
            let text = format!("{} {:?} {health:?}", failed.error, failed.error);
            (failed.verdict, text)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_private_ca_is_enough_for_a_verified_connection() {
    let (db, _) = manager();
    assert_eq!(is_encrypted(&db).await, (true, None, "app".to_owned()));
}

#[tokio::test]
async fn a_client_certificate_stands_for_a_password() {
    let config = DatabaseConfig::builder(format!("postgresql://cert_app@{}/app", server()))
        .ca_file(variable("DATABASE_CA_FILE"))
        .client_cert_file(variable("TEST_CLIENT_CERT_FILE"))
        .client_key_file(variable("TEST_CLIENT_KEY_FILE"));
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let expected = (true, Some("/CN=app".to_owned()), "cert_app".to_owned());
    assert_eq!(is_encrypted(&db).await, expected);
}

#[tokio::test]
async fn a_wrong_password_is_the_callers_fault_is_not_repeated_and_is_not_shown() {
    let config = DatabaseConfig::builder(format!("postgresql://app:hunter2@{}/app", server()))
        .ca_file(variable("DATABASE_CA_FILE"));
    let (verdict, text) = refusal(config.build().unwrap()).await;
    assert_eq!(verdict, Verdict::caller(Replay::Never));
    assert!(text.contains("password authentication failed") && text.contains("28P01"), "{text}");
    assert!(text.contains(&server()) && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_the_callers_fault() {
    let url = format!("{}?dbname=nowhere", url_at(&server()));
    let config = DatabaseConfig::builder(url).ca_file(variable("DATABASE_CA_FILE"));
    let (verdict, text) = refusal(config.build().unwrap()).await;
    assert_eq!(verdict, Verdict::caller(Replay::Never));
    assert!(text.contains("3D000"), "{text}");
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_not_believed() {
    let config = DatabaseConfig::builder(format!("{}?sslmode=verify-full", url_at(&server())))
        .max_retries(0);
    let (verdict, text) = refusal(config.build().unwrap()).await;
    assert_eq!(verdict, Verdict::service(Replay::Safe));
    assert!(text.contains("UnknownIssuer"), "{text}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_believed_unless_the_name_is_waived() {
    let ca = variable("DATABASE_CA_FILE");
    let wire = support::Wire::on("127.0.0.2", server()).await;
    // The wire leads to the same server under an address that its certificate does not name.
    let url = url_at(&format!("127.0.0.2:{}", wire.port));
    let config = DatabaseConfig::builder(&*url).ca_file(&*ca).max_retries(0);
    let (verdict, text) = refusal(config.build().unwrap()).await;
    assert_eq!(verdict, Verdict::service(Replay::Safe));
    assert!(text.contains("NotValidForName"), "{text}");

    let config = DatabaseConfig::builder(format!("{url}?sslmode=verify-ca")).ca_file(ca);
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    assert!(is_encrypted(&db).await.0);
}

#[tokio::test]
async fn an_endpoint_with_another_name_than_its_address_is_refused_with_the_cure() {
    let port = server().rsplit_once(':').unwrap().1.parse().unwrap();
    let endpoint = Endpoint::new(Address::new("127.0.0.1", port)).with_host_name("db.internal");
    let (_sender, endpoints) = tokio::sync::watch::channel(EndpointSet::fixed([endpoint]));
    let config = DatabaseConfig::builder(url_at(&server())).ca_file(variable("DATABASE_CA_FILE"));
    let db = DatabaseManager::connect_to(config.build().unwrap(), endpoints).unwrap();
    let error = db.read(async |_| Ok(())).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("db.internal") && text.contains("sslmode=verify-ca"), "{text}");
    let CallError::Inner(failed) = error else { panic!("{text}") };
    assert_eq!(failed.verdict.blame, Blame::Caller);
}

#[tokio::test]
async fn a_plaintext_server_behind_a_url_that_wants_tls_is_told() {
    let script = support::script::Script::with(support::script::Welcome::Session).await;
    let url = format!("postgresql://app:hunter2@127.0.0.1:{}/app", script.port);
    let config = DatabaseConfig::builder(url)
        .ca_file(variable("DATABASE_CA_FILE"))
        .connect_timeout(Duration::from_secs(1))
        .max_retries(0);
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let error = db.read(async |_| Ok(())).await.unwrap_err();
    assert!(matches!(error.inner(), Some(Error::Unreachable(_))), "{error}");
    assert!(error.to_string().contains("server does not support TLS"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"));
}
