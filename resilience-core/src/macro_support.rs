//! What the attributes `circuit_breaker` and `with_retry` expand to. Not for use by hand: it
//! changes with them.

use std::future::Future;
use std::ops::ControlFlow;
use std::panic::Location;
use std::sync::OnceLock;
use std::time::Duration;

use crate::permit::Watched;
use crate::retry::Retries;
use crate::{
    CircuitBreakerBuilder, CircuitOpen, CircuitRegistry, Deadline, Outcome, Permit,
    RetryPolicyBuilder,
};

pub use crate::{CircuitBreaker, RetryBudget, RetryPolicy};
pub use tokio::time::sleep;

/// The breaker of one attribute: found in the registry by the first call, then kept.
pub struct Breaker {
    build: fn() -> CircuitBreakerBuilder,
    place: &'static Location<'static>,
    found: OnceLock<CircuitBreaker>,
}

impl Breaker {
    /// Nothing is looked up yet. The caller's place is the attribute's.
    #[track_caller]
    #[must_use]
    pub const fn new(build: fn() -> CircuitBreakerBuilder) -> Self {
        Self { build, place: Location::caller(), found: OnceLock::new() }
    }

    /// Leave to make one call.
    ///
    /// # Errors
    ///
    /// [`CircuitOpen`], as [`CircuitBreaker::try_acquire`].
    ///
    /// # Panics
    ///
    /// If a setting that was no literal turns out to be invalid.
    pub fn enter(&self) -> Result<Permit, CircuitOpen> {
        self.get().try_acquire().inspect_err(|CircuitOpen { name, retry_after }| {
            tracing::debug!(target: "shared_external::breaker", %name, ?retry_after, "call refused");
        })
    }

    fn is_open(&self) -> bool {
        self.get().state().is_open()
    }

    fn get(&self) -> &CircuitBreaker {
        self.found.get_or_init(|| {
            let Self { build, place, .. } = self;
            match CircuitRegistry::global().get_or_create_at(build(), place) {
                Ok(breaker) => breaker,
                Err(invalid) => panic!("circuit_breaker at {place}: {invalid}"),
            }
        })
    }
}

/// The policy of one attribute: built by the first call, then kept.
pub struct Retry {
    build: fn() -> RetryPolicyBuilder,
    place: &'static Location<'static>,
    policy: OnceLock<RetryPolicy>,
}

impl Retry {
    /// Nothing is built yet. The caller's place is the attribute's.
    #[track_caller]
    #[must_use]
    pub const fn new(build: fn() -> RetryPolicyBuilder) -> Self {
        Self { build, place: Location::caller(), policy: OnceLock::new() }
    }

    /// The retries of one call.
    ///
    /// # Panics
    ///
    /// If a setting that was no literal turns out to be invalid.
    pub fn begin(&self) -> Retrying<'_> {
        let policy = self.policy.get_or_init(|| {
            let Self { build, place, .. } = self;
            match build().build() {
                Ok(policy) => policy,
                Err(invalid) => panic!("with_retry at {place}: {invalid}"),
            }
        });
        Retrying(policy.begin(&policy.name))
    }
}

/// The retries of one call.
pub struct Retrying<'a>(Retries<'a>);

impl Retrying<'_> {
    /// After an attempt: the call's result, or the wait before the next attempt.
    pub fn after<R: IsResult>(
        &mut self,
        attempt: R,
        retryable: impl FnOnce(&R::Error) -> bool,
    ) -> ControlFlow<R, Duration> {
        match attempt.into_result() {
            Ok(value) => ControlFlow::Break(R::from_result(Ok(value))),
            Err(error) => match self.0.next(retryable(&error), None, Deadline::current()) {
                Some(delay) => ControlFlow::Continue(delay),
                None => ControlFlow::Break(R::from_result(Err(error))),
            },
        }
    }

    /// [`after`](Self::after) an attempt that `breaker` may have refused. An open circuit is not
    /// waited for: the call ends with its `last` real error, else with the refusal.
    pub fn after_guarded<R: IsResult>(
        &mut self,
        attempt: Result<R, CircuitOpen>,
        breaker: &Breaker,
        last: &mut Option<R::Error>,
        retryable: impl FnOnce(&R::Error) -> bool,
    ) -> ControlFlow<R, Duration>
    where
        R::Error: HoldsCircuitOpen,
    {
        let end = |result| ControlFlow::Break(R::from_result(result));
        let error = match attempt.map(R::into_result) {
            Err(open) => {
                return end(Err(last.take().unwrap_or_else(|| HoldsCircuitOpen::hold(open))));
            }
            Ok(Ok(value)) => return end(Ok(value)),
            Ok(Err(error)) => error,
        };
        let may_repeat = retryable(&error) && !breaker.is_open();
        match self.0.next(may_repeat, None, Deadline::current()) {
            Some(delay) => {
                *last = Some(error);
                ControlFlow::Continue(delay)
            }
            None => end(Err(error)),
        }
    }
}

/// Runs `future` under `permit`: a panic inside is a failure, a drop before its end is not.
///
/// # Cancel safety
///
/// As cancel safe as `future`. A dropped call counts as nothing and frees its probe.
pub fn watch<F: Future>(
    permit: Permit,
    future: F,
) -> impl Future<Output = (Option<Permit>, F::Output)> {
    Watched::new(Some(permit), future)
}

