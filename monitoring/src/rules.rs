//! When something is worth an alert.

use std::collections::{BTreeSet, HashMap};

use resilience_core::{CircuitState, HealthStatus, Name};

use crate::{AlertSeverity, CircuitReport, Criticality, HealthSummary, ServiceHealth, defaults};

/// Judges what is known, over and over. The built-in rules are its first implementers; an
/// application adds its own.
///
/// ```
/// use monitoring::{AlertRule, AlertSeverity, Finding, Firing, HealthSummary};
///
/// struct Slow;
///
/// impl AlertRule for Slow {
///     fn name(&self) -> &'static str {
///         "slow"
///     }
///
///     fn judge(&mut self, summary: &HealthSummary, firing: &Firing) -> Vec<Finding> {
///         let slow = |(name, service): (&resilience_core::Name, &monitoring::ServiceHealth)| {
///             // Fires above 500 ms and ends below 300 ms, so that it does not flap.
///             let limit = if firing.about(name) { 300 } else { 500 };
///             let p95 = service.metrics.p95.filter(|p95| p95.as_millis() > limit)?;
///             Some(Finding::about(name, AlertSeverity::Warning, format!("{name} takes {p95:?}")))
///         };
///         summary.services.iter().filter_map(slow).collect()
///     }
/// }
/// ```
pub trait AlertRule: Send {
    /// A fixed word for it: the first part of its alerts' keys.
    fn name(&self) -> &'static str;

    /// Everything that it finds wrong now. What it found before and does not find now has ended.
    ///
    /// It runs about once a second: it must not block. One that panics keeps the alerts it has.
    fn judge(&mut self, summary: &HealthSummary, firing: &Firing) -> Vec<Finding>;
}

/// The alerts of one rule that fire already.
#[derive(Clone, Debug, Default)]
pub struct Firing {
    pub(crate) subjects: BTreeSet<Option<Name>>,
}

impl Firing {
    /// Whether one about `service` does.
    #[must_use]
    pub fn about(&self, service: &Name) -> bool {
        self.subjects.contains(&Some(service.clone()))
    }

    /// Whether any does.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.subjects.is_empty()
    }
}

/// Something wrong that a rule found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    pub(crate) service: Option<Name>,
    pub(crate) severity: AlertSeverity,
    pub(crate) summary: String,
}

impl Finding {
    /// Something wrong with `service`.
    pub fn about(service: &Name, severity: AlertSeverity, summary: impl Into<String>) -> Self {
        Self { service: Some(service.clone()), severity, summary: summary.into() }
    }

    /// Something wrong that is not about one service.
    pub fn overall(severity: AlertSeverity, summary: impl Into<String>) -> Self {
        Self { service: None, severity, summary: summary.into() }
    }
}

/// The thresholds of the built-in rules.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AlertThresholds {
    /// The share of a service's calls that fail within a minute above which an alert fires. 0 to 1; default 0.10.
    pub error_rate: f64,
    /// The share below which it ends. 0 to `error_rate`; default 0.05.
    pub error_rate_clear: f64,
    /// Calls within that minute below which no such alert begins. 1 or more; default 20.
    pub min_samples: u64,
    /// Checks that failed in a row from which an alert fires. 1 or more; default 5: well after the
    /// one for an unhealthy service, it says that it is still so.
    pub consecutive_failures: u32,
}

impl Default for AlertThresholds {
    fn default() -> Self {
        Self {
            error_rate: defaults::ERROR_RATE,
            error_rate_clear: defaults::ERROR_RATE_CLEAR,
            min_samples: defaults::MIN_SAMPLES,
            consecutive_failures: defaults::CONSECUTIVE_FAILURES,
        }
    }
}

impl AlertThresholds {
    /// The first setting that is out of its range: its name, what it holds, what is allowed.
    pub(crate) fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        let Self { error_rate, error_rate_clear, min_samples, consecutive_failures } = *self;
        if !(0.0..=1.0).contains(&error_rate) {
            Some(("error_rate", error_rate.to_string(), "0 to 1"))
        } else if !(0.0..=error_rate).contains(&error_rate_clear) {
            Some(("error_rate_clear", error_rate_clear.to_string(), "0 to error_rate"))
        } else if min_samples == 0 {
            Some(("min_samples", min_samples.to_string(), "1 or more"))
        } else if consecutive_failures == 0 {
            Some(("consecutive_failures", consecutive_failures.to_string(), "1 or more"))
        } else {
            None
        }
    }
}

