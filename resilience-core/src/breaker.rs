//! Stop calling a service that keeps failing; later, ask it again with a few probes.

mod counts;
mod settings;
mod snapshot;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::circuit::{Circuit, Glance, Pass, Transition};
use crate::deadline::later;
use crate::observe::{Event, RefusingLayer, emit, is_observed};
use crate::permit::{Lent, Settle, Watched};
use crate::{
    AnyError, Blame, CallError, CircuitOpen, Classify, Failed, InvalidSetting, Name, Outcome,
    Permit,
};
use counts::Counts;

pub use crate::circuit::{CircuitState, SlidingWindow};
pub use counts::OutcomeCounts;
pub use settings::{CircuitBreakerBuilder, CircuitSettings, Growth, SlowCalls};
pub use snapshot::CircuitSnapshot;

/// A circuit breaker in front of one dependency. Cheap to clone: clones share the circuit.
///
/// It opens after `fail_max` failures in a row, or when too large a share of its last calls failed
/// or was slow; refuses calls for `reset_timeout`, then lets `half_open_max_calls` probes through at
/// a time until `success_threshold` of them have succeeded (then it closes) or one has failed (then
/// it opens again).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::{CircuitBreaker, SlidingWindow};
///
/// let breaker = CircuitBreaker::builder("payments")
///     .fail_max(3)
///     .failure_rate(0.5)
///     .window(SlidingWindow::Time(Duration::from_secs(10)))
///     .reset_timeout(Duration::from_secs(30))
///     .build()?;
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
    circuit: Circuit,
    counts: Counts,
    name: Name,
}

impl CircuitBreaker {
    /// A closed breaker with the default settings.
    #[must_use]
    pub fn new(name: impl Into<Name>) -> Self {
        Self::builder(name).build().expect("the defaults are valid")
    }

    /// A breaker with other settings.
    pub fn builder(name: impl Into<Name>) -> CircuitBreakerBuilder {
        CircuitBreakerBuilder {
            name: name.into(),
            settings: CircuitSettings::default(),
            minimum_calls: None,
        }
    }

