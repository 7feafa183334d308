//! TLS with a private authority, client certificates and names, against a scripted peer.

mod peer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use conn_opensearch::opensearch::{IndexParts, SearchParts};
use conn_opensearch::{Error, ErrorKind, Node, OpenSearchManager, check, json};
use peer::{Peer, Reply, quick};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use resilience_core::{Address, Blame, CallError, Endpoint, EndpointSet, Replay};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// A private authority, and the directory of its files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    directory: PathBuf,
}

impl Authority {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("conn-opensearch-tls-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&directory).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
        let certificate = certificate.der().clone();
        Self { issuer: Issuer::new(params, key), certificate, directory }
    }

    fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Certificate and key of a client, as files.
    fn client(&self) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.sign("app");
        let files = (self.directory.join("client.pem"), self.directory.join("client.key"));
        std::fs::write(&files.0, certificate.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }

    /// A server by the name of `name`, which wants a certificate of ours from clients if told so.
    fn acceptor(&self, name: &str, wants_certificate: bool) -> TlsAcceptor {
        let (certificate, key) = self.sign(name);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match wants_certificate {
            false => builder.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(self.certificate.clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn url(peer: &Peer, host: &str) -> String {
    format!("https://{host}:{}", peer.address.port())
}

async fn search(node: Node) -> Result<Value, Error> {
    json(node.search(SearchParts::None).send().await?).await
}

async fn index(node: Node) -> Result<(), Error> {
    check(node.index(IndexParts::Index("a")).body(json!({})).send().await?).await?;
    Ok(())
}

/// The error of a call that must have failed before anything was sent.
fn not_connected<T: std::fmt::Debug>(result: Result<T, CallError<Error>>) -> String {
    let CallError::Inner(failed) = result.unwrap_err() else { panic!("no error of the operation") };
    assert!(matches!(failed.error.kind(), ErrorKind::Connect { .. }), "{:?}", failed.error);
    assert_eq!((failed.verdict.replay, failed.verdict.blame), (Replay::Safe, Blame::Service));
    failed.error.to_string()
}

#[tokio::test]
async fn a_private_authority_is_trusted_and_a_stranger_is_not() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let peer = Peer::start_tls(ours.acceptor("localhost", false), |_, _| Reply::ok(1)).await;
    let connect = |ca: Option<&Path>| {
        let config = quick(url(&peer, "localhost")).max_retries(0);
        let config = match ca {
            Some(ca) => config.ca_file(ca),
            None => config,
        };
        OpenSearchManager::connect(config.build().unwrap()).unwrap()
    };
    assert_eq!(connect(Some(&ours.ca())).read(search).await.unwrap(), json!(1));
    for ca in [None, Some(theirs.ca())] {
        let text = not_connected(connect(ca.as_deref()).write(index).await);
        assert!(
            text.contains(&url(&peer, "localhost")) && text.contains("UnknownIssuer"),
            "{text}"
        );
    }
    assert_eq!(peer.count(), 1);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let ours = Authority::new();
    let peer = Peer::start_tls(ours.acceptor("search.internal", false), |_, _| Reply::ok(1)).await;
    let config = quick(url(&peer, "localhost")).ca_file(ours.ca()).max_retries(0).build().unwrap();
    let text = not_connected(OpenSearchManager::connect(config).unwrap().read(search).await);
    assert!(text.contains("not valid for name \"localhost\""), "{text}");
}

#[tokio::test]
async fn a_client_certificate_and_a_login_go_together() {
    let ours = Authority::new();
    let (certificate, key) = ours.client();
    let peer = Peer::start_tls(ours.acceptor("localhost", true), |_, _| Reply::ok(1)).await;
    let config = quick(url(&peer, "localhost"))
        .ca_file(ours.ca())
        .client_cert_file(certificate)
        .client_key_file(key)
        .login("app", "hunter2")
        .build()
        .unwrap();
    let manager = OpenSearchManager::connect(config).unwrap();
    assert_eq!(manager.read(search).await.unwrap(), json!(1));
    assert_eq!(peer.asked()[0].authorization.as_deref(), Some("Basic YXBwOmh1bnRlcjI="));
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_and_gets_none_has_executed_nothing() {
    let ours = Authority::new();
    let peer = Peer::start_tls(ours.acceptor("localhost", true), |_, _| Reply::ok(1)).await;
    let config = quick(url(&peer, "localhost")).ca_file(ours.ca()).max_retries(0).build().unwrap();
    let manager = OpenSearchManager::connect(config).unwrap();
    let text = not_connected(manager.write(index).await);
    assert!(text.contains("CertificateRequired"), "{text}");
    assert_eq!(peer.count(), 0);
}

#[tokio::test]
async fn a_key_of_another_certificate_is_found_before_any_connection() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ((certificate, _), (_, key)) = (ours.client(), theirs.client());
    let error = quick("https://localhost")
        .ca_file(ours.ca())
        .client_cert_file(certificate)
        .client_key_file(&key)
        .build()
        .unwrap_err();
    let expected =
        format!("client_key_file is {key:?}; allowed: the key of the client certificate");
    assert!(error.to_string().contains(&expected), "{error}");
}

#[tokio::test]
async fn an_endpoint_is_verified_by_the_name_it_gives() {
    let ours = Authority::new();
    let peer = Peer::start_tls(ours.acceptor("localhost", false), |_, _| Reply::ok(1)).await;
    let bare = Endpoint::new(Address::new("127.0.0.1", peer.address.port()));
    let (sender, endpoints) = watch::channel(EndpointSet::fixed([bare.clone()]));
    let config = quick("https://ignored:1").ca_file(ours.ca()).max_retries(0).build().unwrap();
    let manager = OpenSearchManager::connect_to(config, endpoints).unwrap();
    not_connected(manager.read(search).await);
    sender.send_replace(EndpointSet::fixed([bare.with_host_name("localhost")]));
    assert_eq!(manager.read(search).await.unwrap(), json!(1));
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_a_failed_connection() {
    let peer = Peer::start(|_, _| Reply::ok(1)).await;
    let ours = Authority::new();
    let config = quick(url(&peer, "localhost")).ca_file(ours.ca()).max_retries(0).build().unwrap();
    let text = not_connected(OpenSearchManager::connect(config).unwrap().write(index).await);
    assert!(text.starts_with(&format!("no connection to {}: ", url(&peer, "localhost"))), "{text}");
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_a_failed_connection() {
    let config = quick("http://no-such-host.invalid:9200").max_retries(0).build().unwrap();
    let text = not_connected(OpenSearchManager::connect(config).unwrap().write(index).await);
    assert!(text.contains("http://no-such-host.invalid:9200"), "{text}");
}
