//! The names of all metrics, their labels, buckets and help texts: the one place that knows them.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Upper bounds of every histogram, in seconds.
pub const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// The label value under which whatever exceeds a limit is counted together.
pub const OTHER: &str = "_OTHER";

/// Names that one label may take before the rest become [`OTHER`].
pub const MAX_NAMES: usize = 256;

/// Labels.
pub mod label {
    use std::sync::Arc;

    use metrics::SharedString;
    use resilience_core::Name;

    /// A name as the value of a label.
    pub(crate) fn value(name: &Name) -> SharedString {
        Arc::<str>::from(name.clone()).into()
    }

    /// The name of a pipeline, or of one of its layers.
    pub const NAME: &str = "name";
    /// How a call, an attempt or a hedge ended.
    pub const KIND: &str = "kind";
    /// A state, where a gauge has one series per state.
    pub const STATE: &str = "state";
    /// The layer that refused.
    pub const LAYER: &str = "layer";
    /// The state that was left.
    pub const FROM: &str = "from";
    /// The state that was entered.
    pub const TO: &str = "to";
    /// A service under watch. Not `service`: that clashes with Kubernetes labels.
    pub const EXTERNAL_SERVICE: &str = "external_service";
    /// A health status.
    pub const STATUS: &str = "status";
    /// The severity of an alert.
    pub const SEVERITY: &str = "severity";
    /// The handler of an alert.
    pub const HANDLER: &str = "handler";
    /// How a notification or an exchange ended.
    pub const OUTCOME: &str = "outcome";
    /// The kind of server, such as `postgresql`.
    pub const DB_SYSTEM_NAME: &str = "db_system_name";
    /// What was asked: a fixed word such as `read`.
    pub const DB_OPERATION_NAME: &str = "db_operation_name";
    /// How a call failed; absent where it succeeded.
    pub const ERROR_TYPE: &str = "error_type";
    /// The server's host.
    pub const SERVER_ADDRESS: &str = "server_address";
    /// The server's port.
    pub const SERVER_PORT: &str = "server_port";
    /// The name of a pool.
    pub const POOL: &str = "db_client_connection_pool_name";
    /// What a pool's connections do: `idle` or `used`.
    pub const POOL_STATE: &str = "db_client_connection_state";
}

/// What a metric is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It is as it is now.
    Gauge,
    /// It counts observations in [`BUCKETS`].
    Histogram,
}

/// One metric: its name, kind, unit and help text.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// What it says, in a line.
    pub help: &'static str,
}

