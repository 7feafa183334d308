//! What a load shedder counts, and what its prioritizer reads.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::Priority;
use crate::priority::RANKS;

/// One request in a histogram, fine enough to be halved often.
const ONE: u32 = 256;

/// A histogram of more requests than this is halved.
const MEMORY: u64 = 2048 * ONE as u64;

/// What one limiter tells: who came, who was let in, who is still there.
#[derive(Debug)]
pub(crate) struct Meter {
    /// The place below which requests are refused.
    threshold: AtomicU16,
    /// Admitted so far (upper half, wrapping) and in flight (lower half): one addition for both.
    admitted: AtomicU64,
    /// What the limiter had taken (upper half) and could take, when pressure was last seen.
    load: AtomicU64,
    /// Requests that found no place free, since the last calibration.
    full: AtomicU32,
    refused: [AtomicU64; Priority::ALL.len()],
    /// Admitted here but refused behind, so far.
    bounced: AtomicU64,
    /// Requests under pressure by place, in units of [`ONE`]; recent ones only.
    places: [AtomicU32; RANKS as usize],
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            threshold: AtomicU16::new(0),
            admitted: AtomicU64::new(0),
            load: AtomicU64::new(0),
            full: AtomicU32::new(0),
            refused: Default::default(),
            bounced: AtomicU64::new(0),
            places: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

impl Meter {
    pub(crate) fn threshold(&self) -> u16 {
        self.threshold.load(Ordering::Relaxed)
    }

    pub(crate) fn set_threshold(&self, place: u16) {
        self.threshold.store(place, Ordering::Relaxed);
    }

    pub(crate) fn in_flight(&self) -> usize {
        (self.admitted.load(Ordering::Relaxed) & u64::from(u32::MAX)) as usize
    }

    pub(crate) fn enter(&self) {
        self.admitted.fetch_add(1 << 32 | 1, Ordering::Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.admitted.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn bounce(&self) {
        self.bounced.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refuse(&self, priority: Priority) {
        self.refused[priority as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, priority: Priority) -> u64 {
        self.refused[priority as usize].load(Ordering::Relaxed)
    }

    /// A request at `place` found the limiter at `taken` of `limit`, or a threshold in force.
    pub(crate) fn press(&self, place: u16, taken: usize, limit: usize) {
        let half = |count: usize| u64::from(u32::try_from(count).unwrap_or(u32::MAX));
        self.load.store(half(taken) << 32 | half(limit), Ordering::Relaxed);
        self.places[usize::from(place)].fetch_add(ONE, Ordering::Relaxed);
        if taken >= limit {
            self.full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All that was counted so far.
    pub(crate) fn totals(&self) -> Totals {
        let word = self.admitted.load(Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "two halves")]
        let (admitted, in_flight) = ((word >> 32) as u32, word as u32);
        let refused = Priority::ALL.iter().map(|priority| self.refused(*priority)).sum();
        let bounced = self.bounced.load(Ordering::Relaxed);
        Totals { admitted, in_flight, refused, bounced }
    }

    /// Taken and limit when pressure was last seen.
    pub(crate) fn load(&self) -> (f64, f64) {
        let load = self.load.load(Ordering::Relaxed);
        ((load >> 32) as f64, (load & u64::from(u32::MAX)) as f64)
    }

    /// Requests that found no place free, since this was last asked.
    pub(crate) fn take_full(&self) -> u32 {
        self.full.swap(0, Ordering::Relaxed)
    }

    /// The lowest place such that the requests from there up are `share` of the recent ones, rounded
    /// to the nearest place. 0 admits all.
    pub(crate) fn lowest_of(&self, share: f64) -> u16 {
        let may_pass = share * self.remembered() as f64;
        let mut passing = 0.0;
        for (place, count) in (0..RANKS).zip(&self.places).rev() {
            let count = f64::from(count.load(Ordering::Relaxed));
            if passing + count / 2.0 > may_pass {
                return place + 1;
            }
            passing += count;
        }
        0
    }

    /// Forgets the half of a long histogram: what is recent counts more.
    pub(crate) fn forget_half(&self) {
        if self.remembered() > MEMORY {
            self.forget(|count| count.div_ceil(2));
        }
    }

    pub(crate) fn forget_all(&self) {
        self.forget(|count| count);
    }

    fn forget(&self, part: impl Fn(u32) -> u32) {
        for place in &self.places {
            // Not a store: others are counting.
            place.fetch_sub(part(place.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }

    fn remembered(&self) -> u64 {
        self.places.iter().map(|place| u64::from(place.load(Ordering::Relaxed))).sum()
    }
}

/// Counts since the meter was made, but for those in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// Wrapping.
    pub(crate) admitted: u32,
    pub(crate) in_flight: u32,
    pub(crate) refused: u64,
    pub(crate) bounced: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_rare_long_ago_does_not_weigh_for_ever() {
        let meter = Meter::default();
        // Once one request on each of a hundred high places, and then only low ones.
        (400..500).for_each(|place| meter.press(place, 1, 1));
        for _ in 0..20 {
            (0..1000).for_each(|request| meter.press(request % 100, 1, 1));
            meter.forget_half();
        }
        assert_eq!(meter.lowest_of(0.001), 100);
        meter.forget_all();
        assert_eq!((meter.remembered(), meter.take_full()), (0, 20_100));
    }

    #[test]
    fn the_share_that_passes_is_the_share_asked_for() {
        let meter = Meter::default();
        (0..640).for_each(|place| meter.press(place, 1, 1));
        assert_eq!(meter.lowest_of(0.25), 480);
        assert_eq!((meter.lowest_of(1.0), meter.lowest_of(0.0)), (0, 640));
    }
}
