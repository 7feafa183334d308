//! One call's attempts: made, judged, and made again.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use super::limit::Limit;
use super::record::Record;
use super::{Attempt, Guard, Layers};
use crate::deadline::{Within, later};
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

/// How a call, or one attempt of it, ended without a value. Boxed, so that a value on its way out
/// does not carry the room of an error through every layer.
pub(super) type Ended<E> = Box<End<E>>;

pub(super) struct End<E> {
    pub(super) error: CallError<E>,
    /// What became of the attempt itself.
    attempt: Fate,
}

#[derive(Clone, Copy)]
enum Fate {
    /// It was not made: an earlier error tells more.
    NotMade,
    /// The call's own deadline cut it off: an earlier error tells more, but not of whether it was executed.
    CutOff,
    /// It ended by itself, and this is what its end means; and what a pipeline within it that
    /// retries said last.
    Ended(Verdict, Option<Inner>),
}

/// Of the ends of two attempts of one call, the one that tells the caller more.
fn telling<E>(earlier: Option<Ended<E>>, last: Ended<E>) -> Ended<E> {
    let made_up = |ended: &Ended<E>| matches!(ended.error, CallError::Injected(_));
    match earlier {
        Some(earlier) => match last.attempt {
            Fate::NotMade => earlier,
            // A fault that was made up says that nothing was executed; what was cut off may have been.
            Fate::CutOff if !made_up(&earlier) => earlier,
            Fate::Ended(..) if made_up(&last) => earlier,
            Fate::CutOff | Fate::Ended(..) => last,
        },
        None => last,
    }
}

#[cold]
pub(super) fn refused<E>(error: impl Into<CallError<E>>) -> Ended<E> {
    Box::new(End { error: error.into(), attempt: Fate::NotMade })
}

#[cold]
fn failed<E>(error: CallError<E>, verdict: Verdict, inner: Option<Inner>) -> Ended<E> {
    Box::new(End { error, attempt: Fate::Ended(verdict, inner) })
}

/// What a call's end means for another of the same call that is in flight.
pub(super) fn standing<T, E>(result: &Result<T, Ended<E>>, idempotent: bool) -> Standing {
    match result.as_ref().map_err(|ended| ended.attempt) {
        Ok(_) => Standing::Decides,
        Err(Fate::NotMade | Fate::CutOff) => Standing::Refused,
        Err(Fate::Ended(verdict, _)) if verdict.may_repeat(idempotent) => Standing::Failed,
        Err(Fate::Ended(..)) => Standing::Decides,
    }
}

