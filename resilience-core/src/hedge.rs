//! Ask again while the first answer is late, and take whichever comes first: a cure for the slow few
//! of a service that is quick on the whole (Dean and Barroso, *The Tail at Scale*, CACM 2013).
//!
//! One of several attempts in flight that fails is dropped, and the others are waited for: the first
//! that decides the call wins, and those still in flight are dropped with it. If none does, the last
//! real error comes back. No attempt is started because another failed: that is the retry's affair,
//! which stands inside, so that each attempt here has its own retries.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::deadline::{FAR, later};
use crate::heartbeat::held_up;
use crate::latency::RecentLatency;
use crate::observe::{Event, emit};
use crate::{Deadline, InvalidSetting, Name, RetryBudget};

/// Samples before a learned delay is known.
const MIN_SAMPLES: u32 = 100;

/// When a call is sent once more while its answer is late. Cheap to clone: clones learn and count together.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::Hedge;
/// use tokio::time::{Instant, sleep};
///
/// let hedge = Hedge::builder().delay(Duration::from_millis(50)).build()?;
/// let started = Instant::now();
/// let answer = hedge
///     .run(|number| async move {
///         sleep(Duration::from_millis(if number == 0 { 1000 } else { 10 })).await;
///         Ok::<_, std::io::Error>(number)
///     })
///     .await?;
/// assert_eq!((answer, started.elapsed().as_millis()), (1, 60));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Hedge {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: Name,
    delay: Delay,
    max_hedges: u32,
    budget: RetryBudget,
    counts: Counts,
}

#[derive(Debug)]
enum Delay {
    Fixed(Duration),
    Learned(Box<RecentLatency>),
}

impl Hedge {
    /// A hedge after the 95th percentile of recent latency, within a budget of 10 % of the calls and 10.
    pub fn builder() -> HedgeBuilder {
        HedgeBuilder {
            name: Name::from("hedge"),
            delay: DelaySetting::Quantile(0.95),
            max_hedges: 1,
            budget: RetryBudget::default(),
        }
    }

    /// How long an answer may take before a hedge is started; `None` while too little is known of
    /// recent latency: then there are no hedges.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        match &self.shared.delay {
            Delay::Fixed(delay) => Some(*delay),
            Delay::Learned(latency) => latency.current(),
        }
    }

    /// What pays for the hedges.
    #[must_use]
    pub fn budget(&self) -> &RetryBudget {
        &self.shared.budget
    }

    /// The name under which logs speak of it outside a pipeline.
    #[cfg(feature = "tower")]
    pub(crate) fn name(&self) -> &Name {
        &self.shared.name
    }

    /// What became of its hedges.
    #[must_use]
    pub fn counts(&self) -> HedgeCounts {
        let Counts { started, won, refused } = &self.shared.counts;
        HedgeCounts {
            started: started.load(Ordering::Relaxed),
            won: won.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
        }
    }

    /// Runs `operation`, and once more for each delay that goes by without an answer, as far as
    /// budget and `max_hedges` allow; the first success wins. Each run is given its number, from 0.
    /// No hedge starts past the surrounding [`Deadline`], if there is one, nor because this process
    /// was held up: the answer is then given its delay once more.
    ///
    /// Calling this is the caller's word that the operation is idempotent: it may be executed several
    /// times at once. Each call deposits in the budget; what `operation` runs should not do so again.
    ///
    /// # Errors
    ///
    /// The operation's own error: at once if it fails before the delay, and the last one if all that
    /// were in flight have failed.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as the operation: dropping the future drops whatever is in flight.
    ///
    /// # Panics
    ///
    /// If the operation does: the panic passes through, and drops whatever else is in flight. Also outside a tokio
    /// runtime with timers, unless the answer is ready at once.
    pub async fn run<T, E, Fut>(&self, operation: impl FnMut(u32) -> Fut) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        self.shared.budget.deposit();
        let standing = |result: &Result<T, E>| match result {
            Ok(_) => Standing::Decides,
            Err(_) => Standing::Failed,
        };
        self.race(&self.shared.name, Deadline::current(), operation, standing).await
    }

    /// [`run`](Self::run) under the name and deadline of whoever makes the call, which also deposits
    /// in the budget; `standing` says what the end of an attempt means for the others.
    ///
    /// It allocates nothing, and arms no timer for what is ready at once, unless a hedge is started.
    pub(crate) async fn race<O, Fut>(
        &self,
        name: &Name,
        deadline: Option<Deadline>,
        mut operation: impl FnMut(u32) -> Fut,
        standing: impl Fn(&O) -> Standing,
    ) -> O
    where
        Fut: Future<Output = O>,
    {
        let Shared { delay: learned, max_hedges, budget, counts, .. } = &*self.shared;
        let delay = self.delay();
        let mut left = if delay.is_some() { *max_hedges } else { 0 };
        let delay = delay.unwrap_or_default();
        let mut race =
            Race { sample: Sample::begin(learned), hedges: Vec::new(), last: None, standing };
        let mut first = pin!(Some(operation(0)));
        let mut due = pin!(None);
        let mut started = 0;
        loop {
            let turn = poll_fn(|cx| {
                if let Poll::Ready(end) = race.poll(first.as_mut(), cx) {
                    return Poll::Ready(Some(end));
                }
                if left == 0 {
                    return Poll::Pending;
                }
                if due.is_none() {
                    let since = race.sample.started().unwrap_or_else(Instant::now);
                    due.set(Some(sleep_until(later(since, delay))));
                }
                let due = due.as_mut().as_pin_mut().expect("it was set just now");
                due.poll(cx).map(|()| None)
            });
            if let Some(End { output, by_hedge }) = turn.await {
                if by_hedge {
                    counts.won.fetch_add(1, Ordering::Relaxed);
                    emit(&Event::HedgeWon { name });
                }
                return output;
            }
            let now = Instant::now();
            if due.as_ref().as_pin_ref().is_some_and(|due| held_up(now - due.deadline(), delay)) {
                race.sample.forget();
                due.set(Some(sleep_until(later(now, delay))));
                continue;
            }
            race.sample.is_late();
            if deadline.is_some_and(|deadline| deadline.has_passed(now)) {
                left = 0;
                continue;
            }
            left -= 1;
            due.set((left > 0).then(|| sleep_until(later(now, delay))));
            if budget.try_withdraw() {
                started += 1;
                counts.started.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(target: "shared_external::hedge", %name, number = started, ?delay, "answer is late; asking once more");
                emit(&Event::HedgeStarted { name });
                race.hedges.push(Box::pin(operation(started)));
            } else {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(target: "shared_external::hedge", %name, ?delay, "answer is late; budget exhausted");
                emit(&Event::HedgeRefused { name });
            }
        }
    }
}

