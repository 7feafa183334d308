//! What limit the answers of a service speak for. Pure: no clock, no lock.
//!
//! It judges in rounds: about as many answers as may be in flight, to attempts that were all admitted
//! under the limit in force. Whatever was admitted under an earlier one says nothing about this one, so
//! that one burst of timeouts is one cut, not one for each.

use std::time::Duration;

/// Answers in a round at the least, so that a single one does not decide.
const ROUND: u32 = 20;

/// What is left of the limit after a round with overload.
const BACKOFF: f64 = 0.9;

/// Attempts in this many that ended by overload make a round one of overload; a single one never does.
const OVERLOAD_SHARE: u32 = 20;

/// How much slower than at rest answers may be without a cut.
const TOLERANCE: f64 = 1.1;

/// The part of the way to what the gradient asks for that is gone in one round.
const SMOOTHING: f64 = 0.5;

/// Rounds under load between two looks at how fast the service is at rest.
const ROUNDS_TO_PROBE: u32 = 30;

/// How many times as slow as at rest one answer may count, and the time at rest as slow as one look at it.
const SLOWEST: f64 = 4.0;

/// How an [`AdaptiveLimit`](crate::AdaptiveLimit) finds its limit.
///
/// Both judge in rounds, each about as long as an attempt takes, and only let the limit grow while at
/// least half of it is in use. Both cut it by a tenth when at least 2, and 5 %, of a round's attempts
/// ended by overload.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum LimitAlgorithm {
    /// Additive increase, multiplicative decrease: one more call in flight after each round without
    /// overload. For services that refuse or time out when they have too much, whatever the mix of
    /// quick and slow requests.
    ///
    /// As in TCP (Chiu and Jain, 1989) and the `AIMDLimit` of Netflix's concurrency-limits.
    #[default]
    Aimd,
    /// Compares how long answers take with how long they took at rest: what is more than a tenth slower
    /// waits in the service's queue, and the limit shrinks by that ratio; it grows by its square root.
    /// It settles at about 1.1 times what the service works on at once, and the square root of the limit.
    /// For requests that take about the same time each; a change of the mix looks like overload to it.
    ///
    /// To learn the time at rest it halves the limit for two rounds after thirty under load. As the
    /// gradient controller of Envoy's adaptive concurrency filter, with the smoothing of the `Gradient2Limit` of
    /// Netflix's concurrency-limits.
    Gradient,
}

/// How one attempt ended, and under which limit it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// The generation that admitted it.
    pub(crate) generation: u32,
    /// How many were in flight at its end, itself included.
    pub(crate) in_flight: u32,
    /// The time from its place to its end.
    pub(crate) elapsed: Duration,
    /// Whether it ended by overload.
    pub(crate) overload: bool,
}

/// The limit, and what is known of the round that will move it.
#[derive(Clone, Debug)]
pub(crate) struct Estimate {
    algorithm: LimitAlgorithm,
    min: f64,
    max: f64,
    limit: f64,
    /// Rises by one whenever the limit in force changes.
    generation: u32,
    round: Round,
    /// Seconds that an answer takes at rest.
    at_rest: Option<f64>,
    /// Rounds until the next probe; 0 is a probe, with half of the limit in force.
    to_probe: u32,
    /// Whether this round is the first of a probe: the service still works off what it had.
    settling: bool,
}

#[derive(Clone, Debug, Default)]
struct Round {
    samples: u32,
    overloads: u32,
    in_flight: u64,
    seconds: f64,
}

impl Estimate {
    pub(crate) fn new(algorithm: LimitAlgorithm, min: u32, max: u32, initial: u32) -> Self {
        Self {
            algorithm,
            min: f64::from(min),
            max: f64::from(max),
            limit: f64::from(initial),
            generation: 0,
            round: Round::default(),
            at_rest: None,
            to_probe: ROUNDS_TO_PROBE,
            settling: false,
        }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The limit in force.
    pub(crate) fn in_force(&self) -> u32 {
        let limit = if self.to_probe == 0 { self.limit / 2.0 } else { self.limit };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "1 to u32::MAX"
        )]
        let limit = limit.clamp(self.min, self.max) as u32;
        limit
    }

    /// Takes note of an attempt; says whether the limit in force is another one now.
    pub(crate) fn add(&mut self, sample: Sample) -> bool {
        if sample.generation != self.generation {
            return false;
        }
        let before = self.in_force();
        let slowest = self.at_rest.map_or(f64::INFINITY, |at_rest| at_rest * SLOWEST);
        self.round.samples += 1;
        self.round.overloads += u32::from(sample.overload);
        self.round.in_flight += u64::from(sample.in_flight);
        self.round.seconds += sample.elapsed.as_secs_f64().clamp(1e-9, slowest);
        let length = before.max(ROUND);
        if self.round.overloads >= (length / OVERLOAD_SHARE).max(2) {
            self.limit *= BACKOFF;
        } else if self.round.samples >= length {
            self.judge(before);
        } else {
            return false;
        }
        self.limit = self.limit.clamp(self.min, self.max);
        self.round = Round::default();
        let changed = self.in_force() != before;
        self.generation = self.generation.wrapping_add(u32::from(changed));
        changed
    }

    /// Draws the conclusion of a round without overload.
    fn judge(&mut self, in_force: u32) {
        let samples = f64::from(self.round.samples);
        // Whatever is not used proves nothing about more.
        let busy = self.round.in_flight * 2 >= u64::from(self.round.samples) * u64::from(in_force);
        let seconds = self.round.seconds / samples;
        match self.algorithm {
            LimitAlgorithm::Aimd if busy => self.limit += 1.0,
            LimitAlgorithm::Aimd => {}
            LimitAlgorithm::Gradient => match self.at_rest {
                Some(at_rest) if busy && self.to_probe > 0 => {
                    let gradient = (TOLERANCE * at_rest / seconds).clamp(0.5, 1.0);
                    let asked = self.limit * gradient + self.limit.sqrt();
                    self.limit += SMOOTHING * (asked - self.limit);
                    self.to_probe -= 1;
                    self.settling = self.to_probe == 0;
                }
                _ if self.settling => self.settling = false,
                at_rest => {
                    let old = at_rest.unwrap_or(seconds).min(seconds * SLOWEST);
                    self.at_rest = Some(f64::midpoint(old, seconds));
                    self.to_probe = ROUNDS_TO_PROBE;
                }
            },
        }
    }
}
