//! Which of several hosts is the primary, and which replicas are fresh enough: what was seen of them, and
//! what follows from it.

mod view;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resilience_core::Deadline;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::endpoints::Origin;
use crate::error::Unreachable;
use crate::role::{ReadFrom, Rules, TargetSessionAttrs};
use crate::wal::WalPosition;
use view::View;

pub(crate) use view::{Look, Outcome, Sight};

/// Between two looks at a server while all is well, ± 10 %.
const SLOW: Duration = Duration::from_secs(1);
/// The same while there is no primary, or somebody waits for a replica.
const FAST: Duration = Duration::from_millis(15);
/// What share of an outage may pass between two looks: a long one is prolonged by no more than this, and a
/// server that stays away is not asked 66 times a second for ever.
const SHARE_OF_OUTAGE: u32 = 200;

/// What is known of all hosts. Nobody looks at them unless there are several and it matters.
#[derive(Debug)]
pub(crate) struct Topology {
    rules: Rules,
    is_watched: AtomicBool,
    leads_writers: AtomicBool,
    view: Mutex<View>,
    /// Rises with everything that is seen.
    version: watch::Sender<u64>,
    /// Calls for a look at once.
    call: Notify,
    /// Who waits for a replica to catch up.
    waiting: AtomicUsize,
    turn: AtomicUsize,
}

