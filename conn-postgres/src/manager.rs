//! The manager: every call to the database goes through its pipeline and borrows from its pool.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use resilience_core::settings::ConfigError;
use resilience_core::{
    Attempt, Call, CallError, CircuitBreaker, CircuitState, Deadline, Drained, Name, Pipeline,
    PipelineBuilder, PoolStatus, RetryBudget, WatchedEndpoints,
};
use sqlx::migrate::Migrator;
use tokio::time::{Instant, timeout_at};

use crate::classify::{Context, PgClassifier, is_stale_plan};
use crate::config::DatabaseConfig;
use crate::conn::Conn;
use crate::connector::Connector;
use crate::defaults::SHORTEST_FAIR_ATTEMPT;
use crate::endpoints::Endpoints;
use crate::error::Error;
use crate::holders::CallSite;
use crate::pgbouncer::refusal;
use crate::pool::{Pool, Want};
use crate::primary::Repeats;
use crate::session::Session;
use crate::track::{Report, silence};
use crate::tuning::Tuning;
use crate::tx::{Home, Tx};
use crate::wal::WalPosition;

/// Access to one database: a pool, and the breaker, retries and deadlines in front of it. Cheap to clone.
///
/// `&db` is a sqlx [`Executor`](sqlx::Executor): one statement through the breaker, never sent twice.
/// Closures get retries too:
///
/// ```no_run
/// # use conn_postgres::{DatabaseConfig, DatabaseManager};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let db = DatabaseManager::connect(DatabaseConfig::from_env()?)?;
/// let title: String = db
///     .read(async |mut conn: conn_postgres::Conn| {
///         Ok(sqlx::query_scalar("SELECT title FROM campaigns WHERE id = $1").bind(7).fetch_one(&mut conn).await?)
///     })
///     .await?;
/// let open: i64 = sqlx::query_scalar("SELECT count(*) FROM campaigns").fetch_one(&db).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct DatabaseManager {
    pub(crate) pool: Arc<Pool>,
    pub(crate) pipeline: Pipeline,
    pub(crate) attempt_timeout: Duration,
}

impl DatabaseManager {
    /// A manager for the database that `config` names. Connects to nothing yet: a server that is down
    /// does not keep the application from starting.
    ///
    /// # Errors
    ///
    /// None today: a [`DatabaseConfig`] has been validated when it was built.
    pub fn connect(config: DatabaseConfig) -> Result<Self, ConfigError> {
        let hosts = Connector::hosts(&config);
        Ok(Self::build(&config, hosts))
    }

    /// A manager whose addresses come from `endpoints` instead of the URL; credentials, database and
    /// options stay the URL's. When the set changes, the next call follows: connections to an endpoint
    /// that left it are closed as they come back.
    ///
    /// The driver checks a certificate against the address it connects to: with `sslmode=verify-full`, an
    /// endpoint whose `host_name` differs from its address is refused with an error that says so.
    ///
    /// # Errors
    ///
    /// None today: a [`DatabaseConfig`] has been validated when it was built.
    pub fn connect_to(
        config: DatabaseConfig,
        endpoints: WatchedEndpoints,
    ) -> Result<Self, ConfigError> {
        let endpoints = Endpoints::watched(endpoints, config.rules, config.runtime.clone());
        Ok(Self::build(&config, endpoints))
    }

    fn build(config: &DatabaseConfig, endpoints: Endpoints) -> Self {
        // One way of checking certificates asks for the process's provider, and panics if there are two.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // An `Err` means that another thread was first.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let pipeline = pipeline(config);
        let breaker = pipeline.breaker().expect("the pipeline is built with one");
        let pool = Pool::new(config, Connector::new(config, endpoints), breaker.clone());
        Self { pool, pipeline, attempt_timeout: config.tuning.resilience.attempt_timeout }
    }

    /// Runs `f`, which changes nothing, and repeats it where that may help.
    ///
    /// # Errors
    ///
    /// The closure's last error, or why it was not called.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the closure's; its connection is closed if work was left undone.
    #[track_caller]
    pub fn read<T, F, Fut>(&self, f: F) -> impl Future<Output = Result<T, CallError<Error>>>
    where
        F: Fn(Conn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.run(Call::read(), Want::Replica(WalPosition::default()), CallSite::here(), f)
    }

