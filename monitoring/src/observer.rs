//! Turns the core's events into metrics, through handles that are made once per name.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use metrics::{Counter, Histogram, Label, SharedString, counter, histogram};
use resilience_core::{Backend, CallOutcome, Event, Name, Observe};

use crate::capped::Capped;
use crate::counters::{CircuitCounters, LayerCounters, PoolMeters};
use crate::names::{self, OTHER, label};

/// Operations that one name may have before the rest become [`OTHER`].
const MAX_OPERATIONS: usize = 32;

/// Records every event of the core in the [`metrics`] crate's recorder.
///
/// [`install_metrics`](crate::install_metrics) makes the one that a process needs. It costs a call a
/// look into a map and a handful of atomic operations: no lock, and no allocation of ours once a
/// name is known. Of names beyond 256 of a kind, the series are those of the name `_OTHER`.
///
/// It records into the recorder that is there when a name is first seen: install the recorder first.
#[derive(Debug)]
pub struct MetricsObserver {
    calls: Capped<CallMeters>,
    circuits: Capped<CircuitCounters>,
    layers: Capped<LayerCounters>,
    pools: Capped<PoolMeters>,
    exchanges: [OnceLock<Counter>; 2],
}

impl MetricsObserver {
    /// An observer that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            calls: Capped::new(CallMeters::new),
            circuits: Capped::new(CircuitCounters::new),
            layers: Capped::new(LayerCounters::new),
            pools: Capped::new(PoolMeters::new),
            exchanges: Default::default(),
        }
    }

    /// Says what stands behind the pipeline `name`: the labels of its
    /// `db_client_operation_duration_seconds`. Until it is said, the system's name is `_OTHER`.
    pub fn describe(&self, name: &Name, backend: Backend) {
        self.calls.with(name, |calls| {
            calls.backend.store(Some(Arc::new(backend)));
            // Handles with the old labels must go.
            calls.operations.store(Arc::default());
        });
    }

    fn exchanged(&self, answered: bool) -> &Counter {
        let outcome = if answered { "answered" } else { "failed" };
        self.exchanges[usize::from(answered)]
            .get_or_init(|| counter!(names::OPINION_EXCHANGES, label::OUTCOME => outcome))
    }
}

impl Default for MetricsObserver {
    fn default() -> Self {
        Self::new()
    }
}

impl Observe for MetricsObserver {
    fn on_event(&self, event: &Event<'_>) {
        match *event {
            Event::CallEnded { name, operation, outcome, attempts, elapsed, .. } => {
                self.calls.with(name, |calls| calls.ended(operation, outcome, attempts, elapsed));
            }
            Event::RetryBudgetExhausted { name, .. } => {
                self.calls.with(name, |calls| calls.budget_exhausted().increment(1));
            }
            Event::HedgeStarted { name } => {
                self.calls.with(name, |calls| calls.hedges(Hedged::Started).increment(1));
            }
            Event::HedgeWon { name } => {
                self.calls.with(name, |calls| calls.hedges(Hedged::Won).increment(1));
            }
            Event::HedgeRefused { name } => {
                self.calls.with(name, |calls| calls.hedges(Hedged::Refused).increment(1));
            }
            Event::Refused { name, layer } => {
                self.layers.with(name, |layers| layers.refusals(layer).increment(1));
            }
            Event::CircuitTransition { name, from, to, .. } => {
                self.circuits.with(name, |circuit| circuit.transitions(from, to).increment(1));
            }
            Event::CircuitArmed { name } => {
                self.circuits.with(name, |circuit| circuit.armings().increment(1));
            }
            Event::OpinionsExchanged { answered } => self.exchanged(answered).increment(1),
            Event::ConnectionCreated { pool, elapsed, .. } => {
                self.pools.with(pool, |pool| pool.create.record(elapsed));
            }
            Event::ConnectionAcquired { pool, waited, .. } => {
                self.pools.with(pool, |pool| pool.wait.record(waited));
            }
            Event::ConnectionReleased { pool, used, .. } => {
                self.pools.with(pool, |pool| pool.used.record(used));
            }
            Event::ConnectionLeaked { pool, .. } => {
                self.pools.with(pool, |pool| pool.leaks.increment(1));
            }
            Event::AcquireTimedOut { pool, .. } => {
                self.pools.with(pool, |pool| pool.timeouts.increment(1));
            }
            _ => {}
        }
    }
}

