//! A small crowdfunding API: the reference for how an application uses `shared-external`.

mod campaigns;
mod donations;
mod error;
mod prepare;
mod search;
mod seed;
mod sessions;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use shared_external::{Config, DatabaseManager, OpenSearchManager, RedisManager};
use tokio::net::TcpListener;

/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(2);
/// How long requests in flight may take once we were told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// The largest body of a request, in bytes.
const LARGEST: usize = 16 * 1024;

/// What the handlers share.
#[derive(Clone, Debug)]
struct App {
    database: DatabaseManager,
    redis: RedisManager,
    opensearch: OpenSearchManager,
    /// Whether the index is known to hold all campaigns.
    indexed: Arc<AtomicBool>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    shared_external::init(Config::from_env()?)?;
    let app = App {
        database: shared_external::get_database()?,
        redis: shared_external::get_redis_client()?,
        opensearch: shared_external::get_opensearch_client()?,
        indexed: Arc::default(),
    };
    prepare::in_background(&app);
    shared_external::setup_default_monitoring().await?;

    let address = std::env::var("CAMPAIGNS_LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
    let listener =
        TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))?;
    tracing::info!(%address, "campaigns is listening");
    shared_external::axum::serve(listener, routes(app), GRACE).await?;
    Ok(())
}

fn routes(app: App) -> Router {
    let api = Router::new()
        .route("/campaigns", get(search::search))
        .route("/campaigns/{id}", get(campaigns::show))
        .route("/campaigns/{id}/donations", post(donations::donate))
        .route("/session", post(sessions::begin).get(sessions::show).delete(sessions::end))
        .layer(DefaultBodyLimit::max(LARGEST))
        .with_state(app);
    shared_external::axum::with_deadline(api, REQUEST).merge(shared_external::axum::health_routes())
}
