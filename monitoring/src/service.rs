//! What to watch, how closely, and how much depends on it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use resilience_core::{HealthCheck, Name};
use serde::Serialize;

use crate::defaults;
use crate::guarded::Guarded;
use crate::state::Thresholds;

/// How much depends on a service.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Criticality {
    /// Without it the application does not work.
    Critical,
    /// Without it the application works, less well.
    Optional,
}

/// A service to watch: its check, and how often and how patiently to look.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use monitoring::Service;
/// use resilience_core::{Deadline, Health, HealthCheck};
///
/// struct Mail;
///
/// #[async_trait::async_trait]
/// impl HealthCheck for Mail {
///     async fn check(&self, _: Deadline) -> Health {
///         Health::healthy(Duration::ZERO)
///     }
/// }
///
/// let mail = Service::optional("mail", Arc::new(Mail)).interval(Duration::from_secs(60)).fall(3);
/// ```
#[derive(Clone)]
#[must_use]
pub struct Service {
    name: Name,
    check: Arc<dyn HealthCheck>,
    criticality: Criticality,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    jitter: f64,
    thresholds: Thresholds,
}

impl Service {
    /// A service named `name`: the word for it in bodies, alerts and labels.
    pub fn new(
        name: impl Into<Name>,
        check: Arc<dyn HealthCheck>,
        criticality: Criticality,
    ) -> Self {
        Self {
            name: name.into(),
            check,
            criticality,
            interval: None,
            timeout: None,
            jitter: defaults::JITTER,
            thresholds: Thresholds { fall: defaults::FALL, rise: defaults::RISE },
        }
    }

    /// A [`Criticality::Critical`] service.
    pub fn critical(name: impl Into<Name>, check: Arc<dyn HealthCheck>) -> Self {
        Self::new(name, check, Criticality::Critical)
    }

    /// An [`Criticality::Optional`] service.
    pub fn optional(name: impl Into<Name>, check: Arc<dyn HealthCheck>) -> Self {
        Self::new(name, check, Criticality::Optional)
    }

    /// Time from the start of one check to the start of the next. Above 0; default: the manager's, 30 s.
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval: Some(interval), ..self }
    }

    /// Time of one check. Above 0; default: the manager's, 5 s.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// The share by which the interval varies either way, so that replicas do not check in step.
    /// 0 to 0.5; default 0.1.
    pub fn jitter(self, jitter: f64) -> Self {
        Self { jitter, ..self }
    }

    /// Bad results in a row before the status gets worse. 1 or more; default 2.
    pub fn fall(mut self, results: u32) -> Self {
        self.thresholds.fall = results;
        self
    }

    /// Good results in a row before the status gets better. 1 or more; default 1.
    pub fn rise(mut self, results: u32) -> Self {
        self.thresholds.rise = results;
        self
    }

    /// Fills in what was left open, and checks the rest.
    pub(crate) fn plan(
        self,
        interval: Duration,
        timeout: Duration,
    ) -> Result<Plan, InvalidMonitoring> {
        let plan = Plan {
            interval: self.interval.unwrap_or(interval),
            timeout: self.timeout.unwrap_or(timeout),
            name: self.name,
            check: Arc::new(Guarded(self.check)),
            criticality: self.criticality,
            jitter: self.jitter,
            thresholds: self.thresholds,
        };
        let refuse = |field, value: &dyn fmt::Debug, allowed| {
            let of = format!("service {:?}", plan.name);
            Err(InvalidMonitoring { field, of, value: format!("{value:?}"), allowed })
        };
        if plan.name.is_empty() {
            return refuse("name", &plan.name, "one character or more");
        }
        for (field, time) in [("interval", plan.interval), ("timeout", plan.timeout)] {
            if time.is_zero() || time > LONGEST {
                return refuse(field, &time, "above 0, a day at the most");
            }
        }
        if !(0.0..=0.5).contains(&plan.jitter) {
            return refuse("jitter", &plan.jitter, "0 to 0.5");
        }
        for (field, results) in [("fall", plan.thresholds.fall), ("rise", plan.thresholds.rise)] {
            if results == 0 {
                return refuse(field, &results, "1 or more");
            }
        }
        Ok(plan)
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("criticality", &self.criticality)
            .finish_non_exhaustive()
    }
}

const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A service with all its settings, valid.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) name: Name,
    pub(crate) check: Arc<dyn HealthCheck>,
    pub(crate) criticality: Criticality,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) jitter: f64,
    pub(crate) thresholds: Thresholds,
}

impl Plan {
    /// The time to the next check; `dice` is 0 to 1.
    pub(crate) fn next_in(&self, dice: f64) -> Duration {
        self.interval.mul_f64(1.0 + self.jitter * (2.0 * dice - 1.0))
    }

    /// The age from which a result is no longer what it should be: two checks failed to bring another.
    pub(crate) fn stale_after(&self) -> Duration {
        self.interval.mul_f64(2.0 * (1.0 + self.jitter)) + self.timeout
    }
}

/// A setting that monitoring cannot have.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field} of {of} is {value}; allowed: {allowed}")]
#[non_exhaustive]
pub struct InvalidMonitoring {
    /// The setting.
    pub field: &'static str,
    /// Whose it is.
    pub of: String,
    /// What it holds.
    pub value: String,
    /// What it may hold.
    pub allowed: &'static str,
}

#[cfg(test)]
mod tests {
    use resilience_core::{Deadline, Health};

    use super::*;

    struct Fine;

    #[async_trait::async_trait]
    impl HealthCheck for Fine {
        async fn check(&self, _: Deadline) -> Health {
            Health::healthy(Duration::ZERO)
        }
    }

    fn service() -> Service {
        Service::critical("database", Arc::new(Fine))
    }

    fn refused(service: Service) -> String {
        service.plan(defaults::INTERVAL, defaults::TIMEOUT).err().unwrap().to_string()
    }

    #[test]
    fn settings_that_cannot_be_are_named() {
        assert_eq!(
            refused(service().interval(Duration::ZERO)),
            "interval of service \"database\" is 0ns; allowed: above 0, a day at the most"
        );
        assert_eq!(
            refused(service().timeout(Duration::MAX)),
            "timeout of service \"database\" is 18446744073709551615.999999999s; allowed: above 0, a day at the most"
        );
        assert_eq!(
            refused(service().jitter(f64::NAN)),
            "jitter of service \"database\" is NaN; allowed: 0 to 0.5"
        );
        assert_eq!(
            refused(service().fall(0)),
            "fall of service \"database\" is 0; allowed: 1 or more"
        );
        assert_eq!(
            refused(service().rise(0)),
            "rise of service \"database\" is 0; allowed: 1 or more"
        );
        assert!(refused(Service::optional("", Arc::new(Fine))).starts_with("name of service \"\""));
    }

    #[test]
    fn the_period_stays_within_its_jitter() {
        let plan = service().plan(Duration::from_secs(30), defaults::TIMEOUT).unwrap();
        assert_eq!(plan.next_in(0.0), Duration::from_secs(27));
        assert_eq!(plan.next_in(0.5), Duration::from_secs(30));
        assert_eq!(plan.next_in(1.0), Duration::from_secs(33));
        assert_eq!(plan.stale_after(), Duration::from_secs(71));
    }
}