/// The metrics of the calls of one name.
#[derive(Debug)]
struct CallMeters {
    name: SharedString,
    backend: ArcSwapOption<Backend>,
    operations: ArcSwap<Vec<Arc<Operation>>>,
    kinds: [OnceLock<Counter>; 4],
    attempts: OnceLock<Counter>,
    budget_exhausted: OnceLock<Counter>,
    hedges: [OnceLock<Counter>; 3],
}

/// What became of a hedge.
#[derive(Clone, Copy)]
enum Hedged {
    Started,
    Won,
    Refused,
}

impl CallMeters {
    fn new(name: &Name) -> Self {
        Self {
            name: label::value(name),
            backend: ArcSwapOption::empty(),
            operations: ArcSwap::default(),
            kinds: Default::default(),
            attempts: OnceLock::new(),
            budget_exhausted: OnceLock::new(),
            hedges: Default::default(),
        }
    }

    fn ended(
        &self,
        operation: &'static str,
        outcome: CallOutcome,
        attempts: u32,
        elapsed: Duration,
    ) {
        self.with_operation(operation, |operation| operation.histogram(outcome).record(elapsed));
        if outcome != CallOutcome::Cancelled {
            self.kind(outcome == CallOutcome::Success, attempts > 1).increment(1);
        }
        let made = self
            .attempts
            .get_or_init(|| counter!(names::RETRY_ATTEMPTS, label::NAME => self.name.clone()));
        made.increment(attempts.into());
    }

    fn kind(&self, succeeded: bool, retried: bool) -> &Counter {
        let (index, kind) = match (succeeded, retried) {
            (true, false) => (0, "successful_without_retry"),
            (true, true) => (1, "successful_with_retry"),
            (false, false) => (2, "failed_without_retry"),
            (false, true) => (3, "failed_with_retry"),
        };
        self.kinds[index].get_or_init(
            || counter!(names::RETRY_CALLS, label::NAME => self.name.clone(), label::KIND => kind),
        )
    }

    fn budget_exhausted(&self) -> &Counter {
        self.budget_exhausted.get_or_init(
            || counter!(names::RETRY_BUDGET_EXHAUSTED, label::NAME => self.name.clone()),
        )
    }

    fn hedges(&self, hedged: Hedged) -> &Counter {
        let kind = match hedged {
            Hedged::Started => "started",
            Hedged::Won => "won",
            Hedged::Refused => "refused",
        };
        self.hedges[hedged as usize].get_or_init(
            || counter!(names::HEDGES, label::NAME => self.name.clone(), label::KIND => kind),
        )
    }

    fn with_operation(&self, word: &'static str, f: impl Fn(&Operation)) {
        let known = |operations: &[Arc<Operation>], word: &str| {
            let found = operations.iter().find(|operation| operation.word == word);
            found.map(|operation| f(operation)).is_some()
        };
        let operations = self.operations.load();
        if known(&operations, word)
            || operations.len() > MAX_OPERATIONS && known(&operations, OTHER)
        {
            return;
        }
        drop(operations);
        self.operations.rcu(|current| {
            let mut operations = Vec::clone(current);
            let word = if operations.len() < MAX_OPERATIONS { word } else { OTHER };
            if !operations.iter().any(|operation| operation.word == word) {
                operations.push(Arc::new(Operation::new(word, self.backend.load().as_deref())));
            }
            operations
        });
        let operations = self.operations.load();
        let _counted = known(&operations, word) || known(&operations, OTHER);
    }
}

/// The time of one kind of call, by how it ended.
#[derive(Debug)]
struct Operation {
    word: &'static str,
    labels: Vec<Label>,
    outcomes: [OnceLock<Histogram>; 8],
}

