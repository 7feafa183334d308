//! The PEM files of a connector: the authorities it trusts and the certificate it shows, read again as they change.

use tokio::sync::Semaphore;

use crate::CredentialError;
use crate::settings::{Pem, PemBlock};

/// A disk that hangs holds this many threads at the most, however often its files are asked for.
static READERS: Semaphore = Semaphore::const_new(4);

/// The authorities to trust, and the certificate and key to show. What they hold is not shown.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TlsFiles {
    /// The authorities' certificates.
    pub ca: Option<Pem>,
    /// The client's certificate and its key.
    pub identity: Option<(Pem, Pem)>,
}

impl TlsFiles {
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
