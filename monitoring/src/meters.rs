//! What services, breakers and alerts show Prometheus: handles made once, set whenever someone looks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, SharedString, counter, gauge, histogram};
use resilience_core::{
    Bulkhead, CircuitState, HealthStatus, Name, Outcome, OutcomeCounts, Pipeline, PoolStatus,
};

use crate::circuits::sum;
use crate::layers::LayerGauges;
use crate::names::{self, MAX_NAMES, OTHER, label};
use crate::wall_clock::Timestamp;
use crate::{AlertSeverity, CircuitReport, ServiceHealth};

/// What a service's checks count as they end.
pub(crate) struct CheckMeters {
    duration: Histogram,
    last_check: Gauge,
    transitions: Counter,
}

impl CheckMeters {
    pub(crate) fn new(service: &Name) -> Self {
        let labels = [(label::EXTERNAL_SERVICE, label::value(service))];
        Self {
            duration: histogram!(names::HEALTH_CHECK_DURATION, &labels),
            last_check: gauge!(names::LAST_CHECK_TIMESTAMP, &labels),
            transitions: counter!(names::HEALTH_TRANSITIONS, &labels),
        }
    }

    pub(crate) fn checked(&self, took: Duration, ended: Timestamp) {
        self.duration.record(took);
        self.last_check.set(ended.since_epoch().as_secs_f64());
    }

    pub(crate) fn changed(&self) {
        self.transitions.increment(1);
    }
}

/// Everything that is as it is now.
#[derive(Default)]
pub(crate) struct Gauges {
    services: HashMap<Name, ServiceGauges>,
    circuits: HashMap<Name, CircuitMeters>,
    circuit_names: Names,
    alerts: Option<[Gauge; 4]>,
}

impl Gauges {
    /// Shows a service. Its pool and the layers in front of it are labelled `calls`.
    pub(crate) fn service(
        &mut self,
        service: &Name,
        calls: &Name,
        health: &ServiceHealth,
    ) -> &mut ServiceGauges {
        let gauges = self.services.entry(service.clone());
        let gauges = gauges.or_insert_with(|| ServiceGauges::new(service, calls));
        gauges.show(health);
        gauges
    }

    /// Shows all breakers; those beyond the limit together.
    pub(crate) fn circuits<'a>(&mut self, circuits: impl Iterator<Item = &'a CircuitReport>) {
        let mut totals: BTreeMap<Name, CircuitTotals> = BTreeMap::new();
        for report in circuits {
            totals.entry(self.circuit_names.cap(&report.circuit.name)).or_default().add(report);
        }
        for (name, totals) in totals {
            let meters = self.circuits.entry(name.clone());
            meters.or_insert_with(|| CircuitMeters::new(&name)).show(&totals);
        }
    }

    /// Shows how many alerts fire.
    pub(crate) fn alerts(&mut self, severities: impl Iterator<Item = AlertSeverity>) {
        let gauges = self.alerts.get_or_insert_with(|| {
            AlertSeverity::ALL
                .map(|severity| gauge!(names::ALERTS_ACTIVE, label::SEVERITY => severity.as_str()))
        });
        let mut counts = [0_u32; 4];
        severities.for_each(|severity| counts[severity as usize] += 1);
        for (gauge, count) in gauges.iter().zip(counts) {
            gauge.set(count);
        }
    }
}

pub(crate) struct ServiceGauges {
    status: [Gauge; 4],
    uptime: Absent,
    calls: Name,
    pool: Option<[Gauge; 6]>,
    layers: LayerGauges,
}

impl ServiceGauges {
    fn new(service: &Name, calls: &Name) -> Self {
        let status = HealthStatus::ALL.map(|status| {
            gauge!(names::HEALTH_STATUS, label::EXTERNAL_SERVICE => label::value(service), label::STATUS => status.as_str())
        });
        let uptime = Absent::new(names::UPTIME_RATIO, label::EXTERNAL_SERVICE, service);
        let layers = LayerGauges::new(calls);
        Self { status, uptime, calls: calls.clone(), pool: None, layers }
    }

    /// Shows what stands in front of it.
    pub(crate) fn layers(&mut self, bulkhead: Option<&Bulkhead>, pipeline: Option<&Pipeline>) {
        self.layers.show(bulkhead, pipeline);
    }

    fn show(&mut self, health: &ServiceHealth) {
        for (status, gauge) in HealthStatus::ALL.into_iter().zip(&self.status) {
            gauge.set(u8::from(status == health.status));
        }
        self.uptime.set(health.uptime.day);
        let calls = &self.calls;
        if let Some(PoolStatus { in_use, idle, max, waiting, idle_max, idle_min }) = health.pool {
            let gauges = self.pool.get_or_insert_with(|| pool_gauges(calls));
            for (gauge, figure) in
                gauges.iter().zip([in_use, idle, max, waiting, idle_max, idle_min])
            {
                gauge.set(figure as f64);
            }
        }
    }
}

/// Used, idle, max, waiting, and the most and the fewest idle.
fn pool_gauges(pool: &Name) -> [Gauge; 6] {
    let count = |state: &'static str| gauge!(names::CONNECTION_COUNT, label::POOL => label::value(pool), label::POOL_STATE => state);
    let labels = [(label::POOL, label::value(pool))];
    [
        count("used"),
        count("idle"),
        gauge!(names::CONNECTION_MAX, &labels),
        gauge!(names::CONNECTION_PENDING_REQUESTS, &labels),
        gauge!(names::CONNECTION_IDLE_MAX, &labels),
        gauge!(names::CONNECTION_IDLE_MIN, &labels),
    ]
}

