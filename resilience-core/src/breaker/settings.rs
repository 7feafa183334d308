//! When a circuit opens, for how long, and what closes it.

use std::time::Duration;

use serde::Serialize;

use super::{CircuitBreaker, seconds};
use crate::circuit::{MOST_FAILURES, SlidingWindow};
use crate::deadline::FAR;
use crate::{InvalidSetting, Name};

/// The rules of a [`CircuitBreaker`]. Rates, growth and recovery are absent from JSON where they are not set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CircuitSettings {
    /// Failures in a row that open the circuit. 1 to 67,108,863; default 5. `None`: no number of them does.
    pub fail_max: Option<u32>,
    /// The share of calls in the window that must fail to open it. Above 0, up to 1; default: not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<f64>,
    /// The share of slow calls in the window that opens it; default: not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_calls: Option<SlowCalls>,
    /// The calls over which rates are taken; default: the last 100.
    #[serde(skip_serializing_if = "is_default_window")]
    pub window: SlidingWindow,
    /// Calls in the window below which no rate is judged. 1 or more; default 20, or the window's size if that is less.
    #[serde(skip_serializing_if = "is_default_minimum")]
    pub minimum_calls: u32,
    /// How long it stays open before a probe; in JSON, seconds. Above 0, up to 30 years; default 60 s.
    #[serde(serialize_with = "seconds")]
    pub reset_timeout: Duration,
    /// How that time grows while probes keep failing; default: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_timeout_growth: Option<Growth>,
    /// The share of that time by which it may be shortened at random, so that many processes do not
    /// probe at once. 0 to 1; default 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub reset_timeout_jitter: f64,
    /// Probes that must succeed to close it. 1 or more; default 3.
    pub success_threshold: u32,
    /// Probes in flight at once while half-open. 1 to 1,000; default 1.
    pub half_open_max_calls: u32,
    /// How long a probe may take before it counts as failed; in JSON, seconds. Above 0, up to 30 years; default: the reset timeout.
    #[serde(serialize_with = "seconds")]
    pub probe_lease: Duration,
    /// How long the share of calls that pass takes to rise from a tenth to all of them after the
    /// circuit has closed. Above 0, up to 30 years; default: all pass at once.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::maybe_seconds")]
    pub recovery: Option<Duration>,
}

/// When a share of slow calls opens a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SlowCalls {
    /// The share of calls in the window. Above 0, up to 1.
    pub rate: f64,
    /// The time from which a call is slow; in JSON, seconds. Above 0, up to 30 years.
    #[serde(serialize_with = "seconds")]
    pub slower_than: Duration,
}

/// How the reset timeout grows each time that a probe fails: `min(reset_timeout · factorⁿ, max)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Growth {
    /// The growth from one time to the next. 1 or more, finite.
    pub factor: f64,
    /// The longest it becomes; in JSON, seconds. The reset timeout or more, up to 30 years.
    #[serde(serialize_with = "seconds")]
    pub max: Duration,
}

impl Default for CircuitSettings {
    fn default() -> Self {
        let reset_timeout = Duration::from_secs(60);
        Self {
            fail_max: Some(5),
            failure_rate: None,
            slow_calls: None,
            window: DEFAULT_WINDOW,
            minimum_calls: DEFAULT_MINIMUM,
            reset_timeout,
            reset_timeout_growth: None,
            reset_timeout_jitter: 0.0,
            success_threshold: 3,
            half_open_max_calls: 1,
            probe_lease: reset_timeout,
            recovery: None,
        }
    }
}

const DEFAULT_WINDOW: SlidingWindow = SlidingWindow::Calls(100);
const DEFAULT_MINIMUM: u32 = 20;
const LARGEST_WINDOW: u32 = 1_000_000;
const SHORTEST_WINDOW: Duration = Duration::from_millis(1);
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);

