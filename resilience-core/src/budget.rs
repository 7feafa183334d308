//! How many retries a dependency is owed: a share of its calls.
//!
//! A count of retries per call multiplies the load on a service that fails; a budget adds at most
//! its share, whatever fails (Google SRE, ch. 22). It holds for this process alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tokio::time::Instant;

use crate::InvalidSetting;

/// A millionth of a retry: ratios and rates are exact to it.
const UNIT: u64 = 1_000_000;

/// Names that have a budget of their own.
const NAMES: usize = 1024;

static NAMED: LazyLock<Mutex<HashMap<String, RetryBudget>>> = LazyLock::new(Mutex::default);
static UNNAMED: LazyLock<RetryBudget> = LazyLock::new(RetryBudget::default);
static NAMES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// A balance of retries, shared by all calls to one dependency, and by whatever else sends more than was
/// asked for, such as hedges. Cheap to clone.
///
/// Each call deposits `ratio` of a retry, and each second `floor_rate` of one; a retry takes a whole one.
/// The balance starts at `burst` and saves up to it, to a single retry where that is 0. So, under any
/// interleaving, since it was made:
///
/// ```text
/// attempts ≤ (1 + ratio) · calls + burst + floor_rate · time
/// ```
///
/// Retries of calls that the service throttled (it said when to come back) draw from the same balance,
/// unless they have [a share of their own](RetryBudgetBuilder::throttling), which then adds to that bound.
///
/// ```
/// use resilience_core::RetryBudget;
///
/// let budget = RetryBudget::new(0.1, 2)?;
/// assert!(budget.try_withdraw() && budget.try_withdraw());
/// assert!(!budget.try_withdraw());
/// for _call in 0..10 {
///     budget.deposit();
/// }
/// assert_eq!(budget.balance(), 1);
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[derive(Clone, Debug)]
pub struct RetryBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    transient: Balance,
    throttling: Option<Balance>,
    floor: Option<Floor>,
}

impl RetryBudget {
    /// A full budget of `burst` retries (up to a million) that regains `ratio` (0 to 1) with each call.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a ratio or burst out of range.
    pub fn new(ratio: f64, burst: u32) -> Result<Self, InvalidSetting> {
        Self::builder().ratio(ratio).burst(burst).build()
    }

    /// A budget with other settings than the defaults: 10 % of calls and a burst of 10.
    pub fn builder() -> RetryBudgetBuilder {
        RetryBudgetBuilder { ratio: 0.1, burst: 10, floor_rate: 0.0, throttling: None }
    }

    /// The budget that goes by `name` in this process; the default one where there is none yet.
    ///
    /// The first 1,024 names have one each. All others share one more, so that retries stay bounded
    /// whatever names are made of; [`names_dropped`](Self::names_dropped) counts how often it was asked for.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = named.get(name) {
            return budget.clone();
        }
        if named.len() < NAMES {
            return named.entry(name.to_owned()).or_default().clone();
        }
        drop(named);
        NAMES_DROPPED.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(target: "shared_external::retry", name, limit = NAMES, "too many names of budgets; this one shares");
        UNNAMED.clone()
    }

    /// How often [`named`](Self::named) was asked for a name for which there was no room.
    #[must_use]
    pub fn names_dropped() -> u64 {
        NAMES_DROPPED.load(Ordering::Relaxed)
    }

    /// Whether both draw from one balance.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Notes one call: the balance grows by the ratio, up to the burst. With a full balance, one load.
    #[inline]
    pub fn deposit(&self) {
        self.shared.transient.deposit();
        if let Some(throttling) = &self.shared.throttling {
            throttling.deposit();
        }
    }

    /// Takes one retry, or says that there is none.
    #[must_use]
    pub fn try_withdraw(&self) -> bool {
        self.refill();
        self.shared.transient.withdraw()
    }

    /// Takes one retry of a call that the service throttled, or says that there is none.
    #[must_use]
    pub fn try_withdraw_throttled(&self) -> bool {
        match &self.shared.throttling {
            Some(throttling) => throttling.withdraw(),
            None => self.try_withdraw(),
        }
    }

    /// Whole retries there are now.
    #[must_use]
    pub fn balance(&self) -> u32 {
        self.refill();
        self.shared.transient.whole()
    }

    /// Whole retries there are now for calls that the service throttled.
    #[must_use]
    pub fn throttling_balance(&self) -> u32 {
        self.shared.throttling.as_ref().map_or_else(|| self.balance(), Balance::whole)
    }

    /// Credits the time since the last refill. Without a floor rate no clock is read.
    fn refill(&self) {
        if let Some(floor) = &self.shared.floor {
            self.shared.transient.credit(floor.due(Instant::now()));
        }
    }
}

impl Default for RetryBudget {
    /// 10 % of calls and a burst of 10.
    fn default() -> Self {
        Self::builder().build().expect("the defaults are in range")
    }
}

/// Settings of a [`RetryBudget`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryBudgetBuilder {
    ratio: f64,
    burst: u32,
    floor_rate: f64,
    throttling: Option<(f64, u32)>,
}

impl RetryBudgetBuilder {
    /// Retries that each call earns. 0 to 1, in millionths, less than one rounded down; default 0.1.
    pub fn ratio(self, ratio: f64) -> Self {
        Self { ratio, ..self }
    }

    /// Retries there are at first, and that can be saved up. 0 to 1,000,000; default 10.
    pub fn burst(self, burst: u32) -> Self {
        Self { burst, ..self }
    }

    /// Retries that each second earns, for dependencies that are seldom called. 0 to 1,000, in millionths,
    /// less than one rounded down; default 0.
    pub fn floor_rate(self, floor_rate: f64) -> Self {
        Self { floor_rate, ..self }
    }