struct CircuitMeters {
    states: [Gauge; CircuitState::ALL.len()],
    calls: [Counter; 4],
    not_permitted: Counter,
    failure_ratio: Absent,
    slow_call_ratio: Absent,
}

impl CircuitMeters {
    fn new(name: &Name) -> Self {
        Self {
            states: CircuitState::ALL.map(|state| {
                gauge!(names::CIRCUIT_STATE, label::NAME => label::value(name), label::STATE => state.as_str())
            }),
            calls: Outcome::ALL.map(|outcome| {
                counter!(names::CIRCUIT_CALLS, label::NAME => label::value(name), label::KIND => outcome.as_str())
            }),
            not_permitted: counter!(names::CIRCUIT_NOT_PERMITTED, label::NAME => label::value(name)),
            failure_ratio: Absent::new(names::CIRCUIT_FAILURE_RATIO, label::NAME, name),
            slow_call_ratio: Absent::new(names::CIRCUIT_SLOW_CALL_RATIO, label::NAME, name),
        }
    }

    fn show(&mut self, totals: &CircuitTotals) {
        for (gauge, count) in self.states.iter().zip(totals.states) {
            gauge.set(count);
        }
        for (counter, outcome) in self.calls.iter().zip(Outcome::ALL) {
            counter.absolute(totals.calls.of(outcome));
        }
        self.not_permitted.absolute(totals.not_permitted);
        self.failure_ratio.set(totals.failure_ratio);
        self.slow_call_ratio.set(totals.slow_call_ratio);
    }
}

/// The figures of the names that share a label: of one, but for [`OTHER`].
#[derive(Default)]
struct CircuitTotals {
    names: u32,
    states: [u32; CircuitState::ALL.len()],
    calls: OutcomeCounts,
    not_permitted: u64,
    failure_ratio: Option<f64>,
    slow_call_ratio: Option<f64>,
}

impl CircuitTotals {
    fn add(&mut self, report: &CircuitReport) {
        let circuit = &report.circuit;
        for (count, more) in self.states.iter_mut().zip(report.states) {
            *count += more;
        }
        self.calls = sum(self.calls, circuit.calls);
        self.not_permitted += circuit.not_permitted;
        // A ratio of several has no meaning.
        self.failure_ratio = report.failure_ratio.filter(|_| self.names == 0);
        self.slow_call_ratio = report.slow_call_ratio.filter(|_| self.names == 0);
        self.names += 1;
    }
}

/// The names that have a label value of their own.
#[derive(Debug, Default)]
struct Names(HashSet<Name>);

impl Names {
    /// `name`, or [`OTHER`] where there are too many already.
    fn cap(&mut self, name: &Name) -> Name {
        if self.0.len() < MAX_NAMES {
            self.0.insert(name.clone());
        }
        self.0.get(name).cloned().unwrap_or_else(|| Name::from(OTHER))
    }
}

/// A gauge that may have no value: it is not made before the first, and not a number after the
/// last, which rendering leaves out.
struct Absent {
    name: &'static str,
    label: (&'static str, SharedString),
    gauge: Option<Gauge>,
}

impl Absent {
    fn new(name: &'static str, key: &'static str, value: &Name) -> Self {
        Self { name, label: (key, label::value(value)), gauge: None }
    }

    fn set(&mut self, value: Option<f64>) {
        if self.gauge.is_none() && value.is_none() {
            return;
        }
        let Self { name, label: (key, of), .. } = self;
        let gauge = self.gauge.get_or_insert_with(|| gauge!(*name, *key => of.clone()));
        gauge.set(value.unwrap_or(f64::NAN));
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use resilience_core::CircuitBreaker;

    use super::*;

    #[test]
    fn breakers_without_end_make_no_series_without_end() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let breakers: Vec<_> = (0..300)
            .map(|tenant| {
                CircuitBreaker::builder(format!("tenant-{tenant:03}")).fail_max(1).build().unwrap()
            })
            .collect();
        for breaker in &breakers[250..] {
            breaker.try_acquire().unwrap().failure();
        }
        let report = |breaker: &CircuitBreaker| CircuitReport {
            failure_ratio: Some(1.0),
            ..CircuitReport::of(breaker.snapshot())
        };
        let reports: Vec<_> = breakers.iter().map(report).collect();
        let mut gauges = Gauges::default();
        gauges.circuits(reports.iter());
        gauges.circuits(reports.iter());
        let text = recorder.handle().render();
        let series = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(series("resilience_circuit_breaker_not_permitted_calls_total{"), MAX_NAMES + 1);
        for line in [
            r#"resilience_circuit_breaker_state{name="_OTHER",state="open"} 44"#,
            r#"resilience_circuit_breaker_calls_total{name="_OTHER",kind="failure"} 44"#,
            r#"resilience_circuit_breaker_calls_total{name="tenant-255",kind="failure"} 1"#,
        ] {
            assert!(text.lines().any(|held| held == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains(r#"resilience_circuit_breaker_failure_ratio{name="_OTHER"}"#));
    }
}
