//! The server, and the runtime on which connections to it live.

use std::str::FromStr;
use std::sync::LazyLock;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::runtime::{Builder, Runtime};

use super::throwaway::Throwaway;

/// How many connections each pool has.
pub const CONNECTIONS: u32 = 4;

/// Where sockets are driven: by threads of its own, so that those that are timed do their subjects' work alone.
static SOCKETS: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("it needs no resources")
});

/// A PostgreSQL for one run. It ends with it.
pub struct Server {
    process: Throwaway,
}

impl Server {
    /// Starts one.
    #[must_use]
    pub fn start() -> Self {
        let mut process = Throwaway::new();
        SOCKETS.block_on(process.start());
        Self { process }
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.process.port
    }

    /// Its URL, as if it listened on `port`.
    #[must_use]
    pub fn url_at(&self, port: u16) -> String {
        self.process.url().replace(&format!(":{}/", self.port()), &format!(":{port}/"))
    }

    /// How sqlx alone connects to it.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::from_str(&self.process.url()).expect("it is a URL")
    }

    /// The processes that serve its connections.
    pub async fn backends(&self) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'";
        let mut connection = self.connect().await;
        sqlx::query_scalar(sql).fetch_all(&mut connection).await.expect("the server answers")
    }

    /// A connection past every pool.
    pub async fn connect(&self) -> PgConnection {
        self.options().connect().await.expect("the server was started")
    }
}

/// The handle of the runtime of sockets.
#[must_use]
pub(super) fn sockets() -> tokio::runtime::Handle {
    SOCKETS.handle().clone()
}
