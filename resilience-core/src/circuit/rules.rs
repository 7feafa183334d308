//! What opens a circuit, and for how long: the settings, applied.

use std::time::Duration;

use super::window::{Ended, Tally, nanos};
use super::{CircuitState, Flags};
use crate::breaker::{CircuitSettings, Growth};

impl CircuitSettings {
    /// What each call must do in a closed circuit.
    pub(super) fn flags(&self) -> Flags {
        self.flags_in(CircuitState::Closed)
    }

    pub(super) fn flags_in(&self, state: CircuitState) -> Flags {
        let counted = state.judges() && (self.failure_rate.is_some() || self.slow_calls.is_some());
        let timed =
            self.slow_calls.is_some() && (state.judges() || state == CircuitState::HalfOpen);
        Flags { counted, timed, recovering: false }
    }

    pub(super) fn slow_from(&self) -> u64 {
        self.slow_calls.map_or(u64::MAX, |slow| nanos(slow.slower_than))
    }

    /// Whether a call that went badly was one too many.
    pub(super) fn is_too_many(&self, ended: Ended, in_a_row: u32, tally: Tally) -> bool {
        let Ended { failed, slow } = ended;
        let enough = tally.calls >= self.minimum_calls.into();
        let reaches = |rate: f64, count| enough && share(count, tally.calls) >= rate;
        let by_failure = self.fail_max.is_some_and(|most| in_a_row >= most)
            || self.failure_rate.is_some_and(|rate| reaches(rate, tally.failures));
        let by_slowness = self.slow_calls.is_some_and(|slow| reaches(slow.rate, tally.slow));
        (failed && by_failure) || (slow && by_slowness)
    }

    /// How long the circuit stays open that has opened `reopened` times since it last recovered.
    pub(super) fn open_time(&self, reopened: u32) -> Duration {
        let time = match self.reset_timeout_growth {
            None => self.reset_timeout,
            Some(Growth { factor, max }) => {
                let factor = factor.powi(i32::try_from(reopened).unwrap_or(i32::MAX));
                let grown = self.reset_timeout.as_secs_f64() * factor;
                Duration::try_from_secs_f64(grown).map_or(max, |grown| grown.min(max))
            }
        };
        match self.reset_timeout_jitter {
            0.0 => time,
            jitter => time.mul_f64(1.0 - jitter * fastrand::f64()),
        }
    }
}

/// A share of calls, 0 to 1. The quotient of two whole numbers is the double next to it, so that
/// 7 of 100 are exactly 0.07.
#[expect(clippy::cast_precision_loss, reason = "no window holds 2^53 calls")]
pub(super) fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}
