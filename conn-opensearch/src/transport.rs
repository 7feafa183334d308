//! Builds the client of one node: TLS, client certificate, login.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use opensearch::OpenSearch;
use opensearch::auth::ClientCertificate;
use opensearch::cert::{Certificate, CertificateValidation};
use opensearch::http::Url;
use opensearch::http::headers::{AUTHORIZATION, HeaderValue};
use opensearch::http::transport::TransportBuilder;
use resilience_core::settings::Pem;
use secrecy::{ExposeSecret, SecretString};

use crate::sent::CountingPool;

/// What all nodes have in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    pub(crate) login: Option<Login>,
    pub(crate) ca: Option<Pem>,
    pub(crate) identity: Option<Identity>,
}

/// A user and a password.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) password: SecretString,
}

/// A client certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: Pem,
    pub(crate) key: Pem,
}

/// The part of TLS that cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unusable {
    /// The certificates of the authority; or, where none are given, those of the system.
    Authority,
    /// The client's certificate and key: they do not parse, or are no pair.
    Identity,
}

/// The client for the node at `url`. Makes no connection. Requests sent from outside an attempt
/// are counted in `stray`.
///
/// The proxies of the environment (`HTTPS_PROXY` and its like) are not used: a cluster is a
/// neighbour, and an error of a proxy would be taken for one of its own.
pub(crate) fn client(
    url: &Url,
    access: &Access,
    stray: Arc<AtomicUsize>,
) -> Result<OpenSearch, Unusable> {
    install_provider();
    let mut builder = TransportBuilder::new(CountingPool::new(url.clone(), stray))
        .disable_proxy()
        .cert_validation(match &access.ca {
            // Nothing is verified without TLS, and a system without certificates must do.
            _ if url.scheme() == "http" => CertificateValidation::None,
            None => CertificateValidation::Default,
            Some(ca) => CertificateValidation::Full(
                Certificate::from_pem(ca.contents().as_bytes()).map_err(|_| Unusable::Authority)?,
            ),
        });
    if let Some(Identity { certificate, key }) = &access.identity {
        let pem = [key.contents(), "\n", certificate.contents()].concat().into_bytes();
        // The client takes one kind of credentials. The login is a header, so there can be both;
        // and a header marked as sensitive is shown by nobody's Debug.
        builder = builder.auth(ClientCertificate::Pem(pem).into());
    }
    if let Some(login) = &access.login {
        builder = builder.header(AUTHORIZATION, login.header());
    }
    match builder.build() {
        Ok(transport) => Ok(OpenSearch::new(transport)),
        // The client does not say which it was.
        Err(_) if access.identity.is_some() && without_identity(url, access) => {
            Err(Unusable::Identity)
        }
        Err(_) => Err(Unusable::Authority),
    }
}

fn without_identity(url: &Url, access: &Access) -> bool {
    let access = Access { identity: None, ..access.clone() };
    client(url, &access, Arc::default()).is_ok()
}

impl Login {
    fn header(&self) -> HeaderValue {
        let pair = format!("{}:{}", self.username, self.password.expose_secret());
        let text = format!("Basic {}", BASE64_STANDARD.encode(pair));
        let mut header = HeaderValue::try_from(text).expect("base64 is plain ASCII");
        header.set_sensitive(true);
        header
    }
}

/// Makes aws-lc-rs the process's TLS provider, unless the application has chosen one.
fn install_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_client_does_not_show_the_password() {
        let login = Login { username: "app".into(), password: "hunter2-hunter2".into() };
        let access = Access { login: Some(login), ..Access::default() };
        let url = "http://localhost:9200/".parse().unwrap();
        let shown = format!("{:?} {access:?}", client(&url, &access, Arc::default()).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(!shown.contains(&BASE64_STANDARD.encode("app:hunter2")[..8]), "{shown}");
    }
}
