//! One node of the cluster: its client, what is remembered of it, and the guard that lends it.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use opensearch::OpenSearch;
use opensearch::http::Url;
use tokio::time::Instant;

use crate::error::node_name;
use crate::suspicion::Suspicion;
use crate::transport::{self, Access, Unusable};

/// A node of the cluster, lent to one attempt: the `opensearch` client that talks to it and to no other.
///
/// While it is held it counts as in use in [`status`](crate::OpenSearchManager::status). What it
/// shows of itself is its name. (The `Debug` of the client it lends shows the client certificate's
/// key, if there is one, as bytes; passwords it does not show.)
///
/// ```
/// # async fn doc(search: conn_opensearch::OpenSearchManager) -> Result<(), Box<dyn std::error::Error>> {
/// use conn_opensearch::opensearch::SearchParts;
/// use serde_json::{Value, json};
///
/// let hits: Value = search
///     .read(|node| async move {
///         let request = node.search(SearchParts::Index(&["campaigns"]));
///         conn_opensearch::json(request.body(json!({"query": {"match_all": {}}})).send().await?).await
///     })
///     .await?;
/// # Ok(()) }
/// ```
pub struct Node {
    peer: Arc<Peer>,
    in_use: Arc<AtomicUsize>,
}

impl Node {
    pub(crate) fn lend(peer: Arc<Peer>, in_use: &Arc<AtomicUsize>) -> Self {
        in_use.fetch_add(1, Ordering::Relaxed);
        Self { peer, in_use: Arc::clone(in_use) }
    }

    /// The node, as `scheme://host:port`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.peer.name
    }
}

impl Deref for Node {
    type Target = OpenSearch;

    fn deref(&self) -> &OpenSearch {
        &self.peer.client
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&self.peer.name).finish()
    }
}

/// A node as the manager keeps it. Dropping the last reference closes its idle connections.
pub(crate) struct Peer {
    pub(crate) name: Arc<str>,
    pub(crate) url: Url,
    pub(crate) client: OpenSearch,
    suspicion: Mutex<Suspicion>,
    stray: Arc<AtomicUsize>,
}

impl Peer {
    pub(crate) fn new(url: Url, access: &Access) -> Result<Self, Unusable> {
        let stray = Arc::default();
        let client = transport::client(&url, access, Arc::clone(&stray))?;
        Ok(Self { name: node_name(&url), url, client, suspicion: Mutex::default(), stray })
    }

    /// Requests sent from outside any attempt, so far.
    pub(crate) fn stray(&self) -> usize {
        self.stray.load(Ordering::Relaxed)
    }

    pub(crate) fn passed_over(&self, now: Instant) -> bool {
        self.suspicion().passed_over(now)
    }

    pub(crate) fn tried(&self, now: Instant) {
        self.suspicion().tried(now);
    }

    pub(crate) fn failed(&self, started: Instant, now: Instant) {
        tracing::debug!(target: "shared_external::opensearch", node = %self.name, "node failed; passed over for a while");
        self.suspicion().failed(started, now);
    }

    pub(crate) fn succeeded(&self, started: Instant) {
        self.suspicion().succeeded(started);
    }

    fn suspicion(&self) -> MutexGuard<'_, Suspicion> {
        self.suspicion.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peer").field(&self.name).finish()
    }
}
