//! How long attempts took of late: one quantile of it, kept at hand for those who ask on every call.

use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::{InvalidSetting, heartbeat};

/// Samples in the window. Above the 99th percentile that leaves ten.
const WINDOW: usize = 1024;

/// Samples between two looks at the window: a look costs as much as two hundred samples.
const REFRESH_EVERY: u64 = 32;

/// Each power of two has 2⁶ buckets, so that an edge is at most 1/64 above what lies below it.
const BITS: u32 = 6;

/// One bucket for each microsecond up to 2⁷, and 2⁶ for each power of two from there to 2³².
const BUCKETS: usize = (32 - BITS as usize + 1) << BITS;

/// The longest time that can be told from longer ones, 2³² µs: an hour and eleven minutes.
const LONGEST: Duration = Duration::from_micros(u32::MAX as u64);

/// A quantile of the last 1,024 samples; nothing before `min_samples` of them.
///
/// The window goes by count, not by time: a quantile needs samples, and a service called once a minute
/// has as many in it as one called a thousand times a second. What it says is never below the true
/// quantile of the window and at most 1/64 above it (below 64 µs, at most 1 µs), and never more than
/// 32 samples old. So a service that becomes slower shows after `(1 - quantile) · 1024 + 32` samples,
/// one that becomes faster after `quantile · 1024 + 32`.
///
/// A sample is one atomic addition and one store; two halves of one are never seen, for it is one word.
pub(crate) struct RecentLatency {
    quantile: f64,
    min_samples: u64,
    recorded: AtomicU64,
    /// The quantile's bucket and 1; 0 while there is none.
    current: AtomicU32,
    /// Each sample's bucket and 1; 0 where there is none yet.
    samples: [AtomicU16; WINDOW],
}

impl RecentLatency {
    /// An empty window; `quantile` above 0 and below 1, `min_samples` from 1 to 1,024.
    pub(crate) fn new(quantile: f64, min_samples: u32) -> Result<Self, InvalidSetting> {
        if !(quantile > 0.0 && quantile < 1.0) {
            return Err(InvalidSetting::new("quantile", quantile, "above 0, below 1"));
        }
        if !(1..=WINDOW as u32).contains(&min_samples) {
            return Err(InvalidSetting::new("min_samples", min_samples, "1 to 1024"));
        }
        Ok(Self {
            quantile,
            min_samples: u64::from(min_samples),
            recorded: AtomicU64::new(0),
            current: AtomicU32::new(0),
            samples: [const { AtomicU16::new(0) }; WINDOW],
        })
    }

    /// The quantile as of the last look at the window.
    pub(crate) fn current(&self) -> Option<Duration> {
        self.current.load(Ordering::Relaxed).checked_sub(1).map(upper_edge)
    }

    /// Takes in one sample, in place of the oldest; says whether it was time to look at the window.
    pub(crate) fn record(&self, elapsed: Duration) -> bool {
        if heartbeat::explains(elapsed) {
            return false;
        }
        let before = self.recorded.fetch_add(1, Ordering::Relaxed);
        self.samples[before as usize % WINDOW].store(bucket(elapsed) + 1, Ordering::Relaxed);
        let recorded = before + 1;
        let due = recorded == self.min_samples || recorded.is_multiple_of(REFRESH_EVERY);
        if due {
            self.refresh();
        }
        due
    }

    /// Looks at the window now, for a sample that must not wait for its turn.
    pub(crate) fn refresh(&self) {
        if self.recorded.load(Ordering::Relaxed) >= self.min_samples {
            self.current.store(self.quantile_bucket().into(), Ordering::Relaxed);
        }
    }

    /// The lowest bucket, and 1, that has no more samples above it than the quantile leaves there.
    ///
    /// Found by halving: eleven passes over a copy, each of which compares many samples at a time, cost
    /// less than one that counts them by bucket, and as much whatever they are.
    fn quantile_bucket(&self) -> u16 {
        let samples: [u16; WINDOW] =
            std::array::from_fn(|place| self.samples[place].load(Ordering::Relaxed));
        let above = |bucket| samples.iter().map(|&sample| u16::from(sample > bucket)).sum::<u16>();
        let held = above(0);
        let rank = (self.quantile * f64::from(held)).ceil() as u16;
        let (mut low, mut high) = (1, BUCKETS as u16);
        while low < high {
            let middle = u16::midpoint(low, high);
            match above(middle) > held - rank {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }
}

impl fmt::Debug for RecentLatency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecentLatency")
            .field("quantile", &self.quantile)
            .field("recorded", &self.recorded)
            .field("current", &self.current())
            .finish_non_exhaustive()
    }
}

