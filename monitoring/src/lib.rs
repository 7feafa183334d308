//! Leaves for people and for Prometheus: background health checks, alerts, metrics, health endpoints.
//!
//! A [`MonitoringManager`] looks at each service in the background, never twice at once, and keeps
//! what it found. All answers come from there: asking costs no I/O.
//!
//! ```text
//!  HealthCheck ◀── ServiceMonitor ──▶ status, uptime ──┐
//!  CircuitBreaker ────────────────▶ state ─────────────┼──▶ HealthSummary ──▶ AlertRule ──▶ AlertHandler
//!  Event ──▶ calls of the last minute ─────────────────┘         └──▶ endpoints, gauges
//!  Event ──▶ MetricsObserver ──▶ recorder of the `metrics` crate ──▶ /metrics
//! ```
//!
//! Rules that every manager has, as [`AlertThresholds`] say; an application adds its own as
//! [`AlertRule`]s:
//!
//! | rule | fires when | severity | ends when |
//! |---|---|---|---|
//! | `service_unhealthy` | a service is unhealthy | error; critical if the service is, or two or more are | it is not |
//! | `circuit_opened` | a breaker opened, a service's or one of the process's registry | error | it closed |
//! | `error_rate` | over 10 % of 20 or more calls of the last minute failed | warning | under 5 % failed |
//! | `consecutive_failures` | 5 checks failed in a row | error | one did not |
//!
//! With the feature `axum`, `health_routes` serves it all over HTTP.
//!
//! # What is absent
//!
//! No rule for slowness (what is slow, the application knows: [`AlertRule`]'s example is one), and no
//! figures of single flights and stale caches. Of OpenTelemetry's names, no `db_collection_name`. Alerts
//! that still fire when the process ends are not told as resolved.

mod alert;
mod board;
mod builder;
mod calls;
mod capped;
mod circuits;
mod counters;
mod defaults;
mod delivery;
mod guarded;
mod install;
mod json;
mod layers;
mod life;
mod manager;
mod meters;
mod monitor;
pub mod names;
mod observer;
mod ratio;
#[cfg(feature = "axum")]
mod routes;
mod rules;
mod service;
mod shared;
mod state;
mod summary;
mod task;
mod uptime;
mod wall_clock;
mod window;

pub use alert::{Alert, AlertError, AlertHandler, AlertSeverity, LogAlertHandler};
pub use builder::MonitoringBuilder;
pub use circuits::CircuitReport;
pub use install::{Metrics, install_metrics};
pub use manager::MonitoringManager;
pub use monitor::{ServiceHealth, ServiceMonitor};
pub use observer::MetricsObserver;
#[cfg(feature = "axum")]
pub use routes::health_routes;
pub use rules::{AlertRule, AlertThresholds, Finding, Firing};
pub use service::{Criticality, InvalidMonitoring, Service};
pub use summary::{HealthSummary, Readiness, ReadinessPolicy, ReadyStatus, ServiceReadiness};
pub use uptime::UptimeRatios;
pub use wall_clock::Timestamp;
pub use window::CallMetrics;
