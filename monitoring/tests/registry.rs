//! Breakers of the process's registry, which belong to no service: alone here, for all tests of one
//! binary share that registry.

mod support;

use monitoring::AlertSeverity::{Error, Info};
use resilience_core::{CircuitBreaker, CircuitRegistry};
use support::{Does, Ledger, Puppet, every_second, pass, secs};

#[tokio::test(start_paused = true)]
async fn a_breaker_without_a_service_is_watched_too() {
    let breaker =
        CircuitBreaker::builder("payments").fail_max(1).reset_timeout(secs(5)).success_threshold(1);
    let breaker = CircuitRegistry::global().get_or_create(breaker).unwrap();
    let ledger = Ledger::new();
    let builder = every_second().critical("database", Puppet::that(Does::Answer));
    let manager = builder.alert_handler(ledger.clone()).build().unwrap();
    manager.start();
    breaker.try_acquire().unwrap().failure();
    pass(secs(6)).await;
    let summary = manager.get_health_summary();
    assert!(summary.circuit_breakers.contains_key("payments"));
    assert!(summary.services["database"].breaker.is_none());
    breaker.try_acquire().unwrap().success();
    pass(secs(2)).await;
    let key = "circuit_opened:payments".to_owned();
    assert_eq!(ledger.delivered(), [(key.clone(), Error, false), (key, Info, true)]);
}
