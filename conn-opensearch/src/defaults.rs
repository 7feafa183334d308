//! All defaults of this crate, each with its unit, its range and its reason.
//!
//! Unless said otherwise a duration lies above 0 and is a day at the most. Each default but those of
//! the retry budget and [`PASS_OVER`] has a variable: `OPENSEARCH_` and its name.

use std::time::Duration;

/// The node that a cluster on this machine has.
pub const URL: &str = "https://localhost:9200";

/// The name of breaker and bulkhead, in logs and metrics.
pub const NAME: &str = "opensearch";

/// One attempt, from connecting to the last byte of the answer (`OPENSEARCH_TIMEOUT`). 30 s: an
/// aggregation over a large index may take that long, and the client itself has no limit at all.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A call with all its attempts, where the caller sets no deadline. 60 s: room for two full attempts.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Attempts after the first. 0 to 100; 3, as search operations have in the Python module.
pub const MAX_RETRIES: u32 = 3;

/// The wait before the first retry. Up to [`MAX_DELAY`]; 1 s.
pub const BASE_DELAY: Duration = Duration::from_secs(1);

/// The longest wait before a retry. 30 s, as search operations have in the Python module.
pub const MAX_DELAY: Duration = Duration::from_secs(30);

/// Failures in a row that open the circuit. 1 to 1,000,000; 5.
pub const FAIL_MAX: u32 = 5;

/// How long the circuit stays open before a probe. 60 s.
pub const RESET_TIMEOUT: Duration = Duration::from_secs(60);

/// Probes that must succeed to close the circuit. 1 to 1,000,000; 3.
pub const SUCCESS_THRESHOLD: u32 = 3;

/// Probes in flight at once while the circuit is half-open. 1 to 1,000; 1.
pub const HALF_OPEN_MAX_CALLS: u32 = 1;

/// Attempts in flight at once, over all nodes. 1 to 65,536; 64. Sockets are about as many: the client
/// has no limit for them and opens one whenever none is idle. It opens more, one for each call begun
/// meanwhile, while a node is slow to shake hands; those that stay idle close after 90 s.
pub const BULKHEAD: u32 = 64;

/// How long an attempt waits for a place in the bulkhead. 5 s, as long as a database call waits for
/// a connection.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the retries of all calls together may add to the calls: this share of them, 0 to 1; 0.1.
pub const RETRY_BUDGET_RATIO: f64 = 0.1;

/// Retries that may be made beyond the share. 0 to 1,000,000; 10.
pub const RETRY_BUDGET_BURST: u32 = 10;

/// One health check. 5 s.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a node that failed is passed over: 1 s at first, twice as long with each failure after
/// that, up to 30 s. Short, because one call that tries it again costs little while others answer.
pub const PASS_OVER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_default_changes_unnoticed() {
        let seconds = |duration: Duration| duration.as_secs_f64();
        let held = format!(
            "{URL} {NAME}: attempt {} deadline {} retries {MAX_RETRIES} from {} to {}; \
             open after {FAIL_MAX} for {} close after {SUCCESS_THRESHOLD} probes {HALF_OPEN_MAX_CALLS}; \
             bulkhead {BULKHEAD} wait {}; budget {RETRY_BUDGET_RATIO} + {RETRY_BUDGET_BURST}; \
             health {}; pass over {} to {}",
            seconds(TIMEOUT),
            seconds(DEADLINE),
            seconds(BASE_DELAY),
            seconds(MAX_DELAY),
            seconds(RESET_TIMEOUT),
            seconds(ACQUIRE_TIMEOUT),
            seconds(HEALTH_TIMEOUT),
            seconds(PASS_OVER.0),
            seconds(PASS_OVER.1),
        );
        assert_eq!(
            held,
            "https://localhost:9200 opensearch: attempt 30 deadline 60 retries 3 from 1 to 30; \
             open after 5 for 60 close after 3 probes 1; \
             bulkhead 64 wait 5; budget 0.1 + 10; \
             health 5; pass over 1 to 30"
        );
    }
}