impl Operation {
    fn new(word: &'static str, backend: Option<&Backend>) -> Self {
        let system = backend.map_or(OTHER, |backend| backend.system);
        let mut labels = vec![
            Label::from_static_parts(label::DB_SYSTEM_NAME, system),
            Label::from_static_parts(label::DB_OPERATION_NAME, word),
        ];
        if let Some(address) = backend.and_then(|backend| backend.address.clone()) {
            labels.push(Label::new(label::SERVER_ADDRESS, address.into_owned()));
        }
        if let Some(port) = backend.and_then(|backend| backend.port) {
            labels.push(Label::new(label::SERVER_PORT, port.to_string()));
        }
        Self { word, labels, outcomes: Default::default() }
    }

    fn histogram(&self, outcome: CallOutcome) -> &Histogram {
        self.outcomes[outcome as usize].get_or_init(|| {
            let mut labels = self.labels.clone();
            if outcome != CallOutcome::Success {
                labels.push(Label::from_static_parts(label::ERROR_TYPE, outcome.as_str()));
            }
            histogram!(names::OPERATION_DURATION, labels)
        })
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use resilience_core::{CircuitState, RefusingLayer};

    use super::*;

    fn rendered(observe: impl FnOnce(&MetricsObserver)) -> String {
        let recorder =
            PrometheusBuilder::new().set_buckets(&names::BUCKETS).unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || observe(&MetricsObserver::new()));
        recorder.handle().render()
    }

