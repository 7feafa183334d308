//! One throw-away authority for each `up`, a certificate for each server, one for a client.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::process::User;

use super::profile::{DATABASE_USER, Service};

/// The files of the authority and the client certificate.
#[derive(Clone, Debug)]
pub struct ClientFiles {
    /// The certificate of the authority.
    pub ca: PathBuf,
    /// The client's certificate; its common name is `app`.
    pub cert: PathBuf,
    /// Its key, in PKCS#8.
    pub key: PathBuf,
}

impl ClientFiles {
    /// Where they are in the directory `certs`.
    #[must_use]
    pub fn in_dir(certs: &Path) -> Self {
        Self {
            ca: certs.join("ca.pem"),
            cert: certs.join("client.pem"),
            key: certs.join("client.key"),
        }
    }
}

/// An authority that signs, then forgets its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, with a key that nobody else has.
    ///
    /// # Errors
    ///
    /// If no key can be made.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "shared-external throw-away CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Writes `ca.pem`, and `client.pem` and `client.key` for the common name `app`.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn write_client(&self, certs: &Path) -> Result<()> {
        let files = ClientFiles::in_dir(certs);
        write(&files.ca, &self.certificate, 0o644, None)?;
        let (cert, key) = self.sign(DATABASE_USER, &[ExtendedKeyUsagePurpose::ClientAuth])?;
        write(&files.cert, &cert, 0o644, None)?;
        write(&files.key, &key, 0o600, None)
    }

    /// Writes `ca.pem`, `server.pem` and `server.key` into `dir` for `owner` alone; the common name is the service's.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn write_server(
        &self,
        service: Service,
        dir: &Path,
        owner: Option<&User>,
        key_mode: u32,
    ) -> Result<()> {
        // A node of OpenSearch is a client of the others.
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (cert, key) = self.sign(service.name(), &usages)?;
        write(&dir.join("ca.pem"), &self.certificate, 0o644, owner)?;
        write(&dir.join("server.pem"), &cert, 0o644, owner)?;
        write(&dir.join("server.key"), &key, key_mode, owner)
    }

    fn sign(
        &self,
        common_name: &str,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<(String, String)> {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// Writes a file that has its mode before it has its content, and gives it to `owner`.
///
/// # Errors
///
/// If it cannot be written.
pub fn write(path: &Path, content: &str, mode: u32, owner: Option<&User>) -> Result<()> {
    let written = || -> std::io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode & 0o600).open(path)?;
        file.write_all(content.as_bytes())?;
        file.set_permissions(Permissions::from_mode(mode))?;
        give(path, owner)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes `owner` the owner of a file or directory; nobody else's business if that is us.
///
/// # Errors
///
/// If the system refuses.
pub fn give(path: &Path, owner: Option<&User>) -> std::io::Result<()> {
    owner.map_or(Ok(()), |user| chown(path, Some(user.uid), Some(user.gid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_is_for_its_owner_alone() {
        let dir = std::env::temp_dir().join(format!("xtask-certs-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let authority = Authority::new().unwrap();
        authority.write_client(&dir).unwrap();
        authority.write_server(Service::Redis, &dir, None, 0o600).unwrap();
        for name in ["client.key", "server.key"] {
            let path = dir.join(name);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
            let pem = fs::read_to_string(&path).unwrap();
            assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"), "{name} is PKCS#8");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
