//! Every default and bound of this crate.

use std::time::Duration;

/// Time between two probes of an endpoint, ±[`JITTER`]. Range 10 ms to a day. With [`FALL`] it bounds how long a
/// dead endpoint is still chosen; a TCP connect each 5 s costs a server next to nothing.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Time that one probe may take. Range 1 ms to the probe interval. The kernel repeats a lost SYN after 1 s:
/// an endpoint that needs the second one is better passed over.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Failures in a row that make an endpoint unhealthy. Range 1 to 100. One may be chance.
pub const FALL: u32 = 2;

/// Successes in a row that make it healthy again. Range 1 to 100. To be cautious here helps nobody:
/// the circuit breaker is what protects a weak service.
pub const RISE: u32 = 1;

/// Time between two lookups of a DNS name, ±[`JITTER`]. Range 10 ms to a day. CoreDNS as kubeadm sets it up
/// caches for 30 s, and the system resolver does not tell how long an answer holds.
#[cfg(feature = "kubernetes")]
pub const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// Time that one lookup may take. Range 1 ms to an hour. The resolver's own first timeout is 5 s.
#[cfg(feature = "kubernetes")]
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Least time between two lookups of a name, however many failures are reported. Fixed.
#[cfg(feature = "kubernetes")]
pub const RESOLVE_GAP: Duration = Duration::from_secs(1);

/// The domain of a Kubernetes cluster.
#[cfg(feature = "kubernetes")]
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Time between two looks at a file's size and time of change. Fixed.
pub const FILE_POLL: Duration = Duration::from_secs(1);

/// How far an interval is spread to either side, as a share of it. Fixed.
pub const JITTER: f64 = 0.1;

/// Endpoints of one service. Range 1 to 65,536. Kubernetes cuts its own Endpoints objects at 1,000; each
/// costs a probe per interval.
pub const MAX_ENDPOINTS: usize = 1024;

/// Services of one registry. Range 1 to 65,536. Each has a background task.
pub const MAX_SERVICES: usize = 256;

/// Probes of one service in flight at once. Fixed; it bounds the sockets.
pub const MAX_PROBES_AT_ONCE: usize = 64;

/// Lookups of one registry in flight at once. Fixed; each holds a thread until the resolver answers.
pub const MAX_LOOKUPS_AT_ONCE: usize = 8;

/// Bytes of a file. Fixed.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_that_changes_changes_this_page_too() {
        let seconds = [PROBE_INTERVAL, PROBE_TIMEOUT, FILE_POLL].map(|period| period.as_secs());
        assert_eq!(seconds, [5, 1, 1]);
        assert_eq!((FALL, RISE), (2, 1));
        assert_eq!((MAX_ENDPOINTS, MAX_SERVICES), (1024, 256));
        assert_eq!((MAX_PROBES_AT_ONCE, MAX_LOOKUPS_AT_ONCE, MAX_FILE_BYTES), (64, 8, 1 << 20));
        assert!((JITTER - 0.1).abs() < f64::EPSILON);
    }

    #[cfg(feature = "kubernetes")]
    #[test]
    fn so_does_one_of_the_resolver() {
        let seconds =
            [RESOLVE_INTERVAL, RESOLVE_TIMEOUT, RESOLVE_GAP].map(|period| period.as_secs());
        assert_eq!((seconds, CLUSTER_DOMAIN), ([30, 5, 1], "cluster.local"));
    }
}
