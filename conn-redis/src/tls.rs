//! TLS: whom we trust, and who we are. One provider (aws-lc-rs), installed only if there is none yet.

use std::sync::Arc;

use resilience_core::settings::{Pem, Tls};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Which setting is at fault, and what is allowed.
pub(crate) type Fault = (&'static str, &'static str);

/// The client side of TLS: trusts the authorities given, or this machine's own store where there are
/// none, and shows the client's certificate.
pub(crate) fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, Fault> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the cipher suites of TLS 1.2 and 1.3")
        .with_root_certificates(match &tls.ca {
            Some(pem) => given(pem)?,
            None => native()?,
        });
    let config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)
                .ok_or(("client_cert_file", "a PEM file with whole certificates"))?;
            let key = PrivateKeyDer::from_pem_slice(key.contents().as_bytes())
                .map_err(|_| ("client_key_file", "a PEM file with a whole private key"))?;
            builder.with_client_auth_cert(chain, key).map_err(|_| {
                ("client_key_file", "the key of the certificate in client_cert_file")
            })?
        }
    };
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    if CryptoProvider::get_default().is_none() {
        // Another thread may be first: then its provider stands.
        let _ = aws_lc_rs::default_provider().install_default();
    }
    Arc::clone(CryptoProvider::get_default().expect("one was installed just now, if not before"))
}

fn given(pem: &Pem) -> Result<RootCertStore, Fault> {
    let fault = ("ca_file", "a PEM file with whole certificates of certificate authorities");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem).ok_or(fault)? {
        roots.add(certificate).map_err(|_| fault)?;
    }
    Ok(roots)
}

fn native() -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    // A single broken file in the machine's store must not cost us the rest.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        false => Ok(roots),
        true => Err((
            "ca_file",
            "a PEM file with the server's authority: this machine has no store of its own",
        )),
    }
}

fn certificates(pem: &Pem) -> Option<Vec<CertificateDer<'static>>> {
    let parsed: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem.contents().as_bytes()).collect();
    parsed.ok().filter(|certificates| !certificates.is_empty())
}
