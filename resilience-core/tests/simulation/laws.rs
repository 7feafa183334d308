//! What a seed draws of the settings: what the promises are about, whatever becomes of them.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use fastrand::Rng;
use resilience_core::{CircuitSettings, Growth, LimitAlgorithm, SlidingWindow, SlowCalls};

/// What a run is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Case {
    Any,
    /// No service ever fails, but there are not enough places for all calls, which are in a hurry. None is repeated:
    /// one with little left after a wait to retry says as much of its service as any other.
    Crowded,
    /// No service ever fails, but this process stands still now and then, and has other trouble. For the same reason
    /// calls have all the time there is.
    Stalling,
}

/// The settings that the promises are about.
#[derive(Clone, Debug)]
pub(crate) struct Laws {
    pub(crate) services: Vec<ServiceLaws>,
    pub(crate) budgets: Vec<BudgetLaws>,
    /// Whether no service ever fails: only this process stands still and has trouble of its own.
    pub(crate) innocent: bool,
}

/// The settings of one retry budget.
#[derive(Clone, Debug)]
pub(crate) struct BudgetLaws {
    pub(crate) ratio: f64,
    pub(crate) burst: u32,
    /// Retries a second.
    pub(crate) floor_rate: f64,
    /// Share and burst of retries of calls that the service throttled.
    pub(crate) throttling: Option<(f64, u32)>,
}

/// The settings of one service's layers. Whoever adds a layer draws its settings here.
#[derive(Clone, Debug)]
pub(crate) struct ServiceLaws {
    /// The longest answer in fine weather.
    pub(crate) latency: Duration,
    pub(crate) deadline: Duration,
    /// The time of an attempt, or the least that it may come to be.
    pub(crate) attempt_timeout: Duration,
    /// The most that it may come to be, where it is learned.
    pub(crate) learned_up_to: Option<Duration>,
    pub(crate) max_retries: u32,
    pub(crate) max_delay: Duration,
    pub(crate) budget: Option<usize>,
    pub(crate) breaker: Option<BreakerLaws>,
    /// In the breaker's place.
    pub(crate) throttle: Option<ThrottleLaws>,
    /// Places, at the most, and the wait for one.
    pub(crate) bulkhead: Option<(usize, Duration)>,
    /// Whether a limit that moves is in the bulkhead's place.
    pub(crate) adaptive: Option<AdaptiveLaws>,
    /// How many calls may be worked on at once before others are shed.
    pub(crate) shed: Option<usize>,
    pub(crate) rate: Option<RateLaws>,
    pub(crate) hedge: Option<HedgeLaws>,
    pub(crate) chaos: Option<ChaosLaws>,
}

