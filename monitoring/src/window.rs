//! What the calls to one service were like over the last minute, without a lock.
//!
//! Time is cut into ticks of five seconds. A cell holds a tick and a count in one word; a cell of
//! an older tick counts as zero, so nothing ever has to be cleared and no count is lost to one that
//! clears while another counts. Latencies fall into buckets eight to an octave: a quantile is right
//! to within 7 %.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::defaults::WINDOW;
use crate::json;

const TICKS: u32 = 12;
const TICK: Duration = Duration::from_secs(WINDOW.as_secs() / TICKS as u64);
const LATENCIES: usize = 200;
/// The longest time that is told apart from longer ones: 134 s.
const LONGEST: u64 = (1 << 27) - 1;

/// The calls to one service over the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CallMetrics {
    /// Calls that ended; those whose caller dropped them are not counted.
    pub requests: u64,
    /// Those that the service failed, or that its open circuit refused.
    pub errors: u64,
    /// `errors` by `requests`, 0 to 1; `None` without requests.
    #[serde(serialize_with = "json::ratio")]
    pub error_rate: Option<f64>,
    /// The median time of calls that reached the service; in JSON `p50_ms`, milliseconds.
    #[serde(rename = "p50_ms", serialize_with = "json::maybe_milliseconds")]
    pub p50: Option<Duration>,
    /// The time that 95 % stayed within; in JSON `p95_ms`, milliseconds.
    #[serde(rename = "p95_ms", serialize_with = "json::maybe_milliseconds")]
    pub p95: Option<Duration>,
    /// The time that 99 % stayed within; in JSON `p99_ms`, milliseconds.
    #[serde(rename = "p99_ms", serialize_with = "json::maybe_milliseconds")]
    pub p99: Option<Duration>,
    /// Attempts that were repeats.
    pub retries: u64,
}

#[derive(Debug)]
pub(crate) struct CallWindow {
    slots: [Slot; TICKS as usize],
}

#[derive(Debug)]
struct Slot {
    requests: Cell,
    errors: Cell,
    retries: Cell,
    latencies: Box<[Cell; LATENCIES]>,
}

impl CallWindow {
    pub(crate) fn new() -> Self {
        let slot = |_| Slot {
            requests: Cell::default(),
            errors: Cell::default(),
            retries: Cell::default(),
            latencies: Box::new(std::array::from_fn(|_| Cell::default())),
        };
        Self { slots: std::array::from_fn(slot) }
    }

    /// A call ended `at` this time of the window's clock; `latency` if it reached the service.
    pub(crate) fn call(&self, at: Duration, error: bool, latency: Option<Duration>) {
        let (tick, slot) = self.slot(at);
        slot.requests.count(tick);
        if error {
            slot.errors.count(tick);
        }
        if let Some(latency) = latency {
            slot.latencies[bucket(latency)].count(tick);
        }
    }

    pub(crate) fn retry(&self, at: Duration) {
        let (tick, slot) = self.slot(at);
        slot.retries.count(tick);
    }

    pub(crate) fn read(&self, at: Duration) -> CallMetrics {
        let now = tick(at);
        let sum = |cell: fn(&Slot) -> &Cell| -> u64 {
            self.slots.iter().map(|slot| cell(slot).read(now)).sum()
        };
        let (requests, errors) = (sum(|slot| &slot.requests), sum(|slot| &slot.errors));
        let latencies: Vec<u64> = (0..LATENCIES)
            .map(|bucket| self.slots.iter().map(|slot| slot.latencies[bucket].read(now)).sum())
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "a ratio needs no 53 bits")]
        let error_rate = (requests > 0).then(|| errors as f64 / requests as f64);
        CallMetrics {
            requests,
            errors,
            error_rate,
            p50: quantile(&latencies, 50),
            p95: quantile(&latencies, 95),
            p99: quantile(&latencies, 99),
            retries: sum(|slot| &slot.retries),
        }
    }

    fn slot(&self, at: Duration) -> (u32, &Slot) {
        let tick = tick(at);
        (tick, &self.slots[(tick % TICKS) as usize])
    }
}

/// A tick (upper half) and how often something happened in it (lower half).
#[derive(Debug, Default)]
struct Cell(AtomicU64);

