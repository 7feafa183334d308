//! The nodes there are, and which of them gets the next attempt.
//!
//! Round robin over those of the lowest priority that are not passed over. An attempt that repeats
//! another goes to a node that the call has not been to, as long as there is one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use opensearch::http::Url;
use resilience_core::{Endpoint, WatchedEndpoints};
use tokio::time::Instant;

use crate::node::Peer;
use crate::transport::{Access, Unusable};

/// All nodes of one manager.
#[derive(Debug)]
pub(crate) struct Nodes {
    current: ArcSwap<Set>,
    followed: Option<Followed>,
    turn: AtomicUsize,
}

/// Where the nodes come from, if not from the configuration alone.
#[derive(Debug)]
struct Followed {
    endpoints: WatchedEndpoints,
    /// Scheme and path of every node.
    pattern: Url,
    access: Access,
    /// Held by the one who builds the next set.
    building: Mutex<()>,
}

#[derive(Debug, Default)]
struct Set {
    nodes: Vec<Placed>,
    /// What the set was built from.
    source: Option<(Arc<[Endpoint]>, u64)>,
    /// There will be no other set.
    last: bool,
}

#[derive(Clone, Debug)]
struct Placed {
    priority: u32,
    peer: Arc<Peer>,
}

impl Nodes {
    /// Those at `urls`, for ever.
    pub(crate) fn fixed(urls: &[Url], access: &Access) -> Result<Self, Unusable> {
        let place =
            |url: &Url| Ok(Placed { priority: 0, peer: Arc::new(Peer::new(url.clone(), access)?) });
        let nodes = urls.iter().map(place).collect::<Result<_, _>>()?;
        let set = Set { nodes, ..Set::default() };
        Ok(Self { current: ArcSwap::from_pointee(set), followed: None, turn: AtomicUsize::new(0) })
    }

    /// Those of `endpoints`, as they change; scheme and path are those of `pattern`.
    pub(crate) fn followed(endpoints: WatchedEndpoints, pattern: Url, access: Access) -> Self {
        let followed = Followed { endpoints, pattern, access, building: Mutex::default() };
        Self { current: ArcSwap::default(), followed: Some(followed), turn: AtomicUsize::new(0) }
    }

    /// The node for the next attempt of a call that was at `tried` already.
    pub(crate) fn pick(&self, tried: &[Arc<Peer>], now: Instant) -> Option<Arc<Peer>> {
        let set = self.refreshed();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = set.nodes.len();
        let in_turn = (0..count).map(|step| &set.nodes[turn.wrapping_add(step) % count]);
        let picked = in_turn.min_by_key(|placed| {
            let times = tried.iter().filter(|peer| Arc::ptr_eq(peer, &placed.peer)).count();
            (times, placed.peer.passed_over(now), placed.priority)
        })?;
        picked.peer.tried(now);
        Some(Arc::clone(&picked.peer))
    }

    /// All nodes, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Peer>> {
        self.refreshed().nodes.iter().map(|placed| Arc::clone(&placed.peer)).collect()
    }

    /// Lets go of all nodes, for good.
    pub(crate) fn close(&self) {
        let _building = self
            .followed
            .as_ref()
            .map(|followed| followed.building.lock().unwrap_or_else(PoisonError::into_inner));
        self.current.store(Arc::new(Set { last: true, ..Set::default() }));
    }

    fn refreshed(&self) -> arc_swap::Guard<Arc<Set>> {
        let Some(followed) = &self.followed else { return self.current.load() };
        let is_current = |set: &Set| {
            let wanted = followed.endpoints.borrow();
            set.last
                || set.source.as_ref().is_some_and(|(endpoints, generation)| {
                    *generation == wanted.generation && Arc::ptr_eq(endpoints, &wanted.endpoints)
                })
        };
        let set = self.current.load();
        if is_current(&set) {
            return set;
        }
        let _building = followed.building.lock().unwrap_or_else(PoisonError::into_inner);
        let set = self.current.load();
        if !is_current(&set) {
            self.current.store(Arc::new(followed.next(&set)));
        }
        self.current.load()
    }
}

impl Followed {
    /// The set for what the endpoints are now. Nodes that stay keep their connections.
    fn next(&self, before: &Set) -> Set {
        let wanted = self.endpoints.borrow().clone();
        let mut nodes: Vec<Placed> = Vec::new();
        for endpoint in wanted.candidates() {
            let Some(url) = node_url(&self.pattern, endpoint) else {
                tracing::warn!(target: "shared_external::opensearch", endpoint = %endpoint.address, "endpoint makes no URL; left out");
                continue;
            };
            if nodes.iter().any(|placed| placed.peer.url == url) {
                continue;
            }
            let known = before.nodes.iter().find(|placed| placed.peer.url == url);
            let peer = match known.map(|placed| Arc::clone(&placed.peer)) {
                Some(peer) => peer,
                None => match Peer::new(url, &self.access) {
                    Ok(peer) => Arc::new(peer),
                    Err(unusable) => {
                        tracing::warn!(target: "shared_external::opensearch", endpoint = %endpoint.address, ?unusable, "no client for endpoint; left out");
                        continue;
                    }
                },
            };
            nodes.push(Placed { priority: endpoint.priority, peer });
        }
        let names: Vec<_> = nodes.iter().map(|placed| &*placed.peer.name).collect();
        tracing::debug!(target: "shared_external::opensearch", generation = wanted.generation, nodes = ?names, "nodes changed");
        Set { nodes, source: Some((wanted.endpoints, wanted.generation)), last: false }
    }
}

