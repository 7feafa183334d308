//! Opens connections: one host after the other, each within its share of the time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use resilience_core::{Deadline, Endpoint, Standstill};
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, PgConnection};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use crate::classify::blames_the_service;
use crate::config::DatabaseConfig;
use crate::defaults::SHORTEST_FAIR_ATTEMPT;
use crate::endpoints::{Endpoints, Origin};
use crate::error::{Error, Unreachable};
use crate::track::silence;

/// How much later than our own timeout the server gives up on a statement: nobody waits for it any
/// more by then, but until then the verdict is ours.
const BACKSTOP_LAG: Duration = Duration::from_secs(1);

/// How to open a connection. sqlx's options show the password in `Debug`: they are not shown.
pub(crate) struct Connector {
    pub(crate) endpoints: Endpoints,
    template: PgConnectOptions,
    ssl_mode: PgSslMode,
    connect_timeout: Duration,
    runtime: Option<Handle>,
}

/// A connection as it was opened.
pub(crate) struct Opened {
    pub(crate) raw: PgConnection,
    pub(crate) origin: Arc<Origin>,
    /// The origin's epoch before the connection was opened.
    pub(crate) epoch: u64,
}

impl Connector {
    pub(crate) fn new(config: &DatabaseConfig, endpoints: Endpoints) -> Self {
        Self {
            endpoints,
            template: template(config),
            ssl_mode: config.ssl_mode,
            connect_timeout: config.tuning.connect_timeout,
            runtime: config.runtime.clone(),
        }
    }

    /// The endpoints that the URL names.
    pub(crate) fn hosts(config: &DatabaseConfig) -> Endpoints {
        Endpoints::fixed(config.hosts.iter().cloned().map(Endpoint::new).collect())
    }

    /// The runtime on which to open connections and to run tasks, if there is one.
    pub(crate) fn runtime(&self) -> Option<Handle> {
        self.runtime.clone().or_else(|| Handle::try_current().ok())
    }

    /// A connection to the first endpoint that gives one, by `deadline`.
    pub(crate) async fn open(&self, deadline: Deadline) -> Result<Opened, Error> {
        self.open_with(deadline, None).await
    }

    /// [`open`](Self::open), with another `statement_timeout` for the session.
    pub(crate) async fn open_with(
        &self,
        deadline: Deadline,
        statement_timeout: Option<Duration>,
    ) -> Result<Opened, Error> {
        self.endpoints.refresh();
        let candidates = self.endpoints.candidates();
        let mut failed = None;
        for (tried, origin) in candidates.iter().enumerate() {
            let hosts_left = u32::try_from(candidates.len() - tried).unwrap_or(u32::MAX);
            let limit = self.connect_timeout.min(deadline.remaining() / hosts_left);
            let (epoch, standstill) = (origin.epoch(), Standstill::watch());
            match self.open_to(origin, limit, statement_timeout).await {
                Ok(raw) => {
                    origin.demote(false);
                    return Ok(Opened { raw, origin: Arc::clone(origin), epoch });
                }
                Err(error) => {
                    tracing::debug!(target: "shared_external::postgres", endpoint = %origin.label, %error, "cannot connect");
                    let at_fault = blames_the_service(&error);
                    failed = Some(error);
                    if !at_fault {
                        // Who is refused by name is refused everywhere.
                        break;
                    }
                    if limit >= SHORTEST_FAIR_ATTEMPT && !standstill.excuses() {
                        origin.demote(true);
                    }
                }
            }
        }
        Err(failed.unwrap_or_else(|| {
            let nowhere = io::Error::new(io::ErrorKind::NotFound, "there are no endpoints");
            Unreachable::new("any endpoint", nowhere.into()).into()
        }))
    }

    async fn open_to(
        &self,
        origin: &Origin,
        limit: Duration,
        statement_timeout: Option<Duration>,
    ) -> Result<PgConnection, Error> {
        let unreachable = |error| Unreachable::new(Arc::clone(&origin.label), error);
        let mut options = self.options(&origin.endpoint).map_err(unreachable)?;
        if let Some(limit) = statement_timeout {
            options = options.options([("statement_timeout", milliseconds(limit))]);
        }
        let started = Instant::now();
        // Large, and seldom needed: every future that may have to connect would carry it.
        let connecting = Box::pin(async move { options.connect().await });
        let connecting = async {
            match &self.runtime {
                None => connecting.await,
                Some(runtime) => {
                    let mut task = AbortOnDrop(runtime.spawn(connecting));
                    (&mut task.0).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
                }
            }
        };
        let opened = timeout(limit, connecting).await.unwrap_or_else(|_| Err(silence(limit)));
        let raw = opened.map_err(unreachable)?;
        tracing::debug!(target: "shared_external::postgres", endpoint = %origin.label, elapsed = ?started.elapsed(), "connected");
        Ok(raw)
    }

    fn options(&self, endpoint: &Endpoint) -> Result<PgConnectOptions, sqlx::Error> {
        let host = endpoint.address.host();
        // The driver checks the certificate against the address it connects to, and takes no other name.
        if matches!(self.ssl_mode, PgSslMode::VerifyFull) && endpoint.server_name() != host {
            let name = endpoint.server_name();
            let why = format!(
                "the certificate of {name:?} cannot be checked at another address; \
                 use an endpoint whose address is that name, or sslmode=verify-ca"
            );
            return Err(sqlx::Error::Configuration(why.into()));
        }
        Ok(self.template.clone().host(host).port(endpoint.address.port()))
    }
}

/// Everything but the host.
fn template(config: &DatabaseConfig) -> PgConnectOptions {
    let password = config.password.as_ref().map_or("", |password| password.expose_secret());
    let program = program();
    let mut options = PgConnectOptions::new_without_pgpass()
        .password(password)
        .ssl_mode(config.ssl_mode)
        .application_name(config.application_name.as_deref().unwrap_or(&program))
        .options([(
            "statement_timeout",
            milliseconds(config.tuning.resilience.attempt_timeout + BACKSTOP_LAG),
        )])
        .options(config.options.iter().map(|(name, value)| (name, value)));
    if let Some(user) = &config.user {
        options = options.username(user);
    }
    if let Some(database) = config.database.as_ref().or(config.user.as_ref()) {
        options = options.database(database);
    }
    if let Some(ca) = &config.tls.ca {
        options = options.ssl_root_cert_from_pem(ca.contents().as_bytes().to_vec());
    }
    if let Some((cert, key)) = &config.tls.identity {
        options = options
            .ssl_client_cert_from_pem(cert.contents())
            .ssl_client_key_from_pem(key.contents());
    }
    if let Some(capacity) = config.statement_cache {
        options = options.statement_cache_capacity(capacity);
    }
    options
}

fn program() -> String {
    let path = std::env::args_os().next().map(std::path::PathBuf::from);
    let name = path.as_deref().and_then(|path| path.file_name());
    name.map_or_else(|| "conn-postgres".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// As a setting of the server; 0 would mean no limit.
fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis().clamp(1, i32::MAX as u128))
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
