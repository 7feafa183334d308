//! The one word that a call on a healthy circuit reads: state, flags, generation, failures in a row.

use serde::Serialize;

/// The state of a circuit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Calls pass.
    Closed,
    /// Calls are refused until the reset timeout is over.
    Open,
    /// A few calls pass as probes; their outcome decides.
    HalfOpen,
    /// Calls are refused until somebody says otherwise.
    ForcedOpen,
    /// Calls pass until somebody says otherwise, whatever their outcome; outcomes are counted.
    ForcedClosed,
    /// Calls pass as if there were no breaker; nothing is counted.
    Disabled,
    /// Calls pass; everything is judged as while closed and shown, but nothing opens the circuit.
    MetricsOnly,
}

impl CircuitState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Closed,
        Self::Open,
        Self::HalfOpen,
        Self::ForcedOpen,
        Self::ForcedClosed,
        Self::Disabled,
        Self::MetricsOnly,
    ];

    /// The word for it, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
            Self::Disabled => "disabled",
            Self::MetricsOnly => "metrics_only",
        }
    }

    /// Whether it refuses calls, all or most of them: [`Open`](Self::Open), [`HalfOpen`](Self::HalfOpen)
    /// and [`ForcedOpen`](Self::ForcedOpen).
    #[must_use]
    pub const fn refuses(self) -> bool {
        matches!(self, Self::Open | Self::HalfOpen | Self::ForcedOpen)
    }

    /// Whether it refuses every call: [`Open`](Self::Open) and [`ForcedOpen`](Self::ForcedOpen).
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::ForcedOpen)
    }

    /// Whether it lets every call pass without asking anyone.
    const fn passes(self) -> bool {
        matches!(self, Self::Closed | Self::ForcedClosed | Self::Disabled | Self::MetricsOnly)
    }

    /// Whether outcomes are judged by the rules for opening.
    pub(crate) const fn judges(self) -> bool {
        matches!(self, Self::Closed | Self::MetricsOnly)
    }
}

/// From the top: state (3 bits), flags (3), generation (32, wrapping), failures in a row (26).
///
/// A closed circuit without flags and failures is its generation and nothing else, so the whole
/// success path is one comparison.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Word(pub(crate) u64);

/// What a call must do besides looking at the word.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Flags {
    /// Successes are counted in a window.
    pub(crate) counted: bool,
    /// Durations are judged: the clock is read before and after.
    pub(crate) timed: bool,
    /// Only a share of the calls passes yet.
    pub(crate) recovering: bool,
}

const FAILURE_BITS: u32 = 26;
const GENERATION: u64 = (u32::MAX as u64) << FAILURE_BITS;
const COUNTED: u64 = 1 << 58;
const TIMED: u64 = 1 << 59;
const RECOVERING: u64 = 1 << 60;
const STATE_SHIFT: u32 = 61;
const STATE: u64 = 7 << STATE_SHIFT;

/// The most failures in a row that the word can hold.
pub(crate) const MOST_FAILURES: u32 = (1 << FAILURE_BITS) - 1;

impl Word {
    pub(crate) fn new(state: CircuitState, flags: Flags, generation: u32) -> Self {
        let state = (state as u64) << STATE_SHIFT;
        Self(state | flags.bits() | u64::from(generation) << FAILURE_BITS)
    }

    #[inline]
    pub(crate) fn state(self) -> CircuitState {
        CircuitState::ALL[(self.0 >> STATE_SHIFT) as usize]
    }

    #[inline]
    pub(crate) fn flags(self) -> Flags {
        let is_set = |flag| self.0 & flag != 0;
        Flags { counted: is_set(COUNTED), timed: is_set(TIMED), recovering: is_set(RECOVERING) }
    }

    pub(crate) fn with_flags(self, flags: Flags) -> Self {
        Self(self.0 & !(COUNTED | TIMED | RECOVERING) | flags.bits())
    }

    pub(crate) fn generation(self) -> u32 {
        ((self.0 & GENERATION) >> FAILURE_BITS) as u32
    }

    #[expect(clippy::cast_possible_truncation, reason = "the mask leaves 26 bits")]
    pub(crate) fn failures(self) -> u32 {
        (self.0 & u64::from(MOST_FAILURES)) as u32
    }

    pub(crate) fn with_failures(self, failures: u32) -> Self {
        Self(self.0 & !u64::from(MOST_FAILURES) | u64::from(failures.min(MOST_FAILURES)))
    }

    /// Whether it is closed, every call passes, and none needs the clock.
    #[inline]
    pub(crate) fn is_plain(self) -> bool {
        self.0 & (STATE | TIMED | RECOVERING) == 0
    }

    /// Whether every call passes.
    #[inline]
    pub(crate) fn passes(self) -> bool {
        self.0 & RECOVERING == 0 && self.state().passes()
    }

    /// Whether it is closed under `generation`, with no flag and no failure: a success changes nothing.
    #[inline]
    pub(crate) fn is_untroubled(self, generation: u32) -> bool {
        self.0 == u64::from(generation) << FAILURE_BITS
    }

    /// Whether it is closed under `generation`, with no failure: a success is counted, and that is all.
    #[inline]
    pub(crate) fn only_counts(self, generation: u32) -> bool {
        self.0 == u64::from(generation) << FAILURE_BITS | COUNTED
    }
}

impl Flags {
    const fn bits(self) -> u64 {
        self.counted as u64 * COUNTED
            + self.timed as u64 * TIMED
            + self.recovering as u64 * RECOVERING
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_state_survives_the_packing() {
        for state in CircuitState::ALL {
            assert_eq!(Word::new(state, Flags::default(), 0).state(), state);
        }
    }

    proptest! {
        #[test]
        fn no_field_spills_into_its_neighbour(state in 0..7usize, counted: bool, timed: bool, recovering: bool, generation: u32, failures: u32) {
            let state = CircuitState::ALL[state];
            let flags = Flags { counted, timed, recovering };
            let word = Word::new(state, flags, generation).with_failures(failures);
            prop_assert_eq!((word.state(), word.flags(), word.generation()), (state, flags, generation));
            prop_assert_eq!(word.failures(), failures.min(MOST_FAILURES));
            let plain = state == CircuitState::Closed && flags == Flags::default() && failures == 0;
            prop_assert_eq!(word.is_untroubled(generation), plain);
        }
    }
}
