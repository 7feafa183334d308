//! The PEM files of TLS: whom to trust, and who we are.

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::{Held, Problems, Settings};

/// The PEM files among a connector's settings, not read yet.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The certificates of the authorities to trust.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate. Only with its key.
    pub client_cert_file: Option<PathBuf>,
    /// The key of the client's certificate. Only with that.
    pub client_key_file: Option<PathBuf>,
}

/// What the files hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tls {
    /// The authorities to trust.
    pub ca: Option<Pem>,
    /// The client's certificate and its key.
    pub identity: Option<(Pem, Pem)>,
}

impl TlsFiles {
    /// The paths that are set, each by its field's name.
    pub fn from_settings(settings: &mut Settings) -> Self {
        let mut path = |key| settings.text(key).map(PathBuf::from);
        Self {
            ca_file: path("ca_file"),
            client_cert_file: path("client_cert_file"),
            client_key_file: path("client_key_file"),
        }
    }

    /// Notes each file that is set and would not be used, as the URL does not begin with `scheme`.
    pub fn refuse_unless(&self, scheme: &str, problems: &mut Problems) {
        for (key, path) in [
            ("ca_file", &self.ca_file),
            ("client_cert_file", &self.client_cert_file),
            ("client_key_file", &self.client_key_file),
        ] {
            if let Some(path) = path {
                let allowed = format!("nothing, unless the URL begins with {scheme}");
                problems.wrong(key, Held::Text(path.display().to_string()), allowed);
            }
        }
    }

    /// What the files hold. Notes each that cannot be read or holds something else, and a certificate
    /// without its key or the reverse: then there is nothing.
    pub fn load(&self, problems: &mut Problems) -> Option<Tls> {
        let Self { ca_file, client_cert_file, client_key_file } = self;
        if client_cert_file.is_some() && client_key_file.is_none() {
            let allowed = "the key of the client certificate";
            problems.wrong("client_key_file", Held::Nothing, allowed);
        }
        if client_key_file.is_some() && client_cert_file.is_none() {
            let allowed = "the certificate of the client key";
            problems.wrong("client_cert_file", Held::Nothing, allowed);
        }
        let mut read = |key, path: &Option<PathBuf>, block| {
            let pem = Pem::read(path.as_deref()?, block);
            pem.map_err(|(held, allowed)| problems.wrong(key, held, allowed)).ok()
        };
        let ca = read("ca_file", ca_file, PemBlock::Certificate);
        let certificate = read("client_cert_file", client_cert_file, PemBlock::Certificate);
        let key = read("client_key_file", client_key_file, PemBlock::PrivateKey);
        let identity = certificate.zip(key);
        let whole = ca.is_some() == ca_file.is_some()
            && identity.is_some() == (client_cert_file.is_some() || client_key_file.is_some());
        whole.then_some(Tls { ca, identity })
    }
}

/// What a PEM file must hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PemBlock {
    /// One or more certificates.
    Certificate,
    /// A private key of any kind.
    PrivateKey,
}

/// A PEM file that was read. Its contents may be a key: they are not shown.
#[derive(Clone)]
pub struct Pem {
    path: PathBuf,
    contents: SecretString,
}

impl Pem {
    /// Reads the file at `path`, which must hold a `block`.
    ///
    /// # Errors
    ///
    /// What the setting holds, and what is allowed.
    pub fn read(path: impl Into<PathBuf>, block: PemBlock) -> Result<Self, (Held, String)> {
        let path = path.into();
        if path.to_string_lossy().contains("-----BEGIN") {
            return Err((Held::Secret, "the path of a PEM file, not what it holds".to_owned()));
        }
        let shown = path.display();
        let contents = std::fs::read_to_string(&path).map_err(|error| {
            (
                Held::Text(format!("{shown}, which cannot be read ({})", error.kind())),
                "a readable PEM file".to_owned(),
            )
        })?;
        let (there, wanted) = match block {
            PemBlock::Certificate => {
                (contents.contains("-----BEGIN CERTIFICATE-----"), "BEGIN CERTIFICATE")
            }
            PemBlock::PrivateKey => (contents.contains("PRIVATE KEY-----"), "BEGIN PRIVATE KEY"),
        };
        match there {
            true => Ok(Self { path, contents: contents.into() }),
            false => Err((
                Held::Text(format!("{shown}, which is not such a file")),
                format!("a PEM file with a block \"{wanted}\""),
            )),
        }
    }

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of the file.
    #[must_use]
    pub fn contents(&self) -> &str {
        self.contents.expose_secret()
    }
}

/// Of the same file, with the same contents.
impl PartialEq for Pem {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path && self.contents() == other.contents()
    }
}

impl Eq for Pem {}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pem").field(&self.path).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(files: &TlsFiles) -> String {
        let mut problems = Problems::by_field();
        assert!(files.load(&mut problems).is_none());
        problems.finish().unwrap_err().to_string()
    }

    #[test]
    fn a_certificate_without_its_key_is_told_by_the_key_and_the_reverse() {
        let some = || Some(PathBuf::from("/none.pem"));
        let cert = refusal(&TlsFiles { client_cert_file: some(), ..TlsFiles::default() });
        let cure = "client_key_file is not set; allowed: the key of the client certificate";
        assert!(
            cert.contains(cure) && cert.contains("client_cert_file is \"/none.pem, "),
            "{cert}"
        );
        let key = refusal(&TlsFiles { client_key_file: some(), ..TlsFiles::default() });
        let cure = "client_cert_file is not set; allowed: the certificate of the client key";
        assert!(key.contains(cure) && key.contains("client_key_file is \"/none.pem, "), "{key}");
    }

    #[test]
    fn a_file_that_holds_something_else_is_told() {
        let file = std::env::temp_dir().join(format!("swapped-{}.pem", std::process::id()));
        let pem = "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n";
        std::fs::write(&file, pem).unwrap();
        let path = || Some(file.clone());
        let files = TlsFiles { ca_file: path(), client_cert_file: path(), client_key_file: path() };
        let text = refusal(&files);
        let mut problems = Problems::by_field();
        let ca = TlsFiles { ca_file: path(), ..TlsFiles::default() };
        let good = ca.load(&mut problems).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(text.starts_with("1 setting is wrong"), "{text}");
        assert!(text.contains("allowed: a PEM file with a block \"BEGIN PRIVATE KEY\""), "{text}");
        problems.finish().unwrap();
        assert!(good.ca.unwrap().contents() == pem && good.identity.is_none());
    }

    #[test]
    fn a_key_put_where_its_path_belongs_is_not_shown() {
        for key in ["-----BEGIN PRIVATE KEY-----\nhunter2\n", "-----BEGIN PRIVATE KEY----- hunter2"]
        {
            let pairs = [("REDIS_CLIENT_KEY_FILE", key)];
            let mut settings = Settings::from_pairs("redis", pairs);
            let files = TlsFiles::from_settings(&mut settings);
            let mut problems = settings.into_problems();
            assert!(files.load(&mut problems).is_none());
            let text = problems.finish().unwrap_err().to_string();
            assert!(!text.contains("hunter2") && text.contains("REDIS_CLIENT_KEY_FILE"), "{text}");
        }
    }
}
