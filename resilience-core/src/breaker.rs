//! Stop calling a service that keeps failing; later, ask it again with a few probes.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

pub use crate::circuit::CircuitState;
use crate::circuit::{Circuit, Pass, Transition};
use crate::observe::{Event, emit};
use crate::permit::Watched;
use crate::{
    AnyError, Blame, CallError, CircuitOpen, Classify, Failed, InvalidSetting, Outcome, Permit,
};

/// A circuit breaker in front of one dependency. Cheap to clone: clones share the circuit.
///
/// It opens after `fail_max` failures in a row, refuses calls for `reset_timeout`, then lets
/// `half_open_max_calls` probes through at a time until `success_threshold` of them have succeeded
/// (then it closes) or one has failed (then it opens again).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::CircuitBreaker;
///
/// let breaker = CircuitBreaker::builder("payments").fail_max(3).reset_timeout(Duration::from_secs(30)).build()?;
/// let reply = breaker.call(|| async { Ok::<_, std::io::Error>("paid") }).await?;
/// assert_eq!(reply, "paid");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct CircuitBreaker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    settings: CircuitSettings,
    circuit: Circuit,
    counts: Counts,
}

impl CircuitBreaker {
    /// A closed breaker with the default settings.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self::builder(name).build().expect("the defaults are valid")
    }

    /// A breaker with other settings.
    pub fn builder(name: impl Into<Arc<str>>) -> CircuitBreakerBuilder {
        CircuitBreakerBuilder { name: name.into(), settings: CircuitSettings::default() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &CircuitSettings {
        &self.shared.settings
    }

    /// The state as the last call left it: an open circuit whose timeout is over becomes half-open
    /// with the next call, not by itself.
    #[must_use]
    pub fn state(&self) -> CircuitState {
        self.shared.circuit.load().state()
    }

    /// Leave to make one attempt.
    ///
    /// # Errors
    ///
    /// [`CircuitOpen`] while the circuit is open, and while all probes of a half-open one are out.
    pub fn try_acquire(&self) -> Result<Permit, CircuitOpen> {
        let pass = match self.shared.circuit.admit_closed() {
            Some(pass) => pass,
            None => self.admit_at(Instant::now())?,
        };
        Ok(Permit::new(self.clone(), pass))
    }

    /// Calls `operation`, unless the circuit is open; every `Err` of it is a failure.
    ///
    /// # Errors
    ///
    /// [`CallError::CircuitOpen`], or the operation's own error.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as the operation. A dropped call counts as nothing and frees its probe.
    pub async fn call<T, E, Fut>(&self, operation: impl FnOnce() -> Fut) -> Result<T, CallError<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        self.call_with(&AnyError, operation).await
    }

    /// Calls `operation`, unless the circuit is open; `classifier` says which errors are failures.
    ///
    /// # Errors
    ///
    /// [`CallError::CircuitOpen`], or the operation's own error.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as the operation. A dropped call counts as nothing and frees its probe.
    pub async fn call_with<T, E, Fut>(
        &self,
        classifier: &impl Classify<E>,
        operation: impl FnOnce() -> Fut,
    ) -> Result<T, CallError<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        let permit = self.try_acquire()?;
        let started = Instant::now();
        let (permit, result) = Watched::new(Some(permit), async { operation().await }).await;
        let permit = permit.expect("nobody else takes it");
        match result {
            Ok(value) => {
                permit.success();
                Ok(value)
            }
            Err(error) => {
                let verdict = classifier.verdict(&error);
                permit.settle(verdict.blame.outcome());
                Err(CallError::Inner(Failed {
                    error,
                    verdict,
                    attempts: 1,
                    elapsed: started.elapsed(),
                }))
            }
        }
    }

    /// Everything there is to know about it now.
    #[must_use]
    pub fn snapshot(&self) -> CircuitSnapshot {
        let now = Instant::now();
        let (word, since, retry_after) = self.shared.circuit.times(&self.shared.settings, now);
        CircuitSnapshot {
            name: Arc::clone(&self.shared.name),
            state: word.state(),
            since: now.saturating_duration_since(since),
            generation: word.generation(),
            consecutive_failures: word.failures(),
            calls: self.shared.counts.outcomes(),
            not_permitted: self.shared.counts.not_permitted.load(Ordering::Relaxed),
            retry_after,
            settings: self.shared.settings,
        }
    }

    /// Whether anyone besides the asker holds it: by a clone, or by a permit that is out.
    pub(crate) fn is_held(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

    pub(crate) fn admit_at(&self, now: Instant) -> Result<Pass, CircuitOpen> {
        let admission = self.shared.circuit.admit(&self.shared.settings, now);
        for transition in admission.transitions {
            self.announce(transition);
        }
        admission.decision.map_err(|retry_after| {
            self.shared.counts.not_permitted.fetch_add(1, Ordering::Relaxed);
            CircuitOpen { name: Arc::clone(&self.shared.name), retry_after }
        })
    }

    pub(crate) fn settle(&self, pass: Pass, outcome: Outcome) {
        self.shared.counts.of(outcome).fetch_add(1, Ordering::Relaxed);
        if let Some(transition) =
            self.shared.circuit.settle(&self.shared.settings, pass, outcome, Instant::now)
        {
            self.announce(transition);
        }
    }

    fn announce(&self, Transition { from, to, generation }: Transition) {
        let name = &self.shared.name;
        tracing::debug!(target: "shared_external::breaker", %name, from = from.as_str(), to = to.as_str(), generation, "circuit changed");
        emit(&Event::CircuitTransition { name, from, to, generation });
    }
}

