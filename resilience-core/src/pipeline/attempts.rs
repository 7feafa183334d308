//! One call's attempts: made, judged, and made again.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::record::Record;
use super::{Attempt, Guard, Layers};
use crate::deadline::later;
use crate::hedge::Standing;
use crate::limited::Limited;
use crate::nesting::{self, Inner};
use crate::permit::{Lent, Settle, Watched};
use crate::{
    AttemptTimeout, Blame, CallError, Classify, Deadline, Failed, Outcome, Replay, ThrottlePermit,
    Unwise, Verdict, heartbeat,
};

/// An attempt that had less time than this says nothing about the service when it runs out of it.
const TOO_SHORT_TO_JUDGE: Duration = Duration::from_millis(10);

/// How a call, or one attempt of it, ended without a value.
pub(super) enum Ended<E> {
    /// It was not made, or was cut off by the call's own deadline: an earlier error tells more.
    Refused(CallError<E>),
    /// It was made and failed.
    Failed(CallError<E>, Verdict),
}

impl<E> Ended<E> {
    pub(super) fn into_error(self) -> CallError<E> {
        match self {
            Self::Refused(error) | Self::Failed(error, _) => error,
        }
    }
}

/// What a call's end means for another of the same call that is in flight.
pub(super) fn standing<T, E>(result: &Result<T, Ended<E>>, idempotent: bool) -> Standing {
    match result {
        Ok(_) => Standing::Decides,
        Err(Ended::Refused(_)) => Standing::Refused,
        Err(Ended::Failed(_, verdict)) if verdict.may_repeat(idempotent) => Standing::Failed,
        Err(Ended::Failed(..)) => Standing::Decides,
    }
}

