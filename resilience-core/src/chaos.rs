//! Faults and latency on purpose: to see, before an outage shows it, what the layers make of one.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::{Injected, InvalidSetting, Name};

/// The longest latency: enough to outlast any timeout worth testing.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Delays a share of the attempts and fails a share of them, in place of the service. Cheap to
/// clone: clones share the switch and the sequence.
///
/// It is built switched off, and costs one load then. Each decision has a number, and depends on
/// that and the seed alone: a seed repeats, with no lock between concurrent callers.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::Chaos;
///
/// let chaos = Chaos::builder("payments")
///     .faults(0.05)
///     .latency(0.2, Duration::from_millis(100)..=Duration::from_secs(2))
///     .seed(7)
///     .build()?;
/// chaos.strike().await?; // off: nothing happens
/// chaos.set_enabled(true);
/// let struck = chaos.strike().await;
/// # let _ = struck;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Chaos {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: Name,
    enabled: AtomicBool,
    decisions: AtomicU64,
    seed: u64,
    plan: Plan,
}

impl Chaos {
    /// A chaos that, once switched on, does nothing yet: no faults, no latency.
    pub fn builder(name: impl Into<Name>) -> ChaosBuilder {
        let plan = Plan { faults: 0.0, latency: 0.0, delay: Duration::ZERO..=Duration::ZERO };
        ChaosBuilder { name: name.into(), enabled: false, seed: None, plan }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.shared.name
    }

    /// Lets the attempt pass, delays it, fails it, or both in that order.
    ///
    /// # Errors
    ///
    /// [`Injected`] for the share of faults.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the delay; the decision remains made.
    #[inline]
    pub async fn strike(&self) -> Result<(), Injected> {
        if self.is_enabled() { self.strike_now().await } else { Ok(()) }
    }

    /// Whether it strikes.
    #[inline]
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.shared.enabled.load(Ordering::Relaxed)
    }

    /// Switches it on or off, for all clones. What was decided before still happens.
    pub fn set_enabled(&self, enabled: bool) {
        self.shared.enabled.store(enabled, Ordering::Relaxed);
        tracing::debug!(target: "shared_external::chaos", name = %self.shared.name, enabled, "switched");
    }

    /// Decisions made, since it was built.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.shared.decisions.load(Ordering::Relaxed)
    }

    async fn strike_now(&self) -> Result<(), Injected> {
        let Shared { name, decisions, seed, plan, .. } = &*self.shared;
        let number = decisions.fetch_add(1, Ordering::Relaxed);
        let Decision { delay, fault } = plan.decide(*seed, number);
        if fault || delay.is_some() {
            tracing::debug!(target: "shared_external::chaos", %name, number, ?delay, fault, "struck");
        }
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        if fault { Err(Injected { name: name.clone() }) } else { Ok(()) }
    }
}

/// Settings of a [`Chaos`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct ChaosBuilder {
    name: Name,
    enabled: bool,
    seed: Option<u64>,
    plan: Plan,
}

impl ChaosBuilder {
    /// The share of attempts that fail. 0 to 1; default 0.
    pub fn faults(mut self, share: f64) -> Self {
        self.plan.faults = share;
        self
    }

    /// The share of attempts that are delayed (0 to 1; default 0), and by how long: evenly spread
    /// over `delay`, whose ends are the same for a constant one, and at most one day.
    ///
    /// Drawn apart from the faults: an attempt may have both.
    pub fn latency(mut self, share: f64, delay: RangeInclusive<Duration>) -> Self {
        self.plan.latency = share;
        self.plan.delay = delay;
        self
    }

    /// Makes it repeatable; default: another seed each time.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// Whether it strikes from the start; default false.
    pub fn enabled(self, enabled: bool) -> Self {
        Self { enabled, ..self }
    }

    /// The chaos.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a share that is none, or a delay whose ends are swapped or above one day.
    pub fn build(self) -> Result<Chaos, InvalidSetting> {
        let Self { name, enabled, seed, plan } = self;
        for (field, share) in [("faults", plan.faults), ("latency", plan.latency)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(InvalidSetting::new(field, share, "0 to 1"));
            }
        }
        if plan.delay.is_empty() || *plan.delay.end() > DAY {
            let allowed = "from the shorter to the longer, at most one day";
            return Err(InvalidSetting::new("latency", plan.delay, allowed));
        }
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let (enabled, decisions) = (AtomicBool::new(enabled), AtomicU64::new(0));
        Ok(Chaos { shared: Arc::new(Shared { name, enabled, decisions, seed, plan }) })
    }
}

/// What happens to which share of the attempts.
#[derive(Clone, Debug)]
struct Plan {
    faults: f64,
    latency: f64,
    delay: RangeInclusive<Duration>,
}

/// What happens to one of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Decision {
    delay: Option<Duration>,
    fault: bool,
}

impl Plan {
    /// The decision of that number under `seed`: three draws, whether used or not, so that each
    /// share may be changed without changing what the others hit.
    fn decide(&self, seed: u64, number: u64) -> Decision {
        let draw = |nth: u64| unit(split_mix(seed, number.wrapping_mul(3).wrapping_add(nth)));
        let (shortest, longest) = (*self.delay.start(), *self.delay.end());
        let delay = shortest + (longest - shortest).mul_f64(draw(2));
        Decision { delay: (draw(1) < self.latency).then_some(delay), fault: draw(0) < self.faults }
    }
}

/// The `nth` output of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators, OOPSLA 2014). Its state is a counter, so any output can be had without those before.
fn split_mix(seed: u64, nth: u64) -> u64 {
    let z = seed.wrapping_add(nth.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The upper 53 bits as a number from 0 to below 1, so that a share of 1 is all and one of 0 none.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // The reference implementation's first outputs for the seed 1234567.
        let outputs =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|nth| split_mix(1_234_567, nth)), outputs);
    }

    #[test]
    fn no_draw_reaches_a_share_of_one_or_falls_under_zero() {
        assert!(unit(u64::MAX) < 1.0);
        assert_eq!(unit(0), 0.0);
    }
}
