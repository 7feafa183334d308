//! What observing a call costs: no allocation, once its name is known.

use std::sync::Arc;
use std::time::Duration;

use monitoring::{MetricsObserver, MonitoringManager};
use resilience_core::{CallOutcome, CircuitState, Event, Name, RefusingLayer, add_observer, emit};

/// Everything that can happen to a call, its circuit and its connection.
fn everything_happens(name: &Name) {
    let elapsed = Duration::from_micros(700);
    for operation in ["read", "write"] {
        for outcome in CallOutcome::ALL {
            emit(&Event::CallEnded { name, operation, outcome, attempts: 2, elapsed });
        }
    }
    emit(&Event::RetryScheduled { name, attempts: 1, delay: elapsed });
    emit(&Event::RetryBudgetExhausted { name });
    let (from, to) = (CircuitState::Closed, CircuitState::Open);
    emit(&Event::CircuitTransition { name, from, to, generation: 1 });
    for layer in RefusingLayer::ALL {
        emit(&Event::Refused { name, layer });
    }
    emit(&Event::HedgeStarted { name });
    emit(&Event::HedgeWon { name });
    emit(&Event::HedgeRefused { name });
    emit(&Event::CircuitArmed { name });
    for answered in [true, false] {
        emit(&Event::OpinionsExchanged { answered });
    }
    emit(&Event::ConnectionCreated { pool: name, elapsed });
    emit(&Event::ConnectionAcquired { pool: name, waited: elapsed });
    emit(&Event::ConnectionReleased { pool: name, used: elapsed });
    emit(&Event::ConnectionLeaked { pool: name, held: elapsed });
    emit(&Event::AcquireTimedOut { pool: name });
}

/// Without a recorder, so that what the recorder allocates for its histograms is not ours.
#[test]
fn a_known_name_is_observed_without_allocation() {
    let _manager = MonitoringManager::builder().build().unwrap();
    add_observer(Arc::new(MetricsObserver::new()));
    let name = Name::from("database");
    everything_happens(&name);
    let counted = allocation_counter::measure(|| {
        for _ in 0..100 {
            everything_happens(&name);
        }
    });
    assert_eq!(counted.count_total, 0);
}