/// Settings of a [`Hedge`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct HedgeBuilder {
    name: Name,
    delay: DelaySetting,
    max_hedges: u32,
    budget: RetryBudget,
}

#[derive(Clone, Copy, Debug)]
enum DelaySetting {
    Fixed(Duration),
    Quantile(f64),
}

impl HedgeBuilder {
    /// The name under which events and logs speak of it; default `hedge`. Within a pipeline, the pipeline's counts.
    pub fn name(self, name: impl Into<Name>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// A fixed time after which an answer is late, in place of a [`quantile`](Self::quantile). Above
    /// 0, up to thirty years.
    pub fn delay(self, delay: Duration) -> Self {
        Self { delay: DelaySetting::Fixed(delay), ..self }
    }

    /// The quantile of the latency of the last 1,024 calls after which an answer is late, once 100 of
    /// them are known. Above 0, below 1; default 0.95, which hedges one call in twenty.
    pub fn quantile(self, quantile: f64) -> Self {
        Self { delay: DelaySetting::Quantile(quantile), ..self }
    }

    /// Hedges of one call, each a delay after the one before. 1 to 4, as in gRPC; default 1.
    pub fn max_hedges(self, hedges: u32) -> Self {
        Self { max_hedges: hedges, ..self }
    }

    /// What pays for the hedges, best the one that pays for the retries too; default: one of its own
    /// of 10 % of the calls and 10.
    pub fn budget(self, budget: RetryBudget) -> Self {
        Self { budget, ..self }
    }

    /// The hedge.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a value out of its range.
    pub fn build(self) -> Result<Hedge, InvalidSetting> {
        let Self { name, delay, max_hedges, budget } = self;
        if !(1..=4).contains(&max_hedges) {
            return Err(InvalidSetting::new("max_hedges", max_hedges, "1 to 4"));
        }
        let delay = match delay {
            DelaySetting::Fixed(delay) if delay.is_zero() || delay > FAR => {
                return Err(InvalidSetting::new("delay", delay, "above 0, up to 30 years"));
            }
            DelaySetting::Fixed(delay) => Delay::Fixed(delay),
            DelaySetting::Quantile(quantile) => {
                Delay::Learned(Box::new(RecentLatency::new(quantile, MIN_SAMPLES)?))
            }
        };
        let counts = Counts::default();
        Ok(Hedge { shared: Arc::new(Shared { name, delay, max_hedges, budget, counts }) })
    }
}

/// What became of the hedges, since the policy was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HedgeCounts {
    /// Hedges started.
    pub started: u64,
    /// Those whose answer was the first.
    pub won: u64,
    /// Hedges that were due but the budget had nothing left.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    won: AtomicU64,
    refused: AtomicU64,
}

/// What the end of one attempt means for those in flight beside it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// It is a value, or an error that asking again would not change: the call ends with it.
    Decides,
    /// A real error: the call ends with the last of these if none decides.
    Failed,
    /// It was not made: any real error tells more.
    Refused,
}

/// What is in flight for one call, but for the first attempt, which needs no allocation.
struct Race<'a, O, Fut, S> {
    sample: Sample<'a>,
    hedges: Vec<Pin<Box<Fut>>>,
    last: Option<(O, Standing)>,
    standing: S,
}

/// What a call ends with.
struct End<O> {
    output: O,
    by_hedge: bool,
}