impl Blame {
    /// What an error with this blame is to the breaker: a refused request is an answer.
    pub(crate) const fn outcome(self) -> Outcome {
        match self {
            Self::Caller => Outcome::Success,
            Self::Service => Outcome::Failure,
            Self::Local => Outcome::Excluded,
        }
    }
}

/// When a circuit opens, for how long, and what closes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CircuitSettings {
    /// Failures in a row that open the circuit. 1 or more; default 5.
    pub fail_max: u32,
    /// How long it stays open before a probe; in JSON, seconds. Above 0; default 60 s.
    #[serde(serialize_with = "seconds")]
    pub reset_timeout: Duration,
    /// Probes that must succeed to close it. 1 or more; default 3.
    pub success_threshold: u32,
    /// Probes in flight at once while half-open. 1 or more; default 1.
    pub half_open_max_calls: u32,
    /// How long a probe may take before it counts as failed; in JSON, seconds. Above 0; default: the reset timeout.
    #[serde(serialize_with = "seconds")]
    pub probe_lease: Duration,
}

impl Default for CircuitSettings {
    fn default() -> Self {
        let reset_timeout = Duration::from_secs(60);
        Self {
            fail_max: 5,
            reset_timeout,
            success_threshold: 3,
            half_open_max_calls: 1,
            probe_lease: reset_timeout,
        }
    }
}

/// Settings of a [`CircuitBreaker`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct CircuitBreakerBuilder {
    name: Arc<str>,
    settings: CircuitSettings,
}

impl CircuitBreakerBuilder {
    /// Failures in a row that open the circuit. 1 or more; default 5.
    pub fn fail_max(mut self, failures: u32) -> Self {
        self.settings.fail_max = failures;
        self
    }

    /// How long it stays open before a probe; also the [`probe_lease`](Self::probe_lease), unless
    /// that is set after. Above 0; default 60 s.
    pub fn reset_timeout(mut self, timeout: Duration) -> Self {
        self.settings.reset_timeout = timeout;
        self.settings.probe_lease = timeout;
        self
    }

    /// Probes that must succeed to close it. 1 or more; default 3.
    pub fn success_threshold(mut self, successes: u32) -> Self {
        self.settings.success_threshold = successes;
        self
    }

