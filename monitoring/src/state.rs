//! What is known of one service: pure, told the time by its caller.
//!
//! Two switches decide, each with hysteresis: `down` (the check found it unhealthy) and `impaired`
//! (the check found it anything but healthy).
//!
//! ```text
//!            `fall` bad results in a row
//!   ┌─────┐ ─────────────────────────────▶ ┌────┐
//!   │ off │                                │ on │
//!   └─────┘ ◀───────────────────────────── └────┘
//!            `rise` good results in a row
//! ```
//!
//! | checks so far | `down` | `impaired` | circuit | status    |
//! |---------------|--------|------------|---------|-----------|
//! | none          | –      | –          | any     | Unknown   |
//! | some          | on     | any        | any     | Unhealthy |
//! | some          | off    | on         | any     | Degraded  |
//! | some          | off    | off        | open    | Degraded  |
//! | some          | off    | off        | closed  | Healthy   |
//!
//! The first result sets both switches at once: there is nothing yet that it could flap from. A
//! check that could not tell (`Unknown`) moves neither.

use std::borrow::Cow;
use std::time::Duration;

use resilience_core::{CircuitState, Health, HealthStatus};
use tokio::time::Instant;

use crate::uptime::{Uptime, UptimeRatios};
use crate::wall_clock::{Moment, Timestamp};

/// How many results in a row it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholds {
    pub(crate) fall: u32,
    pub(crate) rise: u32,
}

/// A change of status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Change {
    pub(crate) from: HealthStatus,
    pub(crate) to: HealthStatus,
}

#[derive(Debug)]
pub(crate) struct ServiceState {
    thresholds: Thresholds,
    down: Switch,
    impaired: Switch,
    circuit: Option<CircuitState>,
    last: Option<Look>,
    /// What the last check that had a reason gave.
    trouble: Option<Cow<'static, str>>,
    consecutive_failures: u32,
    status: HealthStatus,
    since: Moment,
    uptime: Uptime,
}

/// The last result of the check, as it was.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) status: HealthStatus,
    pub(crate) latency: Duration,
    pub(crate) reason: Option<Cow<'static, str>>,
    pub(crate) ended: Moment,
}

impl ServiceState {
    pub(crate) fn new(thresholds: Thresholds, now: Moment) -> Self {
        Self {
            thresholds,
            down: Switch::default(),
            impaired: Switch::default(),
            circuit: None,
            last: None,
            trouble: None,
            consecutive_failures: 0,
            status: HealthStatus::Unknown,
            since: now,
            uptime: Uptime::new(now.at),
        }
    }

    /// Takes in the result of a check.
    pub(crate) fn checked(&mut self, health: Health, now: Moment) -> Option<Change> {
        let Health { status, latency, reason, .. } = health;
        let first = self.status == HealthStatus::Unknown;
        self.trouble = reason.clone().or(self.trouble.take());
        self.last = Some(Look { status, latency, reason, ended: now });
        let (down, impaired) = match status {
            HealthStatus::Healthy => (false, false),
            HealthStatus::Degraded => (false, true),
            HealthStatus::Unhealthy => (true, true),
            HealthStatus::Unknown => return self.settle(now),
        };
        self.consecutive_failures =
            if down { self.consecutive_failures.saturating_add(1) } else { 0 };
        let thresholds = if first { Thresholds { fall: 1, rise: 1 } } else { self.thresholds };
        self.down.see(down, thresholds);
        self.impaired.see(impaired, thresholds);
        if !impaired && !self.impaired.on {
            self.trouble = None;
        }
        self.settle(now)
    }

    /// Takes in what the breaker says.
    pub(crate) fn circuit_is(
        &mut self,
        circuit: Option<CircuitState>,
        now: Moment,
    ) -> Option<Change> {
        self.circuit = circuit;
        self.settle(now)
    }

    pub(crate) fn status(&self) -> HealthStatus {
        self.status
    }

    pub(crate) fn since(&self) -> Timestamp {
        self.since.shown
    }

    pub(crate) fn last(&self) -> Option<&Look> {
        self.last.as_ref()
    }