    /// Runs `f`, which changes something, and repeats it only where it is proven not to have taken effect.
    ///
    /// # Errors
    ///
    /// The closure's last error, or why it was not called.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the closure's; what it had sent may or may not take effect.
    #[track_caller]
    pub fn write<T, F, Fut>(&self, f: F) -> impl Future<Output = Result<T, CallError<Error>>>
    where
        F: Fn(Conn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.call(Call::write(), f)
    }

    /// Runs `f`, which changes something but no more when done twice, and repeats it where that may help.
    ///
    /// # Errors
    ///
    /// The closure's last error, or why it was not called.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the closure's; what it had sent may or may not take effect.
    #[track_caller]
    pub fn write_idempotent<T, F, Fut>(
        &self,
        f: F,
    ) -> impl Future<Output = Result<T, CallError<Error>>>
    where
        F: Fn(Conn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.call(Call::write_idempotent(), f)
    }

    /// Runs `f` as the kind of call that `call` says: with a name or a deadline of its own.
    ///
    /// # Errors
    ///
    /// The closure's last error, or why it was not called.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the closure's; what it had sent may or may not take effect.
    #[track_caller]
    pub fn call<T, F, Fut>(
        &self,
        call: Call,
        f: F,
    ) -> impl Future<Output = Result<T, CallError<Error>>>
    where
        F: Fn(Conn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.run(call, Want::Primary, CallSite::here(), f)
    }

    /// [`read`](Self::read), and when the database cannot be had, `fallback`: each has half of the time.
    ///
    /// # Errors
    ///
    /// What `fallback` returns; the closure's error where the server answered that the request was wrong.
    ///
    /// # Cancel safety
    ///
    /// That of [`read`](Self::read), and that of the fallback.
    #[track_caller]
    pub fn read_or<T, F, Fut, Alt, AltErr>(
        &self,
        f: F,
        fallback: impl FnOnce(CallError<Error>) -> Alt,
    ) -> impl Future<Output = Result<T, AltErr>>
    where
        F: Fn(Conn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
        Alt: Future<Output = Result<T, AltErr>>,
        AltErr: From<CallError<Error>>,
    {
        let want = Want::Replica(WalPosition::default());
        let task = Task { want, idempotent: true, taken: CallSite::here() };
        async move {
            let (f, stale) = (&f, &AtomicBool::new(false));
            let operation = |attempt| Box::pin(self.attempt(attempt, task, f, stale));
            self.pipeline.run_or(Call::read(), &PgClassifier, operation, fallback).await
        }
    }

    /// Runs `f` in a transaction: commits on `Ok`, rolls back on `Err`. Where the server rolled it back
    /// because of others (a serialization failure, a deadlock) or the connection broke before COMMIT,
    /// all of `f` is run again, within retries, budget and deadline. A COMMIT without an answer is not repeated.
    ///
    /// ```no_run
    /// # async fn example(db: conn_postgres::DatabaseManager) -> Result<(), Box<dyn std::error::Error>> {
    /// let left: i64 = db
    ///     .transaction(|mut tx| async move {
    ///         let sql = "UPDATE stock SET left = left - 1 WHERE id = $1 RETURNING left";
    ///         Ok(sqlx::query_scalar(sql).bind(7).fetch_one(&mut *tx).await?)
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The closure's last error, that of BEGIN or COMMIT, or why it was not called;
    /// [`Error::Unfinished`] if the closure's transaction outlives it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future rolls back, unless COMMIT was sent already.
    #[track_caller]
    pub fn transaction<T, F, Fut>(&self, f: F) -> impl Future<Output = Result<T, CallError<Error>>>
    where
        F: Fn(Tx<'static>) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        let task = Task { want: Want::Primary, idempotent: false, taken: CallSite::here() };
        async move {
            let f = &f;
            let body = move |mut conn: Conn| async move {
                Session::begin(&mut conn).await?;
                let home = Home::default();
                let result = f(home.lend(conn)).await;
                let Some(mut conn) = home.take() else {
                    return result.and(Err(Error::Unfinished));
                };
                match result {
                    Ok(value) => Session::commit(&mut conn).await.map(|()| value),
                    Err(error) => {
                        // Where this fails, the server rolls back by itself.
                        let _ = Session::rollback(&mut conn).await;
                        Err(error)
                    }
                }
            };
            let (body, stale) = (&body, &AtomicBool::new(false));
            let operation = |attempt| Box::pin(self.attempt(attempt, task, body, stale));
            self.pipeline.run(Call::write().named("transaction"), &PgClassifier, operation).await
        }
    }

    /// Borrows a connection to use outside a closure. Each operation on it has the attempt timeout.
    ///
    /// Prefer the closures: what happens on this connection is not retried and moves no breaker.
    ///
    /// # Errors
    ///
    /// Why none could be had: [`Error::Exhausted`], [`Error::Unreachable`], [`Error::Rejected`],
    /// [`Error::Draining`], [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue, or the connection.
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<Conn, Error>> + Send {
        self.borrow(CallSite::here())
    }

    /// Begins a transaction to use outside a closure. Each operation in it has the attempt timeout.
    ///
    /// Prefer [`transaction`](Self::transaction), which runs again where the server rolled back because of others.
    ///
    /// # Errors
    ///
    /// Why none could be had: [`Error::Exhausted`], [`Error::Unreachable`], [`Error::Rejected`],
    /// [`Error::Draining`], [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves no open transaction to anyone.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Tx<'static>, Error>> + Send {
        let begin = async |mut conn: Conn| {
            Session::begin(&mut conn).await?;
            Ok(Tx::owned(conn))
        };
        self.lease("begin", CallSite::here(), begin)
    }

