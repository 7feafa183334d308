//! Looks at one service, over and over, in the background.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resilience_core::{Deadline, Health, HealthStatus, Name, PoolStatus, Standstill};
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::calls::Calls;
use crate::meters::CheckMeters;
use crate::service::Plan;
use crate::state::{Change, ServiceState};
use crate::task::Task;
use crate::wall_clock::{Clock, Moment, Timestamp};
use crate::{
    CallMetrics, CircuitReport, Criticality, InvalidMonitoring, Service, UptimeRatios, defaults,
    json,
};

/// The continuous watch over one service. A [`MonitoringManager`](crate::MonitoringManager) has one
/// for each; one alone needs only [`run`](Self::run). Cheap to clone: clones share what is known.
#[derive(Clone)]
pub struct ServiceMonitor {
    watched: Arc<Watched>,
}

struct Watched {
    plan: Plan,
    clock: Clock,
    state: Mutex<ServiceState>,
    /// Held during a check: there are never two.
    turn: tokio::sync::Mutex<()>,
    meters: Option<CheckMeters>,
    /// Told after each check.
    news: Arc<Notify>,
}

impl ServiceMonitor {
    /// A monitor that has not looked yet.
    ///
    /// # Errors
    ///
    /// [`InvalidMonitoring`] for a setting out of its range.
    pub fn new(service: Service) -> Result<Self, InvalidMonitoring> {
        let plan = service.plan(defaults::INTERVAL, defaults::TIMEOUT)?;
        Ok(Self::watching(plan, Clock::SYSTEM, None, Arc::default()))
    }

    pub(crate) fn watching(
        plan: Plan,
        clock: Clock,
        meters: Option<CheckMeters>,
        news: Arc<Notify>,
    ) -> Self {
        let state = Mutex::new(ServiceState::new(plan.thresholds, clock.now()));
        let turn = tokio::sync::Mutex::default();
        Self { watched: Arc::new(Watched { plan, clock, state, turn, meters, news }) }
    }