    /// Checks in a row that found it unhealthy.
    pub(crate) fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures
    }

    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.last.as_ref().map(|last| now.saturating_duration_since(last.ended.at))
    }

    /// Why it is not healthy: what the last check said, else the one that brought it down, else
    /// what the breaker says.
    pub(crate) fn reason(&self) -> Option<Cow<'static, str>> {
        let look = self.last.as_ref().and_then(|last| last.reason.clone());
        let trouble = || self.trouble.clone().filter(|_| self.down.on || self.impaired.on);
        look.or_else(trouble).or_else(|| match self.circuit {
            Some(CircuitState::Open) => Some("circuit is open".into()),
            Some(CircuitState::HalfOpen) => Some("circuit is half-open".into()),
            Some(CircuitState::ForcedOpen) => Some("circuit is forced open".into()),
            Some(
                CircuitState::Closed
                | CircuitState::ForcedClosed
                | CircuitState::Disabled
                | CircuitState::MetricsOnly,
            )
            | None => None,
        })
    }

    /// Uptime up to the last result or look at the breaker.
    pub(crate) fn uptime(&self) -> UptimeRatios {
        self.uptime.ratios()
    }

    fn settle(&mut self, now: Moment) -> Option<Change> {
        let up = match self.status {
            HealthStatus::Healthy | HealthStatus::Degraded => Some(true),
            HealthStatus::Unhealthy => Some(false),
            HealthStatus::Unknown => None,
        };
        self.uptime.advance(now.at, up);
        let from = self.status;
        self.status = self.judged();
        (self.status != from).then(|| {
            self.since = now;
            Change { from, to: self.status }
        })
    }

    fn judged(&self) -> HealthStatus {
        let known = self.status != HealthStatus::Unknown
            || self.last.as_ref().is_some_and(|last| last.status != HealthStatus::Unknown);
        if !known {
            HealthStatus::Unknown
        } else if self.down.on {
            HealthStatus::Unhealthy
        } else if self.impaired.on || self.circuit.is_some_and(CircuitState::refuses) {
            HealthStatus::Degraded
        } else {
            HealthStatus::Healthy
        }
    }
}

#[derive(Debug, Default)]
struct Switch {
    on: bool,
    /// Results in a row that speak for the other position.
    against: u32,
}