    /// Probes in flight at once while half-open. 1 or more; default 1.
    pub fn half_open_max_calls(mut self, probes: u32) -> Self {
        self.settings.half_open_max_calls = probes;
        self
    }

    /// How long a probe may take before it counts as failed, so that one that hangs cannot keep
    /// others out for ever. Above 0; default: the reset timeout.
    pub fn probe_lease(mut self, lease: Duration) -> Self {
        self.settings.probe_lease = lease;
        self
    }

    /// The same settings for a breaker of another name.
    pub(crate) fn named(self, name: Arc<str>) -> Self {
        Self { name, ..self }
    }

    /// The closed breaker.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a zero where none may be.
    pub fn build(self) -> Result<CircuitBreaker, InvalidSetting> {
        let Self { name, settings } = self;
        for (field, value) in [
            ("fail_max", settings.fail_max),
            ("success_threshold", settings.success_threshold),
            ("half_open_max_calls", settings.half_open_max_calls),
        ] {
            if value == 0 {
                return Err(InvalidSetting::new(field, value, "1 or more"));
            }
        }
        for (field, value) in
            [("reset_timeout", settings.reset_timeout), ("probe_lease", settings.probe_lease)]
        {
            if value.is_zero() {
                return Err(InvalidSetting::new(field, value, "above 0"));
            }
        }
        let circuit = Circuit::new(Instant::now());
        Ok(CircuitBreaker {
            shared: Arc::new(Shared { name, settings, circuit, counts: Counts::default() }),
        })
    }
}

/// A breaker at one moment. Durations are seconds in JSON.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CircuitSnapshot {
    /// The breaker's name.
    pub name: Arc<str>,
    /// Its state.
    pub state: CircuitState,
    /// How long it has been in it.
    #[serde(rename = "since_seconds", serialize_with = "seconds")]
    pub since: Duration,
    /// The number of that state.
    pub generation: u32,
    /// Failures in a row while closed.
    pub consecutive_failures: u32,
    /// Attempts by outcome, since the breaker was made.
    pub calls: OutcomeCounts,
    /// Calls refused, since the breaker was made.
    pub not_permitted: u64,
    /// Until another try is worth making; `None` while closed, or while a probe may be had.
    #[serde(rename = "retry_after_seconds", serialize_with = "maybe_seconds")]
    pub retry_after: Option<Duration>,
    /// What it was built with.
    #[serde(rename = "thresholds")]
    pub settings: CircuitSettings,
}

/// Attempts by outcome.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct OutcomeCounts {
    /// [`Outcome::Success`].
    pub success: u64,
    /// [`Outcome::Failure`].
    pub failure: u64,
    /// [`Outcome::Excluded`].
    pub excluded: u64,
    /// [`Outcome::Cancelled`].
    pub cancelled: u64,
}

impl OutcomeCounts {
    /// The count of `outcome`.
    #[must_use]
    pub const fn of(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Success => self.success,
            Outcome::Failure => self.failure,
            Outcome::Excluded => self.excluded,
            Outcome::Cancelled => self.cancelled,
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    success: AtomicU64,
    failure: AtomicU64,
    excluded: AtomicU64,
    cancelled: AtomicU64,
    not_permitted: AtomicU64,
}

impl Counts {
    fn of(&self, outcome: Outcome) -> &AtomicU64 {
        match outcome {
            Outcome::Success => &self.success,
            Outcome::Failure => &self.failure,
            Outcome::Excluded => &self.excluded,
            Outcome::Cancelled => &self.cancelled,
        }
    }

    fn outcomes(&self) -> OutcomeCounts {
        let read = |outcome| self.of(outcome).load(Ordering::Relaxed);
        OutcomeCounts {
            success: read(Outcome::Success),
            failure: read(Outcome::Failure),
            excluded: read(Outcome::Excluded),
            cancelled: read(Outcome::Cancelled),
        }
    }
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn maybe_seconds<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}
