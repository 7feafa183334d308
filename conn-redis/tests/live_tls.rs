//! Certificates of our own making: a server that insists on ours, and one whose authority we do not know.

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use conn_redis::redis::AsyncCommands;
use conn_redis::{RedisConfig, RedisManager};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use resilience_core::{Address, Blame, Endpoint, EndpointSet, Replay};
use support::{RedisServer, failed, free_port, hasty, soon, until, write};
use tokio::sync::watch;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mut params =
            named(&format!("authority {}", COUNT.fetch_add(1, Ordering::Relaxed)), Vec::new());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn file(&self, dir: &Path, name: &str) -> PathBuf {
        write(dir, name, &self.0.pem())
    }

    /// The files of a certificate for `host` and of its key.
    fn issue(&self, dir: &Path, host: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let params = named(host, vec![host.to_owned()]);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let files = (format!("{host}.pem"), format!("{host}.key"));
        (write(dir, &files.0, &certificate.pem()), write(dir, &files.1, &key.serialize_pem()))
    }
}

/// Every name is its own: OpenSSL takes an authority for the holder of its name.
fn named(name: &str, hosts: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A server whose certificate is for `host`, and which wants one of ours.
async fn server(authority: &Authority, host: &str) -> (RedisServer, u16) {
    let mut server = RedisServer::stopped(free_port(), &[]);
    let tls_port = free_port();
    let dir = server.dir.clone();
    let ca = authority.file(&dir, "ca.pem");
    let (certificate, key) = authority.issue(&dir, host);
    let port = tls_port.to_string();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    server.args([
        "--tls-port",
        &port,
        "--tls-auth-clients",
        "yes",
        "--tls-ca-cert-file",
        &text(&ca),
        "--tls-cert-file",
        &text(&certificate),
        "--tls-key-file",
        &text(&key),
    ]);
    server.start_again().await;
    until("the tls port listens", async || {
        std::net::TcpStream::connect(("127.0.0.1", tls_port)).is_ok()
    })
    .await;
    (server, tls_port)
}

#[tokio::test]
async fn a_server_that_insists_on_a_client_certificate_gets_ours() {
    let authority = Authority::new();
    let (server, port) = server(&authority, "localhost").await;
    let ca = server.dir.join("ca.pem");
    let (certificate, key) = authority.issue(&server.dir, "app");
    let url = format!("rediss://localhost:{port}/0");
    let with = RedisConfig::builder(url.as_str())
        .ca_file(&ca)
        .client_cert_file(&certificate)
        .client_key_file(&key);
    let mut redis = RedisManager::connect(with.build().unwrap()).unwrap();
    redis.set::<_, _, ()>("k", "v").await.unwrap();
    assert_eq!(redis.get::<_, String>("k").await.unwrap(), "v");

    let without = RedisManager::connect(hasty(&url).ca_file(&ca).build().unwrap()).unwrap();
    let error = without.warm_up(soon()).await.unwrap_err();
    let expected = format!("cannot connect to redis at localhost:{port}: tls: ");
    assert!(error.to_string().starts_with(&expected), "{error}");

    let other_key = authority.issue(&server.dir, "other").1;
    let mixed = hasty(&url).ca_file(&ca).client_cert_file(&certificate).client_key_file(&other_key);
    let error = mixed.build().unwrap_err().to_string();
    assert!(
        error.contains("client_key_file") && error.contains("the key of the certificate"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_is_not_talked_to() {
    let (server, port) = server(&Authority::new(), "localhost").await;
    let stranger = Authority::new().file(&server.dir, "stranger.pem");
    let config = hasty(&format!("rediss://localhost:{port}/0")).ca_file(stranger).build().unwrap();
    let redis = RedisManager::connect(config).unwrap();
    let error =
        failed(redis.read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) }).await);
    assert!(
        error.to_string().contains("tls: ") && error.to_string().contains("UnknownIssuer"),
        "{error}"
    );
    assert_eq!((error.verdict.blame, error.verdict.replay), (Blame::Service, Replay::Safe));
}

#[tokio::test]
async fn the_certificate_must_carry_the_endpoints_name_and_not_its_address() {
    let authority = Authority::new();
    let (server, port) = server(&authority, "cache.internal").await;
    let (certificate, key) = authority.issue(&server.dir, "app");
    let config = hasty("rediss://ignored/0")
        .ca_file(server.dir.join("ca.pem"))
        .client_cert_file(certificate)
        .client_key_file(key)
        .build()
        .unwrap();
    let endpoint = Endpoint::new(Address::new("127.0.0.1", port));
    let (sender, receiver) = watch::channel(EndpointSet::fixed([endpoint.clone()]));
    let redis = RedisManager::connect_to(config, receiver).unwrap();
    let error = redis.warm_up(soon()).await.unwrap_err();
    assert!(error.to_string().contains("tls: "), "{error}");
    sender.send_replace(EndpointSet::fixed([endpoint.with_host_name("cache.internal")]));
    redis.warm_up(soon()).await.unwrap();
}

#[tokio::test]
async fn a_socket_of_this_machine_will_do() {
    let socket = std::env::temp_dir().join(format!("conn-redis-{}.sock", std::process::id()));
    let path = socket.to_str().unwrap();
    let _server = RedisServer::start(&["--unixsocket", path, "--requirepass", "p@ss"]).await;
    let url = format!("unix://{path}?pass=p%40ss&db=3");
    let mut redis = RedisManager::connect(RedisConfig::builder(url).build().unwrap()).unwrap();
    redis.set::<_, _, ()>("k", "v").await.unwrap();
    let info: String =
        conn_redis::redis::cmd("CLIENT").arg("INFO").query_async(&mut redis).await.unwrap();
    assert!(info.contains(" db=3 "), "{info}");
    std::fs::remove_file(&socket).unwrap();
}
