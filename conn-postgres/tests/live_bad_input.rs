//! Bad input, item by item: the error names the endpoint and the cure and no secret, comes at once, and costs no connection.

mod support;

use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseConfigBuilder, DatabaseManager};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use sqlx::{AssertSqlSafe, Executor};
use support::ground::Ground;
use support::script::{Script, Welcome};
use support::throwaway::Throwaway;
use support::{server, variable, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(1);

/// What stands for each secret here.
const SECRET: [&str; 3] = ["hunter2", "hunt", "er2"];

fn assert_no_secret(text: &str) {
    for secret in SECRET {
        assert!(!text.contains(secret), "{text}");
    }
}

/// Fails unless `url` is refused with a text that has all of `parts` and no secret.
fn refused(url: &str, parts: &[&str]) {
    let error = DatabaseConfig::builder(url).build().map(|config| format!("{config:?}"));
    let error = error.expect_err("it was taken");
    let text = format!("{error} {error:?}");
    assert_no_secret(&text);
    for part in parts {
        assert!(text.contains(part), "{url}: no {part} in {text}");
    }
}

#[test]
fn a_malformed_url_is_refused_with_what_is_wrong_and_where() {
    for (url, parts) in [
        ("", &["postgresql://user:password@host:5432/database"][..]),
        ("app:hunter2@one/app", &["postgresql://user:password@host:5432/database"]),
        ("postgres//app:hunter2@one/app", &["postgresql://user:password@host:5432/database"]),
        ("mysql://app:hunter2@one/app", &["mysql://***@one/app", "the scheme postgres"]),
        ("postgresql://app:hunter2@one:0/app", &["***@one:0/app", "ports from 1 to 65535"]),
        ("postgresql://app:hunter2@one:99999/app", &["***@one:99999", "ports from 1 to 65535"]),
        ("postgresql://app:hunter2@:5432/app", &["***@:5432/app", "hosts as name"]),
        ("postgresql://app:hunter2@[::1/app", &["***@[::1/app", "[IPv6]:port"]),
        ("postgresql://app:hunter2@one;two/app", &["***@one;two/app", "comma-separated"]),
        ("postgresql://app:hunter2@on%20e/app", &["***@on%20e/app", "hosts as name"]),
        ("postgresql://app:hunter2@one/app?application_name=%00", &["NUL"]),
    ] {
        refused(url, parts);
    }
}

#[test]
fn a_parameter_is_refused_by_name() {
    for (query, parts) in [
        ("sslmod=require", &["***@one/app?sslmod=…", "no such parameter", "sslmode"][..]),
        ("sslmode=verify_full", &["?sslmode=…", "verify-full"]),
        ("sslmode", &["?sslmode=…", "verify-full"]),
        ("sslmode=disable&sslmode=verify-full", &["?sslmode=…", "sslmode once"]),
        ("password=hunter2&password=hunter2", &["?password=…", "password once"]),
        ("port=5432,5433", &["?port=…", "others as host:port"]),
        ("host=one,two&port=1,2,3", &["?port=…", "others as host:port"]),
        ("host=one,two:x", &["hosts as name"]),
        ("statement-cache-capacity=hunter2", &["?statement-cache-capacity=…", "a whole number"]),
        ("options=hunter2", &["?options=…", "-c name=value"]),
    ] {
        refused(&format!("postgresql://app:hunter2@one/app?{query}"), parts);
    }
}

#[test]
fn a_password_that_is_not_percent_encoded_is_refused_with_the_code_to_write() {
    for (letter, code) in [('@', "%40"), ('/', "%2F"), ('?', "%3F"), ('#', "%23"), ('%', "%25")] {
        let url = format!("postgresql://app:hunt{letter}er2@one/app");
        refused(&url, &[code, "percent-encoded"][..if letter == '%' { 1 } else { 2 }]);
    }
    refused("postgresql://app:%ffhunter2@one/app", &["***@one/app", "UTF-8"]);
}

#[test]
fn hosts_with_credentials_of_their_own_are_refused() {
    for url in [
        "postgresql://a:hunter2@one,b:hunter2@two/app",
        "postgresql://app:hunter2@one,app:hunter2@two/app",
        "postgresql://app:hunter2@one,other@two:5433/app?sslmode=require",
    ] {
        refused(url, &["one user and password", "for all", "%40"]);
    }
}

fn settings(url: impl Into<String>) -> DatabaseConfigBuilder {
    DatabaseConfig::builder(url).max_retries(0).pool_size(2).max_overflow(0).connect_timeout(LIMIT)
}

/// Fails unless every way in is refused in time, with a text that has all of `parts` and no secret, and leaves the pool
/// whole.
async fn unreachable(settings: DatabaseConfigBuilder, parts: &[&str]) {
    let db = DatabaseManager::connect(settings.build().unwrap()).unwrap();
    let called = within(LIMIT, db.write(async |_| Ok(()))).await.unwrap_err();
    let acquired = within(LIMIT, db.acquire()).await.unwrap_err();
    let executed = within(LIMIT, (&db).execute("SELECT 1")).await.unwrap_err();
    let health = within(LIMIT, db.health()).await;
    let reason = health.reason.unwrap().into_owned();
    for text in [called.to_string(), acquired.to_string(), executed.to_string(), reason] {
        for part in parts.iter().chain(&["cannot connect to "]) {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
    assert_no_secret(&format!("{called} {called:?} {acquired:?} {executed:?} {db:?}"));
    let status = db.status();
    assert_eq!((status.in_use, status.idle, status.waiting), (0, 0, 0));
}

#[tokio::test]
async fn a_wrong_password_names_endpoint_and_cure() {
    let url = format!("postgresql://app:hunter2@{}/app", server());
    let config = settings(url).ca_file(variable("DATABASE_CA_FILE"));
    let parts = [&*server(), "\"app\"", "(28P01)", "check the user and the password"];
    unreachable(config, &parts).await;
}

#[tokio::test]
async fn a_database_that_is_not_there_names_endpoint_and_cure() {
    let url = format!("postgresql://app:app-secret@{}/nowhere", server());
    let config = settings(url).ca_file(variable("DATABASE_CA_FILE"));
    unreachable(config, &[&*server(), "\"nowhere\"", "(3D000)", "or create it"]).await;
}

#[tokio::test]
async fn a_plaintext_url_before_a_server_that_wants_tls_names_endpoint_and_cure() {
    let url = format!("postgresql://app:app-secret@{}/app?sslmode=disable", server());
    let parts = [&*server(), "no encryption (28000)", "pg_hba.conf", "sslmode"];
    unreachable(settings(url), &parts).await;
}

#[tokio::test]
async fn a_plaintext_server_behind_a_tls_url_names_endpoint_and_cure() {
    let script = Script::with(Welcome::Session).await;
    let url = script.url().replace("disable", "verify-full");
    let endpoint = format!("127.0.0.1:{}", script.port);
    let parts = [&*endpoint, "server does not support TLS", "turn on ssl at the server"];
    unreachable(settings(url), &parts).await;
}

/// A server whose certificate an authority of the test's own has signed for `name`, until `year`.
async fn certified(name: &str, year: i32) -> (Throwaway, String) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let mut certificate = CertificateParams::new([name.to_owned()]).unwrap();
    certificate.not_before = date_time_ymd(2001, 1, 1);
    certificate.not_after = date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let mut server = Throwaway::new();
    server.put("data/server.crt", &certificate.signed_by(&key, &issuer).unwrap().pem());
    server.put("data/server.key", &key.serialize_pem());
    server.put("data/postgresql.conf", "ssl = on\n");
    server.start().await;
    let path = std::env::temp_dir().join(format!("bad-input-{}.pem", server.port));
    std::fs::write(&path, ca).unwrap();
    (server, path.into_os_string().into_string().unwrap())
}

#[tokio::test]
async fn an_expired_certificate_names_endpoint_and_cure() {
    let (server, ca) = certified("127.0.0.1", 2002).await;
    let endpoint = format!("127.0.0.1:{}", server.port);
    let url = format!("postgresql://postgres:hunter2@{endpoint}/postgres");
    let parts = [&*endpoint, "certificate expired", "renew the server's certificate"];
    unreachable(settings(url).ca_file(&*ca), &parts).await;
    std::fs::remove_file(ca).unwrap();
}

#[tokio::test]
async fn a_certificate_for_another_name_names_endpoint_and_cure() {
    let (server, ca) = certified("db.internal", 2100).await;
    let endpoint = format!("127.0.0.1:{}", server.port);
    let url = format!("postgresql://postgres:hunter2@{endpoint}/postgres");
    let parts = [&*endpoint, "db.internal", "connect by a name that is in the certificate"];
    unreachable(settings(&*url).ca_file(&*ca), &parts).await;
    let waived = settings(format!("{url}?sslmode=verify-ca")).ca_file(&*ca).build().unwrap();
    DatabaseManager::connect(waived).unwrap().write(async |_| Ok(())).await.unwrap();
    std::fs::remove_file(ca).unwrap();
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_names_endpoint_and_cure() {
    let url = format!("postgresql://app:hunter2@{}/app?sslmode=verify-full", server());
    unreachable(settings(url), &[&*server(), "UnknownIssuer", "as ca_file"]).await;
}

#[tokio::test]
async fn a_server_that_is_not_postgresql_names_endpoint_and_cure() {
    let answers =
        ["", "HTTP/1.1 400 Bad Request\r\n\r\n", "-ERR unknown command\r\n", "220 mail\r\n"];
    for (answer, mode) in
        answers.iter().flat_map(|it| [(*it, "disable"), (*it, "prefer"), (*it, "require")])
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let peer = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut asked = [0; 1024];
                let _ = socket.read(&mut asked).await;
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        let url = format!("postgresql://app:hunter2@{endpoint}/app?sslmode={mode}");
        unreachable(settings(url), &[&*endpoint, "those of a PostgreSQL server"]).await;
        peer.abort();
    }
}

#[tokio::test]
async fn a_pool_larger_than_the_servers_limit_works_on_with_what_it_has() {
    let mut server = Throwaway::new();
    server.put("data/postgresql.conf", "max_connections = 4\n");
    server.start().await;
    let config = settings(server.url()).pool_size(8).fail_max(100);
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let mut lent = Vec::new();
    let error = loop {
        match within(LIMIT, db.acquire()).await {
            Ok(conn) => lent.push(conn),
            Err(error) => break error,
        }
    };
    assert!(lent.len() >= 3, "{} of 4", lent.len());
    let text = error.to_string();
    for part in
        [&*format!("127.0.0.1:{}", server.port), "(53300)", "lower pool_size", "max_connections"]
    {
        assert!(text.contains(part), "{text}");
    }
    let held = lent.len();
    drop(lent);
    assert_eq!((db.status().in_use, db.status().idle), (0, held));
    for _ in 0..40 {
        within(LIMIT, db.read(async |mut conn: Conn| Ok(conn.execute("SELECT 1").await?)))
            .await
            .unwrap();
    }
    assert_eq!((db.status().in_use, db.status().idle), (0, held), "it lost what it had");
}

/// What `call` comes to on a connection that the next borrower must have as well.
async fn kept(ground: &Ground, parts: &[&str], call: impl AsyncFn(&Ground) -> String) {
    let before = ground.backend().await;
    let text = within(LIMIT, call(ground)).await;
    for part in parts {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert_no_secret(&text);
    assert_eq!(ground.backend().await, before, "it cost a connection");
    assert_eq!((ground.db.status().in_use, ground.db.status().idle), (0, 1));
    assert_eq!(ground.db.breaker().snapshot().calls.failure, 0);
}

#[tokio::test]
async fn a_statement_that_the_server_refuses_costs_no_connection() {
    let ground = Ground::new().await;
    let endpoint = format!("at {}", server());
    let runs = [
        (
            "SELECT * FROM no_such_table",
            &["\"no_such_table\" does not exist", "(42P01)", &*endpoint],
        ),
        ("SELEC 1", &["at or near \"SELEC\"", "(42601)", &*endpoint]),
        ("SELECT 1/0", &["division by zero", "(22012)", &*endpoint]),
        ("SELECT lenght('x')", &["(42883)", "add explicit type casts", &*endpoint]),
    ];
    for (sql, parts) in runs {
        kept(&ground, parts, async |it| {
            let call = it.db.write(async |mut conn: Conn| {
                Ok(sqlx::query(AssertSqlSafe(sql)).execute(&mut conn).await?)
            });
            call.await.unwrap_err().to_string()
        })
        .await;
    }
}

#[tokio::test]
async fn a_row_that_does_not_decode_costs_no_connection() {
    let ground = Ground::new().await;
    kept(&ground, &["column 0", "`i32`", "`TEXT`"], async |it| {
        let call = it.db.read(async |mut conn: Conn| {
            Ok(sqlx::query_as::<_, (i32,)>("SELECT 'hunter2'").fetch_one(&mut conn).await?)
        });
        call.await.unwrap_err().to_string()
    })
    .await;
    kept(&ground, &["no rows returned"], async |it| {
        let call = it.db.read(async |mut conn: Conn| {
            Ok(sqlx::query("SELECT 1 WHERE false").fetch_one(&mut conn).await?)
        });
        call.await.unwrap_err().to_string()
    })
    .await;
}
