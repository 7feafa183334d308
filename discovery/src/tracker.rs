//! What is known of a service's endpoints, and when one of them is healthy. Pure: callers hand it `now`.
//!
//! ```text
//!         ┌──(`fall` failed probes in a row, or `fall` failed reports in a row)──┐
//!         │                                                                      ▼
//!        Up                                                                    Down
//!         ▲                                                                      │
//!         └──────────(`rise` successes in a row, of either kind)─────────────────┘
//! ```
//!
//! Probes and reports are counted apart. A probe asks the kernel of the other machine: that it still
//! accepts must not wipe out the failures of the calls that its server does not answer. An endpoint
//! that is down gets no calls, so there a probe's success has to do.

use std::sync::Arc;
use std::time::Duration;

use resilience_core::{Address, Endpoint, EndpointSet, Freshness, Outcome};
use tokio::time::Instant;

/// The endpoints of one service as its source last told, and their health.
#[derive(Debug)]
pub(crate) struct Tracker {
    thresholds: Thresholds,
    max_endpoints: usize,
    tracked: Vec<Tracked>,
    generation: u64,
    freshness: Freshness,
    next_look: Option<Instant>,
}

/// How many outcomes in a row turn an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholds {
    pub(crate) fall: u32,
    pub(crate) rise: u32,
}

/// Who saw an outcome.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sight {
    Probe,
    Report,
}

/// What a call did to what watchers may know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// Only how long or why it is to be trusted: no reason to wake anybody.
    Quiet,
    /// Another set: the endpoints are others, or it went stale or fresh.
    Set {
        /// Whether the endpoints are others, apart from their health.
        endpoints: bool,
    },
}

/// An endpoint that changed sides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Turn {
    Down,
    Up { after: Duration },
}

impl Tracker {
    /// A tracker that knows no endpoint yet.
    pub(crate) fn new(thresholds: Thresholds, max_endpoints: usize, now: Instant) -> Self {
        let freshness = Freshness::Stale { since: now, cause: "not looked up yet".into() };
        Self {
            thresholds,
            max_endpoints,
            tracked: Vec::new(),
            generation: 0,
            freshness,
            next_look: None,
        }
    }

    /// Takes what the source tells at last, trusted until `until`. Those known before keep their
    /// health. Also gives the number of endpoints dropped as too many.
    pub(crate) fn adopt(
        &mut self,
        endpoints: Vec<Endpoint>,
        until: Option<Instant>,
    ) -> (Change, usize) {
        let dropped = endpoints.len().saturating_sub(self.max_endpoints);
        let adopted = endpoints.into_iter().take(self.max_endpoints);
        let tracked: Vec<_> = adopted.map(|endpoint| self.track(endpoint)).collect();
        let endpoints = !tracked.iter().map(|t| &t.endpoint).eq(self.endpoints());
        let was_stale = matches!(self.freshness, Freshness::Stale { .. });
        self.tracked = tracked;
        self.freshness = Freshness::Fresh { until };
        self.next_look = until;
        if endpoints || was_stale {
            self.generation += 1;
            (Change::Set { endpoints }, dropped)
        } else {
            (Change::Quiet, dropped)
        }
    }

    /// Keeps the last good set, as stale because of `cause`; the source is asked again at `next_look`.
    pub(crate) fn distrust(
        &mut self,
        cause: &str,
        next_look: Option<Instant>,
        now: Instant,
    ) -> Change {
        self.next_look = next_look;
        // Before the first look there is nothing to go stale: the cause of that is all there is to tell.
        let (since, change) = match self.freshness {
            Freshness::Stale { since, .. } => (since, Change::Quiet),
            Freshness::Fresh { .. } => {
                self.generation += 1;
                (now, Change::Set { endpoints: false })
            }
        };
        self.freshness = Freshness::Stale { since, cause: cause.into() };
        change
    }

