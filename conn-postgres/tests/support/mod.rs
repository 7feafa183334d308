//! What the tests share: the server's address, waiting on conditions, futures that are dropped midway, a wire that can be cut.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test uses a part of it")]

pub mod bouncer;
pub mod faults;
pub mod ground;
pub mod network;
pub mod script;
pub mod throwaway;

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use conn_postgres::{DatabaseConfig, DatabaseConfigBuilder, DatabaseManager};
pub use resilience_conformance::{State, Wire};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, PgConnection};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is missing: set by `cargo xtask test`"))
}

/// Settings for the shared server, under an application name that no other test has.
pub fn config() -> (DatabaseConfigBuilder, String) {
    config_at(variable("DATABASE_URL"))
}

/// The same for the shared server at another address.
pub fn config_at(url: String) -> (DatabaseConfigBuilder, String) {
    static TESTS: AtomicUsize = AtomicUsize::new(0);
    let number = TESTS.fetch_add(1, Ordering::Relaxed);
    // The server outlives this process, and its tables too.
    let name = format!("test-{}-{number}-{:x}", std::process::id(), fastrand::u32(..));
    let builder = DatabaseConfig::builder(url)
        .ca_file(variable("DATABASE_CA_FILE"))
        .application_name(&*name)
        .pool_size(2)
        .max_overflow(0);
    (builder, name)
}

pub fn manager() -> (DatabaseManager, String) {
    manager_with(|builder| builder)
}

pub fn manager_with(
    change: impl FnOnce(DatabaseConfigBuilder) -> DatabaseConfigBuilder,
) -> (DatabaseManager, String) {
    let (builder, name) = config();
    let config = change(builder).build().unwrap();
    (DatabaseManager::connect(config).unwrap(), name)
}

/// The host and port in the URL of the shared server.
pub fn server() -> String {
    let url = variable("DATABASE_URL");
    url.rsplit_once('@').unwrap().1.split('/').next().unwrap().to_owned()
}

/// The URL of the shared server, but at another address.
pub fn url_at(address: &str) -> String {
    let url = variable("DATABASE_URL");
    let (credentials, rest) = url.rsplit_once('@').unwrap();
    format!("{credentials}@{address}/{}", rest.split_once('/').unwrap().1)
}

/// A superuser's connection to the shared server, past all that is under test.
pub async fn admin() -> PgConnection {
    let options = PgConnectOptions::from_str(&variable("TEST_DATABASE_ADMIN_URL")).unwrap();
    let options =
        options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(variable("DATABASE_CA_FILE"));
    options.connect().await.unwrap()
}

/// How many connections the server holds under that name.
pub async fn backends(admin: &mut PgConnection, name: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
    sqlx::query_scalar(sql).bind(name).fetch_one(admin).await.unwrap()
}

/// A figure of the manager's canceller.
pub fn figure(db: &DatabaseManager, name: &str) -> u64 {
    let text = format!("{db:?}");
    let (_, rest) = text.split_once(&format!("{name}: ")).unwrap_or_else(|| panic!("{text}"));
    rest.split(|it: char| !it.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Fails if `future` takes longer than `limit`, with a good second for a busy machine.
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    let generous = limit + Duration::from_millis(1500);
    timeout(generous, future).await.unwrap_or_else(|_| panic!("it took longer than {limit:?}"))
}

/// Polls a future `polls` times at the most, then lets go of it.
pub struct PollN<F> {
    future: Pin<Box<F>>,
    polls: usize,
}

impl<F: Future> PollN<F> {
    pub fn new(polls: usize, future: F) -> Self {
        Self { future: Box::pin(future), polls }
    }
}

impl<F: Future> Future for PollN<F> {
    /// `None` if it was let go.
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        match self.future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if self.polls == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Whether a connection came for a second look, and not for a session. Waits for its first bytes.
pub async fn is_look(near: &TcpStream) -> bool {
    let mut first = [0; 8];
    near.peek(&mut first).await.is_ok() && first == LOOK
}

/// What a second look begins with.
pub const LOOK: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x30];
