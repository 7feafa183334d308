//! What a seed draws of the settings: what the promises are about, whatever becomes of them.

use std::time::Duration;

use fastrand::Rng;

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
    /// Share and burst of each retry budget.
    pub(crate) budgets: Vec<(f64, u32)>,
    /// Whether no service ever fails: only this process stands still and has trouble of its own.
    pub(crate) innocent: bool,
}

/// The settings of one service's layers. Whoever adds a layer draws its settings here.
#[derive(Clone, Debug)]
pub(crate) struct ServiceLaws {
    /// The longest answer in fine weather.
    pub(crate) latency: Duration,
    pub(crate) deadline: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) max_retries: u32,
    pub(crate) max_delay: Duration,
    pub(crate) budget: Option<usize>,
    pub(crate) breaker: Option<BreakerLaws>,
    /// Places, and the wait for one.
    pub(crate) bulkhead: Option<(usize, Duration)>,
}

#[derive(Clone, Debug)]
pub(crate) struct BreakerLaws {
    pub(crate) fail_max: u32,
    pub(crate) reset_timeout: Duration,
    pub(crate) success_threshold: u32,
    pub(crate) half_open_max_calls: usize,
    pub(crate) probe_lease: Duration,
}

impl Laws {
    pub(crate) fn draw(rng: &mut Rng, case: Case) -> Self {
        let budgets = (0..2).map(|_| (f64::from(rng.u32(0..11)) / 10.0, rng.u32(..6))).collect();
        let services = (0..rng.usize(1..4)).map(|_| ServiceLaws::draw(rng, case)).collect();
        Self { services, budgets, innocent: case != Case::Any }
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
        Self {
            latency: if innocent { attempt_timeout / 5 } else { millis(rng, 5, 120) },
            deadline,
            attempt_timeout,
            max_retries,
            max_delay: millis(rng, 20, 500),
            budget: (rng.u8(..3) > 0).then(|| rng.usize(..2)),
            breaker: (rng.u8(..6) > 0).then(|| BreakerLaws::draw(rng)),
            bulkhead,
        }
    }
}

impl BreakerLaws {
    fn draw(rng: &mut Rng) -> Self {
        let millis = |rng: &mut Rng, from, to| Duration::from_millis(rng.u64(from..to));
        Self {
            fail_max: rng.u32(1..5),
            reset_timeout: millis(rng, 30, 800),
            success_threshold: rng.u32(1..4),
            half_open_max_calls: rng.usize(1..4),
            probe_lease: millis(rng, 20, 900),
        }
    }
}
