//! PEM files read again, as they change.

use tokio::sync::Semaphore;

use super::{Pem, PemBlock, Tls};
use crate::CredentialError;

/// A disk that hangs holds this many threads at the most, however often its files are asked for.
static READERS: Semaphore = Semaphore::const_new(4);

impl Tls {
    /// Whether there is no file, and so nothing to read again.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ca.is_none() && self.identity.is_none()
    }

    /// What the same files hold now.
    ///
    /// # Errors
    ///
    /// Which of them cannot be read, or holds something else.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind but a thread that reads to its end.
    pub async fn reread(&self) -> Result<Self, CredentialError> {
        let before = self.clone();
        let turn = READERS.acquire().await?;
        let read = move || {
            let _turn = turn;
            let again = |pem: &Pem, block| {
                Pem::read(pem.path(), block)
                    .map_err(|(_, allowed)| format!("{} is not {allowed}", pem.path().display()))
            };
            let ca = before.ca.as_ref().map(|ca| again(ca, PemBlock::Certificate)).transpose()?;
            let identity = match &before.identity {
                None => None,
                Some((cert, key)) => {
                    let cert = again(cert, PemBlock::Certificate)?;
                    Some((cert, again(key, PemBlock::PrivateKey)?))
                }
            };
            Ok(Self { ca, identity })
        };
        tokio::task::spawn_blocking(read).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_changed_is_another_and_a_half_written_one_is_not_taken() {
        let path = std::env::temp_dir().join(format!("tls-files-{}.pem", std::process::id()));
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("-----BEGIN CERTIFICATE-----\none");
        let ca = Pem::read(&path, PemBlock::Certificate).ok();
        let files = Tls { ca, identity: None };
        assert_eq!(files.reread().await.unwrap(), files);
        write("-----BEGIN CERTIFICATE-----\ntwo");
        assert_ne!(files.reread().await.unwrap(), files);
        write("-----BEGIN CERTI");
        let error = files.reread().await.unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("tls-files-") && error.contains("BEGIN CERTIFICATE"), "{error}");
        assert!(files.reread().await.is_err(), "one that is gone holds something");
    }
}