    /// The service's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.watched.plan.name
    }

    /// How the service is, from what is known already: no I/O.
    #[must_use]
    pub fn health(&self) -> ServiceHealth {
        let Watched { plan, clock, .. } = &*self.watched;
        let now = clock.now();
        let circuit = plan.check.breaker().map(|breaker| breaker.snapshot());
        let pool = plan.check.pool_status();
        let calls = self.calls_name();
        let mut state = self.lock();
        let change = state.circuit_is(circuit.as_ref().map(|circuit| circuit.state), now);
        let age = state.age(now.at);
        let last = state.last();
        let health = ServiceHealth {
            status: state.status(),
            check_status: last.map_or(HealthStatus::Unknown, |last| last.status),
            criticality: plan.criticality,
            since: state.since(),
            age,
            stale: age.is_some_and(|age| age > plan.stale_after()),
            latency: last.map(|last| last.latency),
            consecutive_failures: state.consecutive_failures(),
            uptime: state.uptime(),
            metrics: Calls::global().read(&calls),
            pool,
            breaker: circuit.map(CircuitReport::of),
            reason: state.reason(),
            checked_at: last.map(|last| last.ended.shown),
        };
        drop(state);
        self.announce(change);
        health
    }

    /// Looks now and then again and again, until the future is dropped.
    ///
    /// A check that hangs is cut off, one that panics has failed, and there are never two at once,
    /// however many run this.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends a check in flight; its result is lost, nothing else.
    pub async fn run(&self) {
        loop {
            let next = Instant::now() + self.watched.plan.next_in(fastrand::f64());
            self.check().await;
            sleep_until(next).await;
        }
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.watched.plan
    }

    /// The name under which calls to the service are counted.
    pub(crate) fn calls_name(&self) -> Name {
        let plan = &self.watched.plan;
        let pipeline = plan.check.pipeline().map(|pipeline| pipeline.name().clone());
        let breaker = || plan.check.breaker().map(|breaker| breaker.name().clone());
        pipeline.or_else(breaker).unwrap_or_else(|| plan.name.clone())
    }

    async fn check(&self) {
        let Watched { plan, clock, turn, meters, news, .. } = &*self.watched;
        let _alone = turn.lock().await;
        let standstill = Standstill::watch();
        let started = Instant::now();
        let deadline = Deadline::at(started + plan.timeout);
        let check = Arc::clone(&plan.check);
        let mut look = Task::spawn(async move { check.check(deadline).await });
        let health = match timeout_at(deadline.instant(), &mut look).await {
            Ok(Ok(health)) => health,
            Ok(Err(ended)) if ended.is_panic() => {
                Health::unhealthy(started.elapsed(), "the check panicked")
            }
            Ok(Err(_)) => return, // The runtime is going away.
            Err(_) => {
                Health::unhealthy(started.elapsed(), format!("no answer within {:?}", plan.timeout))
            }
        };
        let now = clock.now();
        if health.status != HealthStatus::Healthy && standstill.excuses() {
            // This process did not run: that says nothing about the service.
            tracing::debug!(target: "shared_external::monitoring", service = %plan.name, status = health.status.as_str(), stood_still = ?standstill.time(), "this process stood still; the check does not count");
        } else {
            self.record(health, now);
            if let Some(meters) = meters {
                meters.checked(now.at - started, now.shown);
            }
            news.notify_one();
        }
        // A check that was cut off must be gone before the next may start. One that blocks its thread
        // may never be: it goes on failing, or its service would stay as it was.
        let mut gone = pin!(look.end());
        while timeout(plan.interval, &mut gone).await.is_err() {
            let health =
                Health::unhealthy(started.elapsed(), "a check that was cut off still runs");
            self.record(health, clock.now());
            news.notify_one();
        }
    }

    fn record(&self, health: Health, now: Moment) {
        let plan = &self.watched.plan;
        tracing::debug!(target: "shared_external::monitoring", service = %plan.name, status = health.status.as_str(), latency = ?health.latency, reason = health.reason.as_deref(), "checked");
        let circuit = plan.check.breaker().map(|breaker| breaker.state());
        let mut state = self.lock();
        let by_circuit = state.circuit_is(circuit, now);
        let by_check = state.checked(health, now);
        drop(state);
        self.announce(by_circuit);
        self.announce(by_check);
    }

    fn announce(&self, change: Option<Change>) {
        let Some(Change { from, to }) = change else { return };
        if let Some(meters) = &self.watched.meters {
            meters.changed();
        }
        tracing::debug!(target: "shared_external::monitoring", service = %self.name(), %from, %to, "health changed");
    }

    fn lock(&self) -> MutexGuard<'_, ServiceState> {
        // No section can panic half-way through a change, so a poisoned state is still whole.
        self.watched.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for ServiceMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceMonitor").field("name", self.name()).finish_non_exhaustive()
    }
}

/// How a service is. Its JSON is a value of `services` in `/health/detailed`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ServiceHealth {
    /// How it is: the worse of its checks, after `fall` and `rise`, and its breaker.
    pub status: HealthStatus,
    /// How the last check alone found it.
    pub check_status: HealthStatus,
    /// How much depends on it.
    pub criticality: Criticality,
    /// Since when it has had its status.
    pub since: Timestamp,
    /// Time since the last check ended; in JSON `age_seconds`. `None` before the first.
    #[serde(rename = "age_seconds", serialize_with = "json::maybe_seconds")]
    pub age: Option<Duration>,
    /// Whether that is longer than two checks should take.
    pub stale: bool,
    /// How long the last check took; in JSON `latency_ms`, milliseconds.
    #[serde(rename = "latency_ms", serialize_with = "json::maybe_milliseconds")]
    pub latency: Option<Duration>,
    /// Checks in a row that found it unhealthy.
    pub consecutive_failures: u32,
    /// The share of time in which it was not unhealthy.
    pub uptime: UptimeRatios,
    /// The application's calls to it over the last minute.
    pub metrics: CallMetrics,
    /// Its pool, if it has one.
    pub pool: Option<PoolStatus>,
    /// Its breaker, if it has one.
    pub breaker: Option<CircuitReport>,
    /// Why it is not healthy; never a secret.
    pub reason: Option<Cow<'static, str>>,
    /// When the last check ended.
    #[serde(skip)]
    pub checked_at: Option<Timestamp>,
}
