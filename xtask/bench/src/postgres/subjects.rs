//! Who is measured: this project's manager, and the pools that it is compared with, each with four connections.

use std::time::Duration;

use conn_postgres::{DatabaseConfig, DatabaseConfigBuilder, DatabaseManager};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use resilience_core::Deadline;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use super::server::{CONNECTIONS, Server, sockets};

/// Of tasks that must never wait in vain for a connection.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a future on the runtime of sockets.
pub(super) fn on_sockets<F: Future>(future: F) -> F::Output {
    sockets().block_on(future)
}

/// Ours, at that port of the server's host.
pub(super) fn ours(server: &Server, port: u16) -> DatabaseManager {
    let config = DatabaseConfig::builder(server.url_at(port))
        .pool_size(CONNECTIONS)
        .min_idle(CONNECTIONS)
        .max_overflow(0)
        .acquire_timeout(PATIENCE)
        .runtime(sockets());
    on_sockets(connected(config))
}

/// Ours with one connection, on the runtime that asks for it.
pub(super) async fn one_of_ours(server: &Server) -> DatabaseManager {
    connected(DatabaseConfig::builder(server.url_at(server.port())).pool_size(1).max_overflow(0))
        .await
}

/// Ours with these settings, connected.
pub(super) async fn connected(config: DatabaseConfigBuilder) -> DatabaseManager {
    let config = config.build().expect("the settings are valid");
    let db = DatabaseManager::connect(config).expect("the settings are valid");
    db.warm_up(Deadline::within(PATIENCE)).await.expect("the server answers");
    db
}

/// sqlx's own pool; it asks each connection whether it lives before it lends it, unless told otherwise.
pub(super) fn pg_pool(server: &Server, tested: bool) -> PgPool {
    let options = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .min_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE)
        .test_before_acquire(tested);
    on_sockets(options.connect_with(server.options())).expect("the server answers")
}

/// The same with one connection, on the runtime that asks for it.
pub(super) async fn one_pg_pool(server: &Server) -> PgPool {
    let options = PgPoolOptions::new().max_connections(1);
    options.connect_with(server.options()).await.expect("the server answers")
}

/// deadpool's pool of tokio-postgres, which asks nothing before it lends.
pub(super) fn deadpool(server: &Server) -> Pool {
    let config = server.url_at(server.port()).parse().expect("it is a URL");
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(config, tokio_postgres::NoTls, recycling);
    let pool = Pool::builder(manager).max_size(CONNECTIONS as usize).build();
    let pool = pool.expect("it needs no timeouts");
    drop(on_sockets(pool.get()).expect("the server answers"));
    pool
}
