//! Where to connect: the addresses of the URL or of a watched set, best first, and what was seen of each.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use resilience_core::{Endpoint, EndpointSet, Role, WatchedEndpoints};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::look::Look;
use crate::role::Rules;
use crate::topology::Topology;

/// One address, and what was seen of it. Connections hold the origin they came from.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) endpoint: Endpoint,
    /// As errors and logs name it.
    pub(crate) label: Arc<str>,
    /// Whether it is slow or silent.
    pub(crate) look: Look,
    /// Rises with each loss: connections of an earlier epoch are suspect.
    epoch: AtomicU64,
    /// It failed when last tried, or takes no writes: others come first.
    demoted: AtomicBool,
    /// It is no longer among the endpoints.
    retired: AtomicBool,
    /// It fell silent, and somebody asks whether it is back.
    is_awaited: Arc<AtomicBool>,
    /// Hears of each loss.
    topology: Weak<Topology>,
}

impl Origin {
    pub(crate) fn new(
        endpoint: Endpoint,
        topology: Weak<Topology>,
        runtime: Option<Handle>,
    ) -> Self {
        Self {
            topology,
            label: endpoint.address.to_string().into(),
            look: Look::at(&endpoint.address, runtime),
            endpoint,
            epoch: AtomicU64::new(0),
            demoted: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            is_awaited: Arc::default(),
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether a connection opened in `epoch` may still be used.
    pub(crate) fn is_current(&self, epoch: u64) -> bool {
        !self.is_retired() && self.epoch() == epoch
    }

    /// Whether it is no longer among the endpoints.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Makes all connections up to `epoch` suspect, since one of them was lost.
    pub(crate) fn lost(&self, epoch: u64) {
        if self.epoch.fetch_max(epoch + 1, Ordering::AcqRel) <= epoch {
            tracing::debug!(target: "shared_external::postgres", endpoint = %self.label, "connection lost; those opened before it are not used again");
            if let Some(topology) = self.topology.upgrade() {
                topology.alarm(self);
            }
        }
    }

    /// Makes all connections opened until now suspect: it is not what it was when they were.
    pub(crate) fn condemn(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The task of asking whether it is back, unless somebody has it.
    pub(crate) fn await_comeback(&self) -> Option<Awaited> {
        let is_free = !self.is_awaited.swap(true, Ordering::AcqRel);
        is_free.then(|| Awaited(Arc::clone(&self.is_awaited)))
    }

    pub(crate) fn demote(&self, demoted: bool) {
        self.demoted.store(demoted, Ordering::Release);
    }
}

/// The task of asking whether a silent endpoint is back. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Awaited(Arc<AtomicBool>);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The endpoints as they are now.
#[derive(Debug)]
pub(crate) struct Endpoints {
    watched: WatchedEndpoints,
    /// The generation of the set that `known` was made from.
    seen: AtomicU64,
    /// Nobody is left to change the set, and its last generation was seen.
    settled: AtomicBool,
    known: Mutex<Vec<Arc<Origin>>>,
    /// From where to look at them.
    runtime: Option<Handle>,
    /// What is known of their roles.
    pub(crate) topology: Arc<Topology>,
}

impl Endpoints {
    /// These, for ever.
    pub(crate) fn fixed(endpoints: Vec<Endpoint>, rules: Rules, runtime: Option<Handle>) -> Self {
        // The receiver goes on showing the last value without its sender.
        let (_, receiver) = watch::channel(EndpointSet::fixed(endpoints));
        Self::watched(receiver, rules, runtime)
    }

    /// Those of a set that changes.
    pub(crate) fn watched(
        watched: WatchedEndpoints,
        rules: Rules,
        runtime: Option<Handle>,
    ) -> Self {
        let endpoints = Self {
            watched,
            seen: AtomicU64::new(0),
            settled: AtomicBool::new(false),
            known: Mutex::default(),
            runtime,
            topology: Arc::new(Topology::new(rules)),
        };
        endpoints.learn();
        endpoints
    }

    /// Follows the set if it has changed; says whether it had.
    pub(crate) fn refresh(&self) -> bool {
        if self.settled.load(Ordering::Acquire) {
            return false;
        }
        // Asked first: what is seen after that is the last.
        let is_last = self.watched.has_changed().is_err();
        let changed = self.watched.borrow().generation != self.seen.load(Ordering::Acquire);
        if changed {
            self.learn();
        }
        self.settled.store(is_last, Ordering::Release);
        changed
    }

    /// The set, to wait for its changes.
    pub(crate) fn subscribe(&self) -> WatchedEndpoints {
        self.watched.clone()
    }

    /// All of them, in the set's order.
    pub(crate) fn all(&self) -> Vec<Arc<Origin>> {
        self.lock().clone()
    }

    /// Those to try, best first: the set's order, but a replica after a primary, and last whatever
    /// failed when last tried.
    pub(crate) fn candidates(&self) -> Vec<Arc<Origin>> {
        let mut candidates = self.lock().clone();
        candidates.sort_by_key(|origin| {
            (origin.demoted.load(Ordering::Acquire), origin.endpoint.role == Role::Replica)
        });
        candidates
    }

    /// Makes every connection suspect that was opened until now: who we are to the server has changed.
    pub(crate) fn retire_connections(&self) {
        for origin in self.lock().iter() {
            origin.condemn();
        }
    }

    fn learn(&self) {
        let set = self.watched.borrow().clone();
        let mut known = self.lock();
        let next: Vec<_> = set
            .candidates()
            .into_iter()
            .map(|endpoint| {
                let same = |origin: &&Arc<Origin>| {
                    origin.endpoint.address == endpoint.address
                        && origin.endpoint.role == endpoint.role
                        && origin.endpoint.server_name() == endpoint.server_name()
                };
                match known.iter().find(same) {
                    Some(origin) => Arc::clone(origin),
                    None => {
                        let topology = Arc::downgrade(&self.topology);
                        Arc::new(Origin::new(endpoint.clone(), topology, self.runtime.clone()))
                    }
                }
            })
            .collect();
        for origin in
            known.iter().filter(|origin| !next.iter().any(|next| Arc::ptr_eq(next, origin)))
        {
            origin.retired.store(true, Ordering::Release);
        }
        for origin in &next {
            origin.demote(false);
        }
        tracing::debug!(
            target: "shared_external::postgres",
            endpoints = ?next.iter().map(|origin| &*origin.label).collect::<Vec<_>>(),
            "endpoints",
        );
        self.topology.follow(&next);
        *known = next;
        self.seen.store(set.generation, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Origin>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use resilience_core::Address;

    use super::*;
    use crate::role::ReadFrom;

    const RULES: Rules = Rules {
        attrs: None,
        read_from: ReadFrom::Primary,
        max_replica_lag: Duration::from_secs(10),
    };

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(Address::new("db", port))
    }

    fn ports(endpoints: &Endpoints) -> Vec<u16> {
        let candidates = endpoints.candidates();
        candidates.iter().map(|origin| origin.endpoint.address.port()).collect()
    }

    #[test]
    fn what_failed_is_tried_last() {
        let endpoints = Endpoints::fixed(vec![endpoint(1), endpoint(2)], RULES, None);
        assert_eq!(ports(&endpoints), [1, 2]);
        endpoints.candidates()[0].demote(true);
        assert_eq!(ports(&endpoints), [2, 1]);
    }

    #[test]
    fn a_loss_condemns_what_was_opened_before_it_and_nothing_later() {
        let origin = Origin::new(endpoint(1), Weak::new(), None);
        let before = origin.epoch();
        origin.lost(before);
        assert!(!origin.is_current(before) && origin.is_current(origin.epoch()));
        let after = origin.epoch();
        origin.lost(before);
        assert!(origin.is_current(after), "an old connection's loss says nothing of new ones");
    }

    #[test]
    fn the_last_set_is_followed_though_its_sender_is_gone() {
        let (sender, receiver) = watch::channel(EndpointSet::fixed(vec![endpoint(1)]));
        let endpoints = Endpoints::watched(receiver, RULES, None);
        assert!(!endpoints.refresh());
        sender.send_modify(|set| {
            set.endpoints = vec![endpoint(2)].into();
            set.generation += 1;
        });
        drop(sender);
        assert!(endpoints.refresh() && !endpoints.refresh());
        assert_eq!(ports(&endpoints), [2]);
    }

    #[test]
    fn an_endpoint_that_leaves_the_set_is_retired_and_one_that_stays_is_kept() {
        let (sender, receiver) = watch::channel(EndpointSet::fixed(vec![endpoint(1), endpoint(2)]));
        let endpoints = Endpoints::watched(receiver, RULES, None);
        let before = endpoints.candidates();
        assert!(!endpoints.refresh());
        sender.send_modify(|set| {
            set.endpoints = vec![endpoint(2), endpoint(3)].into();
            set.generation += 1;
        });
        assert!(endpoints.refresh());
        assert_eq!(ports(&endpoints), [2, 3]);
        assert!(!before[0].is_current(0) && before[1].is_current(0));
    }
}
