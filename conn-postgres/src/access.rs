//! Who we are to the server and whom we believe: renewed while connections are opened under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use resilience_core::settings::Tls;
use resilience_core::{
    CredentialError, CredentialProvider, Credentials, Deadline, Rotating, Version,
};
use sqlx::postgres::PgConnectOptions;

use crate::config::DatabaseConfig;
use crate::defaults::TLS_FILES_PERIOD;
use crate::error::{Error, database_error};

/// The credentials and the certificates, as they are now.
pub(crate) struct Access {
    provider: Arc<dyn CredentialProvider>,
    login: Rotating<Credentials>,
    tls: Rotating<Tls>,
    has_tls_files: bool,
    /// The URL's, for credentials that name none.
    user: Option<String>,
    database: Option<String>,
    /// The sum of the generations for which older connections have been retired.
    settled: AtomicU64,
}

/// What one connection is opened under.
pub(crate) struct Pass {
    login: Arc<Version<Credentials>>,
    tls: Arc<Version<Tls>>,
}

impl Pass {
    fn generations(&self) -> u64 {
        self.login.generation + self.tls.generation
    }
}

/// What may change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Watched {
    /// User and password.
    Login,
    /// The authorities to trust, and the certificate to show.
    Tls,
}

impl Watched {
    /// The likeliest to be out of date first.
    pub(crate) const ALL: [Self; 2] = [Self::Login, Self::Tls];

    /// Whether it may be out of date where a connect ended in `error`.
    pub(crate) fn is_suspected_by(self, error: &Error) -> bool {
        match (self, error.code(), error.sqlx()) {
            (Self::Login, Some(code), _) => matches!(code, "28P01" | "28000"),
            (Self::Tls, Some(code), _) => code == "28000",
            (Self::Tls, None, Some(sqlx::Error::Tls(_))) => true,
            // What the handshake found wrong with a certificate, on either side.
            (Self::Tls, None, Some(sqlx::Error::Io(error))) => {
                error.kind() == std::io::ErrorKind::InvalidData
            }
            _ => false,
        }
    }

    /// Whether a connect that ended in `error` shows all the same that the server takes it: certificates have
    /// been looked at, by both sides, before it answers anything else.
    pub(crate) fn is_proven_by(self, error: &Error) -> bool {
        let answered = error.sqlx().and_then(database_error).is_some();
        self == Self::Tls && answered && error.code() != Some("28000")
    }
}

impl Access {
    pub(crate) fn new(config: &DatabaseConfig) -> Self {
        let name = &config.name;
        Self {
            provider: Arc::clone(&config.credentials),
            login: Rotating::new(format!("{name} credentials")),
            tls: Rotating::holding(format!("{name} certificates"), config.tls.clone()),
            has_tls_files: !config.tls.is_empty(),
            user: config.user.clone(),
            database: config.database.clone(),
            settled: AtomicU64::new(0),
        }
    }

    /// The current pass; none before the first credentials were had.
    pub(crate) fn pass(&self) -> Option<Pass> {
        Some(Pass { login: self.login.current()?, tls: self.tls.current()? })
    }

    /// The first pass. Its credentials are taken as they are.
    pub(crate) async fn first_pass(&self, deadline: Deadline) -> Result<Pass, Error> {
        let unchecked = |_| async { Ok(()) };
        let login = self.login.refresh(deadline, self.fetch(deadline), unchecked).await;
        let login = login.map_err(Error::Credentials)?;
        let tls = self.tls.current().expect("it holds the first from the beginning");
        Ok(Pass { login, tls })
    }

    pub(crate) fn is_current(&self, pass: &Pass) -> bool {
        self.login.is_current(&pass.login) && self.tls.is_current(&pass.tls)
    }

    /// Whether something has changed since this was last asked.
    pub(crate) fn has_changed(&self) -> bool {
        let Some(pass) = self.pass() else { return false };
        let generations = pass.generations();
        let before = self.settled.fetch_max(generations, Ordering::AcqRel);
        // The first of each are no change: nothing was opened before them.
        before < generations && generations > 2
    }

    /// What changes by itself, and how often to look.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (Watched, Duration)> {
        let login = self.provider.period().map(|period| (Watched::Login, period));
        let tls = self.has_tls_files.then_some((Watched::Tls, TLS_FILES_PERIOD));
        login.into_iter().chain(tls)
    }

    /// Takes up what is new of `what`, if it passes `check`. Failures are told by who keeps the value.
    pub(crate) async fn look<C, Fut>(&self, what: Watched, deadline: Deadline, check: C)
    where
        C: FnOnce(Pass) -> Fut,
        Fut: Future<Output = Result<(), CredentialError>>,
    {
        let Some(Pass { login, tls }) = self.pass() else { return };
        match what {
            Watched::Login => {
                let check = |login| check(Pass { login, tls });
                let _ = self.login.refresh(deadline, self.fetch(deadline), check).await;
            }
            Watched::Tls => {
                let again = tls.value.reread();
                let check = |tls| check(Pass { login, tls });
                let _ = self.tls.refresh(deadline, again, check).await;
            }
        }
    }

    /// What to try in place of `refused`, if there is something newer of `what` that passes `check`.
    pub(crate) async fn renew<C, Fut>(
        &self,
        what: Watched,
        refused: &Pass,
        deadline: Deadline,
        check: C,
    ) -> Option<Pass>
    where
        C: FnOnce(Pass) -> Fut,
        Fut: Future<Output = Result<(), CredentialError>>,
    {
        let Pass { login, tls } = self.pass()?;
        match what {
            Watched::Login => {
                let fetch = self.fetch(deadline);
                let check = |login| check(Pass { login, tls });
                self.login.renew(&refused.login, deadline, fetch, check).await?;
            }
            Watched::Tls if self.has_tls_files => {
                let again = refused.tls.value.reread();
                let check = |tls| check(Pass { login, tls });
                self.tls.renew(&refused.tls, deadline, again, check).await?;
            }
            Watched::Tls => return None,
        }
        self.pass()
    }

    /// `options` under that pass.
    pub(crate) fn apply(&self, pass: &Pass, mut options: PgConnectOptions) -> PgConnectOptions {
        let (login, tls) = (&pass.login.value, &pass.tls.value);
        // Never left out: the driver would take it from the environment.
        options = options.password(login.expose_password().unwrap_or_default());
        let user = login.username().or(self.user.as_deref());
        if let Some(user) = user {
            options = options.username(user);
        }
        if let Some(database) = self.database.as_deref().or(self.user.as_deref()).or(user) {
            options = options.database(database);
        }
        if let Some(ca) = &tls.ca {
            options = options.ssl_root_cert_from_pem(ca.contents().as_bytes().to_vec());
        }
        if let Some((cert, key)) = &tls.identity {
            options = options
                .ssl_client_cert_from_pem(cert.contents())
                .ssl_client_key_from_pem(key.contents());
        }
        options
    }

    /// In a future of its own, so that a provider that panics before its first await is caught as well.
    async fn fetch(&self, deadline: Deadline) -> Result<Credentials, CredentialError> {
        self.provider.credentials(deadline).await
    }
}
