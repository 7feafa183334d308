//! One service: its tracker, and the watch on what it knows.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resilience_core::{Address, Endpoint, EndpointSet, Freshness, Outcome, WatchedEndpoints};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::LOG;
use crate::error::NoEndpoint;
use crate::tracker::{Change, Sight, Thresholds, Tracker, Turn};

/// A service by name, shared by the registry, the prober and the source.
#[derive(Debug)]
pub(crate) struct Service {
    name: Arc<str>,
    state: Mutex<State>,
    watched: watch::Sender<EndpointSet>,
    dropped: AtomicU64,
    /// Wakes the source: its endpoints fail.
    doubt: Notify,
    /// Wakes the prober: the endpoints are others.
    moved: Notify,
}

#[derive(Debug)]
struct State {
    tracker: Tracker,
    /// Counts the sources that the service has had, so that one that was replaced tells nothing more.
    source: u64,
}

impl Service {
    pub(crate) fn new(name: Arc<str>, thresholds: Thresholds, max_endpoints: usize) -> Arc<Self> {
        let tracker = Tracker::new(thresholds, max_endpoints, Instant::now());
        let watched = watch::Sender::new(tracker.set());
        Arc::new(Self {
            name,
            state: Mutex::new(State { tracker, source: 0 }),
            watched,
            dropped: AtomicU64::new(0),
            doubt: Notify::new(),
            moved: Notify::new(),
        })
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn watch(&self) -> WatchedEndpoints {
        self.watched.subscribe()
    }

    /// The endpoints as of now.
    pub(crate) fn endpoints(&self) -> Arc<[Endpoint]> {
        Arc::clone(&self.watched.borrow().endpoints)
    }

    /// The best endpoint as of now.
    pub(crate) fn pick(&self) -> Result<Endpoint, NoEndpoint> {
        let best = self.watched.borrow().candidates().first().copied().cloned();
        let Some(endpoint) = best else { return Err(self.none()) };
        tracing::debug!(
            target: LOG,
            service = %self.name, endpoint = %endpoint.id, healthy = endpoint.conditions.healthy,
            "endpoint chosen",
        );
        Ok(endpoint)
    }

    /// Takes note of what became of the endpoint `id`, seen at `address` if that is known.
    pub(crate) fn settle(
        &self,
        id: &str,
        address: Option<&Address>,
        sight: Sight,
        outcome: Outcome,
    ) {
        let turn = {
            let mut state = self.lock();
            let turn = state.tracker.settle(id, address, sight, outcome, Instant::now());
            if turn.is_some() {
                self.watched.send_replace(state.tracker.set());
            }
            turn
        };
        let by = match sight {
            Sight::Probe => "probe",
            Sight::Report => "report",
        };
        match turn {
            Some(Turn::Down) => {
                tracing::debug!(target: LOG, service = %self.name, endpoint = id, by, "endpoint is unhealthy");
            }
            Some(Turn::Up { after }) => {
                tracing::debug!(target: LOG, service = %self.name, endpoint = id, by, ?after, "endpoint is healthy again");
            }
            None => {}
        }
        if turn == Some(Turn::Down) || (sight, outcome) == (Sight::Report, Outcome::Failure) {
            self.doubt.notify_one();
        }
    }

    /// Resolves when the endpoints have become others since it last did.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Endpoints dropped so far as too many.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// A feed for a new source. From now on, what earlier sources tell is ignored.
    pub(crate) fn feed(self: &Arc<Self>) -> Feed {
        let mut state = self.lock();
        state.source += 1;
        Feed { service: Arc::clone(self), source: state.source, dropping: AtomicUsize::new(0) }
    }

    fn none(&self) -> NoEndpoint {
        let state = self.lock();
        let cause = match state.tracker.freshness() {
            Freshness::Stale { cause, .. } => Arc::clone(cause),
            Freshness::Fresh { .. } => "its source names none".into(),
        };
        let next = state.tracker.next_look();
        let retry_after = next.map(|next| next.saturating_duration_since(Instant::now()));
        NoEndpoint { service: Arc::clone(&self.name), cause, retry_after }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No section can panic half-way through a change, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way by which one source tells a service its endpoints.
#[derive(Debug)]
pub(crate) struct Feed {
    service: Arc<Service>,
    source: u64,
    /// Endpoints dropped last time, so that a steady flood is logged once.
    dropping: AtomicUsize,
}

impl Feed {
    #[cfg(feature = "kubernetes")]
    pub(crate) fn service(&self) -> &Arc<str> {
        &self.service.name
    }

    /// Tells the endpoints, trusted until `until`.
    pub(crate) fn adopt(&self, endpoints: Vec<Endpoint>, until: Option<Instant>) {
        let Some((change, dropped)) = self.apply(|tracker| {
            let (change, dropped) = tracker.adopt(endpoints, until);
            (change, (change, dropped))
        }) else {
            return;
        };
        let service = &self.service;
        if change == (Change::Set { endpoints: true }) {
            service.moved.notify_one();
            let now: Vec<_> = service.endpoints().iter().map(|e| e.id.to_string()).collect();
            tracing::debug!(target: LOG, service = %service.name, endpoints = now.join(","), "endpoints changed");
        }
        service.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
        if self.dropping.swap(dropped, Ordering::Relaxed) != dropped && dropped > 0 {
            tracing::warn!(target: LOG, service = %service.name, dropped, "too many endpoints; the last ones are dropped");
        }
    }

    /// Tells that there is nothing new to tell, because of `cause`, until `next_look` if that is known.
    pub(crate) fn distrust(&self, cause: &str, next_look: Option<Instant>) {
        self.apply(|tracker| (tracker.distrust(cause, next_look, Instant::now()), ()));
    }

    /// Resolves when an endpoint has failed since it last did.
    #[cfg(feature = "kubernetes")]
    pub(crate) async fn doubted(&self) {
        self.service.doubt.notified().await;
    }

    /// Changes the tracker and shows the change, unless another source has taken over.
    fn apply<T>(&self, change: impl FnOnce(&mut Tracker) -> (Change, T)) -> Option<T> {
        // Shown under the lock: else an older set could be shown last.
        let mut state = self.service.lock();
        if state.source != self.source {
            return None;
        }
        let (change, told) = change(&mut state.tracker);
        match change {
            Change::Quiet => {
                self.service.watched.send_if_modified(|set| {
                    set.freshness = state.tracker.freshness().clone();
                    false
                });
            }
            Change::Set { .. } => {
                self.service.watched.send_replace(state.tracker.set());
            }
        }
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Arc<Service> {
        Service::new("redis".into(), Thresholds { fall: 2, rise: 1 }, 2)
    }

    fn endpoints(ports: std::ops::Range<u16>) -> Vec<Endpoint> {
        ports.map(|port| Endpoint::new(Address::new("10.0.0.1", port))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_was_replaced_tells_nothing_more() {
        let service = service();
        let first = service.feed();
        first.adopt(endpoints(1..2), None);
        let second = service.feed();
        second.adopt(endpoints(2..3), None);
        first.adopt(endpoints(1..2), None);
        first.distrust("gone", None);
        assert_eq!(&*service.pick().unwrap().id, "10.0.0.1:2");
        assert!(matches!(service.watch().borrow().freshness, Freshness::Fresh { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn watchers_are_woken_by_changes_only() {
        let service = service();
        let feed = service.feed();
        feed.adopt(endpoints(1..3), None);
        let mut watched = service.watch();
        feed.adopt(endpoints(1..3), Some(Instant::now()));
        service.settle("10.0.0.1:1", None, Sight::Report, Outcome::Failure);
        service.settle("10.0.0.1:1", None, Sight::Report, Outcome::Success);
        assert!(!watched.has_changed().unwrap());
        assert!(
            matches!(watched.borrow().freshness, Freshness::Fresh { until: Some(_) }),
            "the time of the next look is shown all the same"
        );
        service.settle("10.0.0.1:1", None, Sight::Report, Outcome::Failure);
        service.settle("10.0.0.1:1", None, Sight::Report, Outcome::Failure);
        assert!(watched.has_changed().unwrap());
        let set = watched.borrow_and_update();
        assert_eq!((set.generation, &*set.candidates()[0].id), (2, "10.0.0.1:2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_whose_endpoints_are_all_down_is_not_cut_off() {
        let service = service();
        service.feed().adopt(endpoints(1..3), None);
        for id in ["10.0.0.1:1", "10.0.0.1:2"] {
            service.settle(id, None, Sight::Probe, Outcome::Failure);
            service.settle(id, None, Sight::Probe, Outcome::Failure);
        }
        let watched = service.watch();
        assert!(watched.borrow().endpoints.iter().all(|endpoint| !endpoint.conditions.healthy));
        assert_eq!(watched.borrow().candidates().len(), 2);
        assert_eq!(&*service.pick().unwrap().id, "10.0.0.1:1");
    }

    #[tokio::test(start_paused = true)]
    async fn what_too_long_a_list_loses_is_counted() {
        let service = service();
        let feed = service.feed();
        feed.adopt(endpoints(1..6), None);
        feed.adopt(endpoints(1..6), None);
        assert_eq!((service.endpoints().len(), service.dropped()), (2, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_known_says_why_and_when_to_come_back() {
        let service = service();
        let feed = service.feed();
        assert_eq!(
            service.pick().unwrap_err().to_string(),
            "no endpoint of \"redis\" is known: not looked up yet"
        );
        let second = std::time::Duration::from_secs(1);
        feed.distrust("no such host", Some(Instant::now() + second));
        let none = service.pick().unwrap_err();
        assert_eq!(none.to_string(), "no endpoint of \"redis\" is known: no such host");
        assert_eq!(none.retry_after, Some(second));
    }
}
