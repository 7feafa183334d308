//! Fear: of several breakers with one name, a healthy one hides the trouble of another.

mod support;

use std::time::Duration;

use metrics::LocalRecorderGuard;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use monitoring::AlertSeverity::Error;
use monitoring::{Metrics, MonitoringManager, install_metrics};
use resilience_core::{
    CircuitBreaker, CircuitBreakerBuilder, CircuitRegistry, CircuitState, KeyedBreakers,
};
use support::{Ledger, Puppet, Seen, every_second, pass, secs};

/// A minute is longer than any of these tests waits: what is open stays so.
fn tripped_by_one(name: &'static str) -> CircuitBreakerBuilder {
    CircuitBreaker::builder(name).fail_max(1).reset_timeout(secs(60))
}

/// A recorder for one test: what others show under the same names is not seen in it.
fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new().build_recorder()
}

/// Metrics that this thread records in `recorder`, for as long as the guard is there.
fn recorded_in(recorder: &PrometheusRecorder) -> (Metrics, LocalRecorderGuard<'_>) {
    let handle = recorder.handle();
    let metrics = install_metrics().rendered_by(move || handle.render());
    (metrics, metrics::set_default_local_recorder(recorder))
}

fn has(manager: &MonitoringManager, lines: &[&str]) {
    let text = manager.render_metrics().unwrap();
    for line in lines {
        assert!(text.lines().any(|held| held == *line), "{line} is missing in\n{text}");
    }
}

/// The alerts about one family: all tests of this binary share the registry.
fn delivered(ledger: &Ledger, family: &str) -> Vec<Seen> {
    let about = |(key, ..): &Seen| key.contains(family);
    ledger.delivered().into_iter().filter(about).collect()
}

/// Two keys at once, and so two keys that ever have a name: those that take their places have none.
fn crowded(family: &'static str) -> KeyedBreakers<u8> {
    let keyed = KeyedBreakers::builder(tripped_by_one(family)).max_keys(2).build().unwrap();
    CircuitRegistry::global().insert_keyed(keyed.clone());
    for key in [1, 2] {
        keyed.breaker(&key).try_acquire().unwrap().success();
    }
    keyed
}

#[tokio::test(start_paused = true)]
async fn keys_without_a_name_of_their_own_are_told_together() {
    let (billing, mail) = (crowded("billing"), crowded("mail"));
    let (recorder, ledger) = (recorder(), Ledger::new());
    let (metrics, _guard) = recorded_in(&recorder);
    let builder = every_second().metrics(metrics).alert_handler(ledger.clone());
    let manager = builder.build().unwrap();
    manager.start();
    // Of each family's two, the first fails or the last does: neither hides behind the other.
    for (keyed, failing) in [(&billing, 3), (&mail, 4)] {
        for key in [3, 4] {
            pass(Duration::from_millis(1)).await;
            let permit = keyed.breaker(&key).try_acquire().unwrap();
            if key == failing { permit.failure() } else { permit.success() }
        }
        assert!(keyed.breaker(&failing).try_acquire().is_err());
    }
    pass(secs(2)).await;
    let shown = manager.get_health_summary().circuit_breakers;
    for family in ["billing", "mail"] {
        let circuit = &shown[format!("{family}/_OTHER").as_str()].circuit;
        assert_eq!((circuit.state, circuit.not_permitted), (CircuitState::Open, 1), "{family}");
        assert_eq!((circuit.calls.success, circuit.calls.failure), (1, 1), "{family}");
        assert!(circuit.retry_after.is_some(), "the open one's: {circuit:?}");
    }
    has(
        &manager,
        &[
            r#"resilience_circuit_breaker_state{name="billing/_OTHER",state="open"} 1"#,
            r#"resilience_circuit_breaker_state{name="billing/_OTHER",state="closed"} 1"#,
            r#"resilience_circuit_breaker_calls_total{name="billing/_OTHER",kind="success"} 1"#,
            r#"resilience_circuit_breaker_calls_total{name="billing/_OTHER",kind="failure"} 1"#,
            r#"resilience_circuit_breaker_state{name="mail/_OTHER",state="open"} 1"#,
            r#"resilience_circuit_breaker_state{name="mail/_OTHER",state="closed"} 1"#,
            r#"resilience_circuit_breaker_not_permitted_calls_total{name="mail/_OTHER"} 1"#,
        ],
    );
    for family in ["billing", "mail"] {
        let key = format!("circuit_opened:{family}/_OTHER");
        assert_eq!(delivered(&ledger, family), [(key, Error, false)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_services_breaker_and_one_of_the_registry_are_two_unless_they_are_one() {
    let registry = CircuitRegistry::global();
    let [one, other] = [(); 2].map(|()| tripped_by_one("ledger").build().unwrap());
    registry.insert(one.clone());
    let shared = registry.get_or_create(tripped_by_one("cache")).unwrap();
    let recorder = recorder();
    let (metrics, _guard) = recorded_in(&recorder);
    let manager = every_second()
        .metrics(metrics)
        .critical("ledger", Puppet::behind(&other))
        .optional("cache", Puppet::behind(&shared))
        .optional("cache too", Puppet::behind(&shared))
        .build()
        .unwrap();
    one.try_acquire().unwrap().failure();
    other.try_acquire().unwrap().success();
    shared.try_acquire().unwrap().success();
    let summary = manager.get_health_summary();
    assert_eq!(summary.circuit_breakers["ledger"].circuit.state, CircuitState::Open);
    let own = summary.services["ledger"].breaker.as_ref().unwrap();
    assert_eq!(own.circuit.state, CircuitState::Closed, "a service answers for its own");
    assert_eq!(summary.circuit_breakers["cache"].circuit.calls.success, 1);
    has(
        &manager,
        &[
            r#"resilience_circuit_breaker_state{name="ledger",state="open"} 1"#,
            r#"resilience_circuit_breaker_state{name="ledger",state="closed"} 1"#,
            r#"resilience_circuit_breaker_calls_total{name="ledger",kind="failure"} 1"#,
            r#"resilience_circuit_breaker_state{name="cache",state="closed"} 1"#,
            r#"resilience_circuit_breaker_calls_total{name="cache",kind="success"} 1"#,
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_was_let_go_and_made_anew_has_not_opened() {
    let keyed = KeyedBreakers::builder(tripped_by_one("host")).max_keys(1).build().unwrap();
    CircuitRegistry::global().insert_keyed(keyed.clone());
    let ledger = Ledger::new();
    let manager = every_second().alert_handler(ledger.clone()).build().unwrap();
    manager.start();
    keyed.breaker(&1_u8).force_closed();
    pass(secs(3)).await;
    keyed.breaker(&1).reset();
    pass(secs(3)).await;
    assert_eq!(keyed.breaker(&1).snapshot().generation, 2);
    // Each takes the place of the other.
    drop(keyed.breaker(&2));
    assert_eq!(keyed.breaker(&1).snapshot().generation, 0);
    pass(secs(3)).await;
    assert_eq!(manager.get_health_summary().circuit_breakers["host/1"].circuit.generation, 0);
    assert_eq!(delivered(&ledger, "host"), []);
}
