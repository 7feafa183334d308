//! Every default of this crate: its unit, its range, and why it is what it is.

use std::time::Duration;

/// The manager's name, and with it that of its breaker and of its pool.
pub const NAME: &str = "database";

/// Connections that stay open when idle. 1 to 10,000; default 20, as in the Python module.
pub const POOL_SIZE: u32 = 20;
/// Connections beyond the pool size that close when they come back. 0 to 10,000; default 50, as in the Python module.
pub const MAX_OVERFLOW: u32 = 50;
/// Connections that are kept idle. 0 to the pool size; default 0: a process that asks nothing costs the server nothing.
pub const MIN_IDLE: u32 = 0;

/// Time to open a connection to one host. Default 5 s: a handshake that takes longer will not get better.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to wait for a place in the pool; opening a connection then has its own time. Default 5 s: who waits longer has no user left to answer.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time of one attempt; then its statement is cancelled at the server, whose `statement_timeout` is a second more. Default 30 s, as in the Python module.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time of a call whose caller sets none. Default 60 s: two attempts.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Attempts after the first. 0 to 100; default 3, as in the Python module.
pub const MAX_RETRIES: u32 = 3;
/// The first wait between attempts. Default 1 s, as in the Python module.
pub const BASE_DELAY: Duration = Duration::from_secs(1);
/// The longest wait between attempts. Default 60 s, as in the Python module.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// Failures in a row that open the circuit. 1 to 1,000,000; default 3: a database is critical, so its failure is told early.
pub const FAIL_MAX: u32 = 3;
/// How long the circuit stays open before a probe. Default 30 s.
pub const RESET_TIMEOUT: Duration = Duration::from_secs(30);
/// Probes that must succeed to close it. 1 to 1,000,000; default 3.
pub const SUCCESS_THRESHOLD: u32 = 3;
/// Probes in flight at once while half-open. 1 to 1,000; default 1.
pub const HALF_OPEN_MAX_CALLS: u32 = 1;

/// How long a connection may lie idle before it is closed. Default 10 min: below the patience of most firewalls and proxies.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How long a connection may live. Default 30 min: bounds a backend's memory, and how long an old server is held on to.
pub const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);
/// How long a connection may lie idle and be lent unasked. Default 30 s: while it is in use, none is asked; after
/// a quiet spell, one round trip finds out what a proxy or a firewall has dropped, and no call fails for it.
pub const TEST_AFTER: Duration = Duration::from_secs(30);
/// How long a connection may be held before a warning says where it was taken. Default none: a listener or an export
/// rightly holds one for long, and which is too long only the application knows. An exhausted pool names its longest
/// holder all the same.
pub const LEAK_THRESHOLD: Option<Duration> = None;
/// How far lifetimes are spread, as a share of [`MAX_LIFETIME`] either way, so that connections opened together do not close together.
pub const LIFETIME_JITTER: f64 = 0.1;

/// Notifications that wait for a [`Listener`](crate::Listener)'s owner; more are dropped, and told as a gap. 1,024: at 8,000
/// bytes each, the most that the server takes, 8 MB.
pub const LISTEN_BUFFER: usize = 1024;
/// How long a listener hears nothing before it asks whether the server is still there. 5 s: a packet that nobody waits for, and
/// below the patience of every firewall and proxy.
pub const LISTEN_PING_AFTER: Duration = Duration::from_secs(5);
/// How long the answer may take. 5 s, as long as a connect.
pub const LISTEN_PING_LIMIT: Duration = Duration::from_secs(5);
/// The longest wait before a lost listener connects again; it doubles with each failure. 100 ms: a gap costs its owner a look at
/// the whole table, so it shall be short, but a thousand listeners that are cut off together shall not come back together.
pub const LISTEN_FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait after failures. 10 s.
pub const LISTEN_LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How far a replica may lag behind and be read from. Default 10 s: ten looks at the servers, so that one look
/// that comes late rules out no sound replica; far above the lag of one that keeps up, far below a user's patience.
pub const MAX_REPLICA_LAG: Duration = Duration::from_secs(10);

/// How often certificate files are looked at, ± 10 %. 10 s: whoever renews them does so long before the old ones end.
pub const TLS_FILES_PERIOD: Duration = Duration::from_secs(10);

/// The longest that one look at the service's health takes. 5 s.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// The floor for the delay before a server that has run out of disk or memory is asked again. 5 s.
pub const SLOWLY: Duration = Duration::from_secs(5);
/// A caller that gave an attempt less than this cannot blame the service for running out of it. 10 ms.
pub const SHORTEST_FAIR_ATTEMPT: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_default_changes_unseen() {
        let seconds = |durations: &[Duration]| {
            durations.iter().map(Duration::as_secs_f64).collect::<Vec<_>>()
        };
        assert_eq!(NAME, "database");
        assert_eq!([POOL_SIZE, MAX_OVERFLOW, MIN_IDLE], [20, 50, 0]);
        assert_eq!(
            seconds(&[CONNECT_TIMEOUT, ACQUIRE_TIMEOUT, ATTEMPT_TIMEOUT, DEADLINE]),
            [5.0, 5.0, 30.0, 60.0]
        );
        assert_eq!((MAX_RETRIES, seconds(&[BASE_DELAY, MAX_DELAY])), (3, vec![1.0, 60.0]));
        assert_eq!([FAIL_MAX, SUCCESS_THRESHOLD, HALF_OPEN_MAX_CALLS], [3, 3, 1]);
        assert_eq!(
            seconds(&[RESET_TIMEOUT, IDLE_TIMEOUT, MAX_LIFETIME, HEALTH_TIMEOUT, SLOWLY]),
            [30.0, 600.0, 1800.0, 5.0, 5.0]
        );
        assert_eq!(LISTEN_BUFFER, 1024);
        assert_eq!(seconds(&[LISTEN_PING_AFTER, LISTEN_PING_LIMIT]), [5.0, 5.0]);
        assert_eq!(seconds(&[LISTEN_FIRST_WAIT, LISTEN_LONGEST_WAIT]), [0.1, 10.0]);
        assert_eq!(TLS_FILES_PERIOD, Duration::from_secs(10));
        assert_eq!(MAX_REPLICA_LAG, Duration::from_secs(10));
        assert_eq!((seconds(&[TEST_AFTER]), LEAK_THRESHOLD), (vec![30.0], None));
        assert_eq!(SHORTEST_FAIR_ATTEMPT, Duration::from_millis(10));
        assert!((LIFETIME_JITTER - 0.1).abs() < f64::EPSILON);
    }
}
