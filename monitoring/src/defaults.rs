//! Every default of this crate, held by a test.

use std::time::Duration;

/// Time between two checks of a service.
pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
/// Share by which that time varies either way, so that replicas do not check in step.
pub(crate) const JITTER: f64 = 0.1;
/// Time of one check.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// Bad results in a row before a status gets worse: one lost packet is no outage.
pub(crate) const FALL: u32 = 2;
/// Good results in a row before a status gets better: an answer is proof.
pub(crate) const RISE: u32 = 1;

/// Share of calls that fail at which an alert fires, and below which it ends.
pub(crate) const ERROR_RATE: f64 = 0.10;
pub(crate) const ERROR_RATE_CLEAR: f64 = 0.05;
/// Calls below which a rate says nothing.
pub(crate) const MIN_SAMPLES: u64 = 20;
/// Failed checks in a row that are an alert of their own: well after "unhealthy", it says "still".
pub(crate) const CONSECUTIVE_FAILURES: u32 = 5;

/// Time between two looks of the alert rules; a check that ends is looked at once.
pub(crate) const EVALUATE_EVERY: Duration = Duration::from_secs(1);
/// Alerts that may fire at once.
pub(crate) const MAX_ALERTS: usize = 1000;
/// Alerts that may wait for one handler.
pub(crate) const HANDLER_QUEUE: usize = 256;
/// Time of one delivery.
pub(crate) const HANDLER_TIMEOUT: Duration = Duration::from_secs(10);
/// Tries to deliver one alert: with the waits between them, about five minutes.
pub(crate) const DELIVERY_ATTEMPTS: u32 = 10;
pub(crate) const DELIVERY_BASE_DELAY: Duration = Duration::from_secs(1);
pub(crate) const DELIVERY_MAX_DELAY: Duration = Duration::from_secs(60);

/// Time over which calls are counted for `/health/detailed` and the error-rate rule.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_what_the_docs_say() {
        insta::assert_compact_debug_snapshot!(
            [INTERVAL, TIMEOUT, EVALUATE_EVERY, HANDLER_TIMEOUT, DELIVERY_BASE_DELAY, DELIVERY_MAX_DELAY, WINDOW],
            @"[30s, 5s, 1s, 10s, 1s, 60s, 60s]"
        );
        insta::assert_compact_debug_snapshot!(
            (JITTER, FALL, RISE, ERROR_RATE, ERROR_RATE_CLEAR, MIN_SAMPLES, CONSECUTIVE_FAILURES),
            @"(0.1, 2, 1, 0.1, 0.05, 20, 5)"
        );
        insta::assert_compact_debug_snapshot!(
            (MAX_ALERTS, HANDLER_QUEUE, DELIVERY_ATTEMPTS),
            @"(1000, 256, 10)"
        );
    }
}
