//! One threshold of priority for many limiters, moved so that what passes is what can be served.
//!
//! The control loop behind [`LoadShedder`](crate::LoadShedder), after Uber's Cinnamon and
//! failsafe-go's prioritizers. At each calibration, for each limiter under pressure:
//!
//! ```text
//! target = limit + one more limit waiting     (none, if some were refused behind the shedder)
//! room   = served rate + (target − taken) / settling time, within 0.8 to 2 times the served rate
//! own    = the lowest rank such that those from there up are room / offered rate of all requests
//! ```
//!
//! All limiters then shed below the highest threshold that one of them needs; but for the sake of
//! another, none sheds [`Priority::Critical`].

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::Priority;
use crate::meter::{Meter, Totals};
use crate::priority::first_of;

/// Time between two calibrations.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);

/// So many requests under pressure call for a calibration before its time: a surge is no reason to wait.
const EARLY: u32 = 128;

/// So many if the queue has reached its target already. Fewer could be chance.
const URGENT: u32 = 32;

/// The least time between two calibrations.
const AT_LEAST: Duration = Duration::from_millis(1);

/// What is kept of the rate served from one calibration to the next: it reaches back about ten, or
/// as far as it takes to have seen enough.
const SERVED_KEPT: f64 = 0.9;
const SERVED_ENOUGH: f64 = 32.0;

/// The same for the offered rate, which may jump.
const OFFERED_KEPT: f64 = 0.5;

/// Where places were free, it could have served more: so much is tried.
const GROWTH: f64 = 1.2;

/// The least that may pass of what can be served, however many wait: so what matters most is not
/// shed to work off a queue of what matters least.
const DRAINING: f64 = 0.8;

/// Decides below which rank its [`LoadShedder`](crate::LoadShedder)s refuse. Cheap to clone.
///
/// Limiters that serve the same requests share one: a request that would be shed at the second is
/// then not worked on at the first. Limiters that have nothing to do with each other should not.
///
/// It has no task and no thread: those who ask for admission under pressure calibrate it, every
/// 100 ms or 128 requests. Without pressure it costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Prioritizer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    origin: Instant,
    /// Nanoseconds from the origin to the last calibration.
    calibrated: AtomicU64,
    /// Requests under pressure since then.
    seen: AtomicU32,
    limiters: Mutex<Vec<(Weak<Meter>, Estimate)>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            calibrated: AtomicU64::new(0),
            seen: AtomicU32::new(0),
            limiters: Mutex::default(),
        }
    }
}

impl Prioritizer {
    /// A prioritizer without limiters.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn register(&self, meter: &Arc<Meter>) {
        let mut limiters = self.shared.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        limiters.retain(|(meter, _)| meter.strong_count() > 0);
        limiters.push((Arc::downgrade(meter), Estimate::default()));
    }

    /// Notes a request under pressure; calibrates if it is time.
    pub(crate) fn press(&self, urgent: bool, now: Instant) {
        let enough = if urgent { URGENT } else { EARLY };
        let early = self.shared.seen.fetch_add(1, Ordering::Relaxed) + 1 >= enough;
        self.calibrate(now, if early { AT_LEAST } else { INTERVAL });
    }

    /// Calibrates, unless that was done less than `interval` ago, or is being done.
    pub(crate) fn calibrate(&self, now: Instant, interval: Duration) {
        let Shared { origin, calibrated, seen, limiters } = &*self.shared;
        let since_origin = now.saturating_duration_since(*origin);
        let passed = || {
            let last = Duration::from_nanos(calibrated.load(Ordering::Relaxed));
            since_origin.saturating_sub(last)
        };
        if passed() < interval {
            return;
        }
        let mut limiters = match limiters.try_lock() {
            Ok(limiters) => limiters,
            // Nothing in the section can panic, so what is poisoned is still whole.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let passed = passed();
        if passed < interval {
            return;
        }
        let nanos = u64::try_from(since_origin.as_nanos()).unwrap_or(u64::MAX);
        calibrated.store(nanos, Ordering::Relaxed);
        seen.store(0, Ordering::Relaxed);
        let mut highest = 0;
        limiters.retain_mut(|(meter, estimate)| {
            let Some(meter) = meter.upgrade() else { return false };
            estimate.update(&meter, passed);
            highest = estimate.own.max(highest);
            true
        });
        let shared = highest.min(first_of(Priority::Critical));
        for (meter, estimate) in limiters.iter() {
            if let Some(meter) = meter.upgrade() {
                meter.set_threshold(estimate.own.max(shared));
            }
        }
    }
}

