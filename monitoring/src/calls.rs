//! The calls of this process by name, over the last minute: heard from the core's events.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use resilience_core::{CallOutcome, Event, Observe, add_observer};
use tokio::time::Instant;

use crate::capped::Capped;
use crate::window::{CallMetrics, CallWindow};

static CALLS: LazyLock<Arc<Calls>> = LazyLock::new(|| {
    let calls = Arc::new(Calls::new());
    add_observer(Arc::<Calls>::clone(&calls));
    calls
});

/// A window per name. Names beyond the limit share one that nobody reads.
pub(crate) struct Calls {
    began: Instant,
    windows: Capped<CallWindow>,
}

impl Calls {
    /// Those of this process, which counts them from the first time this is asked.
    pub(crate) fn global() -> &'static Self {
        &CALLS
    }

    fn new() -> Self {
        Self { began: Instant::now(), windows: Capped::new(|_| CallWindow::new()) }
    }

    pub(crate) fn read(&self, name: &str) -> CallMetrics {
        self.windows.get(name).map(|window| window.read(self.now())).unwrap_or_default()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Observe for Calls {
    fn on_event(&self, event: &Event<'_>) {
        match *event {
            // What the caller dropped says nothing about the service.
            Event::CallEnded { outcome: CallOutcome::Cancelled, .. } => {}
            Event::CallEnded { name, outcome, attempts, elapsed, .. } => {
                let latency = (attempts > 0).then_some(elapsed);
                self.windows
                    .with(name, |window| window.call(self.now(), outcome.is_error(), latency));
            }
            Event::RetryScheduled { name, .. } => {
                self.windows.with(name, |window| window.retry(self.now()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use resilience_core::{AnyError, Call, Pipeline, RetryPolicy};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_pipeline_did_can_be_read_by_its_name() {
        let calls = Calls::global();
        let retry = RetryPolicy::builder().max_retries(1).build().unwrap();
        let pipeline = Pipeline::builder("calls-test").retry(retry).build().unwrap();
        let _ =
            pipeline.run(Call::read(), &AnyError, |_| async { Ok::<_, std::fmt::Error>(()) }).await;
        let _ = pipeline
            .run(Call::read(), &AnyError, |_| async { Err::<(), _>(std::fmt::Error) })
            .await;
        let abandoned = pipeline.run(Call::read(), &AnyError, |_| {
            std::future::pending::<Result<(), std::fmt::Error>>()
        });
        let _ = tokio::time::timeout(Duration::from_millis(1), abandoned).await;
        let metrics = calls.read("calls-test");
        assert_eq!((metrics.requests, metrics.errors, metrics.retries), (2, 1, 1));
        assert_eq!(calls.read("nobody"), CallMetrics::default());
    }
}
