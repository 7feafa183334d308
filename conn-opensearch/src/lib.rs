//! OpenSearch behind a circuit breaker, retries and deadlines, on the `opensearch` client.
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use conn_opensearch::opensearch::SearchParts;
//! use conn_opensearch::{OpenSearchConfig, OpenSearchManager, json};
//! use serde_json::Value;
//!
//! // OPENSEARCH_URL, OPENSEARCH_USERNAME, OPENSEARCH_PASSWORD, OPENSEARCH_CA_FILE …
//! let search = OpenSearchManager::connect(OpenSearchConfig::from_env()?)?;
//! let found: Value = search
//!     .read(|node| async move {
//!         let query = serde_json::json!({"query": {"match": {"title": "wells"}}});
//!         json(node.search(SearchParts::Index(&["campaigns"])).body(query).send().await?).await
//!     })
//!     .await?;
//! println!("{} campaigns", found["hits"]["total"]["value"]);
//! # Ok(()) }
//! ```
//!
//! What the client does not do by itself, and this does: an answer of 400 and above is an error
//! ([`check`], [`json`]); each attempt has a time limit; a node that fails is passed over, and a
//! repeated attempt goes to another; nothing is sent twice that may have been executed, unless it is
//! marked idempotent; `_bulk` has a verdict per item ([`BulkOutcome`]).
//!
//! Deliberately absent: HTTP/2 (a build-wide switch of the HTTP client), proxies of the environment,
//! and a limit on sockets, which the client does not have: the bulkhead bounds requests in flight.

mod bulk;
mod classify;
mod config;
pub mod defaults;
mod error;
mod health;
mod manager;
mod node;
mod nodes;
mod response;
mod sent;
mod suspicion;
mod transport;
mod tuning;
mod urls;

pub use bulk::{BulkItem, BulkOutcome};
pub use classify::OpenSearchErrors;
pub use config::{OpenSearchConfig, OpenSearchConfigBuilder};
pub use error::{Error, ErrorKind, Status};
pub use manager::OpenSearchManager;
pub use node::Node;
pub use opensearch;
pub use resilience_core::settings::ConfigError;
pub use response::{check, json};
