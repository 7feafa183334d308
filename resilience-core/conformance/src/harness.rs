//! What the author of a connector writes: how to make a manager, and what its operations are on the server.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use resilience_core::{
    Address, Call, CallError, CredentialProvider, Credentials, Deadline, Drained, Failed, Health,
    HealthCheck, Name, Replay, Verdict, WatchedEndpoints,
};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::{Capability, Support};

/// A connector and a server to try it on.
///
/// The server may be shared: all that is counted on it is counted under keys that no other run has.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// Where the server listens, as `host:port`. Only the suite's wires lead there.
    fn server(&self) -> String;

    /// A user whom the server lets in, and the password, which must never be shown.
    fn credentials(&self) -> Credentials;

    /// Whether the connector has `capability`.
    fn support(&self, capability: Capability) -> Support;

    /// What a connection begins with that only looks whether the server is there, where the connector makes
    /// such: the suite's wires do not count them.
    fn looks(&self) -> Vec<u8> {
        Vec::new()
    }

    /// A manager under `setup`. The suite tries whether that does any I/O.
    ///
    /// # Errors
    ///
    /// The text of the error for settings that are refused.
    fn connect(&self, setup: &Setup) -> Result<Arc<dyn Subject>, String>;

    /// How settings under `setup` show themselves, in the making and made: each `{:?}` that there is.
    fn shown(&self, setup: &Setup) -> Vec<String>;

    /// How often the server has executed [`Work::Count`] with `key`, asked past the manager and the wire.
    async fn executed(&self, key: &str) -> u64;
}

/// A manager under test; `Debug` is its own.
#[async_trait]
pub trait Subject: fmt::Debug + Send + Sync + 'static {
    /// The manager, as whoever watches it sees it.
    fn watched(&self) -> &dyn HealthCheck;

    /// Does `work` by way of `way`, with one lent connection an attempt.
    ///
    /// `error.map_inner(|error| Told::of(&error))` makes the error.
    async fn run(&self, way: Way, work: Work) -> Result<String, CallError<Told>>;

    /// The manager's `health()`, whose time is its own.
    async fn health(&self) -> Health;

    /// The manager's `warm_up(deadline)`.
    async fn warm_up(&self, deadline: Deadline) -> Result<(), Told>;

    /// The manager's `drain(deadline)`.
    async fn drain(&self, deadline: Deadline) -> Drained;

    /// A clone of the manager.
    fn twin(&self) -> Arc<dyn Subject>;
}

/// By which of the manager's methods a call is made.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Way {
    /// `read`.
    Read,
    /// `write`.
    Write,
    /// `write_idempotent`.
    WriteIdempotent,
    /// `call`, with a name or a deadline of its own.
    Call(Call),
    /// `transaction`, if the connector has it; else [`unsupported`].
    Transaction,
}

/// What a closure does with the connection that it is lent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Work {
    /// Nothing: the connection goes back as it came.
    Nothing,
    /// The server sends this text back, and it is the value.
    Echo(String),
    /// The server adds one to what [`Harness::executed`] counts under this key, in one round trip.
    Count(String),
    /// The same, and then the closure fails with an error of the application's own.
    CountAndFail(String),
    /// The server takes this long to answer.
    Take(Duration),
    /// The server answers that the request is wrong.
    Refused,
    /// [`Gate::pass`], with the connection in hand.
    Hold(Gate),
    /// The closure panics, with the connection in hand.
    Panic,
    /// Reads one row of many as they come, and leaves the rest; if the connector has streams, else [`unsupported`].
    Glance,
}

/// Where closures stop until they are let through. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    open: Arc<Semaphore>,
    arrived: Arc<AtomicUsize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { open: Arc::new(Semaphore::new(0)), arrived: Arc::default() }
    }
}

