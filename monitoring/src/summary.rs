//! All services together: how the application is, and whether it should get traffic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use resilience_core::{HealthStatus, Name};
use serde::Serialize;

use crate::{Alert, CircuitReport, Criticality, ServiceHealth, Timestamp, json};

/// How everything is, from what is known already.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct HealthSummary {
    /// Unhealthy if a critical service is; else unknown while a critical one is; else degraded if
    /// any service is degraded or unhealthy; else healthy.
    pub overall_health: HealthStatus,
    /// The application's version, if it told.
    pub version: Option<Arc<str>>,
    /// Time since the manager was built; in JSON `uptime_seconds`.
    #[serde(rename = "uptime_seconds", serialize_with = "json::seconds")]
    pub uptime: Duration,
    /// When the latest check of any service ended; `None` before the first.
    pub checked_at: Option<Timestamp>,
    /// The services by name.
    pub services: BTreeMap<Name, ServiceHealth>,
    /// The alerts that fire.
    pub alerts: Vec<Alert>,
    /// Every breaker of the process by name: those of the services and those of the
    /// [`CircuitRegistry`](resilience_core::CircuitRegistry). Those with one name are told together.
    #[serde(skip)]
    pub circuit_breakers: BTreeMap<Name, CircuitReport>,
}

/// What `overall_health` says of these services.
pub(crate) fn overall<'a>(
    services: impl Iterator<Item = &'a ServiceHealth> + Clone,
) -> HealthStatus {
    let critical = |status| {
        let mut services = services.clone();
        services
            .any(|service| service.criticality == Criticality::Critical && service.status == status)
    };
    let any = |status| services.clone().any(|service| service.status == status);
    if critical(HealthStatus::Unhealthy) {
        HealthStatus::Unhealthy
    } else if critical(HealthStatus::Unknown) {
        HealthStatus::Unknown
    } else if any(HealthStatus::Degraded) || any(HealthStatus::Unhealthy) {
        HealthStatus::Degraded
    } else {
        HealthStatus::Healthy
    }
}

/// When a process that has started and is not draining should get traffic.
///
/// A dependency that all replicas share is a poor reason to refuse it: when it fails, all replicas
/// fail the probe at once, and nobody is left to serve what works without it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadinessPolicy {
    /// While no critical service is unhealthy or unknown.
    #[default]
    Critical,
    /// While no service at all is unhealthy, and no critical one unknown: the Python module's reading.
    All,
    /// Always: only the process's own life counts.
    Lifecycle,
}

impl ReadinessPolicy {
    /// Whether a service stands in the way.
    pub(crate) fn blocks(self, criticality: Criticality, status: HealthStatus) -> bool {
        let critical = criticality == Criticality::Critical;
        match (self, status) {
            (Self::Lifecycle, _) | (_, HealthStatus::Healthy | HealthStatus::Degraded) => false,
            (Self::Critical, HealthStatus::Unhealthy | HealthStatus::Unknown)
            | (Self::All, HealthStatus::Unknown) => critical,
            (Self::All, HealthStatus::Unhealthy) => true,
        }
    }
}

/// Whether the process should get traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadyStatus {
    /// It should.
    Ready,
    /// Not yet: some service has not been looked at once.
    Starting,
    /// No more: it is about to end.
    Draining,
    /// Not while a service is as it is, says the policy.
    NotReady,
}

/// The answer of `/ready`, and its JSON.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Readiness {
    /// Whether the process should get traffic.
    pub status: ReadyStatus,
    /// What decides that.
    pub policy: ReadinessPolicy,
    /// How each service is.
    pub services: BTreeMap<Name, ServiceReadiness>,
    /// When to ask again, where it should get no traffic: the HTTP header `Retry-After`.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

/// What `/ready` says of one service.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ServiceReadiness {
    /// How it is.
    pub status: HealthStatus,
    /// How much depends on it.
    pub criticality: Criticality,
    /// Time since the last check ended; in JSON `age_seconds`. `None` before the first.
    #[serde(rename = "age_seconds", serialize_with = "json::maybe_seconds")]
    pub age: Option<Duration>,
    /// Whether that is longer than two checks should take.
    pub stale: bool,
    /// Why it is not healthy; never a secret.
    pub reason: Option<std::borrow::Cow<'static, str>>,
}

impl From<&ServiceHealth> for ServiceReadiness {
    fn from(health: &ServiceHealth) -> Self {
        let ServiceHealth { status, criticality, age, stale, .. } = *health;
        Self { status, criticality, age, stale, reason: health.reason.clone() }
    }
}
