//! What an admitted call carries from its admission to its end.

/// What an admitted call must show when it settles. Two whole registers: a healthy call keeps it in them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Pass {
    /// The [`Kind`] above the generation.
    head: u64,
    /// Of a probe its number; of a timed call the nanoseconds from the circuit's origin to its start.
    pub(super) mark: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Plain = 0,
    Timed = 1,
    Probe = 2,
    Uncounted = 3,
}

impl Pass {
    #[inline]
    pub(super) fn new(generation: u32, kind: Kind, mark: u64) -> Self {
        Self { head: u64::from(generation) | (kind as u64) << 32, mark }
    }

    /// The number of the state that admitted it.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the generation")]
    pub(crate) fn generation(self) -> u32 {
        self.head as u32
    }

    /// From now on, its outcome is not counted.
    pub(crate) fn uncount(&mut self) {
        *self = Self::new(self.generation(), Kind::Uncounted, 0);
    }

    /// Whether its outcome is counted at all.
    #[inline]
    pub(crate) fn counts(self) -> bool {
        !self.is(Kind::Uncounted)
    }

    #[inline]
    pub(super) fn is(self, kind: Kind) -> bool {
        self.head >> 32 == kind as u64
    }
}
