//! The monitoring of this process: one manager, and the services it watches by default.

use std::sync::{Mutex, PoisonError};

use monitoring::{LogAlertHandler, MonitoringManager, install_metrics};

static MANAGER: Mutex<Option<MonitoringManager>> = Mutex::new(None);

/// The monitoring manager of this process: watching nothing, until [`setup_default_monitoring`] or
/// the application adds services and starts it. Alerts go to the log; metrics to the process's recorder.
///
/// # Panics
///
/// If the thread that runs background work cannot be started.
#[must_use]
pub fn get_monitoring_manager() -> MonitoringManager {
    let mut manager = MANAGER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(manager) = &*manager {
        return manager.clone();
    }
    let runtime = crate::runtime::background().expect("the process can start one more thread");
    let builder = MonitoringManager::builder()
        .runtime(runtime)
        .metrics(install_metrics())
        .alert_handler(LogAlertHandler);
    manager.insert(builder.build().expect("the defaults are valid")).clone()
}

/// Makes `manager` that of this process, unless there is one already.
#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
pub(crate) fn adopt(manager: &MonitoringManager) -> bool {
    let mut current = MANAGER.lock().unwrap_or_else(PoisonError::into_inner);
    let free = current.is_none();
    if free {
        *current = Some(manager.clone());
    }
    free
}

#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
pub use with_backends::setup_default_monitoring;

#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
mod with_backends {
    use std::sync::Arc;
    use std::time::Duration;

    use monitoring::{Criticality, MonitoringManager, Service};
    use resilience_core::settings::Settings;
    use resilience_core::{Deadline, HealthCheck};

    use super::get_monitoring_manager;
    use crate::SetupError;

    /// Begins to watch every backend this process is compiled with, and waits until each was looked at
    /// once, for 5 s at the most. The database is critical, Redis and OpenSearch are optional: the
    /// application degrades without them. What is watched already stays as it is, so the second call
    /// changes nothing, and one line before the first changes the criticality:
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis")] async fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// use shared_external::monitoring::{Criticality, Service};
    /// use shared_external::{get_monitoring_manager, get_redis_client, setup_default_monitoring};
    ///
    /// let redis = std::sync::Arc::new(get_redis_client()?);
    /// get_monitoring_manager().add_service(Service::new("redis", redis, Criticality::Critical))?;
    /// setup_default_monitoring().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// `MONITORING_INTERVAL` (default 30 s) and `MONITORING_TIMEOUT` (default 5 s) say how often and for how long.
    ///
    /// # Errors
    ///
    /// [`SetupError`] if a backend's settings, or those of the monitoring, are wrong. A backend that is
    /// down is no error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the monitoring started.
    pub async fn setup_default_monitoring() -> Result<MonitoringManager, SetupError> {
        let mut settings = Settings::from_env("monitoring");
        let (interval, timeout) = (settings.duration("interval"), settings.duration("timeout"));
        settings.finish()?;
        let manager = get_monitoring_manager();
        let watch = |name: &str, check: Arc<dyn HealthCheck>, criticality| {
            if manager.service(name).is_some() {
                return Ok(());
            }
            let mut service = Service::new(name, check, criticality);
            if let Some(interval) = interval {
                service = service.interval(interval);
            }
            if let Some(timeout) = timeout {
                service = service.timeout(timeout);
            }
            manager.add_service(service)
        };
        #[cfg(feature = "postgres")]
        watch("database", Arc::new(crate::get_database()?), Criticality::Critical)?;
        #[cfg(feature = "redis")]
        watch("redis", Arc::new(crate::get_redis_client()?), Criticality::Optional)?;
        #[cfg(feature = "opensearch")]
        watch("opensearch", Arc::new(crate::get_opensearch_client()?), Criticality::Optional)?;
        manager.start();
        manager.first_look(Deadline::within(Duration::from_secs(5))).await;
        Ok(manager)
    }
}