impl Switch {
    fn see(&mut self, bad: bool, thresholds: Thresholds) {
        if bad == self.on {
            self.against = 0;
            return;
        }
        self.against += 1;
        let enough = if bad { thresholds.fall } else { thresholds.rise };
        if self.against >= enough {
            *self = Self { on: bad, against: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use HealthStatus::{Degraded, Healthy, Unhealthy, Unknown};

    use super::*;
    use crate::wall_clock::Clock;

    const USUAL: Thresholds = Thresholds { fall: 2, rise: 1 };

    fn state(thresholds: Thresholds) -> ServiceState {
        ServiceState::new(thresholds, Clock::FIXED.now())
    }

    impl ServiceState {
        fn sees(&mut self, raw: HealthStatus) -> HealthStatus {
            let health = Health { status: raw, ..Health::healthy(Duration::ZERO) };
            self.checked(health, Clock::FIXED.now());
            self.status
        }
    }

    #[test]
    fn one_bad_check_is_no_outage_but_can_be_seen() {
        let mut state = state(USUAL);
        assert_eq!(state.sees(Healthy), Healthy);
        assert_eq!(state.sees(Unhealthy), Healthy);
        assert_eq!(state.last().unwrap().status, Unhealthy);
        assert_eq!(state.consecutive_failures(), 1);
        assert_eq!(state.sees(Unhealthy), Unhealthy);
        assert_eq!(state.sees(Healthy), Healthy);
        assert_eq!(state.consecutive_failures(), 0);
    }

    #[test]
    fn a_flapping_service_does_not_flap_its_status() {
        let mut state = state(USUAL);
        state.sees(Healthy);
        for _ in 0..50 {
            assert_eq!(state.sees(Unhealthy), Healthy);
            assert_eq!(state.sees(Healthy), Healthy);
        }
    }

    #[test]
    fn recovery_takes_as_many_good_checks_as_asked() {
        let mut state = state(Thresholds { fall: 1, rise: 3 });
        assert_eq!(state.sees(Unhealthy), Unhealthy);
        assert_eq!(state.sees(Healthy), Unhealthy);
        assert_eq!(state.sees(Healthy), Unhealthy);
        assert_eq!(state.sees(Unhealthy), Unhealthy);
        assert_eq!(state.sees(Healthy), Unhealthy);
        assert_eq!(state.sees(Healthy), Unhealthy);
        assert_eq!(state.sees(Healthy), Healthy);
    }

    #[test]
    fn a_status_that_lasts_keeps_its_reason() {
        let mut state = state(Thresholds { fall: 1, rise: 2 });
        let health = Health::unhealthy(Duration::ZERO, "connection refused");
        state.checked(health, Clock::FIXED.now());
        assert_eq!(state.sees(Healthy), Unhealthy);
        assert_eq!(state.reason().as_deref(), Some("connection refused"));
        assert_eq!(state.sees(Healthy), Healthy);
        assert_eq!(state.reason(), None);
    }

    #[test]
    fn the_reason_of_an_earlier_outage_is_not_given_for_a_later_one() {
        let mut state = state(Thresholds { fall: 1, rise: 1 });
        let health = Health::unhealthy(Duration::ZERO, "connection refused");
        state.checked(health, Clock::FIXED.now());
        state.sees(Healthy);
        assert_eq!(state.sees(Unhealthy), Unhealthy);
        assert_eq!(state.reason(), None, "this one gave none");
    }

    #[test]
    fn the_first_answer_counts_at_once() {
        assert_eq!(state(USUAL).sees(Unhealthy), Unhealthy);
        assert_eq!(state(USUAL).sees(Degraded), Degraded);
        let mut undecided = state(USUAL);
        assert_eq!(undecided.sees(Unknown), Unknown);
        assert_eq!(undecided.sees(Unhealthy), Unhealthy);
    }

    #[test]
    fn a_check_that_could_not_tell_changes_nothing() {
        let mut state = state(USUAL);
        state.sees(Healthy);
        state.sees(Unhealthy);
        assert_eq!(state.sees(Unknown), Healthy);
        assert_eq!(state.sees(Unhealthy), Unhealthy);
        assert_eq!(state.sees(Unknown), Unhealthy);
    }

    #[test]
    fn a_service_that_is_half_back_is_degraded() {
        let mut state = state(USUAL);
        state.sees(Unhealthy);
        assert_eq!(state.sees(Degraded), Degraded);
        assert_eq!(state.sees(Healthy), Healthy);
        assert_eq!(state.sees(Degraded), Healthy);
        assert_eq!(state.sees(Unhealthy), Degraded);
    }

    #[test]
    fn an_open_circuit_degrades_and_never_hides_worse() {
        let mut state = state(USUAL);
        state.circuit_is(Some(CircuitState::Open), Clock::FIXED.now());
        assert_eq!(state.status(), Unknown);
        assert_eq!(state.sees(Healthy), Degraded);
        assert_eq!(state.reason().as_deref(), Some("circuit is open"));
        state.sees(Unhealthy);
        assert_eq!(state.sees(Unhealthy), Unhealthy);
        assert_eq!(state.sees(Healthy), Degraded);
        let closed = state.circuit_is(Some(CircuitState::Closed), Clock::FIXED.now());
        assert_eq!(closed, Some(Change { from: Degraded, to: Healthy }));
        assert_eq!(state.reason(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn since_is_the_time_of_the_change_not_of_the_last_check() {
        let mut state = state(USUAL);
        state.sees(Healthy);
        let began = state.since.at;
        tokio::time::advance(Duration::from_secs(30)).await;
        state.sees(Healthy);
        assert_eq!(state.since.at, began);
        assert_eq!(state.age(Instant::now()), Some(Duration::ZERO));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(state.age(Instant::now()), Some(Duration::from_secs(30)));
    }
}