/// What happened at one limiter between two calibrations.
struct Period {
    seconds: f64,
    offered: f64,
    served: f64,
    /// Requests that the limiter worked on, that waited for it or would have, at the end.
    taken: f64,
    limit: f64,
    /// How many were to be there: one more limit waits, so that no place is ever idle; none where
    /// there is no room to wait.
    target: f64,
    /// Whether all places were taken all the time. Of those who come then, none finds one free;
    /// the tolerance is for threads that overtake each other.
    saturated: bool,
}

/// What is known of one limiter from its meter, at the last calibration.
#[derive(Debug, Default)]
struct Estimate {
    /// The threshold it needs.
    own: u16,
    totals: Totals,
    /// Requests a second that it can serve, as far as is known.
    capacity: f64,
    /// Whether that was measured under pressure; else it may serve more.
    measured: bool,
    /// Whether there is pressure, and the seconds until the capacity can be measured under it.
    pressed: bool,
    blind: f64,
    /// Requests served under pressure, and the seconds this took.
    served: f64,
    seconds: f64,
    /// Requests a second that want in.
    offered: f64,
}

impl Estimate {
    fn update(&mut self, meter: &Meter, passed: Duration) {
        let period = self.period(meter, passed);
        self.pressed = period.saturated || self.own > 0;
        if !self.pressed {
            self.learn_at_ease(&period);
            meter.forget_all();
            return;
        }
        self.learn_under_pressure(&period);
        let share = self.room(&period) / self.offered.max(f64::MIN_POSITIVE);
        let begun = self.own > 0 || period.taken >= period.target;
        self.own = if begun && share < 1.0 { meter.lowest_of(share) } else { 0 };
        meter.forget_half();
    }

    fn period(&mut self, meter: &Meter, passed: Duration) -> Period {
        let (before, now) = (self.totals, meter.totals());
        self.totals = now;
        let entered = f64::from(now.admitted.wrapping_sub(before.admitted));
        let offered = entered + (now.refused - before.refused) as f64;
        let bounced = (now.bounced - before.bounced) as f64;
        let ended = entered + f64::from(before.in_flight) - f64::from(now.in_flight);
        let full = f64::from(meter.take_full());
        let (taken, limit) = meter.load();
        Period {
            seconds: passed.as_secs_f64(),
            offered,
            served: (ended - bounced).max(0.0),
            taken: taken + bounced,
            limit,
            target: if bounced > 0.0 { limit } else { 2.0 * limit },
            saturated: full >= 1.0 && full >= 0.9 * offered,
        }
    }

    /// What is served without pressure is at least what can be served.
    fn learn_at_ease(&mut self, period: &Period) {
        let rate = period.served / period.seconds;
        if period.seconds >= INTERVAL.as_secs_f64() && rate > self.capacity {
            (self.capacity, self.measured) = (rate, false);
        }
        self.offered = 0.0;
    }

    fn learn_under_pressure(&mut self, period: &Period) {
        let rate = period.offered / period.seconds;
        if self.offered == 0.0 {
            // All places were just taken: what ends now was begun when fewer were. Until one
            // service time has passed, twice what was served at ease is as good a guess as any.
            self.capacity *= if self.measured { 1.0 } else { 2.0 };
            self.blind = self.service_time(period);
            (self.served, self.seconds, self.offered) = (0.0, 0.0, rate);
        }
        if !period.saturated {
            let known =
                if self.capacity > 0.0 { self.capacity } else { period.served / period.seconds };
            self.capacity = known * GROWTH;
            (self.served, self.seconds) = (0.0, 0.0);
        } else if self.blind > 0.0 {
            self.blind -= period.seconds;
        } else {
            let kept = if self.served > SERVED_ENOUGH { SERVED_KEPT } else { 1.0 };
            self.served = kept * self.served + period.served;
            self.seconds = kept * self.seconds + period.seconds;
            if self.served >= SERVED_ENOUGH || self.served > self.capacity * self.seconds {
                (self.capacity, self.measured) = (self.served / self.seconds, true);
            }
        }
        let kept = OFFERED_KEPT.powf((period.seconds / INTERVAL.as_secs_f64()).max(1.0));
        self.offered = kept * self.offered + (1.0 - kept) * rate;
    }

    /// Requests a second that may pass.
    fn room(&self, period: &Period) -> f64 {
        let capacity = self.capacity;
        // In the time that one request takes, if that is not too soon to see what it did.
        let settling = self.service_time(period).max(2.0 * period.seconds);
        let correction = (period.target - period.taken) / settling;
        (capacity + correction).clamp(DRAINING * capacity, (2.0 * capacity).max(correction))
    }

    fn service_time(&self, period: &Period) -> f64 {
        if self.capacity > 0.0 { period.limit / self.capacity } else { 0.0 }
    }
}