/// [`watch`] for what is not a future.
pub fn watch_blocking<R>(permit: Permit, call: impl FnOnce() -> R) -> (Option<Permit>, R) {
    struct FailureUnlessTaken(Option<Permit>);

    impl Drop for FailureUnlessTaken {
        fn drop(&mut self) {
            if let Some(permit) = self.0.take() {
                permit.failure();
            }
        }
    }

    let mut permit = FailureUnlessTaken(Some(permit));
    let result = call();
    (permit.0.take(), result)
}

/// [`sleep`] for what is not a future: it blocks the thread.
pub fn block(delay: Duration) {
    crate::retry::block(delay);
}

/// Tells the breaker how the call ended, and gives the result back.
#[must_use]
pub fn settle<R: IsResult>(
    permit: Option<Permit>,
    result: R,
    excluded: impl FnOnce(&R::Error) -> bool,
) -> R {
    let outcome = match result.error() {
        None => Outcome::Success,
        Some(error) if excluded(error) => Outcome::Excluded,
        Some(_) => Outcome::Failure,
    };
    if let Some(permit) = permit {
        permit.settle(outcome);
    }
    result
}

/// The result of a call that was refused.
#[must_use]
pub fn refused<R: IsResult>(open: CircuitOpen) -> R
where
    R::Error: HoldsCircuitOpen,
{
    R::from_result(Err(HoldsCircuitOpen::hold(open)))
}

/// An argument taken by value, for one attempt.
#[must_use]
pub fn own<T: OnePerAttempt>(argument: &T) -> T {
    argument.one()
}

/// The duration that an argument of an attribute gives.
///
/// # Panics
///
/// If it is negative, not a number, or too long to write down.
#[track_caller]
#[must_use]
pub fn duration(argument: &'static str, value: impl Seconds) -> Duration {
    match value.duration() {
        Ok(duration) => duration,
        Err(held) => panic!("{argument} is {held}; allowed: seconds, 0 or more"),
    }
}

/// [`From<CircuitOpen>`](CircuitOpen), in words that name the cure.
#[diagnostic::on_unimplemented(
    message = "an open circuit cannot become a `{Self}`",
    label = "does not implement `From<CircuitOpen>`",
    note = "give it a variant for what `circuit_breaker` refuses, such as `CircuitOpen(#[from] CircuitOpen)` with `thiserror`"
)]
pub trait HoldsCircuitOpen {
    /// The error of a call that was refused.
    fn hold(open: CircuitOpen) -> Self;
}

#[diagnostic::do_not_recommend]
impl<E: From<CircuitOpen>> HoldsCircuitOpen for E {
    fn hold(open: CircuitOpen) -> Self {
        open.into()
    }
}

/// [`Clone`], in words that name the cure.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is taken by value but is not `Clone`",
    label = "each attempt needs its own",
    note = "`with_retry` clones what a function takes by value: derive `Clone`, or take a reference"
)]
pub trait OnePerAttempt {
    /// A clone.
    #[must_use]
    fn one(&self) -> Self;
}

#[diagnostic::do_not_recommend]
impl<T: Clone> OnePerAttempt for T {
    fn one(&self) -> Self {
        self.clone()
    }
}

/// A number of seconds, or a duration.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a time",
    label = "expected seconds (`u32`, `u64`, `i32` or `f64`) or a `Duration`"
)]
pub trait Seconds {
    /// The duration, or the text of a value that is none.
    ///
    /// # Errors
    ///
    /// The value's text, if it is negative, not a number, or too long.
    fn duration(self) -> Result<Duration, String>;
}

impl Seconds for Duration {
    fn duration(self) -> Result<Duration, String> {
        Ok(self)
    }
}

impl Seconds for u32 {
    fn duration(self) -> Result<Duration, String> {
        Ok(Duration::from_secs(self.into()))
    }
}

impl Seconds for u64 {
    fn duration(self) -> Result<Duration, String> {
        Ok(Duration::from_secs(self))
    }
}

impl Seconds for i32 {
    fn duration(self) -> Result<Duration, String> {
        u64::try_from(self).map(Duration::from_secs).map_err(|_| self.to_string())
    }
}

impl Seconds for f64 {
    fn duration(self) -> Result<Duration, String> {
        Duration::try_from_secs_f64(self).map_err(|_| self.to_string())
    }
}

/// [`Result`], and nothing else: a trait only so that the compiler can say what is missing.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `Result`",
    label = "expected a `Result`",
    note = "`circuit_breaker` and `with_retry` tell success from failure by the `Result` a function returns"
)]
pub trait IsResult: Sized {
    /// What a success holds.
    type Value;
    /// What a failure holds.
    type Error;

    /// The result.
    ///
    /// # Errors
    ///
    /// Its own.
    fn into_result(self) -> Result<Self::Value, Self::Error>;

    /// What [`into_result`](Self::into_result) undoes.
    fn from_result(result: Result<Self::Value, Self::Error>) -> Self;

    /// The error, if it is one.
    fn error(&self) -> Option<&Self::Error>;
}

impl<T, E> IsResult for Result<T, E> {
    type Value = T;
    type Error = E;

    fn into_result(self) -> Self {
        self
    }

    fn from_result(result: Self) -> Self {
        result
    }

    fn error(&self) -> Option<&E> {
        self.as_ref().err()
    }
}
