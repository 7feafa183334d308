//! How a service is, as one look at it found.

use std::borrow::Cow;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::{Bulkhead, CircuitBreaker, Deadline, Pipeline};

/// The state of a service's health, from best to worst but for [`Unknown`](Self::Unknown).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// It answers as it should.
    Healthy,
    /// It answers, but not as well as it should; or its circuit is open.
    Degraded,
    /// It does not answer.
    Unhealthy,
    /// Nobody has looked yet.
    Unknown,
}

impl HealthStatus {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Degraded, Self::Unhealthy, Self::Unknown];

    /// The word for it, in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one look at a service found.
///
/// Serialises as `{"status": "healthy", "latency_ms": 0.4, "reason": null}`.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// How it is.
    pub status: HealthStatus,
    /// How long the look took; in JSON `latency_ms`, milliseconds.
    #[serde(rename = "latency_ms", serialize_with = "milliseconds")]
    pub latency: Duration,
    /// Why it is not healthy; never a secret.
    pub reason: Option<Cow<'static, str>>,
    /// When the look ended.
    #[serde(skip)]
    pub checked_at: Instant,
}

impl Health {
    /// It answered after `latency`.
    #[must_use]
    pub fn healthy(latency: Duration) -> Self {
        Self { status: HealthStatus::Healthy, latency, reason: None, checked_at: Instant::now() }
    }

    /// It answered after `latency`, but not as well as it should, because of `reason`.
    pub fn degraded(latency: Duration, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status: HealthStatus::Degraded,
            reason: Some(reason.into()),
            ..Self::healthy(latency)
        }
    }

    /// It did not answer, because of `reason`, which was known after `latency`.
    pub fn unhealthy(latency: Duration, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status: HealthStatus::Unhealthy,
            reason: Some(reason.into()),
            ..Self::healthy(latency)
        }
    }
}

/// The figures of a connection pool.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct PoolStatus {
    /// Connections lent out.
    pub in_use: usize,
    /// Connections open and idle.
    pub idle: usize,
    /// Connections that may be open at once.
    pub max: usize,
    /// Borrowers waiting for one.
    pub waiting: usize,
    /// Connections that may stay open idle; more are closed as they come back. Not in JSON.
    #[serde(skip)]
    pub idle_max: usize,
    /// Connections that are kept open whether or not they are used. Not in JSON.
    #[serde(skip)]
    pub idle_min: usize,
}

/// What stands behind a service, in the words of OpenTelemetry's database conventions. Never a secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Backend {
    /// The kind of server, such as `postgresql`, `redis` or `opensearch`.
    pub system: &'static str,
    /// Its host, or the first of several.
    pub address: Option<Cow<'static, str>>,
    /// Its port.
    pub port: Option<u16>,
}

/// Something whose health can be asked. Every manager is one; so can anything of the application's be.
///
/// ```
/// use resilience_core::{Deadline, Health, HealthCheck};
///
/// struct Disk;
///
/// #[async_trait::async_trait]
/// impl HealthCheck for Disk {
///     async fn check(&self, _: Deadline) -> Health {
///         Health::healthy(std::time::Duration::ZERO)
///     }
/// }
/// ```
#[async_trait]
pub trait HealthCheck: Send + Sync {
    /// Looks once, by `deadline`, without going through the service's pipeline.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future must leave nothing behind.
    async fn check(&self, deadline: Deadline) -> Health;

    /// The pool's figures, if there is a pool. Does no I/O.
    fn pool_status(&self) -> Option<PoolStatus> {
        None
    }

    /// The pipeline in front of the service, if there is one: for the figures of its layers. Calls to the
    /// service are counted under its name.
    fn pipeline(&self) -> Option<Pipeline> {
        None
    }

    /// The breaker in front of the service, if there is one; by default the pipeline's. Where there is
    /// no pipeline to be seen, calls to the service are counted under the same name.
    fn breaker(&self) -> Option<CircuitBreaker> {
        self.pipeline()?.breaker().cloned()
    }

    /// The limit on calls in flight to the service, if there is one; by default the pipeline's.
    fn bulkhead(&self) -> Option<Bulkhead> {
        self.pipeline()?.bulkhead().cloned()
    }

    /// What stands behind the service, where that is a database in the widest sense.
    fn backend(&self) -> Option<Backend> {
        None
    }
}

fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_json_has_the_words_of_the_python_module() {
        let health = Health::degraded(Duration::from_micros(1500), "one node of three is down");
        let json = serde_json::to_value(&health).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"status": "degraded", "latency_ms": 1.5, "reason": "one node of three is down"})
        );
    }
}
