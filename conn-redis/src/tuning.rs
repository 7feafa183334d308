//! The numbers and durations among the settings, and what each may be.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::defaults;

/// All numbers and durations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) max_connections: u32,
    pub(crate) socket_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) deadline: Duration,
    pub(crate) max_retries: u32,
    pub(crate) base_delay: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) fail_max: u32,
    pub(crate) reset_timeout: Duration,
    pub(crate) success_threshold: u32,
    pub(crate) half_open_max_calls: u32,
    pub(crate) bulkhead: u32,
    pub(crate) health_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) test_after: Duration,
}

impl Tuning {
    /// Each number under its key, and what it may be.
    pub(crate) fn numbers(&mut self) -> [(&'static str, &mut u32, RangeInclusive<u32>); 6] {
        [
            ("max_connections", &mut self.max_connections, 1..=10_000),
            ("max_retries", &mut self.max_retries, 0..=100),
            ("fail_max", &mut self.fail_max, 1..=1_000_000),
            ("success_threshold", &mut self.success_threshold, 1..=1_000_000),
            ("half_open_max_calls", &mut self.half_open_max_calls, 1..=1_000),
            ("bulkhead", &mut self.bulkhead, 1..=1_000_000),
        ]
    }

    /// Each duration under its key. All may be above 0, up to a day.
    pub(crate) fn durations(&mut self) -> [(&'static str, &mut Duration); 11] {
        [
            ("socket_timeout", &mut self.socket_timeout),
            ("connect_timeout", &mut self.connect_timeout),
            ("acquire_timeout", &mut self.acquire_timeout),
            ("deadline", &mut self.deadline),
            ("base_delay", &mut self.base_delay),
            ("max_delay", &mut self.max_delay),
            ("reset_timeout", &mut self.reset_timeout),
            ("health_timeout", &mut self.health_timeout),
            ("idle_timeout", &mut self.idle_timeout),
            ("max_lifetime", &mut self.max_lifetime),
            ("test_after", &mut self.test_after),
        ]
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            max_connections: defaults::MAX_CONNECTIONS,
            socket_timeout: defaults::SOCKET_TIMEOUT,
            connect_timeout: defaults::CONNECT_TIMEOUT,
            acquire_timeout: defaults::ACQUIRE_TIMEOUT,
            deadline: defaults::DEADLINE,
            max_retries: defaults::MAX_RETRIES,
            base_delay: defaults::BASE_DELAY,
            max_delay: defaults::MAX_DELAY,
            fail_max: defaults::FAIL_MAX,
            reset_timeout: defaults::RESET_TIMEOUT,
            success_threshold: defaults::SUCCESS_THRESHOLD,
            half_open_max_calls: defaults::HALF_OPEN_MAX_CALLS,
            bulkhead: defaults::BULKHEAD,
            health_timeout: defaults::HEALTH_TIMEOUT,
            idle_timeout: defaults::IDLE_TIMEOUT,
            max_lifetime: defaults::MAX_LIFETIME,
            test_after: defaults::TEST_AFTER,
        }
    }
}
