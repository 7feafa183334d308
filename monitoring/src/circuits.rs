//! The breakers of this process by name, and those that have a name in common as one.
//!
//! One name is one line on a page, one series, one alert. Two breakers may have it all the same: keys of
//! one family that have no name of their own, or two rooms of an application that chose the same word.
//! Then neither may hide what the other says.

use std::collections::BTreeMap;

use resilience_core::{CircuitBreaker, CircuitSnapshot, CircuitState, Name, OutcomeCounts};
use serde::Serialize;

use crate::json;

/// A breaker, with what it costs more than a look to know. Its JSON is a value of
/// `/health/circuit-breakers`.
///
/// Where several breakers have one name, it is the one in the worst state, with the calls, the refusals
/// and the generations of all.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CircuitReport {
    /// The breaker at this moment.
    #[serde(flatten)]
    pub circuit: CircuitSnapshot,
    /// The share of attempts that failed, 0 to 1: in the breaker's window; where it has none, within
    /// the last minute and `None` below 20 attempts.
    #[serde(serialize_with = "json::ratio")]
    pub failure_ratio: Option<f64>,
    /// The share of slow attempts in the breaker's window, 0 to 1; `None` where the breaker does not judge slowness.
    #[serde(serialize_with = "json::ratio")]
    pub slow_call_ratio: Option<f64>,
    /// How many breakers are in each state, in the order of [`CircuitState::ALL`].
    #[serde(skip)]
    pub(crate) states: [u32; CircuitState::ALL.len()],
}

impl CircuitReport {
    pub(crate) fn of(circuit: CircuitSnapshot) -> Self {
        let mut states = [0; CircuitState::ALL.len()];
        states[circuit.state as usize] = 1;
        let (failure_ratio, slow_call_ratio) = (circuit.failure_ratio, circuit.slow_call_ratio);
        Self { circuit, failure_ratio, slow_call_ratio, states }
    }

    /// Adds another breaker of the same name.
    fn join(&mut self, other: CircuitSnapshot) {
        self.states[other.state as usize] += 1;
        let before = &self.circuit;
        let calls = sum(before.calls, other.calls);
        let not_permitted = before.not_permitted + other.not_permitted;
        // It rises when any of them changes its state.
        let generation = before.generation.wrapping_add(other.generation);
        if badness(&other) > badness(before) {
            self.circuit = other;
        }
        self.circuit.calls = calls;
        self.circuit.not_permitted = not_permitted;
        self.circuit.generation = generation;
        // The windows of several have nothing in common.
        (self.failure_ratio, self.slow_call_ratio) = (None, None);
    }
}

/// What there is to say of `breakers`, each of which is there once.
pub(crate) fn by_name(
    breakers: impl IntoIterator<Item = CircuitBreaker>,
) -> BTreeMap<Name, CircuitReport> {
    let mut reports: BTreeMap<_, CircuitReport> = BTreeMap::new();
    for breaker in breakers {
        let circuit = breaker.snapshot();
        match reports.get_mut(&circuit.name) {
            Some(report) => report.join(circuit),
            None => {
                reports.insert(circuit.name.clone(), CircuitReport::of(circuit));
            }
        }
    }
    reports
}

pub(crate) fn sum(one: OutcomeCounts, other: OutcomeCounts) -> OutcomeCounts {
    OutcomeCounts {
        success: one.success + other.success,
        failure: one.failure + other.failure,
        excluded: one.excluded + other.excluded,
        cancelled: one.cancelled + other.cancelled,
    }
}

/// The worse a circuit is the more it refuses, and then the longer it has done so.
fn badness(circuit: &CircuitSnapshot) -> impl PartialOrd + use<> {
    (circuit.state.refuses(), circuit.state.is_open(), circuit.since)
}
