//! The settings of a registry, and the only way to build one.

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::time::Duration;

use resilience_core::settings::{ConfigError, Held, Problem};
use tokio::runtime::Handle;

use crate::defaults;
#[cfg(feature = "kubernetes")]
use crate::kubernetes::ResolvePolicy;
use crate::prober::ProbePolicy;
use crate::registry::ServiceRegistry;
use crate::tracker::Thresholds;

const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(86_400);
const COUNT: RangeInclusive<u32> = 1..=100;
const BOUND: RangeInclusive<usize> = 1..=65_536;

/// Settings of a registry, all valid.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) runtime: Option<Handle>,
    pub(crate) probe: ProbePolicy,
    pub(crate) thresholds: Thresholds,
    #[cfg(feature = "kubernetes")]
    pub(crate) resolve: ResolvePolicy,
    pub(crate) max_endpoints: usize,
    pub(crate) max_services: usize,
}

/// Builds a [`ServiceRegistry`].
///
/// ```
/// use std::time::Duration;
/// use discovery::ServiceRegistry;
///
/// let registry = ServiceRegistry::builder().probe_interval(Duration::from_secs(2)).fall(3).build()?;
/// assert!(registry.services().is_empty());
///
/// let error = ServiceRegistry::builder().fall(0).build().unwrap_err();
/// assert!(error.to_string().ends_with("fall is \"0\"; allowed: 1 to 100"));
/// # Ok::<(), resilience_core::settings::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct ServiceRegistryBuilder {
    options: Options,
}

impl ServiceRegistryBuilder {
    pub(crate) fn new() -> Self {
        let options = Options {
            runtime: None,
            probe: ProbePolicy {
                interval: defaults::PROBE_INTERVAL,
                timeout: defaults::PROBE_TIMEOUT,
            },
            thresholds: Thresholds { fall: defaults::FALL, rise: defaults::RISE },
            #[cfg(feature = "kubernetes")]
            resolve: ResolvePolicy {
                interval: defaults::RESOLVE_INTERVAL,
                timeout: defaults::RESOLVE_TIMEOUT,
            },
            max_endpoints: defaults::MAX_ENDPOINTS,
            max_services: defaults::MAX_SERVICES,
        };
        Self { options }
    }

    /// Runs the registry's tasks there, so that they outlive the runtime that registers a service.
    /// Default: the runtime that registers the service.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.options.runtime = Some(runtime);
        self
    }

    /// Time between two probes of an endpoint, ±10 %. 10 ms to a day; default 5 s.
    pub fn probe_interval(mut self, interval: Duration) -> Self {
        self.options.probe.interval = interval;
        self
    }

    /// Time that one probe may take. 1 ms to the probe interval; default 1 s.
    pub fn probe_timeout(mut self, timeout: Duration) -> Self {
        self.options.probe.timeout = timeout;
        self
    }

    /// Failures in a row, of probes or of reports, that make an endpoint unhealthy. 1 to 100; default 2.
    pub fn fall(mut self, fall: u32) -> Self {
        self.options.thresholds.fall = fall;
        self
    }

    /// Successes in a row that make it healthy again. 1 to 100; default 1.
    pub fn rise(mut self, rise: u32) -> Self {
        self.options.thresholds.rise = rise;
        self
    }

    /// Time between two lookups of a DNS name, ±10 %. 10 ms to a day; default 30 s.
    #[cfg(feature = "kubernetes")]
    pub fn resolve_interval(mut self, interval: Duration) -> Self {
        self.options.resolve.interval = interval;
        self
    }

    /// Time that one lookup may take before its name counts as failing. 1 ms to an hour; default 5 s.
    #[cfg(feature = "kubernetes")]
    pub fn resolve_timeout(mut self, timeout: Duration) -> Self {
        self.options.resolve.timeout = timeout;
        self
    }

    /// Endpoints that a service may have. 1 to 65,536; default 1,024. A longer list in the code, the
    /// environment or a file is an error; of a longer answer of a resolver the last ones are dropped.
    pub fn max_endpoints(mut self, max: usize) -> Self {
        self.options.max_endpoints = max;
        self
    }

    /// Services that the registry may hold. 1 to 65,536; default 256. One more is an error, but in a
    /// file that changed: there those that do not fit are dropped.
    pub fn max_services(mut self, max: usize) -> Self {
        self.options.max_services = max;
        self
    }

    /// The registry.
    ///
    /// # Errors
    ///
    /// All settings that are out of their range.
    pub fn build(self) -> Result<ServiceRegistry, ConfigError> {
        let options = self.options;
        let mut problems = Vec::new();
        let probe = options.probe;
        check(&mut problems, "probe_interval", probe.interval, INTERVAL);
        let longest = probe.interval.max(*INTERVAL.start());
        check(&mut problems, "probe_timeout", probe.timeout, Duration::from_millis(1)..=longest);
        check(&mut problems, "fall", options.thresholds.fall, COUNT);
        check(&mut problems, "rise", options.thresholds.rise, COUNT);
        #[cfg(feature = "kubernetes")]
        {
            let limit = Duration::from_millis(1)..=Duration::from_secs(3600);
            check(&mut problems, "resolve_interval", options.resolve.interval, INTERVAL);
            check(&mut problems, "resolve_timeout", options.resolve.timeout, limit);
        }
        check(&mut problems, "max_endpoints", options.max_endpoints, BOUND);
        check(&mut problems, "max_services", options.max_services, BOUND);
        ConfigError::unless_empty(problems)?;
        Ok(ServiceRegistry::with(options))
    }
}

fn check<T: PartialOrd + Debug>(
    problems: &mut Vec<Problem>,
    field: &str,
    value: T,
    allowed: RangeInclusive<T>,
) {
    if !allowed.contains(&value) {
        let allowed = format!("{:?} to {:?}", allowed.start(), allowed.end());
        let held = Held::Text(format!("{value:?}"));
        problems.push(Problem { name: field.to_owned(), held, allowed });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_are_told_all_at_once() {
        let builder = ServiceRegistry::builder()
            .probe_interval(Duration::ZERO)
            .probe_timeout(Duration::MAX)
            .fall(0)
            .rise(101)
            .max_endpoints(0)
            .max_services(usize::MAX);
        let error = builder.build().unwrap_err().to_string();
        for field in
            ["probe_interval", "probe_timeout", "fall", "rise", "max_endpoints", "max_services"]
        {
            assert!(error.contains(&format!("\n  {field} is ")), "{field} is not in {error}");
        }
        assert!(error.contains("probe_interval is \"0ns\"; allowed: 10ms to 86400s"), "{error}");
    }

    #[cfg(feature = "kubernetes")]
    #[test]
    fn so_are_those_of_the_resolver() {
        let builder = ServiceRegistry::builder()
            .resolve_interval(Duration::from_millis(1))
            .resolve_timeout(Duration::ZERO);
        let error = builder.build().unwrap_err();
        assert_eq!(error.problems().len(), 2, "{error}");
    }
}