    /// A balance of their own, with ratio and burst in the same ranges, for retries of calls that the service throttled:
    /// a storm of refusals then leaves the others what they are owed, and the other way round. Default:
    /// none, one balance pays for both.
    ///
    /// One balance is the default because the bound on the load then is what `ratio` and `burst` say,
    /// whatever the service answers. The standard mode of the AWS SDKs has one balance too, in which a
    /// throttled retry costs 5 and any other 14 (*Retry behavior*, 2026): the service is
    /// alive and chose the time itself. Who wants as much gives them a share nearly three times as large here.
    pub fn throttling(self, ratio: f64, burst: u32) -> Self {
        Self { throttling: Some((ratio, burst)), ..self }
    }

    /// The full budget.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a ratio, burst or rate out of range.
    pub fn build(self) -> Result<RetryBudget, InvalidSetting> {
        let Self { ratio, burst, floor_rate, throttling } = self;
        if !(0.0..=1000.0).contains(&floor_rate) {
            return Err(InvalidSetting::new("budget floor_rate", floor_rate, "0 to 1000"));
        }
        let transient = Balance::new(ratio, burst, "budget ratio", "budget burst")?;
        let throttling = throttling.map(|(ratio, burst)| {
            Balance::new(ratio, burst, "budget throttling ratio", "budget throttling burst")
        });
        let floor = (floor_rate > 0.0).then(|| Floor::new(units(floor_rate), Instant::now()));
        let shared = Shared { transient, throttling: throttling.transpose()?, floor };
        Ok(RetryBudget { shared: Arc::new(shared) })
    }
}

/// What is left, in units; and what calls add to it. Whole numbers only, so nothing is lost or minted.
#[derive(Debug)]
struct Balance {
    held: AtomicU64,
    deposit: u64,
    cap: u64,
}

impl Balance {
    fn new(
        ratio: f64,
        burst: u32,
        ratio_name: &'static str,
        burst_name: &'static str,
    ) -> Result<Self, InvalidSetting> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(InvalidSetting::new(ratio_name, ratio, "0 to 1"));
        }
        if burst > 1_000_000 {
            return Err(InvalidSetting::new(burst_name, burst, "0 to 1000000"));
        }
        let burst = u64::from(burst) * UNIT;
        // Capped below a whole retry, what calls deposit could never be spent.
        let cap = burst.max(UNIT);
        Ok(Self { held: AtomicU64::new(burst), deposit: units(ratio), cap })
    }

    #[inline]
    fn deposit(&self) {
        self.credit(self.deposit);
    }

    #[inline]
    fn credit(&self, units: u64) {
        let grow = |held: u64| {
            let grown = held.saturating_add(units).min(self.cap);
            (grown != held).then_some(grown)
        };
        // An `Err` is a balance that stays as it is, which needs no store.
        let _ = self.held.try_update(Ordering::Relaxed, Ordering::Relaxed, grow);
    }

    fn withdraw(&self) -> bool {
        let take = |held: u64| held.checked_sub(UNIT);
        self.held.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn whole(&self) -> u32 {
        let whole = self.held.load(Ordering::Relaxed) / UNIT;
        u32::try_from(whole).expect("the cap is a million")
    }
}

/// What time adds to a balance.
#[derive(Debug)]
struct Floor {
    /// In units a second.
    rate: u64,
    since: Instant,
    /// All that was due so far.
    paid: AtomicU64,
}

impl Floor {
    fn new(rate: u64, since: Instant) -> Self {
        Self { rate, since, paid: AtomicU64::new(0) }
    }

    /// The units due at `now`. Each is handed out once, whoever asks and in whatever order: they add up
    /// to `rate · time`, rounded down.
    fn due(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.since).as_nanos();
        let earned = elapsed * u128::from(self.rate) / 1_000_000_000;
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        earned.saturating_sub(self.paid.fetch_max(earned, Ordering::Relaxed))
    }
}

/// `retries` in units, rounded down: the promise is an upper bound. Where a double cannot tell it from a
/// whole number of units it is that: 0.57 is 570,000, not one less.
fn units(retries: f64) -> u64 {
    let units = retries * UNIT as f64;
    let whole = units.round();
    let exact = (units - whole).abs() <= whole * (2.0 * f64::EPSILON);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 1,000,000,000"
    )]
    {
        if exact { whole as u64 } else { units as u64 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_ratio_in_millionths_is_kept_to_the_unit() {
        for millionths in 0..=UNIT {
            assert_eq!(units(millionths as f64 / UNIT as f64), millionths);
        }
        assert_eq!(units(0.999_999_9), UNIT - 1);
        assert_eq!(units(1000.0), 1000 * UNIT);
    }

    #[test]
    fn time_is_paid_once_however_many_threads_ask_for_it() {
        let start = Instant::now();
        let floor = Floor::new(units(2.5), start);
        let end = start + Duration::from_nanos(7_333_333_333);
        let paid: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker: u64| {
                    let floor = &floor;
                    scope.spawn(move || {
                        let mut rng = fastrand::Rng::with_seed(worker);
                        let times = (0..50_000).map(|_| (end - start).mul_f64(rng.f64()));
                        times.map(|time| floor.due(start + time)).sum::<u64>() + floor.due(end)
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(paid, 18_333_333, "2.5 a second, for 7.333 s, rounded down");
    }

    #[test]
    fn a_clock_that_stands_before_the_start_earns_nothing() {
        let start = Instant::now();
        let floor = Floor::new(UNIT, start + Duration::from_secs(1));
        assert_eq!(floor.due(start), 0);
    }
}
