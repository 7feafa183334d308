//! Takes alerts to one handler: its own bounded queue, its own task, again until it worked.

use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, counter};
use resilience_core::Backoff;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{sleep, timeout};

use crate::defaults::{
    DELIVERY_ATTEMPTS, DELIVERY_BASE_DELAY, DELIVERY_MAX_DELAY, HANDLER_QUEUE, HANDLER_TIMEOUT,
};
use crate::names::{self, label};
use crate::task::Task;
use crate::{Alert, AlertError, AlertHandler};

/// The way to one handler.
pub(crate) struct Courier {
    handler: Arc<dyn AlertHandler>,
    meters: Option<Arc<Meters>>,
    queue: Sender<Alert>,
    waiting: Mutex<Option<Receiver<Alert>>>,
}

impl Courier {
    pub(crate) fn new(handler: Arc<dyn AlertHandler>, metered: bool) -> Self {
        let (queue, waiting) = mpsc::channel(HANDLER_QUEUE);
        let meters = metered.then(|| Arc::new(Meters::new(handler.name())));
        Self { handler, meters, queue, waiting: Mutex::new(Some(waiting)) }
    }

    /// Puts an alert into the queue. Where that is full, the alert is dropped and counted.
    pub(crate) fn send(&self, alert: Alert) {
        if let Err(refused) = self.queue.try_send(alert) {
            dropped(
                &self.handler,
                self.meters.as_deref(),
                &refused.into_inner(),
                "its queue is full or closed",
            );
        }
    }

    /// Delivers what is queued, in order, until [`send`](Self::send) can no longer be called.
    /// `delivered` hears the number of each notice that arrived. `None` the second time.
    pub(crate) fn deliver(
        &self,
        delivered: impl Fn(u64) + Send + 'static,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let (handler, meters) = (Arc::clone(&self.handler), self.meters.clone());
        Some(async move {
            while let Some(alert) = waiting.recv().await {
                let sequence = alert.sequence;
                if insist(&handler, meters.as_deref(), alert).await {
                    delivered(sequence);
                }
            }
        })
    }
}

/// Tries to deliver one alert until it worked or has failed too often; whether it worked.
async fn insist(handler: &Arc<dyn AlertHandler>, meters: Option<&Meters>, alert: Alert) -> bool {
    let mut waits = Backoff::exponential(DELIVERY_BASE_DELAY, DELIVERY_MAX_DELAY, 2.0).jittered();
    let alert = Arc::new(alert);
    for attempt in 1..=DELIVERY_ATTEMPTS {
        let outcome = try_once(handler, &alert).await;
        if let Some(meters) = meters {
            meters.outcomes[outcome.index()].increment(1);
        }
        let Some(problem) = outcome.problem() else { return true };
        tracing::debug!(target: "shared_external::monitoring", handler = handler.name(), key = %alert.key, attempt, %problem, "alert not delivered");
        if attempt < DELIVERY_ATTEMPTS {
            sleep(waits.next().unwrap_or(DELIVERY_MAX_DELAY)).await;
        }
    }
    dropped(handler, meters, &alert, "it failed too often");
    false
}

async fn try_once(handler: &Arc<dyn AlertHandler>, alert: &Arc<Alert>) -> Delivery {
    let mut delivery = Task::spawn({
        let (handler, alert) = (Arc::clone(handler), Arc::clone(alert));
        async move { handler.handle(&alert).await }
    });
    let outcome = match timeout(HANDLER_TIMEOUT, &mut delivery).await {
        Ok(Ok(Ok(()))) => Delivery::Delivered,
        Ok(Ok(Err(error))) => Delivery::Failed(error),
        Ok(Err(_)) => Delivery::Panicked,
        Err(_) => Delivery::TimedOut,
    };
    // One that was cut off must be gone before the next try: a handler never runs twice at once.
    delivery.end().await;
    outcome
}

fn dropped(handler: &Arc<dyn AlertHandler>, meters: Option<&Meters>, alert: &Alert, why: &str) {
    if let Some(meters) = meters {
        meters.dropped.increment(1);
    }
    tracing::warn!(target: "shared_external::monitoring", handler = handler.name(), key = %alert.key, why, "alert dropped");
}

/// How one try ended.
enum Delivery {
    Delivered,
    Failed(AlertError),
    TimedOut,
    Panicked,
}

impl Delivery {
    const WORDS: [&'static str; 4] = ["delivered", "error", "timeout", "panic"];

    const fn index(&self) -> usize {
        match self {
            Self::Delivered => 0,
            Self::Failed(_) => 1,
            Self::TimedOut => 2,
            Self::Panicked => 3,
        }
    }

    fn problem(&self) -> Option<String> {
        match self {
            Self::Delivered => None,
            Self::Failed(error) => Some(error.to_string()),
            Self::TimedOut => Some(format!("the handler took longer than {HANDLER_TIMEOUT:?}")),
            Self::Panicked => Some("the handler panicked".to_owned()),
        }
    }
}

struct Meters {
    outcomes: [Counter; 4],
    dropped: Counter,
}

impl Meters {
    fn new(handler: &'static str) -> Self {
        Self {
            outcomes: Delivery::WORDS.map(|outcome| {
                counter!(names::ALERT_NOTIFICATIONS, label::HANDLER => handler, label::OUTCOME => outcome)
            }),
            dropped: counter!(names::NOTIFICATIONS_DROPPED, label::HANDLER => handler),
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::AlertSeverity;
    use crate::board::Board;
    use crate::rules::Finding;
    use crate::wall_clock::Clock;

    /// A handler that never delivers anything.
    struct Broken;

    #[async_trait]
    impl AlertHandler for Broken {
        async fn handle(&self, _: &Alert) -> Result<(), AlertError> {
            Err(AlertError::new("the chat is down"))
        }
    }

    fn alert() -> Alert {
        let finding = Finding::overall(AlertSeverity::Error, "it burns");
        Board::default().apply("fire", vec![finding], Clock::FIXED.now()).remove(0)
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_full_queue_or_a_broken_handler_drops_is_counted() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let full = Courier::new(Arc::new(Broken), true);
        for _ in 0..HANDLER_QUEUE + 3 {
            full.send(alert());
        }
        let counts = |line: &str| recorder.handle().render().contains(line);
        let dropped = r#"external_service_notifications_dropped_total{handler="Broken"}"#;
        assert!(counts(&format!("{dropped} 3")));

        let courier = Courier::new(Arc::new(Broken), true);
        courier.send(alert());
        let deliveries = courier.deliver(|number| panic!("{number} was not delivered")).unwrap();
        assert!(courier.deliver(|_| ()).is_none(), "there is one task per handler");
        drop(courier);
        deliveries.await;
        assert!(counts(&format!("{dropped} 4")));
        let tries =
            r#"external_service_alert_notifications_total{handler="Broken",outcome="error"} 10"#;
        assert!(counts(tries));
    }
}