impl CircuitSettings {
    /// Whether they make sense.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`]: the first field that does not, what it holds and what it may.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let rate = |field, rate: f64| match rate > 0.0 && rate <= 1.0 {
            true => Ok(()),
            false => Err(InvalidSetting::new(field, rate, "above 0, up to 1")),
        };
        if let Some(fail_max) = self.fail_max
            && !(1..=MOST_FAILURES).contains(&fail_max)
        {
            return Err(InvalidSetting::new("fail_max", fail_max, "1 to 67108863"));
        }
        if let Some(failure_rate) = self.failure_rate {
            rate("failure_rate", failure_rate)?;
        }
        if let Some(slow) = self.slow_calls {
            rate("slow_call_rate", slow.rate)?;
            bounded("slower_than", slow.slower_than)?;
        }
        if self.fail_max.is_none() && self.failure_rate.is_none() && self.slow_calls.is_none() {
            let cure = "a number, unless failure_rate or slow_call_rate is set";
            return Err(InvalidSetting::new("fail_max", self.fail_max, cure));
        }
        self.validate_window()?;
        bounded("reset_timeout", self.reset_timeout)?;
        if let Some(Growth { factor, max }) = self.reset_timeout_growth {
            if !(factor >= 1.0 && factor.is_finite()) {
                return Err(InvalidSetting::new(
                    "reset_timeout_growth",
                    factor,
                    "1 or more, finite",
                ));
            }
            if max < self.reset_timeout || max > FAR {
                return Err(InvalidSetting::new(
                    "reset_timeout_max",
                    max,
                    "the reset_timeout or more, up to 30 years",
                ));
            }
        }
        if !(0.0..=1.0).contains(&self.reset_timeout_jitter) {
            let jitter = self.reset_timeout_jitter;
            return Err(InvalidSetting::new("reset_timeout_jitter", jitter, "0 to 1"));
        }
        for (field, count) in [
            ("success_threshold", self.success_threshold),
            ("half_open_max_calls", self.half_open_max_calls),
        ] {
            if count == 0 {
                return Err(InvalidSetting::new(field, count, "1 or more"));
            }
        }
        if self.half_open_max_calls > MOST_PROBES {
            let probes = self.half_open_max_calls;
            return Err(InvalidSetting::new("half_open_max_calls", probes, "1 to 1000"));
        }
        bounded("probe_lease", self.probe_lease)?;
        self.recovery.map_or(Ok(()), |recovery| bounded("recovery", recovery))
    }

    fn validate_window(&self) -> Result<(), InvalidSetting> {
        let minimum = self.minimum_calls;
        if minimum == 0 {
            return Err(InvalidSetting::new("minimum_calls", minimum, "1 or more"));
        }
        match self.window {
            SlidingWindow::Calls(size) if !(1..=LARGEST_WINDOW).contains(&size) => {
                Err(InvalidSetting::new("window", self.window, "1 to 1000000 calls"))
            }
            SlidingWindow::Time(time) if !(SHORTEST_WINDOW..=LONGEST_WINDOW).contains(&time) => {
                Err(InvalidSetting::new("window", self.window, "1 ms to 1 day"))
            }
            SlidingWindow::Calls(size) if size < minimum => {
                Err(InvalidSetting::new("minimum_calls", minimum, "up to the calls of the window"))
            }
            SlidingWindow::Calls(_) | SlidingWindow::Time(_) => Ok(()),
        }
    }
}

/// Probes that may be out at once: whoever is refused looks for the one that ends first.
const MOST_PROBES: u32 = 1000;

fn bounded(field: &'static str, time: Duration) -> Result<(), InvalidSetting> {
    match time.is_zero() || time > FAR {
        true => Err(InvalidSetting::new(field, time, "above 0, up to 30 years")),
        false => Ok(()),
    }
}

fn is_default_window(window: &SlidingWindow) -> bool {
    *window == DEFAULT_WINDOW
}

fn is_default_minimum(minimum: &u32) -> bool {
    *minimum == DEFAULT_MINIMUM
}

fn is_zero(share: &f64) -> bool {
    *share == 0.0
}

/// Settings of a [`CircuitBreaker`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct CircuitBreakerBuilder {
    pub(super) name: Name,
    pub(super) settings: CircuitSettings,
    pub(super) minimum_calls: Option<u32>,
}

