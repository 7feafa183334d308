//! A value that is renewed while it is used: the new one is checked before it takes the old one's place.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::{Instant, timeout_at};

use super::CredentialError;
use super::caught::{Caught, Panicked};
use crate::{Backoff, Deadline, Name, Polling};

/// The first and the longest wait after a refusal that nothing new could be had for. 100 ms and 10 s, spread:
/// whoever gives out credentials hears from a process that is refused, not from each of its calls.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The current good value of something that changes elsewhere, such as [`Credentials`](super::Credentials)
/// or certificates.
///
/// Reading it takes no lock. A new value takes the place of the old one only after a check; where it cannot
/// be had or does not pass, the old one stays, with one WARN until that is over. The first value is taken as
/// it is: there is nothing better to keep.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::{Credentials, Deadline, Rotating};
///
/// let login = Rotating::new("payments");
/// let by = Deadline::within(Duration::from_secs(5));
/// let first = login.refresh(by, async { Ok(Credentials::token("old")) }, |_| async { Ok(()) }).await?;
///
/// let refused = |_| async { Err("password authentication failed".into()) };
/// assert!(login.refresh(by, async { Ok(Credentials::token("wrong")) }, refused).await.is_err());
/// assert!(login.is_current(&first));
/// # Ok(()) }
/// ```
pub struct Rotating<T> {
    name: Name,
    current: ArcSwapOption<Version<T>>,
    /// Held by the one refresh that is under way; what the last one brought, and its number.
    flight: tokio::sync::Mutex<Option<(u64, Landed<T>)>>,
    takeoffs: AtomicU64,
    landings: AtomicU64,
    pace: Mutex<Pace>,
    is_failing: AtomicBool,
    rotations: AtomicU64,
    failures: AtomicU64,
}

/// A value, and which in the row of values it is.
#[derive(Debug)]
#[non_exhaustive]
pub struct Version<T> {
    /// The value.
    pub value: T,
    /// Rises by one with each value; 1 for the first.
    pub generation: u64,
}

/// What became of the attempts to renew a value.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct RotationCounts {
    /// New values that took the place of an old one.
    pub rotations: u64,
    /// Times that there was no new value, or that it did not pass its check.
    pub failures: u64,
}

/// Why there is no new value. Where there was an old one, that is still good.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// Whoever gives it out had none.
    #[error("no new value: {0}")]
    Unavailable(Arc<dyn std::error::Error + Send + Sync>),
    /// The service did not take it, or could not be asked.
    #[error("the new value did not pass its check: {0}")]
    Refused(Arc<dyn std::error::Error + Send + Sync>),
    /// It was not there and checked by the deadline.
    #[error("no new value was there and checked within {elapsed:?}")]
    TimedOut {
        /// Time from first to last.
        elapsed: Duration,
    },
    /// Whoever gives it out, or the check, panicked.
    #[error("getting or checking a new value panicked")]
    Panicked,
}

type Landed<T> = Result<Arc<Version<T>>, RotationError>;

/// When a refused value may be asked about again.
struct Pace {
    waits: Polling,
    not_before: Option<Instant>,
}

impl<T: PartialEq> Rotating<T> {
    /// Nothing yet. `name` is for logs.
    pub fn new(name: impl Into<Name>) -> Self {
        Self::with(name.into(), None)
    }

    /// `value` for now. `name` is for logs.
    pub fn holding(name: impl Into<Name>, value: T) -> Self {
        Self::with(name.into(), Some(Arc::new(Version { value, generation: 1 })))
    }