    /// Runs `migrator` on a connection of its own, by `deadline`, outside pipeline and statement timeout.
    ///
    /// A migration that fails or is cut off is rolled back with its connection, unless it was written to run
    /// outside a transaction; those done before it stay done, so it may be called again.
    ///
    /// # Errors
    ///
    /// Why no connection could be had, what the server says of a migration, or that the time was over;
    /// behind PgBouncer, that its lock needs a session.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection, which ends the migration's transaction and its lock.
    pub async fn migrate(&self, migrator: &Migrator, deadline: Deadline) -> Result<(), Error> {
        let deadline = deadline.inherited();
        if self.pipeline.is_draining() {
            return Err(self.pool.refusal());
        }
        if self.pool.connector.is_behind_pgbouncer() {
            return Err(refusal("migrate()", "migrate at the server's own address").into());
        }
        let mut place = self.pool.place(deadline).await?;
        let limit = deadline.remaining();
        self.pool.ensure_scout();
        let mut raw = self.pool.connector.open_with(deadline, Some(limit)).await?.raw;
        place.hold(Instant::now(), CallSite::Operation("migrate"));
        match timeout_at(deadline.instant(), migrator.run_direct(None, &mut raw, false)).await {
            Ok(result) => {
                result?;
                tracing::debug!(target: "shared_external::postgres", pool = %self.name(), "migrations are up to date");
                Ok(())
            }
            Err(_) => Err(silence(limit).into()),
        }
    }

    /// Opens connections until `min_idle` are idle, and one at the least. The first is opened alone, so
    /// that a server which is down is asked once; then up to eight at a time. It stops where all places
    /// are taken.
    ///
    /// # Errors
    ///
    /// Why they could not be had by `deadline`. Those that could stay open.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up what is being opened; what was opened stays open.
    pub async fn warm_up(&self, deadline: Deadline) -> Result<(), CallError<Error>> {
        let operation = |attempt: Attempt| Box::pin(self.pool.warm_up(attempt.deadline));
        let call = Call::read().named("warm_up").by(deadline);
        self.pipeline.run(call, &PgClassifier, operation).await
    }

    /// The pool's figures. `max` is `pool_size + max_overflow`.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    /// Refuses new calls, ends listeners, waits for calls that run and for borrowed connections, then closes
    /// those that are idle. What is still out at `deadline` is closed when it comes back.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the manager refusing new calls; call it again to wait on.
    pub async fn drain(&self, deadline: Deadline) -> Drained {
        self.pool.listeners.end();
        let calls = self.pipeline.drain(deadline).await;
        let connections = self.pool.drain(deadline).await;
        tracing::debug!(target: "shared_external::postgres", pool = %self.name(), calls = calls.abandoned, connections, "drained");
        Drained { abandoned: calls.abandoned.max(connections) }
    }

    /// The breaker in front of the database.
    #[must_use]
    pub fn breaker(&self) -> &CircuitBreaker {
        self.pipeline.breaker().expect("the pipeline is built with one")
    }

    /// The manager's name, and that of its breaker and its pool.
    #[must_use]
    pub fn name(&self) -> &Name {
        self.pool.name()
    }

