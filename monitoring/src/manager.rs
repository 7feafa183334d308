//! The watch over all services of an application: what it starts, takes in and answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
#[cfg(feature = "axum")]
use std::time::Duration;

use resilience_core::Deadline;
use tokio::time::timeout_at;

use crate::calls::Calls;
use crate::delivery::Courier;
use crate::life::Life;
use crate::shared::{Setup, Shared, lock};
use crate::{
    Alert, AlertHandler, AlertRule, HealthSummary, InvalidMonitoring, MonitoringBuilder, Readiness,
    Service, ServiceHealth,
};

/// Watches services in the background, tells alerts, and knows how everything is without asking
/// anyone. Cheap to clone; what runs in the background ends with the last clone.
///
/// ```
/// # struct Database;
/// # #[async_trait::async_trait]
/// # impl resilience_core::HealthCheck for Database {
/// #     async fn check(&self, _: resilience_core::Deadline) -> resilience_core::Health {
/// #         resilience_core::Health::healthy(std::time::Duration::ZERO)
/// #     }
/// # }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let database = std::sync::Arc::new(Database);
/// use monitoring::{LogAlertHandler, MonitoringManager};
///
/// let manager = MonitoringManager::builder()
///     .critical("database", database)
///     .alert_handler(LogAlertHandler)
///     .version(env!("CARGO_PKG_VERSION"))
///     .build()?;
/// manager.start();
/// println!("overall health: {}", manager.get_health_summary().overall_health);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MonitoringManager {
    shared: Arc<Shared>,
    life: Arc<Life>,
}

impl MonitoringManager {
    /// A manager with other services and settings than none.
    pub fn builder() -> MonitoringBuilder {
        MonitoringBuilder::new()
    }

    pub(crate) fn new(setup: Setup, rules: Vec<Box<dyn AlertRule>>) -> Self {
        // Calls count from now on, not only once somebody asks for them.
        Calls::global();
        let life = Arc::new(Life::new(setup.runtime.clone()));
        let shared = Shared::new(setup, rules);
        Self { shared: Arc::new(shared), life }
    }

    /// Begins to look, in the background; each service is looked at once without delay. Does
    /// nothing the second time.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, unless the builder was given one.
    pub fn start(&self) {
        let _alone = lock(&self.shared.entrance);
        if !self.life.begin() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.life.spawn(async move { shared.evaluate_for_ever().await });
        for courier in lock(&self.shared.couriers).iter() {
            self.deliver(courier);
        }
        for monitor in self.shared.monitors() {
            self.life.spawn(async move { monitor.run().await });
        }
    }

    /// Waits until each service was looked at once, by `deadline`. Says whether each was.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn first_look(&self, deadline: Deadline) -> bool {
        let looked = async {
            loop {
                let mut news = std::pin::pin!(self.shared.looked.notified());
                news.as_mut().enable();
                if self.shared.monitors().iter().all(|monitor| monitor.health().age.is_some()) {
                    return;
                }
                news.await;
            }
        };
        timeout_at(deadline.instant(), looked).await.is_ok()
    }

    /// Watches one more service: at once, if [`start`](Self::start) was called.
    ///
    /// # Errors
    ///
    /// [`InvalidMonitoring`] for a setting out of its range, a name that is taken, or a 257th service.
    pub fn add_service(&self, service: Service) -> Result<(), InvalidMonitoring> {
        let _alone = lock(&self.shared.entrance);
        let monitor = self.shared.take_in(service)?;
        if self.life.has_begun() {
            self.life.spawn(async move { monitor.run().await });
        }
        Ok(())
    }

    /// Tells alerts to `handler` too, from now on.
    pub fn add_alert_handler(&self, handler: impl AlertHandler + 'static) {
        let courier = Courier::new(Arc::new(handler), self.shared.setup.metrics.is_some());
        let courier = Arc::new(courier);
        let _alone = lock(&self.shared.entrance);
        if self.life.has_begun() {
            self.deliver(&courier);
        }
        lock(&self.shared.couriers).push(courier);
    }

    /// Judges by `rule` too, from now on.
    pub fn add_alert_rule(&self, rule: impl AlertRule + 'static) {
        lock(&self.shared.rules).push(Box::new(rule));
    }

    /// How everything is. No I/O.
    #[must_use]
    pub fn get_health_summary(&self) -> HealthSummary {
        self.shared.summary()
    }

    /// How one service is. No I/O.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<ServiceHealth> {
        self.shared.summary().services.remove(name)
    }

    /// The alerts that fire.
    #[must_use]
    pub fn alerts(&self) -> Vec<Alert> {
        lock(&self.shared.board).alerts().cloned().collect()
    }

    /// Whether this process should get traffic. No I/O.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.shared.readiness(self.life.has_begun())
    }

    /// Says that this process is about to end: it should get no more traffic. Checks go on.
    pub fn set_draining(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    /// All metrics in Prometheus' text format, up to date; `None` if the builder was given none, or
    /// the application's own recorder has them.
    #[must_use]
    pub fn render_metrics(&self) -> Option<String> {
        let metrics = self.shared.setup.metrics.as_ref()?;
        self.shared.publish(&self.shared.summary());
        metrics.render()
    }

    /// Says that this process is about to end, stops looking, and delivers the alerts that wait,
    /// until `deadline`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the alerts that still wait.
    pub async fn shutdown(&self, deadline: Deadline) {
        self.set_draining();
        self.life.end_watch();
        // Without the couriers nobody can send: their tasks end with what is queued.
        lock(&self.shared.couriers).clear();
        let _ = timeout_at(deadline.instant(), self.life.deliveries_end()).await;
    }

    /// What `/health` shows.
    #[cfg(feature = "axum")]
    pub(crate) fn version_and_uptime(&self) -> (Option<Arc<str>>, Duration) {
        (self.shared.setup.version.clone(), self.shared.built.elapsed())
    }

    fn deliver(&self, courier: &Courier) {
        let shared = Arc::clone(&self.shared);
        let delivered = move |sequence| lock(&shared.board).delivered(sequence);
        if let Some(deliveries) = courier.deliver(delivered) {
            self.life.spawn_delivery(deliveries);
        }
    }
}

impl fmt::Debug for MonitoringManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitoringManager")
            .field("services", &self.shared.monitors())
            .finish_non_exhaustive()
    }
}