impl Layers {
    /// Attempts until one succeeds, or none may follow; the first begins `now`.
    pub(super) async fn attempts<T, E, Fut>(
        &self,
        mut now: Instant,
        classifier: &impl Classify<E>,
        operation: &mut impl FnMut(Attempt) -> Fut,
        record: &Record<'_>,
    ) -> Result<T, Ended<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        let mut retries = None;
        let mut last: Option<Ended<E>> = None;
        loop {
            let ended = match self.attempt(&now, classifier, operation, record).await {
                Ok(value) => return Ok(value),
                Err(ended) => ended,
            };
            let end = ended.attempt;
            let ended = telling(last.take(), ended);
            let Fate::Ended(verdict, inner) = end else {
                return Err(ended);
            };
            if matches!(verdict.replay, Replay::Safe | Replay::Transaction) {
                record.was_not_executed();
            }
            // Waiting for an open circuit would only end in its refusal.
            let may_repeat = verdict.may_repeat(record.idempotent)
                && !self.guard.as_ref().is_some_and(Guard::is_open)
                && inner != Some(Inner::GaveUp);
            let retries = retries.get_or_insert_with(|| self.retry.retries(&self.name));
            retries.budgeted = verdict.blame != Blame::Local;
            match retries.next(may_repeat, verdict.retry_after, Some(record.deadline)) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(ended),
            }
            last = Some(ended);
            now = Instant::now();
        }
    }

    async fn attempt<T, E, Fut>(
        &self,
        now: &Instant,
        classifier: &impl Classify<E>,
        operation: &mut impl FnMut(Attempt) -> Fut,
        record: &Record<'_>,
    ) -> Result<T, Ended<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        in_time(*now, record)?;
        let permit = match &self.guard {
            Some(guard) => Some(guard.admit()?),
            None => None,
        };
        let mut running = Running { permit, record };
        let (asked, mut now) = (now, *now);
        let mut place = self.limit.as_ref().and_then(Limit::try_acquire);
        if place.is_none()
            && let Some(limit) = &self.limit
        {
            place = Some(limit.acquire(record.deadline).await.map_err(refused)?);
            now = Instant::now();
            in_time(now, record)?;
            if let Some(GuardPermit::Breaker(lent)) = &mut running.permit {
                lent.restart(now).map_err(refused)?;
            }
        }
        let setting = self.timeout.current();
        let until = Deadline::at(later(now, setting)).min(record.deadline);
        let attempt = Attempt { number: record.next_attempt(), deadline: until };
        if attempt.number == 1 {
            self.deposit();
        }
        let limit = || until.remaining_at(now);
        tracing::debug!(target: "shared_external::pipeline", name = %self.name, operation = record.operation, attempt = attempt.number, limit = ?limit(), "attempt");
        let mut work = pin!(Some(Limited::new(
            Watched::new(
                Some(&mut running),
                nesting::listen(Within::new(until, async {
                    #[cfg(feature = "chaos")]
                    if let Some(chaos) = &self.chaos {
                        chaos.strike().await.map_err(Struck::Injected)?;
                        if until.has_passed(Instant::now()) {
                            // A delay that ended late is no leave to begin: it is cut off.
                            std::future::pending::<()>().await;
                        }
                    }
                    operation(attempt).await.map_err(Struck::Inner)
                })),
            ),
            until.instant(),
        )));
        let ended = work.as_mut().as_pin_mut().expect("it was made just now").await;
        let leave = |load| {
            if let Some(place) = place {
                place.settle(load, now);
            }
        };
        match ended {
            Some((running, (Ok(value), inner))) => {
                settle(running, Outcome::Success);
                work.set(None);
                leave(Outcome::Success);
                self.hear(inner);
                if self.timeout.is_learned() {
                    self.timeout.record(now.elapsed());
                }
                Ok(value)
            }
            Some((running, (Err(Struck::Inner(error)), inner))) => {
                let mut verdict = classifier.verdict(&error);
                if verdict.blame == Blame::Service {
                    let ended = Instant::now();
                    let (took, limit) = (ended - now, until.remaining_at(now));
                    // The operation may have had a time limit of its own, within that of the attempt.
                    let gave_up = limit < TOO_SHORT_TO_JUDGE && took > limit / 2;
                    if gave_up || !heartbeat::was_fair(now, ended, took) {
                        verdict.blame = Blame::Local;
                    }
                }
                settle(running, verdict.blame.outcome());
                work.set(None);
                // Of errors, only one that asks for time speaks of load.
                let asks_for_time =
                    verdict.blame == Blame::Service && verdict.retry_after.is_some();
                leave(if asks_for_time { Outcome::Failure } else { Outcome::Excluded });
                self.hear(inner);
                // How much the call as a whole has cost is told at its end.
                let failed_once =
                    Failed { error, verdict, attempts: attempt.number, elapsed: None };
                let error = CallError::Inner(failed_once);
                Err(failed(error, verdict, inner))
            }
            #[cfg(feature = "chaos")]
            Some((running, (Err(Struck::Injected(injected)), _))) => {
                settle(running, Outcome::Failure);
                work.set(None);
                leave(Outcome::Excluded);
                let verdict = injected.verdict();
                Err(failed(injected.into(), verdict, None))
            }
            None => {
                let (ended, limit) = (Instant::now(), limit());
                // Nor is it the service's fault if our own queue took a good part of the time it
                // needed, or if this process stood still.
                // The first has waited for the rate limit too.
                let asked = if attempt.number == 1 { record.started } else { *asked };
                let waited = now - asked;
                let starved = limit < setting && waited > (waited + limit) / 4;
                let stood_still = !heartbeat::was_fair(now, ended, limit);
                let outcome = match limit < TOO_SHORT_TO_JUDGE || starved {
                    _ if stood_still => Outcome::Excluded,
                    true => Outcome::Cancelled,
                    false => Outcome::Failure,
                };
                // Settled before the attempt is dropped: its drop must not count as the caller's.
                let attempt = work.as_mut().as_pin_mut().expect("it was cut off, not dropped");
                settle(attempt.future().take_permit(), outcome);
                // And dropped before its place goes to another: the two must not be there at once.
                work.set(None);
                leave(outcome);
                if !stood_still {
                    self.timeout.record_timeout(limit);
                }
                let blame = if stood_still { Blame::Local } else { Blame::Service };
                if record.deadline.has_passed(ended) {
                    let error = record.deadline_exceeded(blame).into();
                    return Err(Box::new(End { error, attempt: Fate::CutOff }));
                }
                let (name, attempts) = (self.name.clone(), record.attempts());
                let timeout = AttemptTimeout { name, attempts, limit, blame };
                let verdict = Verdict { blame, ..Verdict::service(Replay::IfIdempotent) };
                Err(failed(timeout.into(), verdict, None))
            }
        }
    }

    /// Reports, once, that a pipeline that retries ran inside this one, if it retries too.
    #[inline]
    fn hear(&self, inner: Option<Inner>) {
        if inner.is_some() && self.retry.max_retries() > 0 {
            self.nested.get_or_init(|| Unwise::NestedRetries.report(&self.name));
        }
    }
}

