//! The pace of a loop that never gives up, such as a consumer's.

use std::time::Duration;

use crate::Backoff;

/// How long a loop waits after a call that failed, before it calls again.
///
/// A retry budget bounds the retries within a call. It does not slow down whoever makes another call at
/// once: with the budget empty, calls fail sooner, and a loop around them turns faster the worse the service
/// is. AWS SDKs therefore sleep even when their quota refuses, in the calls that poll (*Retry behavior*,
/// long-polling operations, 2026). This is that sleep: it asks no budget, grows with each failure
/// up to the cap of its [`Backoff`], and begins anew after a success.
///
/// ```no_run
/// # use resilience_core::{AnyError, Call, Pipeline, Polling, RetryPolicy};
/// # async fn receive() -> Result<Vec<u8>, std::io::Error> { Ok(Vec::new()) }
/// # async fn consume(pipeline: Pipeline, policy: RetryPolicy) {
/// let mut polling = Polling::new(policy.backoff());
/// loop {
///     match pipeline.run(Call::read(), &AnyError, |_| receive()).await {
///         Ok(_batch) => polling.succeeded(),
///         Err(error) => polling.failed(error.retry_after()).await,
///     }
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Polling {
    waits: Backoff,
    failures: u32,
}

impl Polling {
    /// A loop that has not failed yet.
    #[must_use]
    pub fn new(waits: Backoff) -> Self {
        Self { waits, failures: 0 }
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The call went well: the next failure waits as the first did.
    pub fn succeeded(&mut self) {
        if self.failures > 0 {
            self.failures = 0;
            self.waits.reset();
        }
    }

    /// The call failed: waits as long as it is due, and no shorter than `retry_after`, which may be longer
    /// than the cap.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the wait. The failure has counted since its first poll.
    pub async fn failed(&mut self, retry_after: Option<Duration>) {
        let wait = self.wait(retry_after);
        tracing::debug!(target: "shared_external::retry", failures = self.failures, ?wait, "call of a loop failed; waiting");
        tokio::time::sleep(wait).await;
    }

    /// [`failed`](Self::failed) for who waits in another way: the wait that is due.
    #[must_use = "a loop that does not wait is what this is there to prevent"]
    pub fn wait(&mut self, retry_after: Option<Duration>) -> Duration {
        self.failures = self.failures.saturating_add(1);
        match retry_after {
            Some(floor) => self.waits.wait_at_least(floor, Duration::MAX),
            None => self.waits.wait(),
        }
    }
}