fn bucket(elapsed: Duration) -> u16 {
    let micros = elapsed.min(LONGEST).as_micros() as u32;
    let shift = (u32::BITS - BITS - 1).saturating_sub(micros.leading_zeros());
    // The power of two, and within it the first bits below the leading one.
    ((shift << BITS) + (micros >> shift)) as u16
}

/// The longest time that falls into `bucket`, rounded up to a microsecond.
fn upper_edge(bucket: u32) -> Duration {
    let shift = (bucket >> BITS).saturating_sub(1);
    let first = u64::from(bucket - (shift << BITS));
    Duration::from_micros((first + 1) << shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn window(quantile: f64) -> RecentLatency {
        RecentLatency::new(quantile, 100).unwrap()
    }

    fn record(latency: &RecentLatency, elapsed: Duration, times: usize) {
        for _ in 0..times {
            latency.record(elapsed);
        }
    }

    proptest! {
        #[test]
        fn the_quantile_is_that_of_the_last_samples_to_within_a_bucket(
            samples in proptest::collection::vec(0u64..100_000_000, 100..2500), quantile in 0.001..0.999
        ) {
            let latency = window(quantile);
            for &micros in &samples {
                latency.record(Duration::from_micros(micros));
            }
            latency.refresh();
            let mut last = samples[samples.len().saturating_sub(WINDOW)..].to_vec();
            last.sort_unstable();
            let exact = last[(quantile * last.len() as f64).ceil() as usize - 1];
            let told = latency.current().unwrap().as_micros() as u64;
            prop_assert!(told > exact && told <= exact + exact / 64 + 1, "{} for {}", told, exact);
        }
    }

    #[test]
    fn every_time_has_a_bucket_of_its_own_size() {
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::MAX) as usize, BUCKETS - 1);
        for bucket_number in 0..BUCKETS as u32 {
            let edge = upper_edge(bucket_number);
            assert_eq!(u32::from(bucket(edge - Duration::from_micros(1))), bucket_number);
            assert!(edge > LONGEST || u32::from(bucket(edge)) == bucket_number + 1);
        }
    }

    #[test]
    fn few_samples_say_nothing() {
        let latency = window(0.5);
        record(&latency, MS, 99);
        latency.refresh();
        assert_eq!(latency.current(), None);
        latency.record(MS);
        assert!(latency.current().is_some());
    }

    #[test]
    fn a_change_of_regime_is_followed_within_the_stated_samples() {
        for (quantile, from, to) in [(0.99, MS, 10 * MS), (0.95, MS, 10 * MS), (0.5, MS, 10 * MS)] {
            let slower = ((1.0 - quantile) * WINDOW as f64) as usize + REFRESH_EVERY as usize;
            let faster = (quantile * WINDOW as f64) as usize + REFRESH_EVERY as usize;
            for (from, to, samples) in [(from, to, slower), (to, from, faster)] {
                let latency = window(quantile);
                record(&latency, from, 3 * WINDOW + 7);
                record(&latency, to, samples + 1);
                let told = latency.current().unwrap();
                assert!(told >= to && told <= to + to / 64, "{quantile}: {told:?} after {to:?}");
            }
        }
    }

    #[test]
    fn no_sample_is_lost_between_threads() {
        let latency = window(0.75);
        std::thread::scope(|scope| {
            for micros in [1000, 1000, 1000, 50_000] {
                let latency = &latency;
                scope.spawn(move || record(latency, Duration::from_micros(micros), 256));
            }
        });
        latency.refresh();
        assert_eq!(latency.recorded.load(Ordering::Relaxed), WINDOW as u64);
        assert!(latency.samples.iter().all(|sample| sample.load(Ordering::Relaxed) > 0));
        // 768 of the 1,024 are the quick ones: with one less, the quantile would be a slow one.
        assert!(latency.current().unwrap() < 2 * MS);
    }

    #[test]
    fn a_quantile_that_is_none_is_refused() {
        for quantile in [0.0, 1.0, -0.5, f64::NAN, f64::INFINITY] {
            assert_eq!(RecentLatency::new(quantile, 100).unwrap_err().field, "quantile");
        }
        for min_samples in [0, 1025] {
            assert_eq!(RecentLatency::new(0.5, min_samples).unwrap_err().field, "min_samples");
        }
    }
}