impl Cell {
    fn count(&self, tick: u32) {
        self.0.update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let (held, count) = halves(word);
            if held >= tick {
                // One that comes late counts where the others are by now.
                join(held, count.saturating_add(1))
            } else {
                join(tick, 1)
            }
        });
    }

    fn read(&self, now: u32) -> u64 {
        let (held, count) = halves(self.0.load(Ordering::Relaxed));
        if held + TICKS > now { count.into() } else { 0 }
    }
}

fn join(tick: u32, count: u32) -> u64 {
    u64::from(tick) << 32 | u64::from(count)
}

#[expect(clippy::cast_possible_truncation, reason = "each half is 32 bits")]
fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// Ticks since the clock began: 32 bits are 680 years.
fn tick(at: Duration) -> u32 {
    u32::try_from(at.as_secs() / TICK.as_secs()).unwrap_or(u32::MAX - TICKS)
}

fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST).min(LONGEST);
    let octave = micros.max(1).ilog2() as usize;
    match octave {
        0..3 => usize::try_from(micros).expect("below 8"),
        _ => (octave - 2) * 8 + usize::try_from(micros >> (octave - 3) & 7).expect("below 8"),
    }
}

/// The middle of a bucket.
fn middle(bucket: usize) -> Duration {
    let (octave, eighth) = (bucket / 8, bucket as u64 % 8);
    if octave == 0 {
        return Duration::from_micros(eighth);
    }
    let width = 1_u64 << (octave - 1);
    Duration::from_micros((8 + eighth) * width + width / 2)
}

fn quantile(latencies: &[u64], percent: u64) -> Option<Duration> {
    let total: u64 = latencies.iter().sum();
    let rank = (total * percent).div_ceil(100);
    let mut below = 0;
    let reached = |count: &u64| {
        below += count;
        below >= rank
    };
    (total > 0).then(|| middle(latencies.iter().position(reached).expect("rank is at most total")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_call_is_forgotten_after_a_minute_and_not_before() {
        let window = CallWindow::new();
        window.call(secs(3), true, Some(millis(5)));
        window.retry(secs(3));
        assert_eq!(window.read(secs(59)).requests, 1);
        assert_eq!(window.read(secs(59)).retries, 1);
        assert_eq!(window.read(secs(60)), CallMetrics::default());
    }

    #[test]
    fn a_slot_that_comes_round_again_starts_from_nothing() {
        let window = CallWindow::new();
        for _ in 0..100 {
            window.call(secs(1), true, None);
        }
        window.call(secs(61), false, None);
        let metrics = window.read(secs(61));
        assert_eq!((metrics.requests, metrics.errors), (1, 0));
    }

    #[test]
    fn quantiles_are_right_to_within_seven_percent() {
        let window = CallWindow::new();
        for latency in 1..=1000 {
            window.call(secs(1), false, Some(millis(latency)));
        }
        let metrics = window.read(secs(2));
        for (found, exact) in [(metrics.p50, 500.0), (metrics.p95, 950.0), (metrics.p99, 990.0)] {
            let found = found.unwrap().as_secs_f64() * 1000.0;
            assert!((found / exact - 1.0).abs() < 0.07, "{found} for {exact}");
        }
    }

    #[test]
    fn every_time_has_a_bucket_of_its_size() {
        for exponent in 0..40 {
            let latency = Duration::from_micros((1 << exponent) + 1);
            let found = middle(bucket(latency));
            let expected = latency.min(Duration::from_micros(LONGEST));
            let error = found.as_secs_f64() / expected.as_secs_f64() - 1.0;
            assert!(error.abs() < 0.07, "{latency:?} is taken for {found:?}");
        }
        assert_eq!(middle(bucket(Duration::ZERO)), Duration::ZERO);
        assert!(bucket(Duration::MAX) == LATENCIES - 1);
    }

    #[test]
    fn refused_calls_do_not_make_the_service_look_fast() {
        let window = CallWindow::new();
        window.call(secs(1), false, Some(millis(800)));
        for _ in 0..99 {
            window.call(secs(1), true, None);
        }
        let metrics = window.read(secs(1));
        assert_eq!(metrics.error_rate, Some(0.99));
        assert!(metrics.p50.unwrap() > millis(700));
    }

    #[test]
    fn no_count_is_lost_between_threads() {
        let window = Arc::new(CallWindow::new());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let window = Arc::clone(&window);
                std::thread::spawn(move || {
                    for at in 0..10_000 {
                        window.call(millis(at * 5), at % 2 == 0, Some(millis(1)));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let metrics = window.read(secs(50));
        assert_eq!((metrics.requests, metrics.errors), (40_000, 20_000));
    }
}
