//! The numbers and durations among the settings, and what each may be.

use std::time::Duration;

use resilience_core::settings::{Quantity, Resilience};

use crate::defaults;

/// All numbers and durations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) resilience: Resilience,
    pub(crate) max_connections: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) bulkhead: u32,
    pub(crate) health_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) test_after: Duration,
}

impl Tuning {
    /// Each of them under its key, and what it may be.
    pub(crate) fn quantities(&mut self) -> impl Iterator<Item = (&'static str, Quantity<'_>)> {
        use Quantity::{Count, Duration};
        let own = [
            ("max_connections", Count(&mut self.max_connections, 1..=10_000)),
            ("connect_timeout", Duration(&mut self.connect_timeout)),
            ("acquire_timeout", Duration(&mut self.acquire_timeout)),
            ("bulkhead", Count(&mut self.bulkhead, 1..=1_000_000)),
            ("health_timeout", Duration(&mut self.health_timeout)),
            ("idle_timeout", Duration(&mut self.idle_timeout)),
            ("max_lifetime", Duration(&mut self.max_lifetime)),
            ("test_after", Duration(&mut self.test_after)),
        ];
        own.into_iter().chain(self.resilience.quantities("socket_timeout"))
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            resilience: Resilience {
                deadline: defaults::DEADLINE,
                attempt_timeout: defaults::SOCKET_TIMEOUT,
                max_retries: defaults::MAX_RETRIES,
                base_delay: defaults::BASE_DELAY,
                max_delay: defaults::MAX_DELAY,
                fail_max: defaults::FAIL_MAX,
                reset_timeout: defaults::RESET_TIMEOUT,
                success_threshold: defaults::SUCCESS_THRESHOLD,
                half_open_max_calls: defaults::HALF_OPEN_MAX_CALLS,
            },
            max_connections: defaults::MAX_CONNECTIONS,
            connect_timeout: defaults::CONNECT_TIMEOUT,
            acquire_timeout: defaults::ACQUIRE_TIMEOUT,
            bulkhead: defaults::BULKHEAD,
            health_timeout: defaults::HEALTH_TIMEOUT,
            idle_timeout: defaults::IDLE_TIMEOUT,
            max_lifetime: defaults::MAX_LIFETIME,
            test_after: defaults::TEST_AFTER,
        }
    }
}