    /// Takes note of what became of the endpoint `id`; of an outcome seen at another `address` than
    /// it has now, nothing.
    pub(crate) fn settle(
        &mut self,
        id: &str,
        address: Option<&Address>,
        sight: Sight,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Turn> {
        let thresholds = self.thresholds;
        let tracked = self.tracked.iter_mut().find(|tracked| {
            *tracked.endpoint.id == *id
                && address.is_none_or(|address| tracked.endpoint.address == *address)
        })?;
        let before = tracked.state;
        tracked.state = before.after(sight, outcome, thresholds, now);
        let turn = match (before, tracked.state) {
            (State::Up { .. }, State::Down { .. }) => Turn::Down,
            (State::Down { since, .. }, State::Up { .. }) => {
                Turn::Up { after: now.saturating_duration_since(since) }
            }
            (State::Up { .. }, State::Up { .. }) | (State::Down { .. }, State::Down { .. }) => {
                return None;
            }
        };
        tracked.endpoint.conditions.healthy = tracked.state.is_up();
        self.generation += 1;
        Some(turn)
    }

    /// The set as watchers see it.
    pub(crate) fn set(&self) -> EndpointSet {
        let mut set = EndpointSet::fixed(self.endpoints().cloned().collect::<Arc<[_]>>());
        set.generation = self.generation;
        set.freshness = self.freshness.clone();
        set
    }

    /// How far to trust the set.
    pub(crate) fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// When the source is asked again, if that is known.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.tracked.iter().map(|tracked| &tracked.endpoint)
    }

    fn track(&self, mut endpoint: Endpoint) -> Tracked {
        let same = |known: &&Tracked| {
            known.endpoint.id == endpoint.id && known.endpoint.address == endpoint.address
        };
        let state = self.tracked.iter().find(same).map_or(State::NEW, |known| known.state);
        endpoint.conditions.healthy = state.is_up();
        Tracked { endpoint, state }
    }
}

#[derive(Debug)]
struct Tracked {
    endpoint: Endpoint,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Up { failed_probes: u32, failed_reports: u32 },
    Down { since: Instant, successes: u32 },
}

impl State {
    /// A new endpoint is healthy until shown otherwise: to wait for a probe would delay its use.
    const NEW: Self = Self::Up { failed_probes: 0, failed_reports: 0 };

