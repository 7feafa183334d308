//! A breaker at one moment, for those who look at it.

use std::time::Duration;

use serde::Serialize;

use super::{CircuitSettings, CircuitState, OutcomeCounts, maybe_seconds, seconds};
use crate::Name;

/// A breaker at one moment. Durations are seconds in JSON; what is absent there does not apply.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CircuitSnapshot {
    /// The breaker's name.
    pub name: Name,
    /// Its state.
    pub state: CircuitState,
    /// How long it has been in it.
    #[serde(rename = "since_seconds", serialize_with = "seconds")]
    pub since: Duration,
    /// The number of that state.
    pub generation: u32,
    /// Failures in a row while closed.
    pub consecutive_failures: u32,
    /// Attempts by outcome, since the breaker was made.
    pub calls: OutcomeCounts,
    /// Calls refused, since the breaker was made.
    pub not_permitted: u64,
    /// Until another try is worth making; `None` while closed, or while a probe may be had.
    #[serde(rename = "retry_after_seconds", serialize_with = "maybe_seconds")]
    pub retry_after: Option<Duration>,
    /// The share of calls that pass while the circuit recovers, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovering: Option<f64>,
    /// Whether one failure is enough to open it: see [`CircuitBreaker::arm`](super::CircuitBreaker::arm).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub armed: bool,
    /// What it goes by.
    #[serde(rename = "thresholds")]
    pub settings: CircuitSettings,
    /// The share of failures in its window, 0 to 1; `None` where no rate is judged or below the minimum of calls. Not in JSON.
    #[serde(skip)]
    pub failure_ratio: Option<f64>,
    /// The share of slow calls in its window, likewise. Not in JSON.
    #[serde(skip)]
    pub slow_call_ratio: Option<f64>,
}