    fn call<'a>(
        name: &'a Name,
        operation: &'static str,
        outcome: CallOutcome,
        attempts: u32,
    ) -> Event<'a> {
        Event::CallEnded { name, operation, outcome, attempts, elapsed: Duration::from_millis(2) }
    }

    #[test]
    fn a_call_is_told_by_what_it_asked_of_whom_and_how_it_ended() {
        let name = Name::from("database");
        let text = rendered(|observer| {
            observer.on_event(&call(&name, "read", CallOutcome::Success, 1));
            let backend = Backend {
                system: "postgresql",
                address: Some("db.internal".into()),
                port: Some(5432),
            };
            observer.describe(&name, backend);
            observer.on_event(&call(&name, "read", CallOutcome::Success, 3));
            observer.on_event(&call(&name, "write", CallOutcome::Timeout, 1));
            observer.on_event(&call(&name, "write", CallOutcome::Cancelled, 1));
        });
        for line in [
            r#"db_client_operation_duration_seconds_count{db_system_name="_OTHER",db_operation_name="read"} 1"#,
            r#"db_client_operation_duration_seconds_bucket{db_system_name="postgresql",db_operation_name="read",server_address="db.internal",server_port="5432",le="0.0025"} 1"#,
            r#"db_client_operation_duration_seconds_count{db_system_name="postgresql",db_operation_name="write",server_address="db.internal",server_port="5432",error_type="timeout"} 1"#,
            r#"resilience_retry_calls_total{name="database",kind="successful_without_retry"} 1"#,
            r#"resilience_retry_calls_total{name="database",kind="successful_with_retry"} 1"#,
            r#"resilience_retry_calls_total{name="database",kind="failed_without_retry"} 1"#,
            r#"resilience_retry_attempts_total{name="database"} 6"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn names_without_end_make_no_series_without_end() {
        let text = rendered(|observer| {
            for tenant in 0..1000 {
                let name = Name::from(format!("tenant-{tenant}"));
                observer.on_event(&call(&name, "read", CallOutcome::Success, 1));
            }
        });
        let series = text
            .lines()
            .filter(|line| line.starts_with("resilience_retry_attempts_total{"))
            .count();
        assert_eq!(series, names::MAX_NAMES + 1);
        assert!(text.contains(r#"resilience_retry_attempts_total{name="_OTHER"} 744"#));
    }

    #[test]
    fn layers_without_end_make_no_series_without_end() {
        let text = rendered(|observer| {
            for tenant in 0..1000 {
                let name = Name::from(format!("tenant-{tenant}"));
                for layer in RefusingLayer::ALL {
                    observer.on_event(&Event::Refused { name: &name, layer });
                }
                observer.on_event(&Event::HedgeStarted { name: &name });
                observer.on_event(&Event::CircuitArmed { name: &name });
            }
        });
        for (family, each) in [
            (names::REFUSALS, RefusingLayer::ALL.len()),
            (names::HEDGES, 1),
            (names::CIRCUIT_ARMINGS, 1),
        ] {
            let series = text.lines().filter(|line| line.starts_with(&format!("{family}{{")));
            assert_eq!(series.count(), each * (names::MAX_NAMES + 1), "{family}");
        }
        for layer in RefusingLayer::ALL.map(RefusingLayer::as_str) {
            let line = format!(r#"resilience_refusals_total{{name="_OTHER",layer="{layer}"}} 744"#);
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn operations_without_end_make_no_series_without_end() {
        let name = Name::from("database");
        let text = rendered(|observer| {
            for operation in 0..100 {
                let word: &'static str =
                    Box::leak(format!("operation-{operation}").into_boxed_str());
                observer.on_event(&call(&name, word, CallOutcome::Success, 1));
            }
        });
        let series = text
            .lines()
            .filter(|line| line.starts_with("db_client_operation_duration_seconds_count"))
            .count();
        assert_eq!(series, MAX_OPERATIONS + 1);
        assert!(text.contains(r#"_count{db_system_name="_OTHER",db_operation_name="_OTHER"} 68"#));
    }

    #[test]
    fn pools_and_circuits_are_counted_by_name() {
        let name = Name::from("cache");
        let time = Duration::from_millis(30);
        let text = rendered(|observer| {
            observer.on_event(&Event::ConnectionCreated { pool: &name, elapsed: time });
            observer.on_event(&Event::ConnectionAcquired { pool: &name, waited: time });
            observer.on_event(&Event::ConnectionReleased { pool: &name, used: time });
            observer.on_event(&Event::ConnectionLeaked { pool: &name, held: time });
            observer.on_event(&Event::AcquireTimedOut { pool: &name });
            observer.on_event(&Event::RetryBudgetExhausted { name: &name });
            let (from, to) = (CircuitState::Closed, CircuitState::Open);
            observer.on_event(&Event::CircuitTransition { name: &name, from, to, generation: 1 });
            for from in CircuitState::ALL {
                let to = CircuitState::ForcedOpen;
                let change = Event::CircuitTransition { name: &name, from, to, generation: 2 };
                observer.on_event(&change);
            }
            observer.on_event(&Event::CircuitArmed { name: &name });
            observer.on_event(&Event::OpinionsExchanged { answered: true });
            observer.on_event(&Event::OpinionsExchanged { answered: false });
        });
        for line in [
            r#"db_client_connection_create_time_seconds_count{db_client_connection_pool_name="cache"} 1"#,
            r#"db_client_connection_wait_time_seconds_sum{db_client_connection_pool_name="cache"} 0.03"#,
            r#"db_client_connection_use_time_seconds_bucket{db_client_connection_pool_name="cache",le="0.05"} 1"#,
            r#"db_client_connection_leaks_total{db_client_connection_pool_name="cache"} 1"#,
            r#"db_client_connection_timeouts_total{db_client_connection_pool_name="cache"} 1"#,
            r#"resilience_retry_budget_exhausted_total{name="cache"} 1"#,
            r#"resilience_circuit_breaker_transitions_total{name="cache",from="closed",to="open"} 1"#,
            r#"resilience_circuit_breaker_transitions_total{name="cache",from="metrics_only",to="forced_open"} 1"#,
            r#"resilience_circuit_breaker_armings_total{name="cache"} 1"#,
            r#"resilience_opinion_exchanges_total{outcome="answered"} 1"#,
            r#"resilience_opinion_exchanges_total{outcome="failed"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
