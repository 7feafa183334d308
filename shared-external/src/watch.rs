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
    let current = MANAGER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(manager) = current {
        return manager;
    }
    // Asked for outside the lock, for `init` takes the two in the other order.
    let runtime = runtime().expect("the process can start one more thread");
    let mut current = MANAGER.lock().unwrap_or_else(PoisonError::into_inner);
    let manager = current.get_or_insert_with(|| {
        let builder = MonitoringManager::builder()
            .runtime(runtime)
            .metrics(install_metrics())
            .alert_handler(LogAlertHandler);
        builder.build().expect("the defaults are valid")
    });
    manager.clone()
}

#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
use crate::globals::claim_runtime as runtime;
#[cfg(not(any(feature = "opensearch", feature = "postgres", feature = "redis")))]
use crate::runtime::background as runtime;

/// Makes `manager` that of this process. `init` has seen that there is none.
#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
pub(crate) fn adopt(manager: &MonitoringManager) {
    *MANAGER.lock().unwrap_or_else(PoisonError::into_inner) = Some(manager.clone());
}

#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
pub(crate) use with_backends::Pace;
#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
pub use with_backends::setup_default_monitoring;

#[cfg(any(feature = "opensearch", feature = "postgres", feature = "redis"))]
mod with_backends {
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use monitoring::{Criticality, MonitoringManager, Service};
    use resilience_core::settings::{ConfigError, Settings};
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
        let manager = watch_all(&Pace::from_env()?)?;
        manager.first_look(Deadline::within(Duration::from_secs(5))).await;
        Ok(manager)
    }

    /// How often every service is looked at, and for how long, unless the defaults will do.
    pub(crate) struct Pace {
        interval: Option<Duration>,
        timeout: Option<Duration>,
    }

    impl Pace {
        pub(crate) fn from_env() -> Result<Self, ConfigError> {
            let mut settings = Settings::from_env("monitoring");
            let pace = Self {
                interval: settings.duration("interval"),
                timeout: settings.duration("timeout"),
            };
            settings.finish().map(|()| pace)
        }
    }

    /// Watches whatever is not watched yet, and starts to.
    fn watch_all(pace: &Pace) -> Result<MonitoringManager, SetupError> {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let manager = get_monitoring_manager();
        let watch = |name: &'static str, check: Arc<dyn HealthCheck>, criticality| {
            if manager.service(name).is_some() {
                return Ok(());
            }
            let mut service = Service::new(name, check, criticality);
            if let Some(interval) = pace.interval {
                service = service.interval(interval);
            }
            if let Some(timeout) = pace.timeout {
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
        Ok(manager)
    }
}
