//! What is counted of circuits, layers and pools as events tell of it: handles made once per name.

use std::sync::OnceLock;

use metrics::{Counter, Histogram, SharedString, counter, histogram};
use resilience_core::{CircuitState, Name, RefusingLayer};

use crate::names::{self, label};

/// The states of a circuit.
const STATES: usize = CircuitState::ALL.len();

/// What happened to the breakers of one name.
#[derive(Debug)]
pub(crate) struct CircuitCounters {
    name: SharedString,
    transitions: [[OnceLock<Counter>; STATES]; STATES],
    armings: OnceLock<Counter>,
}

impl CircuitCounters {
    pub(crate) fn new(name: &Name) -> Self {
        let name = label::value(name);
        Self { name, transitions: Default::default(), armings: OnceLock::new() }
    }

    pub(crate) fn transitions(&self, from: CircuitState, to: CircuitState) -> &Counter {
        self.transitions[from as usize][to as usize].get_or_init(|| {
            counter!(names::CIRCUIT_TRANSITIONS, label::NAME => self.name.clone(), label::FROM => from.as_str(), label::TO => to.as_str())
        })
    }

    pub(crate) fn armings(&self) -> &Counter {
        self.armings
            .get_or_init(|| counter!(names::CIRCUIT_ARMINGS, label::NAME => self.name.clone()))
    }
}

/// What happened to the layers of one name.
#[derive(Debug)]
pub(crate) struct LayerCounters {
    name: SharedString,
    refusals: [OnceLock<Counter>; RefusingLayer::ALL.len()],
}

impl LayerCounters {
    pub(crate) fn new(name: &Name) -> Self {
        Self { name: label::value(name), refusals: Default::default() }
    }

    pub(crate) fn refusals(&self, layer: RefusingLayer) -> &Counter {
        self.refusals[layer as usize].get_or_init(|| {
            counter!(names::REFUSALS, label::NAME => self.name.clone(), label::LAYER => layer.as_str())
        })
    }
}

/// The times of one pool.
#[derive(Debug)]
pub(crate) struct PoolMeters {
    pub(crate) create: Histogram,
    pub(crate) wait: Histogram,
    pub(crate) used: Histogram,
    pub(crate) leaks: Counter,
    pub(crate) timeouts: Counter,
}

impl PoolMeters {
    pub(crate) fn new(pool: &Name) -> Self {
        let labels = [(label::POOL, label::value(pool))];
        Self {
            create: histogram!(names::CONNECTION_CREATE_TIME, &labels),
            wait: histogram!(names::CONNECTION_WAIT_TIME, &labels),
            used: histogram!(names::CONNECTION_USE_TIME, &labels),
            leaks: counter!(names::CONNECTION_LEAKS, &labels),
            timeouts: counter!(names::CONNECTION_TIMEOUTS, &labels),
        }
    }
}
