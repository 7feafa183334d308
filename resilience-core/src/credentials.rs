//! Who we are to a service, and where that is read: fixed, in the environment, in files, or asked of a function.
//!
//! ```text
//! provider ──▶ check against the service ──▶ swap ──▶ connections under the old value retire
//!    │ hangs, panics, fails   │ refused
//!    └────────────────────────┴──▶ the last good value stays
//! ```

mod caught;
mod providers;
mod rotating;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};

use crate::Deadline;

pub use providers::{EnvCredentials, FileCredentials, FnCredentials};
pub use rotating::{Rotating, RotationCounts, RotationError, Version};

/// Why a provider has no credentials. Its text is logged: let it hold no secret.
pub type CredentialError = Box<dyn std::error::Error + Send + Sync>;

/// A name and a password, or a token, which is a password without a name. Never shown.
///
/// They are their own [`CredentialProvider`], of credentials that never change.
///
/// ```
/// use resilience_core::Credentials;
///
/// let credentials = Credentials::new("app", "hunter2");
/// assert_eq!(credentials.username(), Some("app"));
/// assert!(!format!("{credentials:?}").contains("hunter2"));
/// ```
#[derive(Clone, Default)]
pub struct Credentials {
    username: Option<String>,
    password: Option<SecretString>,
}

impl Credentials {
    /// A name and its password.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::token(password).with_username(username)
    }

    /// A token, or a password whose name is known from elsewhere.
    pub fn token(token: impl Into<String>) -> Self {
        Self { username: None, password: Some(SecretString::from(token.into())) }
    }

    /// The same under that name.
    #[must_use]
    pub fn with_username(self, username: impl Into<String>) -> Self {
        Self { username: Some(username.into()), ..self }
    }

    /// The name, if there is one.
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// The password or token itself, if there is one: for the driver, and for nothing that is shown.
    #[must_use]
    pub fn expose_password(&self) -> Option<&str> {
        self.password.as_ref().map(ExposeSecret::expose_secret)
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.username == other.username && self.expose_password() == other.expose_password()
    }
}

impl Eq for Credentials {}

/// The name, and whether there is a password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("has_password", &self.password.is_some())
            .finish()
    }
}

/// Where credentials come from. It may be asked at any time, also while the service is down.
///
/// It need not hurry, may hang and may panic: whoever asks gives up by a deadline of its own, drops the
/// future, and goes on with the last good credentials.
#[async_trait]
pub trait CredentialProvider: Send + Sync {
    /// The credentials as they are now; `deadline` is when the answer is no longer waited for.
    ///
    /// # Errors
    ///
    /// Why there are none. The text is logged: let it hold no secret.
    async fn credentials(&self, deadline: Deadline) -> Result<Credentials, CredentialError>;

    /// How often to ask for new ones although nobody refused the old. Default: never.
    fn period(&self) -> Option<Duration> {
        None
    }
}

#[async_trait]
impl CredentialProvider for Credentials {
    async fn credentials(&self, _: Deadline) -> Result<Credentials, CredentialError> {
        Ok(self.clone())
    }
}