macro_rules! families {
    ($($constant:ident = $name:literal, $kind:ident, $unit:ident, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        /// Every metric of this crate.
        pub const FAMILIES: &[Family] = &[
            $(Family { name: $name, kind: Kind::$kind, unit: Unit::$unit, help: $help },)*
        ];
    };
}

families! {
    OPERATION_DURATION = "db_client_operation_duration_seconds", Histogram, Seconds,
        "Time of a call to a database, with its retries.";
    CONNECTION_COUNT = "db_client_connection_count", Gauge, Count,
        "Connections of a pool by what they do.";
    CONNECTION_MAX = "db_client_connection_max", Gauge, Count,
        "Connections that a pool may have open at once.";
    CONNECTION_IDLE_MAX = "db_client_connection_idle_max", Gauge, Count,
        "Connections that a pool may keep open idle.";
    CONNECTION_IDLE_MIN = "db_client_connection_idle_min", Gauge, Count,
        "Connections that a pool keeps open whether or not they are used.";
    CONNECTION_PENDING_REQUESTS = "db_client_connection_pending_requests", Gauge, Count,
        "Borrowers waiting for a connection of a pool.";
    CONNECTION_LEAKS = "db_client_connection_leaks_total", Counter, Count,
        "Connections that were held for longer than their pool's leak threshold.";
    CONNECTION_TIMEOUTS = "db_client_connection_timeouts_total", Counter, Count,
        "Borrowers that waited as long as they may and got no connection.";
    CONNECTION_CREATE_TIME = "db_client_connection_create_time_seconds", Histogram, Seconds,
        "Time to open a connection.";
    CONNECTION_WAIT_TIME = "db_client_connection_wait_time_seconds", Histogram, Seconds,
        "Time a borrower waited for a connection.";
    CONNECTION_USE_TIME = "db_client_connection_use_time_seconds", Histogram, Seconds,
        "Time a connection was borrowed.";
    CIRCUIT_STATE = "resilience_circuit_breaker_state", Gauge, Count,
        "Circuit breakers of a name by their state: of one, 1 for the state that it is in, 0 for the others.";
    CIRCUIT_CALLS = "resilience_circuit_breaker_calls_total", Counter, Count,
        "Attempts that a circuit breaker let through, by how they ended.";
    CIRCUIT_NOT_PERMITTED = "resilience_circuit_breaker_not_permitted_calls_total", Counter, Count,
        "Attempts that a circuit breaker refused.";
    CIRCUIT_TRANSITIONS = "resilience_circuit_breaker_transitions_total", Counter, Count,
        "Changes of state of a circuit breaker.";
    CIRCUIT_ARMINGS = "resilience_circuit_breaker_armings_total", Counter, Count,
        "Times that what other processes saw armed a circuit breaker, so that one failure opens it.";
    CIRCUIT_FAILURE_RATIO = "resilience_circuit_breaker_failure_ratio", Gauge, Percent,
        "Share of attempts that failed, 0 to 1: in the breaker's window, or within the last minute where it has none; absent below the minimum of attempts.";
    CIRCUIT_SLOW_CALL_RATIO = "resilience_circuit_breaker_slow_call_ratio", Gauge, Percent,
        "Share of slow attempts in the breaker's window, 0 to 1; absent where slowness is not judged, and below the minimum of attempts.";
    RETRY_CALLS = "resilience_retry_calls_total", Counter, Count,
        "Calls by whether they succeeded and whether it took a retry.";
    RETRY_ATTEMPTS = "resilience_retry_attempts_total", Counter, Count,
        "Attempts made by all calls.";
    RETRY_BUDGET_EXHAUSTED = "resilience_retry_budget_exhausted_total", Counter, Count,
        "Retries that were due but exceeded the budget.";
    RETRY_BUDGET_BALANCE = "resilience_retry_budget_balance", Gauge, Count,
        "Retries and hedges that the budget would still pay for.";
    HEDGES = "resilience_hedges_total", Counter, Count,
        "Hedges of late answers: those started, those that won, and those that the budget refused.";
    BULKHEAD_AVAILABLE = "resilience_bulkhead_available_concurrent_calls", Gauge, Count,
        "Calls that a bulkhead or adaptive limit would still let in.";
    BULKHEAD_MAX = "resilience_bulkhead_max_allowed_concurrent_calls", Gauge, Count,
        "Calls that a bulkhead or adaptive limit lets in at once, as of now.";
    BULKHEAD_CALLS = "resilience_bulkhead_calls", Gauge, Count,
        "Calls that have a place in a bulkhead or adaptive limit, and those that wait for one.";
    THROTTLE_REJECTION_RATIO = "resilience_throttle_rejection_ratio", Gauge, Percent,
        "Share of attempts that a throttle refuses, 0 to 1.";
    REFUSALS = "resilience_refusals_total", Counter, Count,
        "Calls and attempts that a layer refused without asking the service.";
    OPINION_EXCHANGES = "resilience_opinion_exchanges_total", Counter, Count,
        "Exchanges with other processes of what circuits are open, by whether the store answered.";
    HEALTH_STATUS = "external_service_health_status", Gauge, Count,
        "1 for the health status that a service has, 0 for the others.";
    HEALTH_CHECK_DURATION = "external_service_health_check_duration_seconds", Histogram, Seconds,
        "Time of a health check.";
    LAST_CHECK_TIMESTAMP = "external_service_last_check_timestamp_seconds", Gauge, Seconds,
        "When the last health check ended, as a Unix time.";
    HEALTH_TRANSITIONS = "external_service_transitions_total", Counter, Count,
        "Changes of a service's health status.";
    UPTIME_RATIO = "external_service_uptime_ratio", Gauge, Percent,
        "Share of the last 24 hours in which a service was not unhealthy, 0 to 1; absent before the first check.";
    ALERTS_ACTIVE = "external_service_alerts_active", Gauge, Count,
        "Alerts that are firing.";
    ALERT_NOTIFICATIONS = "external_service_alert_notifications_total", Counter, Count,
        "Attempts to deliver an alert to a handler, by how they ended.";
    NOTIFICATIONS_DROPPED = "external_service_notifications_dropped_total", Counter, Count,
        "Alerts that a handler never got: its queue was full, or it failed too often.";
}

/// Tells the current recorder what every metric means.
pub fn describe() {
    for Family { name, kind, unit, help } in FAMILIES.iter().copied() {
        match kind {
            Kind::Counter => describe_counter!(name, unit, help),
            Kind::Gauge => describe_gauge!(name, unit, help),
            Kind::Histogram => describe_histogram!(name, unit, help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_is_one_that_prometheus_takes() {
        let mut seen = HashSet::new();
        for family in FAMILIES {
            let Family { name, kind, .. } = *family;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name} has characters beyond a-z and _"
            );
            assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name} and its suffix");
            assert!(!family.help.is_empty() && family.help.ends_with('.'), "{name} needs help");
            if kind == Kind::Histogram {
                assert!(name.ends_with("_seconds"), "{name} must say its unit");
            }
        }
    }

    #[test]
    fn buckets_rise() {
        assert!(BUCKETS.is_sorted());
    }
}