impl<O, Fut: Future<Output = O>, S: Fn(&O) -> Standing> Race<'_, O, Fut, S> {
    /// Polls the oldest first, so that of two that are ready the earlier wins.
    fn poll(&mut self, mut first: Pin<&mut Option<Fut>>, cx: &mut Context<'_>) -> Poll<End<O>> {
        if let Some(attempt) = first.as_mut().as_pin_mut()
            && let Poll::Ready(output) = attempt.poll(cx)
        {
            first.set(None);
            let standing = (self.standing)(&output);
            self.sample.end(standing);
            if let Some(output) = self.weigh(output, standing) {
                return Poll::Ready(End { output, by_hedge: false });
            }
        }
        let mut next = 0;
        while let Some(hedge) = self.hedges.get_mut(next) {
            let Poll::Ready(output) = hedge.as_mut().poll(cx) else {
                next += 1;
                continue;
            };
            drop(self.hedges.remove(next));
            let standing = (self.standing)(&output);
            if let Some(output) = self.weigh(output, standing) {
                return Poll::Ready(End { output, by_hedge: true });
            }
        }
        if first.is_some() || !self.hedges.is_empty() {
            return Poll::Pending;
        }
        let (output, _) = self.last.take().expect("all have ended and none has decided");
        Poll::Ready(End { output, by_hedge: false })
    }

    /// Gives back what decides the call, and keeps of the rest the one that tells most.
    fn weigh(&mut self, output: O, standing: Standing) -> Option<O> {
        let tells_less =
            |(_, kept): &(O, Standing)| *kept == Standing::Failed && standing == Standing::Refused;
        if standing == Standing::Decides {
            return Some(output);
        }
        if !self.last.as_ref().is_some_and(tells_less) {
            self.last = Some((output, standing));
        }
        None
    }
}

/// How long the first attempt of a call took, for a delay that is learned.
///
/// The hedges themselves give no sample: only the quick ones are seen to their end. And a first
/// attempt that outlives the delay gives its age whatever ends it, a hedge that wins or the caller:
/// were those left out, the quantile would sink with each hedge, and with it the delay. One that
/// ends sooner gives a sample only if it decides: an error that comes at once says nothing.
struct Sample<'a> {
    of: Option<(&'a RecentLatency, Instant)>,
    late: bool,
}

impl<'a> Sample<'a> {
    fn begin(delay: &'a Delay) -> Self {
        let of = match delay {
            Delay::Fixed(_) => None,
            Delay::Learned(latency) => Some((&**latency, Instant::now())),
        };
        Self { of, late: false }
    }

    fn started(&self) -> Option<Instant> {
        self.of.map(|(_, started)| started)
    }

    fn is_late(&mut self) {
        self.late = true;
    }

    fn forget(&mut self) {
        self.of = None;
    }

    fn end(&mut self, standing: Standing) {
        if let Some((latency, started)) = self.of.take()
            && (self.late || standing == Standing::Decides)
        {
            latency.record(started.elapsed());
        }
    }
}

impl Drop for Sample<'_> {
    fn drop(&mut self) {
        self.end(Standing::Failed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    /// Races attempts that end after so many milliseconds with such a standing.
    async fn race(attempts: &[(u64, Standing)]) -> (Standing, u32, Duration) {
        let hedges = (attempts.len() as u32 - 1).max(1);
        let hedge =
            Hedge::builder().delay(Duration::from_millis(10)).max_hedges(hedges).build().unwrap();
        let name = Name::from("test");
        let operation = |number: u32| {
            let (time, standing) = attempts[number as usize];
            async move {
                sleep(Duration::from_millis(time)).await;
                (standing, number)
            }
        };
        let begun = Instant::now();
        let (standing, number) =
            hedge.race(&name, None, operation, |(standing, _)| *standing).await;
        (standing, number, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_beats_neither_what_runs_nor_a_real_error() {
        use Standing::{Decides, Failed, Refused};
        let ms = Duration::from_millis;
        assert_eq!(race(&[(50, Decides), (1, Refused), (100, Failed)]).await, (Decides, 0, ms(50)));
        assert_eq!(race(&[(15, Failed), (1, Refused)]).await, (Failed, 0, ms(15)));
        assert_eq!(race(&[(15, Refused), (7, Failed)]).await, (Failed, 1, ms(17)));
        assert_eq!(race(&[(18, Failed), (9, Refused)]).await, (Failed, 0, ms(19)));
        assert_eq!(race(&[(15, Refused), (7, Refused)]).await, (Refused, 1, ms(17)));
        assert_eq!(race(&[(5, Refused)]).await, (Refused, 0, ms(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn no_hedge_starts_past_the_deadline() {
        let hedge = Hedge::builder().delay(Duration::from_millis(10)).build().unwrap();
        let slow = |number| async move {
            sleep(Duration::from_millis(20)).await;
            Ok::<_, ()>(number)
        };
        let late = Deadline::within(Duration::from_millis(9));
        assert_eq!(late.scope(hedge.run(slow)).await, Ok(0));
        assert_eq!(hedge.counts(), HedgeCounts::default());
    }
}