/// The URL of the node at `endpoint`.
///
/// With TLS its host is the name that the certificate must carry, and the system's resolver finds
/// the address: the client cannot connect to one host and verify another.
fn node_url(pattern: &Url, endpoint: &Endpoint) -> Option<Url> {
    let host = match pattern.scheme() {
        "https" => endpoint.server_name(),
        _ => endpoint.address.host(),
    };
    let mut url = pattern.clone();
    match host.parse() {
        Ok(ip) => url.set_ip_host(ip).ok()?,
        Err(_) => url.set_host(Some(host)).ok()?,
    }
    url.set_port(Some(endpoint.address.port())).ok()?;
    Some(url)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use resilience_core::{Address, EndpointSet};
    use tokio::sync::watch;

    use super::*;

    fn fixed(ports: &[u16]) -> Nodes {
        let urls: Vec<Url> =
            ports.iter().map(|port| format!("http://127.0.0.1:{port}/").parse().unwrap()).collect();
        Nodes::fixed(&urls, &Access::default()).unwrap()
    }

    fn port(peer: &Arc<Peer>) -> u16 {
        peer.url.port_or_known_default().unwrap()
    }

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(Address::new("127.0.0.1", port))
    }

    #[tokio::test(start_paused = true)]
    async fn every_node_gets_its_turn() {
        let nodes = fixed(&[1, 2, 3]);
        let picked: Vec<_> =
            (0..6).map(|_| port(&nodes.pick(&[], Instant::now()).unwrap())).collect();
        assert_eq!(picked, [1, 2, 3, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_attempt_goes_to_another_node_even_to_one_that_is_passed_over() {
        let nodes = fixed(&[1, 2, 3]);
        let now = Instant::now();
        let mut tried = Vec::new();
        for peer in nodes.all().iter().filter(|peer| port(peer) == 2) {
            peer.failed(now, now);
        }
        for _ in 0..3 {
            tried.push(nodes.pick(&tried, now).unwrap());
        }
        let mut ports: Vec<_> = tried.iter().map(port).collect();
        assert_eq!(ports.pop(), Some(2), "the failed node comes last");
        ports.sort_unstable();
        assert_eq!(ports, [1, 3]);
        assert!(nodes.pick(&tried, now).is_some(), "a fourth attempt has to go somewhere");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_node_is_passed_over_and_comes_back() {
        let nodes = fixed(&[1, 2]);
        let started = Instant::now();
        let one = nodes.all().remove(0);
        one.failed(started, started);
        for _ in 0..4 {
            assert_eq!(port(&nodes.pick(&[], started).unwrap()), 2);
        }
        let later = started + Duration::from_secs(1);
        let ports: Vec<_> = (0..4).map(|_| port(&nodes.pick(&[], later).unwrap())).collect();
        assert_eq!(ports.iter().filter(|port| **port == 1).count(), 1, "one on trial: {ports:?}");
        one.succeeded(later);
        let ports: Vec<_> = (0..4).map(|_| port(&nodes.pick(&[], later).unwrap())).collect();
        assert_eq!(ports.iter().filter(|port| **port == 1).count(), 2, "{ports:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_failed_all_are_tried() {
        let nodes = fixed(&[1, 2]);
        let now = Instant::now();
        for peer in nodes.all() {
            peer.failed(now, now);
        }
        let mut ports: Vec<_> = (0..2).map(|_| port(&nodes.pick(&[], now).unwrap())).collect();
        ports.sort_unstable();
        assert_eq!(ports, [1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_call_follows_the_endpoints_and_nodes_that_stay_are_kept() {
        let (sender, endpoints) = watch::channel(EndpointSet::fixed([endpoint(1), endpoint(2)]));
        let pattern = "http://ignored:9/search/".parse().unwrap();
        let nodes = Nodes::followed(endpoints, pattern, Access::default());
        let before = nodes.all();
        assert_eq!(before.iter().map(port).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(before[0].url.path(), "/search/");

        // Even where a careless source does not raise the generation.
        sender.send_replace(EndpointSet::fixed([endpoint(2), endpoint(3)]));
        let after = nodes.all();
        assert_eq!(after.iter().map(port).collect::<Vec<_>>(), [2, 3]);
        assert!(Arc::ptr_eq(&before[1], &after[0]));

        sender.send_replace(EndpointSet::fixed([]));
        assert!(nodes.pick(&[], Instant::now()).is_none());

        nodes.close();
        sender.send_replace(EndpointSet::fixed([endpoint(1)]));
        assert!(nodes.pick(&[], Instant::now()).is_none(), "closed is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_spare_node_is_used_when_the_others_failed() {
        let (_sender, endpoints) =
            watch::channel(EndpointSet::fixed([endpoint(1), endpoint(2).with_priority(1)]));
        let pattern = "http://localhost/".parse().unwrap();
        let nodes = Nodes::followed(endpoints, pattern, Access::default());
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(port(&nodes.pick(&[], now).unwrap()), 1);
        }
        nodes.all()[0].failed(now, now);
        assert_eq!(port(&nodes.pick(&[], now).unwrap()), 2);
    }

    #[test]
    fn the_certificates_name_becomes_the_host_where_there_is_tls() {
        let named = endpoint(9200).with_host_name("search.internal");
        let url = |pattern: &str| node_url(&pattern.parse().unwrap(), &named).unwrap().to_string();
        assert_eq!(url("https://x/p/"), "https://search.internal:9200/p/");
        assert_eq!(url("http://x/"), "http://127.0.0.1:9200/");
        let v6 = Endpoint::new(Address::new("::1", 9200));
        let url = node_url(&"https://x/".parse().unwrap(), &v6).unwrap();
        assert_eq!(url.to_string(), "https://[::1]:9200/");
    }
}