    /// The current value, if there is one.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Version<T>>> {
        self.current.load_full()
    }

    /// Whether `version` is the current one.
    #[must_use]
    pub fn is_current(&self, version: &Version<T>) -> bool {
        self.generation() == version.generation
    }

    /// How many values were renewed, how often that failed.
    #[must_use]
    pub fn counts(&self) -> RotationCounts {
        RotationCounts {
            rotations: self.rotations.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Gets a value by `fetch`, passes it by `check` if it is another than the current one, and puts it in
    /// the place of that; returns what is current then. Who asks while this is under way waits for it and
    /// shares what it brings.
    ///
    /// # Errors
    ///
    /// [`RotationError`]: what was current still is.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing; of those who wait for it, the next begins anew.
    pub async fn refresh<C, Fut>(
        &self,
        deadline: Deadline,
        fetch: impl Future<Output = Result<T, CredentialError>>,
        check: C,
    ) -> Result<Arc<Version<T>>, RotationError>
    where
        C: FnOnce(Arc<Version<T>>) -> Fut,
        Fut: Future<Output = Result<(), CredentialError>>,
    {
        self.fly(None, deadline, fetch, check).await
    }

    /// What to try in place of `refused`, which the service has just refused: what has become current since,
    /// or what [`refresh`](Self::refresh) brings; `None` where that is nothing else. After such a `None`
    /// nobody is asked for 100 ms at first and for 10 s at the most, so that calls that are refused one after
    /// the other do not become as many questions to whoever gives out the value.
    ///
    /// # Cancel safety
    ///
    /// That of [`refresh`](Self::refresh).
    pub async fn renew<C, Fut>(
        &self,
        refused: &Version<T>,
        deadline: Deadline,
        fetch: impl Future<Output = Result<T, CredentialError>>,
        check: C,
    ) -> Option<Arc<Version<T>>>
    where
        C: FnOnce(Arc<Version<T>>) -> Fut,
        Fut: Future<Output = Result<(), CredentialError>>,
    {
        let newer = |version: &Arc<Version<T>>| version.generation > refused.generation;
        if let Some(current) = self.current().filter(newer) {
            return Some(current);
        }
        if self.is_paused(Instant::now()) {
            return None;
        }
        let landed = self.fly(Some(refused.generation), deadline, fetch, check).await;
        let renewed = landed.ok().filter(newer);
        self.settle_pace(renewed.is_some(), Instant::now());
        renewed
    }

    fn with(name: Name, first: Option<Arc<Version<T>>>) -> Self {
        let waits = Backoff::exponential(FIRST_PAUSE, LONGEST_PAUSE, 2.0).jittered();
        Self {
            name,
            current: ArcSwapOption::new(first),
            flight: tokio::sync::Mutex::new(None),
            takeoffs: AtomicU64::new(0),
            landings: AtomicU64::new(0),
            pace: Mutex::new(Pace { waits: Polling::new(waits), not_before: None }),
            is_failing: AtomicBool::new(false),
            rotations: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    fn generation(&self) -> u64 {
        self.current.load().as_ref().map_or(0, |version| version.generation)
    }

    /// Renews, or shares what the one under way brings. Whoever was `refused` may know better than one that
    /// took off before: of that it shares only what is newer than what was refused.
    async fn fly<C, Fut>(
        &self,
        refused: Option<u64>,
        deadline: Deadline,
        fetch: impl Future<Output = Result<T, CredentialError>>,
        check: C,
    ) -> Landed<T>
    where
        C: FnOnce(Arc<Version<T>>) -> Fut,
        Fut: Future<Output = Result<(), CredentialError>>,
    {
        let (started, deadline) = (Instant::now(), deadline.inherited());
        let too_late = || RotationError::TimedOut { elapsed: started.elapsed() };
        let landings = self.landings.load(Ordering::Acquire);
        let takeoffs = self.takeoffs.load(Ordering::Acquire);
        let locked = timeout_at(deadline.instant(), self.flight.lock()).await;
        let mut flight = locked.map_err(|_| too_late())?;
        if self.landings.load(Ordering::Acquire) != landings
            && let Some((takeoff, landed)) = &*flight
        {
            let is_newer = |refused| landed.as_ref().is_ok_and(|it| it.generation > refused);
            if *takeoff > takeoffs || refused.is_none_or(is_newer) {
                return landed.clone();
            }
        }
        let takeoff = self.takeoffs.fetch_add(1, Ordering::AcqRel) + 1;
        let candidate = Caught { future: self.candidate(fetch, check) };
        let landed = match timeout_at(deadline.instant(), deadline.scope(candidate)).await {
            Ok(Ok(Ok(candidate))) => Ok(self.adopt(candidate)),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(Panicked)) => Err(RotationError::Panicked),
            Err(_) => Err(too_late()),
        };
        // The others may have more time: a lack of it is the leader's own.
        if !matches!(landed, Err(RotationError::TimedOut { .. })) {
            *flight = Some((takeoff, landed.clone()));
            self.landings.fetch_add(1, Ordering::Release);
        }
        drop(flight);
        self.tell(landed.as_ref().err());
        landed
    }

    /// A version that may become current, or is.
    async fn candidate<C, Fut>(
        &self,
        fetch: impl Future<Output = Result<T, CredentialError>>,
        check: C,
    ) -> Landed<T>
    where
        C: FnOnce(Arc<Version<T>>) -> Fut,
        Fut: Future<Output = Result<(), CredentialError>>,
    {
        let value = fetch.await.map_err(|error| RotationError::Unavailable(error.into()))?;
        let Some(current) = self.current() else {
            return Ok(Arc::new(Version { value, generation: 1 }));
        };
        if value == current.value {
            return Ok(current);
        }
        let candidate = Arc::new(Version { value, generation: current.generation + 1 });
        match check(Arc::clone(&candidate)).await {
            Ok(()) => Ok(candidate),
            Err(error) => Err(RotationError::Refused(error.into())),
        }
    }

    fn adopt(&self, candidate: Arc<Version<T>>) -> Arc<Version<T>> {
        let before = self.generation();
        if candidate.generation > before {
            self.current.store(Some(Arc::clone(&candidate)));
        }
        if before > 0 && candidate.generation > before {
            self.rotations.fetch_add(1, Ordering::Relaxed);
            tracing::info!(target: "shared_external::credentials", name = %self.name, generation = candidate.generation, "a new value has passed its check and is used from now on");
        }
        candidate
    }

    fn tell(&self, error: Option<&RotationError>) {
        let Some(error) = error else {
            if self.is_failing.swap(false, Ordering::Relaxed) {
                tracing::info!(target: "shared_external::credentials", name = %self.name, "values can be renewed again");
            }
            return;
        };
        self.failures.fetch_add(1, Ordering::Relaxed);
        match self.is_failing.swap(true, Ordering::Relaxed) {
            false => {
                tracing::warn!(target: "shared_external::credentials", name = %self.name, %error, "the last good value stays in use");
            }
            true => {
                tracing::debug!(target: "shared_external::credentials", name = %self.name, %error, "still no new value");
            }
        }
    }

    fn is_paused(&self, now: Instant) -> bool {
        let pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.not_before.is_some_and(|not_before| now < not_before)
    }

    fn settle_pace(&self, renewed: bool, now: Instant) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed {
            pace.waits.succeeded();
            pace.not_before = None;
        } else if pace.not_before.is_none_or(|not_before| not_before <= now) {
            // Of those who shared one answer, the first sets the pause.
            let wait = pace.waits.wait(Some(FIRST_PAUSE));
            pace.not_before = Some(now + wait);
        }
    }
}

/// Not the value.
impl<T> fmt::Debug for Rotating<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotating")
            .field("name", &self.name)
            .field("rotations", &self.rotations)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}
