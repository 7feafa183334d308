//! Opens connections: one host after the other, each within its share of the time.

use std::sync::Arc;
use std::time::Duration;

use resilience_core::{CredentialError, Deadline, Endpoint, Standstill};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use crate::access::{Access, Pass, Watched};
use crate::classify::blames_the_service;
use crate::config::DatabaseConfig;
use crate::defaults::SHORTEST_FAIR_ATTEMPT;
use crate::endpoints::{Endpoints, Origin};
use crate::error::{Error, Unreachable};
use crate::greeting::Greeting;
use crate::role::{Misfit, Role, TargetSessionAttrs};
use crate::topology::Topology;
use crate::track::silence;

/// How much later than our own timeout the server gives up on a statement: nobody waits for it any
/// more by then, but until then the verdict is ours.
const BACKSTOP_LAG: Duration = Duration::from_secs(1);

/// How to open a connection. sqlx's options show the password in `Debug`: they are not shown.
pub(crate) struct Connector {
    pub(crate) endpoints: Endpoints,
    access: Access,
    template: PgConnectOptions,
    ssl_mode: PgSslMode,
    pub(crate) connect_timeout: Duration,
    /// How long to wait for a primary where there is none.
    pub(crate) patience: Duration,
    runtime: Option<Handle>,
    /// Whether a backend serves no connection of ours for longer than a transaction: by the time that it is to be
    /// cancelled by its process id, it may serve a stranger.
    is_behind_pgbouncer: bool,
}

/// A connection as it was opened.
pub(crate) struct Opened {
    pub(crate) raw: PgConnection,
    pub(crate) greeting: Greeting,
    pub(crate) origin: Arc<Origin>,
    /// The origin's epoch before the connection was opened.
    pub(crate) epoch: u64,
    pub(crate) behind_pgbouncer: bool,
}

impl Connector {
    pub(crate) fn new(config: &DatabaseConfig, endpoints: Endpoints) -> Self {
        Self {
            endpoints,
            access: Access::new(config),
            template: template(config),
            ssl_mode: config.ssl_mode,
            connect_timeout: config.tuning.connect_timeout,
            patience: config.tuning.acquire_timeout,
            runtime: config.runtime.clone(),
            is_behind_pgbouncer: config.pgbouncer,
        }
    }

    /// The endpoints that the URL names.
    pub(crate) fn hosts(config: &DatabaseConfig) -> Endpoints {
        let hosts = config.hosts.iter().cloned().map(Endpoint::new).collect();
        Endpoints::fixed(hosts, config.rules, config.runtime.clone())
    }

    /// The runtime on which to open connections and to run tasks, if there is one.
    pub(crate) fn runtime(&self) -> Option<Handle> {
        self.runtime.clone().or_else(|| Handle::try_current().ok())
    }

    /// Whether PgBouncer lends us a server's process for a transaction at a time: the one that greeted is not
    /// the one that serves, and belongs to others too.
    pub(crate) fn is_behind_pgbouncer(&self) -> bool {
        self.is_behind_pgbouncer
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
        if self.topology().leads_writers() {
            // Boxed: every future that may have to connect would carry it.
            return Box::pin(self.open_to_primary(deadline, statement_timeout)).await;
        }
        self.open_to_one_of(&self.endpoints.candidates(), deadline, statement_timeout).await
    }

    /// A connection to `origin`, whatever its role, by `deadline`.
    pub(crate) async fn open_at(
        &self,
        origin: &Arc<Origin>,
        deadline: Deadline,
    ) -> Result<Opened, Error> {
        let host = [Arc::clone(origin)];
        self.open_renewing(&host, TargetSessionAttrs::Any, deadline, None).await
    }

    /// A connection to `origin` beside the pool, under what the others were opened under, by `deadline`.
    pub(crate) async fn open_beside(
        &self,
        origin: &Origin,
        deadline: Deadline,
    ) -> Result<PgConnection, Error> {
        let pass = match self.access.pass() {
            Some(pass) => pass,
            None => self.access.first_pass(deadline).await?,
        };
        let (raw, _) = self.open_to(origin, &pass, deadline.remaining(), None).await?;
        Ok(raw)
    }

    /// What is known of the hosts' roles.
    pub(crate) fn topology(&self) -> &Arc<Topology> {
        &self.endpoints.topology
    }

    /// A connection to the first of `hosts` that gives one and has the role that is wanted.
    pub(crate) async fn open_to_one_of(
        &self,
        hosts: &[Arc<Origin>],
        deadline: Deadline,
        statement_timeout: Option<Duration>,
    ) -> Result<Opened, Error> {
        self.open_renewing(hosts, self.topology().attrs(), deadline, statement_timeout).await
    }

