//! How many retries a dependency is owed: a share of its calls.
//!
//! A count of retries per call multiplies the load on a service that fails; a budget adds at most
//! its share, whatever fails (Google SRE, ch. 22). It holds for this process alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::InvalidSetting;

/// A millionth of a retry: ratios are exact to it.
const UNIT: u64 = 1_000_000;

static NAMED: LazyLock<Mutex<HashMap<String, RetryBudget>>> = LazyLock::new(Mutex::default);

/// A balance of retries, shared by all calls to one dependency. Cheap to clone.
///
/// Each call deposits `ratio` of a retry, each retry takes a whole one, and the balance starts at
/// and never exceeds `burst`. So retries ≤ ratio · calls + burst, under any interleaving.
///
/// ```
/// use resilience_core::RetryBudget;
///
/// let budget = RetryBudget::new(0.1, 2)?;
/// assert!(budget.try_withdraw() && budget.try_withdraw());
/// assert!(!budget.try_withdraw());
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[derive(Clone, Debug)]
pub struct RetryBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    balance: AtomicU64,
    deposit: u64,
    burst: u64,
}

impl RetryBudget {
    /// A full budget of `burst` retries (up to a million) that regains `ratio` (0 to 1) with each call.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a ratio or burst out of range.
    pub fn new(ratio: f64, burst: u32) -> Result<Self, InvalidSetting> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(InvalidSetting::new("budget ratio", ratio, "0 to 1"));
        }
        if burst > 1_000_000 {
            return Err(InvalidSetting::new("budget burst", burst, "0 to 1000000"));
        }
        // Rounded down: the promise is an upper bound.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1,000,000"
        )]
        let deposit = (ratio * UNIT as f64) as u64;
        let burst = u64::from(burst) * UNIT;
        Ok(Self { shared: Arc::new(Shared { balance: AtomicU64::new(burst), deposit, burst }) })
    }

    /// The budget that goes by `name` in this process; the default one where there is none yet.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        named.entry(name.to_owned()).or_default().clone()
    }

    /// Notes one call: the balance grows by the ratio, up to the burst.
    pub fn deposit(&self) {
        let Shared { balance, deposit, burst } = &*self.shared;
        let grow = |held: u64| (held < *burst).then(|| (held + deposit).min(*burst));
        // An `Err` is the full balance, which needs no store.
        let _ = balance.try_update(Ordering::Relaxed, Ordering::Relaxed, grow);
    }

    /// Takes one retry, or says that there is none.
    #[must_use]
    pub fn try_withdraw(&self) -> bool {
        let take = |held: u64| held.checked_sub(UNIT);
        self.shared.balance.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Default for RetryBudget {
    /// 10 % of calls and a burst of 10.
    fn default() -> Self {
        Self::new(0.1, 10).expect("both are in range")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_never_exceed_their_share_of_the_calls() {
        for ratio in [0.0, 0.1, 0.3, 0.4, 0.6, 1.0] {
            let budget = RetryBudget::new(ratio, 10).unwrap();
            let mut retries = 0;
            for _ in 0..1000 {
                budget.deposit();
                retries += usize::from(budget.try_withdraw());
            }
            let owed = (ratio * 1000.0) as usize + 10;
            // With a ratio of 1 the burst is never needed.
            assert!(
                retries <= owed && retries + 11 >= owed.min(1000),
                "{ratio}: {retries} of {owed}"
            );
        }
    }

    #[test]
    fn no_interleaving_mints_a_retry() {
        let budget = RetryBudget::new(0.25, 4).unwrap();
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1000)
                            .filter(|_| {
                                budget.deposit();
                                budget.try_withdraw()
                            })
                            .count()
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(taken <= 1004, "{taken} retries for 4000 calls");
    }

    #[test]
    fn one_name_is_one_budget() {
        let (a, b) = (RetryBudget::named("one-name"), RetryBudget::named("one-name"));
        while a.try_withdraw() {}
        assert!(!b.try_withdraw());
        assert!(RetryBudget::named("another-name").try_withdraw());
    }

    #[test]
    fn a_ratio_that_is_no_share_is_refused() {
        for ratio in [-0.1, 1.1, f64::NAN] {
            assert_eq!(RetryBudget::new(ratio, 10).unwrap_err().field, "budget ratio");
        }
    }
}