    fn with_settings(name: Name, settings: CircuitSettings) -> Self {
        let circuit = Circuit::new(settings, Instant::now());
        Self { shared: Arc::new(Shared { circuit, counts: Counts::new(), name }) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.shared.name
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> CircuitSettings {
        self.shared.circuit.settings()
    }

    /// The state as the last call left it: an open circuit whose timeout is over becomes half-open
    /// with the next call, not by itself.
    #[must_use]
    pub fn state(&self) -> CircuitState {
        self.shared.circuit.load().state()
    }

    /// Leave to make one attempt, for whatever is not a future or a closure: a stream or a lease may hold it.
    ///
    /// # Errors
    ///
    /// [`CircuitOpen`] while the circuit is open, and while all probes of a half-open one are out.
    pub fn try_acquire(&self) -> Result<Permit, CircuitOpen> {
        Ok(Permit::new(self.clone(), self.admit()?))
    }

    /// [`try_acquire`](Self::try_acquire) for as long as the breaker is borrowed.
    #[inline]
    pub(crate) fn lend(&self) -> Result<Lent<'_>, CircuitOpen> {
        Ok(Lent::new(self, self.admit()?))
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
    ///
    /// # Panics
    ///
    /// If the operation does: a failure, which is counted as the panic passes through.
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
    ///
    /// # Panics
    ///
    /// If the operation does: a failure, which is counted as the panic passes through. If `classifier` does: the call
    /// counts as nothing.
    pub async fn call_with<T, E, Fut>(
        &self,
        classifier: &impl Classify<E>,
        operation: impl FnOnce() -> Fut,
    ) -> Result<T, CallError<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        let lent = self.lend()?;
        let (lent, result) = Watched::new(Some(lent), async { operation().await }).await;
        settled(lent.expect("nobody else takes it"), classifier, result)
    }

    /// [`call`](Self::call) for an operation that is not a future.
    ///
    /// # Errors
    ///
    /// [`CallError::CircuitOpen`], or the operation's own error.
    ///
    /// # Panics
    ///
    /// If the operation does: a failure, which is counted as the panic passes through.
    #[inline]
    pub fn call_blocking<T, E>(
        &self,
        operation: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        let mut lent = self.lend()?;
        lent.outcome = Outcome::Failure;
        let result = operation();
        settled(lent, &AnyError, result)
    }

    /// Everything there is to know about it now.
    #[must_use]
    pub fn snapshot(&self) -> CircuitSnapshot {
        let now = Instant::now();
        let Glance { word, since, retry_after, failure_ratio, slow_call_ratio, recovering, armed } =
            self.shared.circuit.glance(now);
        CircuitSnapshot {
            name: self.shared.name.clone(),
            state: word.state(),
            since: now.saturating_duration_since(since),
            generation: word.generation(),
            consecutive_failures: word.failures(),
            calls: self.shared.counts.outcomes(),
            not_permitted: self.shared.counts.not_permitted(),
            retry_after,
            recovering,
            armed,
            settings: self.settings(),
            failure_ratio,
            slow_call_ratio,
        }
    }

    /// Other rules from now on. State, generation and failures in a row stay as they are; a circuit
    /// that is open stays so for the new timeout, counted from when it opened; a window of another
    /// kind or size begins empty; a recovery takes the new time since it began, or ends if there is none.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`], and the old rules stay.
    pub fn reconfigure(&self, settings: CircuitSettings) -> Result<(), InvalidSetting> {
        settings.validate()?;
        self.shared.circuit.reconfigure(settings, Instant::now());
        Ok(())
    }

    /// Refuses every call until [`reset`](Self::reset).
    pub fn force_open(&self) {
        self.force(CircuitState::ForcedOpen);
    }

    /// Lets every call pass until [`reset`](Self::reset), whatever its outcome.
    pub fn force_closed(&self) {
        self.force(CircuitState::ForcedClosed);
    }

    /// Lets every call pass, uncounted, until [`reset`](Self::reset).
    pub fn disable(&self) {
        self.force(CircuitState::Disabled);
    }

    /// Lets every call pass, counted and judged as while closed but without consequence, until
    /// [`reset`](Self::reset): for trying out rules before they bite.
    pub fn metrics_only(&self) {
        self.force(CircuitState::MetricsOnly);
    }

    /// Closes the circuit, whatever its state, with no failure to its name.
    pub fn reset(&self) {
        self.force(CircuitState::Closed);
    }

    /// For `time` from now, the first failure opens the circuit: somebody else has seen the service
    /// fail. No call is refused for it, and while the service answers nothing changes.
    pub fn arm(&self, time: Duration) {
        self.shared.circuit.arm(Some(later(Instant::now(), time)));
    }

    /// Takes [`arm`](Self::arm) back.
    pub fn disarm(&self) {
        self.shared.circuit.arm(None);
    }

    /// Whether both are handles of one circuit.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether anyone besides the asker holds it: by a clone, or by a permit that is out.
    pub(crate) fn is_held(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

    #[inline]
    pub(crate) fn admit(&self) -> Result<Pass, CircuitOpen> {
        match self.shared.circuit.admit_fast() {
            Some(pass) => Ok(pass),
            None => self.admit_or_refuse(),
        }
    }

    #[cold]
    fn admit_or_refuse(&self) -> Result<Pass, CircuitOpen> {
        let now = Instant::now();
        let refused = self.shared.circuit.refuse_fast(now);
        refused.map_or_else(|| self.admit_at(now), Err).map_err(|retry_after| {
            let name = &self.shared.name;
            self.shared.counts.add_not_permitted();
            if is_observed() {
                emit(&Event::Refused { name, layer: RefusingLayer::Breaker });
            }
            CircuitOpen { name: name.clone(), retry_after }
        })
    }

    fn admit_at(&self, now: Instant) -> Result<Pass, Duration> {
        let admission = self.shared.circuit.admit(now);
        for transition in admission.transitions.into_iter().flatten() {
            self.announce(transition);
        }
        admission.decision
    }

    #[inline]
    pub(crate) fn settle(&self, pass: Pass, outcome: Outcome) {
        if pass.counts() {
            self.shared.counts.add(outcome);
        }
        if outcome != Outcome::Success || !self.shared.circuit.is_untroubled(pass) {
            self.settle_in_circuit(pass, outcome);
        }
    }

    /// Apart, so that a success on a healthy circuit is little enough to be inlined.
    #[inline(never)]
    fn settle_in_circuit(&self, pass: Pass, outcome: Outcome) {
        if let Some(transition) = self.shared.circuit.settle(pass, outcome, Instant::now) {
            self.announce(transition);
        }
    }

    /// The number of its state.
    pub(crate) fn generation(&self) -> u32 {
        self.shared.circuit.load().generation()
    }

    /// Lets the time of an attempt begin `now`.
    pub(crate) fn restart(&self, pass: &mut Pass, now: Instant) {
        self.shared.circuit.restart(pass, now);
    }

    fn force(&self, state: CircuitState) {
        if let Some(transition) = self.shared.circuit.force(state, Instant::now()) {
            self.announce(transition);
        }
    }

    fn announce(&self, Transition { from, to, generation }: Transition) {
        let name = &self.shared.name;
        tracing::debug!(target: "shared_external::breaker", %name, from = from.as_str(), to = to.as_str(), generation, "circuit changed");
        emit(&Event::CircuitTransition { name, from, to, generation });
        #[cfg(feature = "distributed")]
        crate::distributed::circuit_changed();
    }
}

/// Settles a call that came to its end.
#[inline]
fn settled<T, E>(
    lent: Lent<'_>,
    classifier: &impl Classify<E>,
    result: Result<T, E>,
) -> Result<T, CallError<E>> {
    match result {
        Ok(value) => {
            lent.settle(Outcome::Success);
            Ok(value)
        }
        Err(error) => {
            let verdict = classifier.verdict(&error);
            lent.settle(verdict.blame.outcome());
            Err(CallError::Inner(Failed { error, verdict, attempts: 1, elapsed: None }))
        }
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

pub(crate) fn seconds<S: serde::Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

pub(crate) fn maybe_seconds<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}
