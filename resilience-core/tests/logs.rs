//! Fear: at three in the morning, the debug log does not tell what was tried, when, and why it stopped.

#[path = "support/log.rs"]
mod log;

use std::time::Duration;

use resilience_core::{AnyError, Call, CircuitBreaker, Pipeline, RetryPolicy};

use log::Log;

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

#[tokio::test(start_paused = true)]
async fn the_debug_log_tells_each_attempt_delay_and_change_of_state() {
    let log = Log::listen("shared_external=debug");
    let breaker = CircuitBreaker::builder("mail").fail_max(2).build().unwrap();
    let retry =
        RetryPolicy::builder().jitter(false).base_delay(Duration::from_secs(1)).build().unwrap();
    let pipeline = Pipeline::builder("mail").breaker(breaker).retry(retry).build().unwrap();
    pipeline.run(Call::read(), &AnyError, |_| async { Err::<(), _>(Refused) }).await.unwrap_err();
    let text = log.end();
    let mut lines = text.lines();
    for told in [
        "DEBUG shared_external::pipeline: attempt name=mail operation=\"read\" attempt=1 limit=30s",
        "DEBUG shared_external::retry: attempt failed; another follows name=mail attempts=1 delay=1s",
        "DEBUG shared_external::pipeline: attempt name=mail operation=\"read\" attempt=2 limit=30s",
        "DEBUG shared_external::breaker: circuit changed name=mail from=\"closed\" to=\"open\" generation=1",
        "outcome=\"service_error\" attempts=2 elapsed=1s",
    ] {
        assert!(
            lines.any(|line| line.contains(told)),
            "not told, or not in this order: {told}\n{text}"
        );
    }
}