impl Topology {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            is_watched: AtomicBool::new(false),
            leads_writers: AtomicBool::new(false),
            view: Mutex::new(View::new(rules)),
            version: watch::Sender::new(0),
            call: Notify::new(),
            waiting: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        }
    }

    /// These are the hosts from now on.
    pub(crate) fn follow(&self, origins: &[Arc<Origin>]) {
        let mut view = self.lock();
        view.follow(origins, Instant::now());
        let is_watched = self.rules.need_a_scout(origins.len());
        let leads = is_watched && view.attrs().means_the_primary();
        self.leads_writers.store(leads, Ordering::Release);
        self.is_watched.store(is_watched, Ordering::Release);
        drop(view);
        self.publish();
    }

    /// What a host must be to take connections, where it is asked as one is opened.
    pub(crate) fn attrs(&self) -> TargetSessionAttrs {
        self.lock().attrs()
    }

    /// Whether the hosts are to be looked at.
    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Acquire)
    }

    /// Whether connections are opened to the primary alone.
    pub(crate) fn leads_writers(&self) -> bool {
        self.leads_writers.load(Ordering::Acquire)
    }

    /// Whether idle connections may lead to different kinds of hosts.
    pub(crate) fn splits_reads(&self) -> bool {
        self.is_watched() && self.rules.read_from == ReadFrom::PreferReplica
    }

    /// Rises with each sign of trouble.
    pub(crate) fn alarms(&self) -> u64 {
        self.lock().alarms
    }

    /// The primary, as far as is known.
    pub(crate) fn primary(&self) -> Option<Arc<Origin>> {
        self.lock().primary.clone()
    }

    /// Whether no primary has been found yet.
    pub(crate) fn is_new(&self) -> bool {
        self.lock().last_primary.is_none()
    }

    /// Something has gone wrong with `origin`: it is not taken for the primary until a look begun after this
    /// shows it to be, and that is soon.
    pub(crate) fn alarm(&self, origin: &Origin) {
        if self.is_watched() {
            self.lock().alarm(origin, Instant::now());
            self.publish();
            self.call.notify_waiters();
        }
    }

    /// Takes up what a look at `origin` has shown; it began at `started`, when there had been so many `alarms`.
    pub(crate) fn record(
        &self,
        origin: &Arc<Origin>,
        look: Look,
        alarms: u64,
        started: Instant,
    ) -> Outcome {
        let outcome = self.lock().record(origin, look, alarms, started);
        self.publish();
        outcome
    }

    /// How long to wait before the next look.
    pub(crate) fn pace(&self) -> Duration {
        let trouble = self.lock().trouble;
        match trouble {
            Some(since) => (since.elapsed() / SHARE_OF_OUTAGE).clamp(FAST, SLOW),
            None if self.waiting.load(Ordering::Relaxed) > 0 => FAST,
            None => SLOW.mul_f64(0.9 + 0.2 * fastrand::f64()),
        }
    }

    /// Ends when a look is called for. A call is heard from the moment this was made.
    pub(crate) fn called(&self) -> Notified<'_> {
        self.call.notified()
    }

    /// Calls for a look at every host.
    pub(crate) fn call(&self) {
        self.call.notify_waiters();
    }

    /// Waits by `deadline` until every host has been looked at once, or one is known to be the primary.
    pub(crate) async fn first_look(&self, deadline: Deadline) {
        self.until(deadline, |view| view.primary.is_some() || view.is_surveyed()).await;
    }

    /// Waits by `deadline` for a primary; says whether there is one.
    pub(crate) async fn primary_by(&self, deadline: Deadline) -> bool {
        self.until(deadline, |view| view.primary.is_some()).await
    }

    /// A replica to read from that has replayed `position`, each in turn; `None` if there is none now.
    pub(crate) fn replica(&self, position: WalPosition) -> Option<Arc<Origin>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.lock().replica(position, Instant::now(), turn)
    }

    /// [`replica`](Self::replica), once there is one, by `deadline`.
    pub(crate) async fn replica_by(
        &self,
        position: WalPosition,
        deadline: Deadline,
    ) -> Option<Arc<Origin>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.call();
        let found = |view: &View| view.replica(position, Instant::now(), 0).is_some();
        self.until(deadline, found).await;
        self.replica(position)
    }

    /// Why there is no primary, host by host.
    pub(crate) fn why(&self) -> Unreachable {
        self.lock().why()
    }

    /// [`why`](Self::why), where connections are opened to the primary alone and all hosts were looked at.
    pub(crate) fn without_primary(&self) -> Option<Unreachable> {
        let view = self.lock();
        let is_without = self.leads_writers() && view.primary.is_none() && view.is_surveyed();
        is_without.then(|| view.why())
    }

    /// Whether connections are opened to the primary alone, and it was lost.
    pub(crate) fn lacks_primary(&self) -> bool {
        self.leads_writers() && {
            let view = self.lock();
            view.primary.is_none() && view.last_primary.is_some()
        }
    }

    async fn until(&self, deadline: Deadline, condition: impl Fn(&View) -> bool) -> bool {
        let mut version = self.version.subscribe();
        let seen = async {
            while !condition(&self.lock()) {
                version.changed().await.expect("the sender is borrowed");
            }
        };
        timeout_at(deadline.instant(), seen).await.is_ok()
    }

    fn publish(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Weak;

    use resilience_core::{Address, Endpoint};
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::role::Role;

    pub(super) fn rules(read_from: ReadFrom) -> Rules {
        Rules { attrs: None, read_from, max_replica_lag: Duration::from_secs(10) }
    }

    pub(super) fn origins(count: u16) -> Vec<Arc<Origin>> {
        let origin = |port| Endpoint::new(Address::new("db", port));
        (1..=count).map(|port| Arc::new(Origin::new(origin(port), Weak::new(), None))).collect()
    }

    pub(super) fn primary(timeline: u32) -> Look {
        let role = Role { is_standby: false, is_read_only: false };
        Look::Seen(Sight { role, timeline, position: Some(0.into()) })
    }

    pub(super) fn gone() -> Look {
        Look::Gone(Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused).into()))
    }

    fn see(topology: &Topology, origin: &Arc<Origin>, look: Look) -> Outcome {
        topology.record(origin, look, topology.alarms(), Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_primary_is_woken_as_one_is_seen_and_waits_no_longer_than_told() {
        let (topology, hosts) = (Topology::new(rules(ReadFrom::Primary)), origins(2));
        topology.follow(&hosts);
        assert!(topology.leads_writers());
        for host in &hosts {
            see(&topology, host, gone());
        }
        let started = Instant::now();
        assert!(!topology.primary_by(Deadline::within(Duration::from_secs(2))).await);
        assert_eq!(started.elapsed(), Duration::from_secs(2));

        let waiting = topology.primary_by(Deadline::within(Duration::from_secs(60)));
        let promoted = async {
            sleep(Duration::from_secs(3)).await;
            see(&topology, &hosts[1], primary(2));
        };
        let (found, ()) = tokio::join!(waiting, promoted);
        assert!(found);
        assert_eq!(started.elapsed(), Duration::from_secs(5), "it was not woken at once");
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_quick_in_trouble_and_a_long_outage_is_not_asked_after_for_ever() {
        let (topology, hosts) = (Topology::new(rules(ReadFrom::Primary)), origins(2));
        topology.follow(&hosts);
        for host in &hosts {
            see(&topology, host, gone());
        }
        assert_eq!(topology.pace(), FAST);
        advance(Duration::from_secs(20)).await;
        assert_eq!(topology.pace(), Duration::from_millis(100));
        advance(Duration::from_secs(3600)).await;
        assert_eq!(topology.pace(), SLOW);
        see(&topology, &hosts[0], primary(1));
        assert!(topology.pace() >= SLOW.mul_f64(0.9));
        topology.alarm(&hosts[0]);
        assert_eq!(topology.pace(), FAST);
    }

    #[tokio::test(start_paused = true)]
    async fn one_host_and_hosts_that_are_all_alike_are_left_alone() {
        let topology = Topology::new(rules(ReadFrom::Primary));
        topology.follow(&origins(1));
        assert!(!topology.is_watched() && !topology.splits_reads());
        let any = Rules { attrs: Some(TargetSessionAttrs::Any), ..rules(ReadFrom::Primary) };
        let topology = Topology::new(any);
        topology.follow(&origins(3));
        assert!(!topology.is_watched());
        let topology = Topology::new(Rules { read_from: ReadFrom::PreferReplica, ..any });
        topology.follow(&origins(3));
        assert!(topology.splits_reads() && !topology.leads_writers());
    }
}