    pub(crate) fn run<T, F, Fut>(
        &self,
        call: Call,
        want: Want,
        taken: CallSite,
        f: F,
    ) -> impl Future<Output = Result<T, CallError<Error>>>
    where
        F: Fn(Conn) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        let task = Task { want, idempotent: call.is_idempotent(), taken };
        async move {
            let (f, stale) = (&f, &AtomicBool::new(false));
            let operation = |attempt| Box::pin(self.attempt(attempt, task, f, stale));
            self.pipeline.run(call, &PgClassifier, operation).await
        }
    }

    /// One attempt of a closure, begun again where a host was lost. `stale` tells whether an earlier one met a stale statement cache.
    /// Large: box it, for each layer around it would hold it by value.
    pub(crate) async fn attempt<T, F, Fut>(
        &self,
        attempt: Attempt,
        task: Task,
        f: &F,
        stale: &AtomicBool,
    ) -> Result<T, Error>
    where
        F: Fn(Conn) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let hurried = attempt.deadline.remaining() < SHORTEST_FAIR_ATTEMPT;
        let mut repeats = self.repeats(task.idempotent);
        loop {
            let report = Arc::new(Report::default());
            let in_all = attempt.deadline.remaining();
            let conn = self.pool.acquire_for(task.want, attempt.deadline, task.taken).await?;
            let conn = conn.reporting_to(&report);
            let result = conn.fairly(in_all, attempt.deadline, f).await.map_err(|error| {
                let Error::Sql(sql) = &error else { return error };
                let stale = is_stale_plan(&sql.error) && stale.swap(true, Ordering::Relaxed);
                let context = Context { hurried, stale, ..report.context_of(&sql.error) };
                let endpoint = report.endpoint_of(&sql.error);
                error.at(context).told_by(endpoint)
            });
            let Err(mut error) = result else { return result };
            if !repeats.may_follow(&mut error) {
                return Err(error);
            }
            tracing::debug!(target: "shared_external::postgres", pool = %self.name(), %error, "begun again on another connection");
        }
    }

    pub(crate) fn repeats(&self, idempotent: bool) -> Repeats<'_> {
        Repeats::new(self.pool.connector.topology(), idempotent)
    }

    /// [`acquire`](Self::acquire), for whom `taken` says.
    pub(crate) async fn borrow(&self, taken: CallSite) -> Result<Conn, Error> {
        match self.borrow_idle(taken) {
            Some(conn) => Ok(conn),
            // Large, and seldom needed.
            None => Box::pin(self.lease("acquire", taken, async |conn| Ok(conn))).await,
        }
    }

    /// A connection that is idle and needs no asking. To lend it is no call: no layer has a say in it, but for
    /// a circuit that is not closed.
    fn borrow_idle(&self, taken: CallSite) -> Option<Conn> {
        let is_closed = self.breaker().state() == CircuitState::Closed;
        if !is_closed || self.pipeline.is_draining() {
            return None;
        }
        Some(self.pool.acquire_idle(taken)?.limited(self.attempt_timeout))
    }

    /// A call's error as ours.
    pub(crate) fn error_of(&self, error: CallError<Error>) -> Error {
        match error {
            CallError::Draining(_) => self.pool.refusal(),
            error => Error::from_call(error),
        }
    }

    /// Lends what `prepare` makes of a connection. Until then nothing has an effect, so it may be repeated.
    async fn lease<T>(
        &self,
        name: &'static str,
        taken: CallSite,
        prepare: impl AsyncFn(Conn) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let prepare = &prepare;
        let operation = |attempt: Attempt| async move {
            let mut repeats = self.repeats(true);
            loop {
                let conn = self.pool.acquire(attempt.deadline, taken).await?;
                let result = prepare(conn.limited(self.attempt_timeout)).await;
                let Err(mut error) = result else { return result };
                if !repeats.may_follow(&mut error) {
                    return Err(error);
                }
            }
        };
        let result = self.pipeline.run(Call::read().named(name), &PgClassifier, operation).await;
        result.map_err(|error| self.error_of(error))
    }
}

/// What an attempt must know of its call.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pub(crate) want: Want,
    pub(crate) idempotent: bool,
    pub(crate) taken: CallSite,
}

impl fmt::Debug for DatabaseManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseManager").field("pool", &self.pool).finish_non_exhaustive()
    }
}

fn pipeline(config: &DatabaseConfig) -> Pipeline {
    let Tuning { resilience, acquire_timeout, .. } = &config.tuning;
    let builder = resilience.pipeline(&config.name, *acquire_timeout, RetryBudget::default());
    // The pool is its limit.
    builder.and_then(PipelineBuilder::build).expect("the configuration was validated")
}
