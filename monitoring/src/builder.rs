//! Settings of a manager to be.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use resilience_core::{HealthCheck, Name};
use tokio::runtime::Handle;

use crate::shared::Setup;
use crate::wall_clock::Clock;
use crate::{
    AlertHandler, AlertRule, AlertThresholds, Criticality, InvalidMonitoring, Metrics,
    MonitoringManager, ReadinessPolicy, Service, defaults, rules,
};

/// Settings of a [`MonitoringManager`] to be.
#[must_use]
pub struct MonitoringBuilder {
    services: Vec<Service>,
    handlers: Vec<Arc<dyn AlertHandler>>,
    rules: Vec<Box<dyn AlertRule>>,
    thresholds: AlertThresholds,
    setup: Setup,
}

impl MonitoringBuilder {
    pub(crate) fn new() -> Self {
        Self {
            services: Vec::new(),
            handlers: Vec::new(),
            rules: Vec::new(),
            thresholds: AlertThresholds::default(),
            setup: Setup {
                interval: defaults::INTERVAL,
                timeout: defaults::TIMEOUT,
                policy: ReadinessPolicy::default(),
                version: None,
                metrics: None,
                runtime: None,
                clock: Clock::SYSTEM,
            },
        }
    }

    /// Watches a service with the usual settings; [`add_service`](Self::add_service) is for others.
    pub fn service(
        self,
        name: impl Into<Name>,
        check: Arc<dyn HealthCheck>,
        criticality: Criticality,
    ) -> Self {
        self.add_service(Service::new(name, check, criticality))
    }

    /// Watches a service without which the application does not work.
    pub fn critical(self, name: impl Into<Name>, check: Arc<dyn HealthCheck>) -> Self {
        self.add_service(Service::critical(name, check))
    }

    /// Watches a service without which the application works, less well.
    pub fn optional(self, name: impl Into<Name>, check: Arc<dyn HealthCheck>) -> Self {
        self.add_service(Service::optional(name, check))
    }

    /// Watches a service.
    pub fn add_service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// Time between two checks of a service that has no interval of its own. Above 0; default 30 s.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.setup.interval = interval;
        self
    }

    /// Time of one check of a service that has no timeout of its own. Above 0; default 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.setup.timeout = timeout;
        self
    }

    /// Tells alerts to `handler` too. Default: nobody is told.
    pub fn alert_handler(mut self, handler: impl AlertHandler + 'static) -> Self {
        self.handlers.push(Arc::new(handler));
        self
    }

    /// Judges by `rule` too, beside the built-in ones.
    pub fn alert_rule(mut self, rule: impl AlertRule + 'static) -> Self {
        self.rules.push(Box::new(rule));
        self
    }

    /// The thresholds of the built-in rules.
    pub fn alert_thresholds(self, thresholds: AlertThresholds) -> Self {
        Self { thresholds, ..self }
    }

    /// When `/ready` says yes; default [`ReadinessPolicy::Critical`].
    pub fn readiness(mut self, policy: ReadinessPolicy) -> Self {
        self.setup.policy = policy;
        self
    }

    /// The application's version, to be shown; default: none.
    pub fn version(mut self, version: impl Into<Arc<str>>) -> Self {
        self.setup.version = Some(version.into());
        self
    }

    /// Records metrics of services, breakers, pools and alerts; default: none.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.setup.metrics = Some(metrics);
        self
    }

    /// Where background tasks run; default: where [`MonitoringManager::start`] is called. One of
    /// another runtime lets them outlive the one that happens to start them.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.setup.runtime = Some(runtime);
        self
    }

    #[cfg(all(test, feature = "axum"))]
    pub(crate) fn clock(mut self, clock: Clock) -> Self {
        self.setup.clock = clock;
        self
    }

    /// The manager. It does not look at anything before [`MonitoringManager::start`].
    ///
    /// # Errors
    ///
    /// [`InvalidMonitoring`] for a setting out of its range, a name given twice, or more than 256 services.
    pub fn build(self) -> Result<MonitoringManager, InvalidMonitoring> {
        if let Some((field, value, allowed)) = self.thresholds.problem() {
            return Err(InvalidMonitoring { field, of: "alert thresholds".into(), value, allowed });
        }
        let mut rules = rules::built_in(self.thresholds);
        rules.extend(self.rules);
        let manager = MonitoringManager::new(self.setup, rules);
        for handler in self.handlers {
            manager.add_alert_handler(handler);
        }
        for service in self.services {
            manager.add_service(service)?;
        }
        Ok(manager)
    }
}

impl fmt::Debug for MonitoringBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitoringBuilder")
            .field("services", &self.services)
            .finish_non_exhaustive()
    }
}