    fn is_up(self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// The one table of transitions.
    fn after(self, sight: Sight, outcome: Outcome, at: Thresholds, now: Instant) -> Self {
        let up_or_down = |failed_probes, failed_reports| {
            if failed_probes >= at.fall || failed_reports >= at.fall {
                Self::Down { since: now, successes: 0 }
            } else {
                Self::Up { failed_probes, failed_reports }
            }
        };
        match (self, outcome, sight) {
            (state, Outcome::Excluded | Outcome::Cancelled, _) => state,
            (Self::Up { .. }, Outcome::Success, Sight::Report) => Self::NEW,
            (Self::Up { failed_reports, .. }, Outcome::Success, Sight::Probe) => {
                Self::Up { failed_probes: 0, failed_reports }
            }
            (Self::Up { failed_probes, failed_reports }, Outcome::Failure, Sight::Probe) => {
                up_or_down(failed_probes + 1, failed_reports)
            }
            (Self::Up { failed_probes, failed_reports }, Outcome::Failure, Sight::Report) => {
                up_or_down(failed_probes, failed_reports + 1)
            }
            (Self::Down { since, successes }, Outcome::Success, _) => {
                if successes + 1 >= at.rise {
                    Self::NEW
                } else {
                    Self::Down { since, successes: successes + 1 }
                }
            }
            (Self::Down { since, .. }, Outcome::Failure, _) => Self::Down { since, successes: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "10.0.0.1:1";

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(Address::new("10.0.0.1", port))
    }

    fn tracker(fall: u32, rise: u32, ports: &[u16]) -> Tracker {
        let mut tracker = Tracker::new(Thresholds { fall, rise }, 4, Instant::now());
        tracker.adopt(ports.iter().copied().map(endpoint).collect(), None);
        tracker
    }

    fn settle(tracker: &mut Tracker, sight: Sight, outcome: Outcome) -> Option<Turn> {
        tracker.settle(A, None, sight, outcome, Instant::now())
    }

    fn healthy(tracker: &Tracker) -> Vec<bool> {
        tracker.set().endpoints.iter().map(|endpoint| endpoint.conditions.healthy).collect()
    }

    use Outcome::{Cancelled, Excluded, Failure, Success};
    use Sight::{Probe, Report};

    #[tokio::test(start_paused = true)]
    async fn one_failure_by_chance_condemns_nobody() {
        let mut tracker = tracker(2, 1, &[1, 2]);
        for _ in 0..10 {
            assert_eq!(settle(&mut tracker, Probe, Failure), None);
            assert_eq!(settle(&mut tracker, Probe, Success), None);
        }
        assert_eq!((healthy(&tracker), tracker.generation), (vec![true, true], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn two_in_a_row_do_and_one_success_acquits() {
        let mut tracker = tracker(2, 1, &[1, 2]);
        settle(&mut tracker, Probe, Failure);
        assert_eq!(settle(&mut tracker, Probe, Failure), Some(Turn::Down));
        assert_eq!((healthy(&tracker), tracker.generation), (vec![false, true], 2));
        assert_eq!(settle(&mut tracker, Probe, Failure), None, "it is down already");
        tokio::time::advance(Duration::from_secs(7)).await;
        let turn = settle(&mut tracker, Probe, Success);
        assert_eq!(turn, Some(Turn::Up { after: Duration::from_secs(7) }));
        assert_eq!((healthy(&tracker), tracker.generation), (vec![true, true], 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_accepts_does_not_hide_a_server_that_hangs() {
        let mut tracker = tracker(2, 1, &[1]);
        settle(&mut tracker, Report, Failure);
        settle(&mut tracker, Probe, Success);
        assert_eq!(settle(&mut tracker, Report, Failure), Some(Turn::Down));
        assert_eq!(
            settle(&mut tracker, Probe, Success),
            Some(Turn::Up { after: Duration::ZERO }),
            "nothing but a probe can bring back what gets no calls"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_succeeds_wipes_out_failed_probes() {
        let mut tracker = tracker(2, 1, &[1]);
        settle(&mut tracker, Probe, Failure);
        settle(&mut tracker, Report, Success);
        assert_eq!(settle(&mut tracker, Probe, Failure), None);
    }

    #[tokio::test(start_paused = true)]
    async fn to_rise_takes_successes_in_a_row() {
        let mut tracker = tracker(1, 2, &[1]);
        assert_eq!(settle(&mut tracker, Report, Failure), Some(Turn::Down));
        assert_eq!(settle(&mut tracker, Probe, Success), None);
        assert_eq!(settle(&mut tracker, Probe, Failure), None);
        assert_eq!(settle(&mut tracker, Probe, Success), None);
        assert!(matches!(settle(&mut tracker, Report, Success), Some(Turn::Up { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn what_says_nothing_of_the_service_moves_nothing() {
        let mut tracker = tracker(1, 1, &[1]);
        for outcome in [Excluded, Cancelled] {
            assert_eq!(settle(&mut tracker, Probe, outcome), None);
            assert_eq!(settle(&mut tracker, Report, outcome), None);
        }
        settle(&mut tracker, Probe, Failure);
        for outcome in [Excluded, Cancelled] {
            assert_eq!(settle(&mut tracker, Report, outcome), None);
        }
        assert_eq!((healthy(&tracker), tracker.generation), (vec![false], 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_of_an_earlier_address_decides_nothing() {
        let mut tracker = tracker(1, 1, &[1]);
        let earlier = Address::new("10.0.0.9", 1);
        let now = Instant::now();
        assert_eq!(tracker.settle(A, Some(&earlier), Probe, Failure, now), None);
        assert_eq!(tracker.settle("gone", None, Report, Failure, now), None);
        assert_eq!(healthy(&tracker), [true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_list_keeps_the_health_of_those_that_stay() {
        let mut tracker = tracker(1, 1, &[1, 2]);
        settle(&mut tracker, Probe, Failure);
        let (change, _) = tracker.adopt(vec![endpoint(3), endpoint(1)], None);
        assert_eq!(change, Change::Set { endpoints: true });
        assert_eq!(healthy(&tracker), [true, false]);
        let (change, _) = tracker.adopt(vec![endpoint(3), endpoint(1)], Some(Instant::now()));
        assert_eq!((change, tracker.generation), (Change::Quiet, 3), "the same list is no change");
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_leaves_the_last_good_set() {
        let mut tracker = tracker(1, 1, &[1]);
        let began = Instant::now();
        let change = tracker.distrust("no answer", None, began);
        assert_eq!(change, Change::Set { endpoints: false });
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(tracker.distrust("refused", None, Instant::now()), Change::Quiet);
        let set = tracker.set();
        let Freshness::Stale { since, cause } = set.freshness else { panic!("it is stale") };
        assert_eq!((since, &*cause, set.generation), (began, "refused", 2));
        assert_eq!(set.endpoints.len(), 1);
        let (change, _) = tracker.adopt(vec![endpoint(1)], None);
        assert_eq!((change, tracker.generation), (Change::Set { endpoints: false }, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_floods_is_cut_and_counted() {
        let mut tracker = tracker(1, 1, &[]);
        let (_, dropped) = tracker.adopt((1..=9).map(endpoint).collect(), None);
        assert_eq!((dropped, tracker.set().endpoints.len()), (5, 4));
    }
}
