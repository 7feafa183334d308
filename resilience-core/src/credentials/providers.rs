//! Providers of credentials: the environment, files that someone else writes, a function.

use std::fmt;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{CredentialError, CredentialProvider, Credentials};
use crate::Deadline;

/// How often files are looked at. 10 s: an agent that renews them does so minutes before the old ones end.
const FILE_PERIOD: Duration = Duration::from_secs(10);

/// The most that a file of credentials may hold. 64 KiB: a token is a few.
const LARGEST_FILE: u64 = 64 * 1024;

/// Credentials in variables of this process, read again each time they are asked for.
#[derive(Clone, Debug)]
pub struct EnvCredentials {
    username: Option<String>,
    password: String,
}

impl EnvCredentials {
    /// The password or token in the variable `password`.
    pub fn new(password: impl Into<String>) -> Self {
        Self { username: None, password: password.into() }
    }

    /// The name too, in the variable `username`. Default: known from elsewhere, such as the URL.
    #[must_use]
    pub fn username_in(self, username: impl Into<String>) -> Self {
        Self { username: Some(username.into()), ..self }
    }
}

#[async_trait]
impl CredentialProvider for EnvCredentials {
    async fn credentials(&self, _: Deadline) -> Result<Credentials, CredentialError> {
        let credentials = Credentials::token(variable(&self.password)?);
        Ok(match &self.username {
            None => credentials,
            Some(username) => credentials.with_username(variable(username)?),
        })
    }
}

/// A variable's value, which is not quoted where it is wrong: it may be half a secret.
fn variable(name: &str) -> Result<String, CredentialError> {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        Ok(_) | Err(std::env::VarError::NotPresent) => {
            Err(format!("the variable {name} is not set").into())
        }
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(format!("the variable {name} is not UTF-8").into())
        }
    }
}

/// Credentials in files, one for each field, as Kubernetes mounts a secret and as a Vault agent writes it.
///
/// Contents are compared, not times, so a file may be replaced, written over, or swapped behind a symbolic
/// link. One line end at the end of a file does not count. An empty file is taken for one that is being
/// written. Of two files that do not change at once, the pair in between is refused by the service and
/// looked at again.
///
/// ```
/// use resilience_core::FileCredentials;
///
/// let provider = FileCredentials::new("/var/run/secrets/db/password").username_in("/var/run/secrets/db/username");
/// ```
#[derive(Clone, Debug)]
pub struct FileCredentials {
    username: Option<PathBuf>,
    password: PathBuf,
    period: Duration,
    /// A disk that hangs holds one thread, however often it is asked.
    reader: Arc<Semaphore>,
}

impl FileCredentials {
    /// The password or token in the file `password`.
    pub fn new(password: impl Into<PathBuf>) -> Self {
        let reader = Arc::new(Semaphore::new(1));
        Self { username: None, password: password.into(), period: FILE_PERIOD, reader }
    }

    /// The name too, in the file `username`. Default: known from elsewhere, such as the URL.
    #[must_use]
    pub fn username_in(self, username: impl Into<PathBuf>) -> Self {
        Self { username: Some(username.into()), ..self }
    }

    /// How often to look at the files. Default 10 s.
    #[must_use]
    pub fn every(self, period: Duration) -> Self {
        Self { period, ..self }
    }
}

#[async_trait]
impl CredentialProvider for FileCredentials {
    async fn credentials(&self, _: Deadline) -> Result<Credentials, CredentialError> {
        let (username, password) = (self.username.clone(), self.password.clone());
        let turn = Arc::clone(&self.reader).acquire_owned().await?;
        let read = move || {
            let _turn = turn;
            let credentials = Credentials::token(field(&password)?);
            Ok(match username {
                None => credentials,
                Some(username) => credentials.with_username(field(&username)?),
            })
        };
        tokio::task::spawn_blocking(read).await?
    }

    fn period(&self) -> Option<Duration> {
        Some(self.period)
    }
}

/// What a file holds, which is not quoted where it is wrong.
fn field(path: &Path) -> Result<String, CredentialError> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| format!("{shown} cannot be read ({})", error.kind());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let length = file.take(LARGEST_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
    if length as u64 > LARGEST_FILE {
        return Err(format!("{shown} is larger than {LARGEST_FILE} bytes").into());
    }
    let value = text.strip_suffix('\n').unwrap_or(&text);
    match value.strip_suffix('\r').unwrap_or(value) {
        "" => Err(format!("{shown} is empty").into()),
        value => Ok(value.to_owned()),
    }
}

/// Credentials that a function gets, such as a token signed for the next quarter of an hour.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Credentials, FnCredentials};
///
/// let provider = FnCredentials::new(|_deadline| async { Ok(Credentials::token("signed")) })
///     .every(Duration::from_secs(600));
/// ```
pub struct FnCredentials<F> {
    function: F,
    period: Option<Duration>,
}

impl<F, Fut> FnCredentials<F>
where
    F: Fn(Deadline) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Credentials, CredentialError>> + Send,
{
    /// Those that `function` gets.
    pub fn new(function: F) -> Self {
        Self { function, period: None }
    }

    /// How often to get new ones although nobody refused the old. Default: never.
    #[must_use]
    pub fn every(self, period: Duration) -> Self {
        Self { period: Some(period), ..self }
    }
}

#[async_trait]
impl<F, Fut> CredentialProvider for FnCredentials<F>
where
    F: Fn(Deadline) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Credentials, CredentialError>> + Send,
{
    async fn credentials(&self, deadline: Deadline) -> Result<Credentials, CredentialError> {
        (self.function)(deadline).await
    }

    fn period(&self) -> Option<Duration> {
        self.period
    }
}

impl<F> fmt::Debug for FnCredentials<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FnCredentials").field("period", &self.period).finish_non_exhaustive()
    }
}