/// The rules that every manager has.
pub(crate) fn built_in(thresholds: AlertThresholds) -> Vec<Box<dyn AlertRule>> {
    vec![
        Box::new(Unhealthy),
        Box::<CircuitOpened>::default(),
        Box::new(ErrorRate(thresholds)),
        Box::new(ConsecutiveFailures(thresholds.consecutive_failures)),
    ]
}

/// Asks `judge` about each service.
fn each(
    summary: &HealthSummary,
    judge: impl FnMut((&Name, &ServiceHealth)) -> Option<Finding>,
) -> Vec<Finding> {
    summary.services.iter().filter_map(judge).collect()
}

/// A service is Unhealthy.
struct Unhealthy;

impl AlertRule for Unhealthy {
    fn name(&self) -> &'static str {
        "service_unhealthy"
    }

    fn judge(&mut self, summary: &HealthSummary, _: &Firing) -> Vec<Finding> {
        let unhealthy = |service: &ServiceHealth| service.status == HealthStatus::Unhealthy;
        let many = summary.services.values().filter(|service| unhealthy(service)).count() >= 2;
        each(summary, |(name, service)| {
            let critical = many || service.criticality == Criticality::Critical;
            let severity = if critical { AlertSeverity::Critical } else { AlertSeverity::Error };
            let reason = service.reason.as_deref().unwrap_or("no reason given");
            unhealthy(service)
                .then(|| Finding::about(name, severity, format!("{name} is unhealthy: {reason}")))
        })
    }
}

/// A breaker opened, and has not closed since. It may be a service's, or stand alone.
#[derive(Default)]
struct CircuitOpened {
    /// State and generation of each at the last look: one that opened and closed in between has
    /// been open all the same.
    seen: HashMap<Name, (CircuitState, u32)>,
}

impl AlertRule for CircuitOpened {
    fn name(&self) -> &'static str {
        "circuit_opened"
    }

    fn judge(&mut self, summary: &HealthSummary, _: &Firing) -> Vec<Finding> {
        let before = std::mem::take(&mut self.seen);
        let services: HashMap<_, _> = summary
            .services
            .iter()
            .filter_map(|(name, service)| Some((&service.breaker.as_ref()?.circuit.name, name)))
            .collect();
        let opened = |(breaker, report): (&Name, &CircuitReport)| {
            let circuit = &report.circuit;
            self.seen.insert(breaker.clone(), (circuit.state, circuit.generation));
            let missed = before.get(breaker).is_some_and(|(state, generation)| {
                // From closed to closed it must have been open in between, but for a switch thrown by hand.
                // One that was let go and made anew counts from 0 again.
                *state == CircuitState::Closed
                    && circuit.state == CircuitState::Closed
                    && circuit.generation > *generation
            });
            let open = circuit.state.refuses() || missed;
            let subject = services.get(breaker).copied().unwrap_or(breaker);
            open.then(|| {
                let summary = format!("circuit breaker {breaker} opened");
                Finding::about(subject, AlertSeverity::Error, summary)
            })
        };
        summary.circuit_breakers.iter().filter_map(opened).collect()
    }
}

/// Too many calls fail.
struct ErrorRate(AlertThresholds);

impl AlertRule for ErrorRate {
    fn name(&self) -> &'static str {
        "error_rate"
    }

    fn judge(&mut self, summary: &HealthSummary, firing: &Firing) -> Vec<Finding> {
        let thresholds = self.0;
        each(summary, |(name, service)| {
            let calls = &service.metrics;
            let rate = calls.error_rate.unwrap_or_default();
            let high = if firing.about(name) {
                rate >= thresholds.error_rate_clear && calls.errors > 0
            } else {
                rate > thresholds.error_rate && calls.requests >= thresholds.min_samples
            };
            high.then(|| {
                let summary = format!(
                    "{:.1} % of {} calls to {name} failed within a minute",
                    rate * 100.0,
                    calls.requests
                );
                Finding::about(name, AlertSeverity::Warning, summary)
            })
        })
    }
}

/// A check failed many times in a row.
struct ConsecutiveFailures(u32);

impl AlertRule for ConsecutiveFailures {
    fn name(&self) -> &'static str {
        "consecutive_failures"
    }

    fn judge(&mut self, summary: &HealthSummary, _: &Firing) -> Vec<Finding> {
        each(summary, |(name, service)| {
            let failures = service.consecutive_failures;
            (failures >= self.0).then(|| {
                let summary = format!("{failures} checks of {name} failed in a row");
                Finding::about(name, AlertSeverity::Error, summary)
            })
        })
    }
}