    async fn open_renewing(
        &self,
        hosts: &[Arc<Origin>],
        attrs: TargetSessionAttrs,
        deadline: Deadline,
        statement_timeout: Option<Duration>,
    ) -> Result<Opened, Error> {
        let mut pass = match self.access.pass() {
            Some(pass) => pass,
            None => Box::pin(self.access.first_pass(self.patience(deadline))).await?,
        };
        let mut suspects = Watched::ALL.to_vec();
        loop {
            let error =
                match self.open_under(&pass, hosts, attrs, deadline, statement_timeout).await {
                    Ok(opened) => return Ok(opened),
                    Err(error) => error,
                };
            match Box::pin(self.renew(&pass, &error, &mut suspects, deadline)).await {
                Some(renewed) => pass = renewed,
                None => return Err(error),
            }
        }
    }

    /// Whether and how often to look for changes of what connections are opened under.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (Watched, Duration)> {
        self.access.watched()
    }

    /// Looks for changes, tries what is new, and goes by it from now on if the server takes it.
    pub(crate) async fn look(&self, what: Watched) {
        let deadline = Deadline::within(self.connect_timeout);
        let check = |pass| self.check(pass, what, deadline);
        self.access.look(what, deadline, check).await;
        self.settle_access();
    }

    /// What to try in place of `pass`, if `error` says that one of the `suspects` may be out of date and there
    /// is something newer. Each is suspected once.
    async fn renew(
        &self,
        pass: &Pass,
        error: &Error,
        suspects: &mut Vec<Watched>,
        deadline: Deadline,
    ) -> Option<Pass> {
        let deadline = self.patience(deadline);
        let mut renewed = None;
        for what in suspects.extract_if(.., |what| what.is_suspected_by(error)) {
            let check = |pass| self.check(pass, what, deadline);
            renewed = self.access.renew(what, pass, deadline, check).await;
            if renewed.is_some() {
                break;
            }
        }
        self.settle_access();
        renewed
    }

    /// Connections opened under what is no longer current retire, once for each change.
    fn settle_access(&self) {
        if self.access.has_changed() {
            self.endpoints.retire_connections();
        }
    }

    /// Whether a server takes `pass`, as far as `what` is concerned.
    async fn check(
        &self,
        pass: Pass,
        what: Watched,
        deadline: Deadline,
    ) -> Result<(), CredentialError> {
        let candidates = self.endpoints.candidates();
        let mut failed = None;
        for (tried, origin) in candidates.iter().enumerate() {
            let limit = self.share(deadline, candidates.len() - tried);
            match self.open_to(origin, &pass, limit, None).await {
                Ok((raw, _)) => {
                    let _ = raw.close().await;
                    return Ok(());
                }
                Err(error) if what.is_proven_by(&error) => return Ok(()),
                Err(error) => {
                    let at_fault = blames_the_service(&error);
                    failed = Some(error);
                    if !at_fault {
                        break;
                    }
                }
            }
        }
        Err(failed.map_or_else(|| "there are no endpoints".into(), Into::into))
    }

    /// A provider, and the check of what it gives, have no more time than a connect has.
    fn patience(&self, deadline: Deadline) -> Deadline {
        Deadline::within(self.connect_timeout).min(deadline)
    }

    /// The time for one of several hosts that are left to try.
    fn share(&self, deadline: Deadline, hosts_left: usize) -> Duration {
        let hosts_left = u32::try_from(hosts_left).unwrap_or(u32::MAX);
        self.connect_timeout.min(deadline.remaining() / hosts_left)
    }

    async fn open_under(
        &self,
        pass: &Pass,
        hosts: &[Arc<Origin>],
        attrs: TargetSessionAttrs,
        deadline: Deadline,
        statement_timeout: Option<Duration>,
    ) -> Result<Opened, Error> {
        let mut passed: Option<Unreachable> = None;
        let mut hosts = hosts.to_vec();
        for attrs in attrs.passes() {
            let mut misfits = Vec::new();
            for (tried, origin) in hosts.iter().enumerate() {
                let limit = self.share(deadline, hosts.len() - tried);
                let (epoch, standstill) = (origin.epoch(), Standstill::watch());
                let error = match self.open_to(origin, pass, limit, statement_timeout).await {
                    Ok((raw, greeting)) if attrs.fits(Role::from(&greeting)) => {
                        origin.demote(false);
                        // One under what has changed meanwhile is of the past from the beginning.
                        let epoch = match self.access.is_current(pass) {
                            true => epoch,
                            false => epoch.wrapping_sub(1),
                        };
                        return Ok(Opened {
                            raw,
                            greeting,
                            origin: Arc::clone(origin),
                            epoch,
                            behind_pgbouncer: self.is_behind_pgbouncer,
                        });
                    }
                    Ok((raw, greeting)) => {
                        let _ = raw.close().await;
                        origin.demote(true);
                        misfits.push(Arc::clone(origin));
                        let misfit = Misfit::Role { role: Role::from(&greeting), attrs: *attrs };
                        Unreachable::new(Arc::clone(&origin.label), misfit.into()).into()
                    }
                    Err(error) => error,
                };
                tracing::debug!(target: "shared_external::postgres", endpoint = %origin.label, %error, "cannot connect");
                let at_fault = blames_the_service(&error);
                match error {
                    Error::Unreachable(error) => passed = Some(error.after(passed.take())),
                    other => return Err(other),
                }
                if !at_fault {
                    // Who is refused by name is refused everywhere.
                    return Err(passed.map_or_else(|| Unreachable::nowhere().into(), Error::from));
                }
                if limit >= SHORTEST_FAIR_ATTEMPT && !standstill.excuses() {
                    origin.demote(true);
                }
            }
            hosts = misfits;
        }
        Err(passed.unwrap_or_else(Unreachable::nowhere).into())
    }

    async fn open_to(
        &self,
        origin: &Origin,
        pass: &Pass,
        limit: Duration,
        statement_timeout: Option<Duration>,
    ) -> Result<(PgConnection, Greeting), Error> {
        let unreachable = |error| Unreachable::new(Arc::clone(&origin.label), error);
        let mut options = self.options(&origin.endpoint, pass).map_err(unreachable)?;
        if let Some(limit) = statement_timeout {
            options = options.options([("statement_timeout", milliseconds(limit))]);
        }
        let started = Instant::now();
        let is_ours = !self.is_behind_pgbouncer;
        let connect = async || {
            let options = options.clone();
            // Large, and seldom needed: every future that may have to connect would carry it.
            let connecting = Box::pin(async move {
                let mut raw = options.connect().await?;
                let greeting = Greeting::ask(&mut raw, is_ours).await?;
                Ok((raw, greeting))
            });
            match &self.runtime {
                None => connecting.await,
                Some(runtime) => {
                    let mut task = AbortOnDrop(runtime.spawn(connecting));
                    (&mut task.0).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
                }
            }
        };
        let connecting = async {
            loop {
                tokio::select! {
                    biased;
                    opened = connect() => break opened,
                    // What it has sent was lost, and would be sent again too late.
                    () = origin.look.lookout().returned() => {}
                }
            }
        };
        let connecting = timeout(limit, origin.look.watch(connecting));
        let opened = connecting.await.unwrap_or_else(|_| Err(silence(limit)));
        let (raw, greeting) = opened.map_err(unreachable)?;
        origin.look.remember();
        tracing::debug!(target: "shared_external::postgres", endpoint = %origin.label, elapsed = ?started.elapsed(), "connected");
        Ok((raw, greeting))
    }

    /// How to connect to `origin` under what is current, for a driver's part that connects by itself.
    pub(crate) fn options_to(&self, origin: &Origin) -> Result<PgConnectOptions, sqlx::Error> {
        let pass = self.access.pass().ok_or(sqlx::Error::PoolClosed)?;
        self.options(&origin.endpoint, &pass)
    }

    fn options(&self, endpoint: &Endpoint, pass: &Pass) -> Result<PgConnectOptions, sqlx::Error> {
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
        let options = self.template.clone().host(host).port(endpoint.address.port());
        Ok(self.access.apply(pass, options))
    }
}

/// Everything but the host, who we are, and whom we believe.
fn template(config: &DatabaseConfig) -> PgConnectOptions {
    let program = program();
    let mut options = PgConnectOptions::new_without_pgpass()
        .ssl_mode(config.ssl_mode)
        .application_name(config.application_name.as_deref().unwrap_or(&program));
    if config.pgbouncer {
        // It refuses settings of a session, which it gives to nobody, but for a few that it knows.
        return options.extra_float_digits(None);
    }
    let timeout = config.tuning.resilience.attempt_timeout + BACKSTOP_LAG;
    options = options
        .options([("statement_timeout", milliseconds(timeout))])
        .options(config.options.iter().map(|(name, value)| (name, value)));
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

/// A task that ends with whoever waits for it.
pub(crate) struct AbortOnDrop<T>(pub(crate) tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