impl Gate {
    /// Waits until the gate is open.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind but the count of those who arrived.
    pub async fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        // Closed means open for ever.
        let _ = self.open.acquire().await.map(tokio::sync::SemaphorePermit::forget);
    }

    /// Lets everyone through, now and later.
    pub fn open(&self) {
        self.open.close();
    }

    /// How many have come to it so far.
    #[must_use]
    pub fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// An error of the connector's as it shows itself.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its `Display`.
    pub text: String,
    /// Its `Debug`, and the `Display` of whatever caused it.
    pub debug: String,
}

impl Told {
    /// What `error` shows of itself.
    pub fn of(error: &dyn Error) -> Self {
        let mut debug = format!("{error:?}");
        let mut cause = error.source();
        while let Some(error) = cause {
            debug.push_str(&format!("; {error}"));
            cause = error.source();
        }
        Self { text: error.to_string(), debug }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The answer of a subject that has no such [`Way`] or [`Work`].
#[must_use]
pub fn unsupported(what: impl fmt::Debug) -> CallError<Told> {
    let text = format!("this connector has no {what:?}");
    let error = Told { debug: text.clone(), text };
    CallError::Inner(Failed {
        error,
        verdict: Verdict::caller(Replay::Never),
        attempts: 1,
        elapsed: None,
    })
}

/// The settings of a manager to be made. What a connector has no setting for it passes over.
#[derive(Clone)]
#[non_exhaustive]
pub struct Setup {
    /// The manager's name, of this behaviour alone.
    pub name: Name,
    /// Where to connect, in place of the server.
    pub address: Address,
    /// Where to connect, now and later, in place of `address`.
    pub endpoints: Option<WatchedEndpoints>,
    /// Who we are: [`Harness::credentials`], or a password that is wrong.
    pub credentials: Credentials,
    /// Where credentials come from, in place of these; only where [`Capability::CredentialRotation`] is given.
    pub provider: Option<Arc<dyn CredentialProvider>>,
    /// Connections, or calls where there is no pool, that may be lent at once; none beyond.
    pub limit: u32,
    /// Of these, how many are kept idle.
    pub min_idle: u32,
    /// Time to open a connection.
    pub connect_timeout: Duration,
    /// Time to wait for a place among `limit`.
    pub acquire_timeout: Duration,
    /// Time of one attempt.
    pub attempt_timeout: Duration,
    /// Time of a call whose caller sets none.
    pub deadline: Duration,
    /// Attempts after the first.
    pub max_retries: u32,
    /// The first wait between attempts.
    pub base_delay: Duration,
    /// The longest wait between attempts.
    pub max_delay: Duration,
    /// Failures in a row that open the circuit.
    pub fail_max: u32,
    /// How long it stays open before a probe.
    pub reset_timeout: Duration,
    /// Probes that must succeed to close it.
    pub success_threshold: u32,
    /// How long a connection may lie idle.
    pub idle_timeout: Duration,
    /// How long a connection may live.
    pub max_lifetime: Duration,
    /// How long a connection may be held before that is told; `None` for ever.
    pub leak_threshold: Option<Duration>,
    /// The runtime on which connections live; `None` for that of whoever uses the manager.
    pub runtime: Option<Handle>,
}

impl Setup {
    /// Settings under which nothing takes long, nothing is repeated, and the circuit stays closed.
    pub(crate) fn new(name: Name, address: Address, credentials: Credentials) -> Self {
        const LONG: Duration = Duration::from_secs(600);
        Self {
            name,
            address,
            endpoints: None,
            credentials,
            provider: None,
            limit: 3,
            min_idle: 0,
            connect_timeout: Duration::from_secs(2),
            acquire_timeout: Duration::from_secs(2),
            attempt_timeout: Duration::from_secs(3),
            deadline: Duration::from_secs(8),
            max_retries: 0,
            base_delay: Duration::from_millis(5),
            max_delay: Duration::from_millis(20),
            fail_max: 100_000,
            reset_timeout: LONG,
            success_threshold: 1,
            idle_timeout: LONG,
            max_lifetime: LONG,
            leak_threshold: None,
            runtime: None,
        }
    }
}
