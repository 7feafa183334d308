//! The numbers and durations among the settings, and what each may be.

use std::time::Duration;

use resilience_core::settings::{Quantity, Resilience};

use crate::defaults;

/// All numbers and durations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) resilience: Resilience,
    pub(crate) bulkhead: u32,
    pub(crate) acquire_timeout: Duration,
    pub(crate) health_timeout: Duration,
}

impl Tuning {
    /// Each of them under its key, and what it may be.
    pub(crate) fn quantities(&mut self) -> impl Iterator<Item = (&'static str, Quantity<'_>)> {
        use Quantity::{Count, Duration};
        let own = [
            ("bulkhead", Count(&mut self.bulkhead, 1..=65_536)),
            ("acquire_timeout", Duration(&mut self.acquire_timeout)),
            ("health_timeout", Duration(&mut self.health_timeout)),
        ];
        own.into_iter().chain(self.resilience.quantities("timeout"))
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            resilience: Resilience {
                deadline: defaults::DEADLINE,
                attempt_timeout: defaults::TIMEOUT,
                max_retries: defaults::MAX_RETRIES,
                base_delay: defaults::BASE_DELAY,
                max_delay: defaults::MAX_DELAY,
                fail_max: defaults::FAIL_MAX,
                reset_timeout: defaults::RESET_TIMEOUT,
                success_threshold: defaults::SUCCESS_THRESHOLD,
                half_open_max_calls: defaults::HALF_OPEN_MAX_CALLS,
            },
            bulkhead: defaults::BULKHEAD,
            acquire_timeout: defaults::ACQUIRE_TIMEOUT,
            health_timeout: defaults::HEALTH_TIMEOUT,
        }
    }
}