impl Layers {
    /// Attempts until one succeeds, or none may follow.
    pub(super) async fn attempts<T, E, Fut>(
        &self,
        idempotent: bool,
        deadline: Deadline,
        classifier: &impl Classify<E>,
        operation: &mut impl FnMut(Attempt) -> Fut,
        record: &Record<'_>,
    ) -> Result<T, Ended<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        let mut retries = self.retry.retries(&self.name);
        let mut last = None;
        // The first begins with the call: it needs no look at the clock of its own.
        let mut now = record.started;
        loop {
            let attempt = self.attempt(now, deadline, classifier, operation, record);
            let mut attempt = pin!(nesting::listen(attempt));
            let ended = attempt.as_mut().await;
            let (error, verdict) = match ended {
                Ok(value) => return Ok(value),
                Err(Ended::Refused(error)) => return Err(last.unwrap_or(Ended::Refused(error))),
                Err(Ended::Failed(error, verdict)) => (error, verdict),
            };
            let inner = nesting::heard(attempt);
            if inner.is_some() && self.retry.max_retries() > 0 {
                self.nested.get_or_init(|| Unwise::NestedRetries.report(&self.name));
            }
            // Waiting for an open circuit would only end in its refusal.
            let may_repeat = verdict.may_repeat(idempotent)
                && !self.guard.as_ref().is_some_and(Guard::is_open)
                && inner != Some(Inner::GaveUp);
            retries.budgeted = verdict.blame != Blame::Local;
            match retries.next(may_repeat, verdict.retry_after, Some(deadline)) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(Ended::Failed(error, verdict)),
            }
            last = Some(Ended::Failed(error, verdict));
            now = Instant::now();
        }
    }

    async fn attempt<T, E, Fut>(
        &self,
        mut now: Instant,
        deadline: Deadline,
        classifier: &impl Classify<E>,
        operation: &mut impl FnMut(Attempt) -> Fut,
        record: &Record<'_>,
    ) -> Result<T, Ended<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        self.in_time(now, deadline, record)?;
        let permit = self.guard.as_ref().map(Guard::admit).transpose()?;
        let asked = now;
        let _place = match &self.bulkhead {
            None => None,
            Some(bulkhead) => Some(match bulkhead.try_acquire() {
                Some(place) => place,
                None => {
                    let place = bulkhead.acquire(deadline).await;
                    now = Instant::now();
                    place.map_err(|full| Ended::Refused(full.into()))?
                }
            }),
        };
        self.in_time(now, deadline, record)?;
        let waited = now - asked;
        let setting = self.timeout.current();
        let until = Deadline::at(later(now, setting)).min(deadline);
        let attempt = Attempt { number: record.next_attempt(), deadline: until };
        let limit = until.remaining_at(now);
        tracing::debug!(target: "shared_external::pipeline", name = %self.name, operation = record.operation, attempt = attempt.number, ?limit, "attempt");
        let work = async {
            #[cfg(feature = "chaos")]
            if let Some(chaos) = &self.chaos {
                chaos.strike().await.map_err(Struck::Injected)?;
            }
            operation(attempt).await.map_err(Struck::Inner)
        };
        let work = Limited::new(Watched::new(permit, until.scope(work)), until.instant());
        let mut work = pin!(work);
        match work.as_mut().await {
            Some((permit, Ok(value))) => {
                settle(permit, Outcome::Success);
                if self.timeout.is_learned() {
                    self.timeout.record(now.elapsed());
                }
                Ok(value)
            }
            Some((permit, Err(Struck::Inner(error)))) => {
                let mut verdict = classifier.verdict(&error);
                if verdict.blame == Blame::Service {
                    let ended = Instant::now();
                    if !heartbeat::was_fair(now, ended, ended - now) {
                        verdict.blame = Blame::Local;
                    }
                }
                settle(permit, verdict.blame.outcome());
                let (attempts, elapsed) = (record.attempts(), Some(record.started.elapsed()));
                let failed = Failed { error, verdict, attempts, elapsed };
                Err(Ended::Failed(CallError::Inner(failed), verdict))
            }
            #[cfg(feature = "chaos")]
            Some((permit, Err(Struck::Injected(injected)))) => {
                settle(permit, Outcome::Failure);
                let verdict = injected.verdict();
                Err(Ended::Failed(injected.into(), verdict))
            }
            None => {
                let ended = Instant::now();
                // Nor is it the service's fault if our own queue took a good part of the time it
                // needed, or if this process stood still.
                let starved = limit < setting && waited > (waited + limit) / 4;
                let stood_still = !heartbeat::was_fair(now, ended, limit);
                let outcome = match limit < TOO_SHORT_TO_JUDGE || starved {
                    _ if stood_still => Outcome::Excluded,
                    true => Outcome::Cancelled,
                    false => Outcome::Failure,
                };
                // Settled before the attempt is dropped: its drop must not count as the caller's.
                settle(work.as_mut().future().take_permit(), outcome);
                if !stood_still {
                    self.timeout.record_timeout(limit);
                }
                let blame = if stood_still { Blame::Local } else { Blame::Service };
                if deadline.has_passed(ended) {
                    return Err(Ended::Refused(record.deadline_exceeded(blame).into()));
                }
                let (name, attempts) = (Arc::clone(&self.name), record.attempts());
                let timeout = AttemptTimeout { name, attempts, limit, blame };
                let verdict = Verdict { blame, ..Verdict::service(Replay::IfIdempotent) };
                Err(Ended::Failed(timeout.into(), verdict))
            }
        }
    }

    fn in_time<E>(
        &self,
        now: Instant,
        deadline: Deadline,
        record: &Record<'_>,
    ) -> Result<(), Ended<E>> {
        match deadline.has_passed(now) {
            true => Err(Ended::Refused(record.deadline_exceeded(Blame::Service).into())),
            false => Ok(()),
        }
    }
}

/// What an attempt met with.
enum Struck<E> {
    #[cfg(feature = "chaos")]
    Injected(crate::Injected),
    Inner(E),
}

impl Guard {
    fn admit<E>(&self) -> Result<GuardPermit<'_>, Ended<E>> {
        match self {
            Self::Breaker(breaker) => match breaker.lend() {
                Ok(lent) => Ok(GuardPermit::Breaker(lent)),
                Err(open) => Err(Ended::Refused(open.into())),
            },
            Self::Throttle(throttle) => match throttle.try_acquire() {
                Ok(permit) => Ok(GuardPermit::Throttle(permit)),
                Err(throttled) => Err(Ended::Refused(throttled.into())),
            },
        }
    }

    fn is_open(&self) -> bool {
        match self {
            Self::Breaker(breaker) => breaker.state().is_open(),
            Self::Throttle(_) => false,
        }
    }
}

/// Leave to make one attempt.
enum GuardPermit<'a> {
    Breaker(Lent<'a>),
    Throttle(ThrottlePermit<'a>),
}

impl Settle for GuardPermit<'_> {
    fn settle(self, outcome: Outcome) {
        match self {
            Self::Breaker(lent) => lent.settle(outcome),
            Self::Throttle(permit) => permit.settle(outcome),
        }
    }
}

fn settle(permit: Option<GuardPermit<'_>>, outcome: Outcome) {
    if let Some(permit) = permit {
        permit.settle(outcome);
    }
}