/// So many calls in so much time, and so many at once.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "rate-limit"), expect(dead_code, reason = "without it none is built"))]
pub(crate) struct RateLaws {
    pub(crate) calls: u32,
    pub(crate) time: Duration,
    pub(crate) burst: u32,
    pub(crate) queue: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct HedgeLaws {
    /// A fixed delay.
    pub(crate) delay: Duration,
    pub(crate) max_hedges: u32,
    pub(crate) budget: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct ThrottleLaws {
    pub(crate) window: Duration,
    pub(crate) multiplier: f64,
    pub(crate) max_rejection: f64,
}

#[derive(Clone, Debug)]
pub(crate) struct AdaptiveLaws {
    pub(crate) algorithm: LimitAlgorithm,
    pub(crate) min: usize,
    pub(crate) initial: usize,
}

#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "chaos"), expect(dead_code, reason = "without it none is built"))]
pub(crate) struct ChaosLaws {
    pub(crate) faults: f64,
    pub(crate) delayed: f64,
    pub(crate) delay: Duration,
    pub(crate) enabled: bool,
}

/// A breaker's rules, and what is done to it by hand.
#[derive(Clone, Debug)]
pub(crate) struct BreakerLaws {
    pub(crate) settings: CircuitSettings,
    pub(crate) hands: Vec<(Duration, Hand)>,
}

/// What somebody does to a breaker by hand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hand {
    ForceOpen,
    ForceClosed,
    Disable,
    MetricsOnly,
    Reset,
    Reconfigure(CircuitSettings),
}

impl Hash for Hand {
    fn hash<H: Hasher>(&self, state: &mut H) {
        format!("{self:?}").hash(state);
    }
}

impl Laws {
    pub(crate) fn draw(rng: &mut Rng, case: Case) -> Self {
        let budgets = (0..2).map(|_| BudgetLaws::draw(rng)).collect();
        let services = (0..rng.usize(1..4)).map(|_| ServiceLaws::draw(rng, case)).collect();
        Self { services, budgets, innocent: case != Case::Any }
    }
}

impl BudgetLaws {
    fn draw(rng: &mut Rng) -> Self {
        let share = |rng: &mut Rng| f64::from(rng.u32(0..11)) / 10.0;
        Self {
            ratio: share(rng),
            burst: rng.u32(..6),
            floor_rate: if rng.u8(..3) == 0 { f64::from(rng.u32(1..40)) / 10.0 } else { 0.0 },
            throttling: (rng.u8(..3) == 0).then(|| (share(rng), rng.u32(..6))),
        }
    }
}

impl ServiceLaws {
    fn draw(rng: &mut Rng, case: Case) -> Self {
        let millis = |rng: &mut Rng, from, to| Duration::from_millis(rng.u64(from..to));
        let innocent = case != Case::Any;
        // Within less than two beats of this process's heart, its standstills cannot be told from silence.
        let shortest = if innocent { 300 } else { 40 };
        let attempt_timeout = millis(rng, shortest, shortest + 560);
        let bulkhead = match case {
            Case::Crowded => Some((rng.usize(1..3), millis(rng, 200, 1_500))),
            _ => (rng.u8(..3) > 0).then(|| (rng.usize(1..6), millis(rng, 0, 400))),
        };
        let max_retries = if case == Case::Crowded { 0 } else { rng.u32(..5) };
        let deadline = match case {
            Case::Any => millis(rng, 100, 3_000),
            // Half of it, where there is a fallback, is time enough for a call that has not waited long.
            Case::Crowded => attempt_timeout.mul_f64(1.0 + rng.f64()),
            Case::Stalling => Duration::from_secs(1_200),
        };
        let breaker = (rng.u8(..6) > 0).then(|| BreakerLaws::draw(rng, case, attempt_timeout));
        let throttled = breaker.is_none() || rng.u8(..12) == 0;
        let throttle = throttled.then(|| ThrottleLaws {
            window: millis(rng, 60, 4_000),
            multiplier: 1.0 + rng.f64(),
            max_rejection: 0.5 + 0.4 * rng.f64(),
        });
        let adaptive = bulkhead.filter(|_| rng.u8(..4) == 0).map(|(places, _)| {
            let min = rng.usize(1..=places);
            let algorithm = [LimitAlgorithm::Aimd, LimitAlgorithm::Gradient][rng.usize(..2)];
            AdaptiveLaws { algorithm, min, initial: rng.usize(min..=places) }
        });
        let rate = (rng.u8(..6) == 0).then(|| RateLaws {
            calls: rng.u32(1..20),
            time: millis(rng, 100, 2_000),
            burst: rng.u32(1..6),
            queue: rng.u32(..6),
        });
        let hedge = (!innocent && rng.u8(..5) == 0).then(|| HedgeLaws {
            delay: millis(rng, 1, 200),
            max_hedges: rng.u32(1..4),
            budget: rng.usize(..2),
        });
        let chaos = (!innocent && rng.u8(..8) == 0).then(|| ChaosLaws {
            faults: rng.f64(),
            delayed: rng.f64(),
            delay: millis(rng, 0, 200),
            enabled: rng.u8(..5) > 0,
        });
        Self {
            learned_up_to: (rng.u8(..4) == 0)
                .then(|| attempt_timeout.mul_f64(1.0 + 3.0 * rng.f64())),
            throttle,
            adaptive,
            shed: (rng.u8(..4) == 0).then(|| rng.usize(1..4)),
            chaos: chaos.filter(|_| cfg!(feature = "chaos") && hedge.is_none()),
            hedge,
            rate: rate.filter(|_| cfg!(feature = "rate-limit")),
            latency: if innocent { attempt_timeout / 5 } else { millis(rng, 5, 120) },
            deadline,
            attempt_timeout,
            max_retries,
            max_delay: millis(rng, 20, 500),
            budget: (rng.u8(..3) > 0).then(|| rng.usize(..2)),
            breaker: breaker.filter(|_| !throttled),
            bulkhead,
        }
    }
}

impl ServiceLaws {
    /// Whether one can see from outside which attempts have leave of the circuit, and a place.
    pub(crate) fn is_watched(&self) -> bool {
        // While it has no attempt, a call may wait for its turn, or beside another attempt of its own.
        let waits_elsewhere = self.rate.is_some() || self.hedge.is_some();
        self.chaos.is_none() && !(waits_elsewhere && self.bulkhead.is_some())
    }
}

impl BreakerLaws {
    fn draw(rng: &mut Rng, case: Case, attempt_timeout: Duration) -> Self {
        let settings = draw_rules(rng, case, attempt_timeout);
        let handled = case == Case::Any && rng.u8(..3) == 0;
        let hands = (0..if handled { rng.usize(1..5) } else { 0 }).map(|_| {
            let hand = match rng.u8(..9) {
                0 => Hand::ForceOpen,
                1 => Hand::ForceClosed,
                2 => Hand::Disable,
                3 => Hand::MetricsOnly,
                4..6 => Hand::Reset,
                _ => Hand::Reconfigure(draw_rules(rng, case, attempt_timeout)),
            };
            (Duration::from_millis(rng.u64(..5_000)), hand)
        });
        Self { settings, hands: hands.collect() }
    }
}

fn draw_rules(rng: &mut Rng, case: Case, attempt_timeout: Duration) -> CircuitSettings {
    let millis = |rng: &mut Rng, from, to| Duration::from_millis(rng.u64(from..to));
    let mut rules = CircuitSettings::default();
    rules.fail_max = Some(rng.u32(1..5));
    rules.reset_timeout = millis(rng, 30, 800);
    rules.success_threshold = rng.u32(1..4);
    rules.half_open_max_calls = rng.u32(1..4);
    rules.probe_lease = millis(rng, 20, 900);
    if rng.u8(..3) == 0 {
        rules.failure_rate = (rng.u8(..3) > 0).then(|| f64::from(rng.u32(1..11)) / 10.0);
        let slower_than = match case {
            Case::Any => attempt_timeout.mul_f64(0.1 + 0.6 * rng.f64()),
            // A healthy service's slowest answer takes a fifth of an attempt.
            Case::Crowded => attempt_timeout.mul_f64(0.9),
            // Of each standstill up to a beat of this process's heart is not seen.
            Case::Stalling => attempt_timeout + Duration::from_secs(2),
        };
        rules.slow_calls = (rules.failure_rate.is_none() || rng.bool())
            .then(|| SlowCalls { rate: f64::from(rng.u32(1..11)) / 10.0, slower_than });
        rules.fail_max = (rng.u8(..3) == 0).then(|| rng.u32(2..9));
        rules.minimum_calls = rng.u32(1..6);
        rules.window = match rng.bool() {
            true => SlidingWindow::Calls(rng.u32(rules.minimum_calls..12)),
            false => SlidingWindow::Time(millis(rng, 50, 2_000)),
        };
    }
    if rng.u8(..3) == 0 {
        let max = rules.reset_timeout.mul_f64(1.0 + 4.0 * rng.f64());
        rules.reset_timeout_growth = Some(Growth { factor: 1.0 + 2.0 * rng.f64(), max });
    }
    if rng.u8(..3) == 0 {
        rules.reset_timeout_jitter = rng.f64();
    }
    rules.recovery = (rng.u8(..4) == 0).then(|| millis(rng, 20, 1_500));
    rules
}

/// The longest that a circuit stays open by these rules.
pub(crate) fn longest_open(rules: &CircuitSettings) -> Duration {
    rules.reset_timeout_growth.map_or(rules.reset_timeout, |growth| growth.max)
}