/// Refuses what would begin past the call's deadline.
#[inline]
fn in_time<E>(now: Instant, record: &Record<'_>) -> Result<(), Ended<E>> {
    if !record.deadline.has_passed(now) {
        return Ok(());
    }
    // Time that no attempt had any of was spent by the caller, or in our own queues.
    let blame = if record.attempts() == 0 { Blame::Local } else { Blame::Service };
    Err(refused(record.deadline_exceeded(blame)))
}

/// What an attempt met with.
enum Struck<E> {
    #[cfg(feature = "chaos")]
    Injected(crate::Injected),
    Inner(E),
}

impl Guard {
    #[inline]
    fn admit<E>(&self) -> Result<GuardPermit<'_>, Ended<E>> {
        match self {
            Self::Breaker(breaker) => match breaker.lend() {
                Ok(lent) => Ok(GuardPermit::Breaker(lent)),
                Err(open) => Err(refused(open)),
            },
            Self::Throttle(throttle) => match throttle.try_acquire() {
                Ok(permit) => Ok(GuardPermit::Throttle(permit)),
                Err(throttled) => Err(refused(throttled)),
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

/// An attempt that runs: the leave it has, and the call that it is of.
struct Running<'a> {
    permit: Option<GuardPermit<'a>>,
    record: &'a Record<'a>,
}

/// Settled where it is: what moves from one future to the next costs more than the circuit.
impl Settle for &mut Running<'_> {
    #[inline]
    fn settle(self, outcome: Outcome) {
        if let Some(GuardPermit::Breaker(lent)) = &mut self.permit {
            lent.outcome = outcome;
            self.permit = None;
        } else if let Some(GuardPermit::Throttle(permit)) = self.permit.take() {
            permit.settle(outcome);
        }
    }

    fn panicked(self) {
        self.record.panicked();
        self.settle(Outcome::Failure);
    }
}

#[inline]
fn settle(running: Option<&mut Running<'_>>, outcome: Outcome) {
    if let Some(running) = running {
        running.settle(outcome);
    }
}
