//! Every default of this crate, in one place.
//!
//! Those of the retry and the breaker are the Python module's best practices for a cache: a few quick
//! tries, for whatever a cache holds can be had elsewhere.

use std::time::Duration;

/// Where Redis is, unless said otherwise.
pub const URL: &str = "redis://localhost:6379/0";

/// Sockets that may be open at once, the one of the health check included. 1 to 10,000.
pub const MAX_CONNECTIONS: u32 = 100;

/// Time of one attempt, from borrowing a connection to the reply. Above 0.
pub const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for opening a connection: name, socket, TLS and login together. Above 0.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for a connection while all are lent out. Above 0.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time of a call with all its attempts, where the caller sets none. Above 0.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Attempts after the first. 0 to 100.
pub const MAX_RETRIES: u32 = 2;

/// First wait between attempts. Above 0, up to [`MAX_DELAY`].
pub const BASE_DELAY: Duration = Duration::from_millis(500);

/// Longest wait between attempts. Above 0.
pub const MAX_DELAY: Duration = Duration::from_secs(5);

/// Failures in a row that open the circuit. 1 or more.
pub const FAIL_MAX: u32 = 5;

/// How long the circuit stays open before a probe. Above 0.
pub const RESET_TIMEOUT: Duration = Duration::from_secs(60);

/// Probes that must succeed to close the circuit. 1 or more.
pub const SUCCESS_THRESHOLD: u32 = 3;

/// Probes in flight at once. 1 to 1,000.
pub const HALF_OPEN_MAX_CALLS: u32 = 1;

/// Calls in flight at once, those that wait for a connection included. 1 or more.
pub const BULKHEAD: u32 = 1024;

/// Time of one health check. Above 0.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an unused connection stays open. Above 0.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a connection is used, give or take a tenth, so that not all are replaced at once. Above 0.
pub const MAX_LIFETIME: Duration = Duration::from_secs(1800);

/// How long a connection may lie unused before it is tested (a PING) when it is next lent. Above 0:
/// a connection in steady use costs no extra round trip.
pub const TEST_AFTER: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_default_changes_unnoticed() {
        let secs = |duration: Duration| duration.as_secs_f64();
        let snapshot = format!(
            "url {URL}, max_connections {MAX_CONNECTIONS}, socket_timeout {}, connect_timeout {}, \
             acquire_timeout {}, deadline {}, max_retries {MAX_RETRIES}, base_delay {}, max_delay {}, \
             fail_max {FAIL_MAX}, reset_timeout {}, success_threshold {SUCCESS_THRESHOLD}, \
             half_open_max_calls {HALF_OPEN_MAX_CALLS}, bulkhead {BULKHEAD}, health_timeout {}, \
             idle_timeout {}, max_lifetime {}, test_after {}",
            secs(SOCKET_TIMEOUT),
            secs(CONNECT_TIMEOUT),
            secs(ACQUIRE_TIMEOUT),
            secs(DEADLINE),
            secs(BASE_DELAY),
            secs(MAX_DELAY),
            secs(RESET_TIMEOUT),
            secs(HEALTH_TIMEOUT),
            secs(IDLE_TIMEOUT),
            secs(MAX_LIFETIME),
            secs(TEST_AFTER),
        );
        assert_eq!(
            snapshot,
            "url redis://localhost:6379/0, max_connections 100, socket_timeout 5, connect_timeout 5, \
             acquire_timeout 5, deadline 10, max_retries 2, base_delay 0.5, max_delay 5, \
             fail_max 5, reset_timeout 60, success_threshold 3, \
             half_open_max_calls 1, bulkhead 1024, health_timeout 5, \
             idle_timeout 600, max_lifetime 1800, test_after 30"
        );
    }
}
