//! The numbers and durations among the settings, and what each may be.

use std::time::Duration;

use resilience_core::settings::{Held, Problems, Quantity, Resilience};

use crate::defaults;

const CONNECTIONS: u32 = 10_000;

/// All numbers and durations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) resilience: Resilience,
    pub(crate) pool_size: u32,
    pub(crate) max_overflow: u32,
    pub(crate) min_idle: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) test_after: Duration,
    pub(crate) leak_threshold: Option<Duration>,
    pub(crate) max_replica_lag: Duration,
}

impl Tuning {
    /// Each of them under its key, and what it may be.
    pub(crate) fn quantities(&mut self) -> impl Iterator<Item = (&'static str, Quantity<'_>)> {
        use Quantity::{Count, Duration, Limit};
        let own = [
            ("pool_size", Count(&mut self.pool_size, 1..=CONNECTIONS)),
            ("max_overflow", Count(&mut self.max_overflow, 0..=CONNECTIONS)),
            ("min_idle", Count(&mut self.min_idle, 0..=CONNECTIONS)),
            ("connect_timeout", Duration(&mut self.connect_timeout)),
            ("acquire_timeout", Duration(&mut self.acquire_timeout)),
            ("idle_timeout", Duration(&mut self.idle_timeout)),
            ("max_lifetime", Duration(&mut self.max_lifetime)),
            ("test_after", Duration(&mut self.test_after)),
            ("leak_threshold", Limit(&mut self.leak_threshold)),
            ("max_replica_lag", Duration(&mut self.max_replica_lag)),
        ];
        own.into_iter().chain(self.resilience.quantities("attempt_timeout"))
    }

    /// Notes what does not go together.
    pub(crate) fn check(&self, problems: &mut Problems) {
        self.resilience.check(problems);
        if self.min_idle > self.pool_size {
            let allowed = format!("up to pool_size, which is {}", self.pool_size);
            problems.wrong("min_idle", Held::Text(self.min_idle.to_string()), allowed);
        }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            resilience: Resilience {
                deadline: defaults::DEADLINE,
                attempt_timeout: defaults::ATTEMPT_TIMEOUT,
                max_retries: defaults::MAX_RETRIES,
                base_delay: defaults::BASE_DELAY,
                max_delay: defaults::MAX_DELAY,
                fail_max: defaults::FAIL_MAX,
                reset_timeout: defaults::RESET_TIMEOUT,
                success_threshold: defaults::SUCCESS_THRESHOLD,
                half_open_max_calls: defaults::HALF_OPEN_MAX_CALLS,
            },
            pool_size: defaults::POOL_SIZE,
            max_overflow: defaults::MAX_OVERFLOW,
            min_idle: defaults::MIN_IDLE,
            connect_timeout: defaults::CONNECT_TIMEOUT,
            acquire_timeout: defaults::ACQUIRE_TIMEOUT,
            idle_timeout: defaults::IDLE_TIMEOUT,
            max_lifetime: defaults::MAX_LIFETIME,
            test_after: defaults::TEST_AFTER,
            leak_threshold: defaults::LEAK_THRESHOLD,
            max_replica_lag: defaults::MAX_REPLICA_LAG,
        }
    }
}