impl CircuitBreakerBuilder {
    /// Failures in a row that open the circuit. 1 to 67,108,863; default 5.
    pub fn fail_max(mut self, failures: u32) -> Self {
        self.settings.fail_max = Some(failures);
        self
    }

    /// No number of failures in a row opens the circuit: a rate must.
    pub fn without_fail_max(mut self) -> Self {
        self.settings.fail_max = None;
        self
    }

    /// The share of calls in the window that must fail to open the circuit. Above 0, up to 1;
    /// default: not judged. It comes beside [`fail_max`](Self::fail_max).
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.settings.failure_rate = Some(rate);
        self
    }

    /// The share of calls in the window (above 0, up to 1) that opens the circuit by taking
    /// `slower_than` or longer; default: not judged. A probe that slow is a failed one.
    pub fn slow_call_rate(mut self, rate: f64, slower_than: Duration) -> Self {
        self.settings.slow_calls = Some(SlowCalls { rate, slower_than });
        self
    }

    /// The calls over which rates are taken; default: the last 100.
    pub fn window(mut self, window: SlidingWindow) -> Self {
        self.settings.window = window;
        self
    }

    /// Calls in the window below which no rate is judged. 1 or more; default 20, or the window's
    /// size if that is less.
    pub fn minimum_calls(mut self, calls: u32) -> Self {
        self.minimum_calls = Some(calls);
        self
    }

    /// How long the circuit stays open before a probe; also the [`probe_lease`](Self::probe_lease), unless
    /// that is set after. Above 0, up to 30 years; default 60 s.
    pub fn reset_timeout(mut self, timeout: Duration) -> Self {
        self.settings.reset_timeout = timeout;
        self.settings.probe_lease = timeout;
        self
    }

    /// How that time grows with each probe that fails: by `factor` (1 or more), up to `max`; default: not at all.
    pub fn reset_timeout_growth(mut self, factor: f64, max: Duration) -> Self {
        self.settings.reset_timeout_growth = Some(Growth { factor, max });
        self
    }

    /// The share (0 to 1) of that time by which it may be shortened at random, so that many
    /// processes do not probe at once; default 0.
    pub fn reset_timeout_jitter(mut self, share: f64) -> Self {
        self.settings.reset_timeout_jitter = share;
        self
    }

    /// Probes that must succeed to close the circuit. 1 or more; default 3.
    pub fn success_threshold(mut self, successes: u32) -> Self {
        self.settings.success_threshold = successes;
        self
    }

    /// Probes in flight at once while half-open. 1 to 1,000; default 1.
    pub fn half_open_max_calls(mut self, probes: u32) -> Self {
        self.settings.half_open_max_calls = probes;
        self
    }

    /// How long a probe may take before it counts as failed, so that one that hangs cannot keep
    /// others out for ever. Above 0, up to 30 years; default: the reset timeout.
    pub fn probe_lease(mut self, lease: Duration) -> Self {
        self.settings.probe_lease = lease;
        self
    }

    /// Progressive recovery: after the circuit has closed, the share of calls that pass rises from
    /// a tenth to all of them over `time`; the others are refused. Above 0, up to 30 years; default: all pass at once.
    pub fn recovery(mut self, time: Duration) -> Self {
        self.settings.recovery = Some(time);
        self
    }

    /// The same settings for a breaker of another name.
    pub(crate) fn named(self, name: Name) -> Self {
        Self { name, ..self }
    }

    /// The closed breaker.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a value out of its range, and for rules by which nothing opens the circuit.
    pub fn build(self) -> Result<CircuitBreaker, InvalidSetting> {
        let Self { name, mut settings, minimum_calls } = self;
        settings.minimum_calls = minimum_calls.unwrap_or(match settings.window {
            SlidingWindow::Calls(size) => DEFAULT_MINIMUM.min(size.max(1)),
            SlidingWindow::Time(_) => DEFAULT_MINIMUM,
        });
        settings.validate()?;
        Ok(CircuitBreaker::with_settings(name, settings))
    }
}
