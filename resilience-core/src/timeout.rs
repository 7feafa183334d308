//! How long one attempt may take: a fixed time, or one learned from how long attempts took of late.
//!
//! A learned limit has a trap: what it cuts off never tells how long it would have taken. Were only
//! answers counted, a service that became slower than the limit would be cut off for ever. So an
//! attempt that was cut off counts as one that took as long as the limit, and until the answers have
//! caught up, the limit doubles from one to the next, as TCP's does (RFC 6298, §5.5).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::deadline::{FAR, later};
use crate::latency::RecentLatency;
use crate::limited::Limited;
use crate::{AttemptTimeout, Blame, Deadline, InvalidSetting, Name, heartbeat};

/// The longest limit that can be learned.
const HOUR: Duration = Duration::from_secs(3600);

/// The limit on one attempt. Cheap to clone: clones learn together.
///
/// A fixed one is made of a [`Duration`] too, by [`TryFrom`]:
/// [`PipelineBuilder::attempt_timeout`](crate::PipelineBuilder::attempt_timeout) takes either.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::Timeout;
///
/// let timeout = Timeout::learned().quantile(0.99).factor(3.0).max(Duration::from_secs(30)).build()?;
/// let answer = timeout.run(async { Ok::<_, std::io::Error>("in time") }).await??;
/// assert_eq!(answer, "in time");
/// assert_eq!(timeout.current(), Duration::from_secs(30)); // one answer teaches nothing
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Timeout {
    name: Name,
    limit: Limit,
}

#[derive(Clone, Debug)]
enum Limit {
    Fixed(Duration),
    Learned(Arc<Learned>),
}

impl Timeout {
    /// The same limit for every attempt: above 0, up to thirty years.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a limit out of range.
    pub fn fixed(limit: Duration) -> Result<Self, InvalidSetting> {
        if limit.is_zero() || limit > FAR {
            return Err(InvalidSetting::new("timeout", limit, "above 0, up to 30 years"));
        }
        Ok(Self { name: default_name(), limit: Limit::Fixed(limit) })
    }

    /// A limit that follows the latency of the last 1,024 attempts: a quantile of it times a factor.
    ///
    /// A service that becomes slower than the limit is cut off no more than log₂(max / limit) times
    /// in a row; the limit comes down again after at most 1,056 answers that are quicker.
    pub fn learned() -> LearnedTimeoutBuilder {
        LearnedTimeoutBuilder {
            quantile: 0.99,
            factor: 3.0,
            min: Duration::from_millis(10),
            max: Duration::from_secs(30),
            min_samples: 100,
        }
    }

    /// The same limit under another name for errors and logs; default `timeout`. Within a pipeline,
    /// the pipeline's counts.
    #[must_use]
    pub fn named(self, name: impl Into<Name>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Whether it needs to be told how long attempts take.
    #[inline]
    pub(crate) fn is_learned(&self) -> bool {
        matches!(self.limit, Limit::Learned(_))
    }

    /// The longest that it may ever let an attempt take.
    pub(crate) fn longest(&self) -> Duration {
        match &self.limit {
            Limit::Fixed(limit) => *limit,
            Limit::Learned(learned) => learned.max,
        }
    }

    /// What an attempt that starts now may take.
    #[inline]
    #[must_use]
    pub fn current(&self) -> Duration {
        match &self.limit {
            Limit::Fixed(limit) => *limit,
            Limit::Learned(learned) => learned.limit(),
        }
    }

    /// Notes an attempt that had its answer after `elapsed`. Not for errors: one that comes at once
    /// says nothing of how long an answer takes. What took long because this process
    /// [stood still](crate::Standstill) teaches nothing.
    pub fn record(&self, elapsed: Duration) {
        if let Limit::Learned(learned) = &self.limit {
            learned.record(elapsed);
        }
    }

    /// Notes an attempt that was cut off after `limit`: it counts as at least that, and the next may
    /// take twice as long. One that the call's own deadline cut off sooner than what has been learned
    /// counts for nothing.
    pub fn record_timeout(&self, limit: Duration) {
        if let Limit::Learned(learned) = &self.limit {
            learned.record_timeout(limit);
        }
    }

    /// Runs `attempt` for as long as it may take, or until the surrounding [`Deadline`] if that is
    /// nearer, and learns from how long it took, unless this process was held up meanwhile.
    ///
    /// # Errors
    ///
    /// [`AttemptTimeout`] if it had no answer by then; within `Ok`, the attempt's own error.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `attempt`. What is dropped before its end teaches nothing.
    ///
    /// # Panics
    ///
    /// If `attempt` does, and the limit learns nothing; and outside a tokio runtime with timers, unless `attempt` is
    /// ready at once.
    pub async fn run<T, E>(
        &self,
        attempt: impl Future<Output = Result<T, E>>,
    ) -> Result<Result<T, E>, AttemptTimeout> {
        let started = Instant::now();
        let until = Deadline::at(later(started, self.current())).inherited();
        let limit = until.remaining_at(started);
        let result = Limited::new(until.scope(attempt), until.instant()).await;
        let ended = Instant::now();
        if let Some(result) = result {
            if result.is_ok() {
                self.record(ended - started);
            }
            return Ok(result);
        }
        let fair = heartbeat::was_fair(started, ended, limit);
        if fair {
            self.record_timeout(limit);
        }
        tracing::debug!(target: "shared_external::timeout", name = %self.name, ?limit, next = ?self.current(), "attempt cut off");
        let blame = if fair { Blame::Service } else { Blame::Local };
        Err(AttemptTimeout { name: self.name.clone(), attempts: 1, limit, blame })
    }
}

impl TryFrom<Duration> for Timeout {
    type Error = InvalidSetting;

    /// As [`Timeout::fixed`].
    fn try_from(limit: Duration) -> Result<Self, InvalidSetting> {
        Self::fixed(limit)
    }
}

/// Settings of a learned [`Timeout`] to be.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct LearnedTimeoutBuilder {
    quantile: f64,
    factor: f64,
    min: Duration,
    max: Duration,
    min_samples: u32,
}

impl LearnedTimeoutBuilder {
    /// The quantile of recent latency. Above 0, below 1; default 0.99.
    pub fn quantile(self, quantile: f64) -> Self {
        Self { quantile, ..self }
    }

    /// How many times the quantile an attempt may take. 1.5 to 100; default 3. With less, the limit
    /// could hardly rise past the time at which it cuts attempts off.
    pub fn factor(self, factor: f64) -> Self {
        Self { factor, ..self }
    }

    /// The shortest limit. Above 0, up to `max`; default 10 ms, less than which says little about a service.
    pub fn min(self, min: Duration) -> Self {
        Self { min, ..self }
    }

    /// The longest limit, and the one that holds until there are enough samples. Up to an hour; default 30 s.
    pub fn max(self, max: Duration) -> Self {
        Self { max, ..self }
    }

    /// Samples that are enough. 1 to 1,024; default 100.
    pub fn min_samples(self, samples: u32) -> Self {
        Self { min_samples: samples, ..self }
    }

    /// The limit.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a value out of its range.
    pub fn build(self) -> Result<Timeout, InvalidSetting> {
        let Self { quantile, factor, min, max, min_samples } = self;
        if !(1.5..=100.0).contains(&factor) {
            return Err(InvalidSetting::new("factor", factor, "1.5 to 100"));
        }
        if max > HOUR {
            return Err(InvalidSetting::new("max", max, "up to an hour"));
        }
        if min.is_zero() || min > max {
            return Err(InvalidSetting::new("min", min, "above 0, up to max"));
        }
        let recent = RecentLatency::new(quantile, min_samples)?;
        let (learned, widened) = (AtomicU64::new(nanos(max)), AtomicU64::new(0));
        let learned = Learned { recent, factor, min, max, learned, widened };
        Ok(Timeout { name: default_name(), limit: Limit::Learned(Arc::new(learned)) })
    }
}

fn default_name() -> Name {
    Name::from("timeout")
}

#[derive(Debug)]
struct Learned {
    recent: RecentLatency,
    factor: f64,
    min: Duration,
    max: Duration,
    /// What the window says, within `min` and `max`, in nanoseconds: ready for every attempt to read.
    learned: AtomicU64,
    /// What attempts may take, in nanoseconds, while those cut off outrun what has been learned; else 0.
    widened: AtomicU64,
}

impl Learned {
    fn limit(&self) -> Duration {
        let learned = self.learned.load(Ordering::Relaxed);
        Duration::from_nanos(learned.max(self.widened.load(Ordering::Relaxed)))
    }

    fn record(&self, elapsed: Duration) {
        // While answers take longer than what has been learned, the learned limit would cut them off.
        if self.widened.load(Ordering::Relaxed) > 0
            && nanos(elapsed) <= self.learned.load(Ordering::Relaxed)
        {
            self.widened.store(0, Ordering::Relaxed);
        }
        if self.recent.record(elapsed) {
            self.learn();
        }
    }

    fn record_timeout(&self, limit: Duration) {
        if nanos(limit) < self.learned.load(Ordering::Relaxed) {
            return;
        }
        // Many that were cut off by one limit double it once.
        let doubled = limit.saturating_mul(2).min(self.max);
        self.widened.fetch_max(nanos(doubled), Ordering::Relaxed);
        self.recent.record(limit);
        self.recent.refresh();
        self.learn();
    }

    fn learn(&self) {
        if let Some(latency) = self.recent.current() {
            let limit = latency.mul_f64(self.factor).clamp(self.min, self.max);
            self.learned.store(nanos(limit), Ordering::Relaxed);
        }
    }
}

/// In whole nanoseconds; five centuries at the most.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::{CircuitBreaker, CircuitState};

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    async fn answer_after(time: Duration) -> Result<(), std::io::Error> {
        sleep(time).await;
        Ok(())
    }

    /// A limit of 30 ms or a little more, learned from a full window of answers after 10 ms.
    fn learned() -> Timeout {
        let timeout = Timeout::learned().build().unwrap();
        (0..1024).for_each(|_| timeout.record(10 * MS));
        let limit = timeout.current();
        assert!(limit >= 30 * MS && limit < 31 * MS, "{limit:?}");
        timeout
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_limit_holds_until_there_are_enough_samples() {
        let timeout = Timeout::learned().max(SECOND).min_samples(3).build().unwrap();
        for _ in 0..3 {
            assert_eq!(timeout.current(), SECOND);
            timeout.run(answer_after(10 * MS)).await.unwrap().unwrap();
        }
        assert!(timeout.current() < 34 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_rises_again_when_the_service_becomes_slower_than_it() {
        let timeout = learned();
        let mut cut_off = Vec::new();
        for call in 0..3000 {
            if timeout.run(answer_after(SECOND)).await.is_err() {
                cut_off.push(call);
            }
        }
        // 30 ms doubled six times is more than a second; what comes after has its time.
        assert!(cut_off.len() <= 6 && cut_off.iter().all(|&call| call < 6), "{cut_off:?}");
        assert!(timeout.current() >= 3 * SECOND);
        for _ in 0..1056 {
            timeout.run(answer_after(10 * MS)).await.unwrap().unwrap();
        }
        assert!(timeout.current() < 31 * MS, "{:?}", timeout.current());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_share_of_the_answers_is_not_cut_off_for_ever() {
        for factor in [1.5, 3.0] {
            let timeout = Timeout::learned().factor(factor).build().unwrap();
            let mut last = 0;
            for call in 0..5000 {
                let time = if call > 1000 && call % 20 == 0 { SECOND } else { 10 * MS };
                if timeout.run(answer_after(time)).await.is_err() {
                    last = call;
                }
            }
            assert!(
                (1000..3500).contains(&last),
                "factor {factor}: call {last} was the last cut off"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_circuit_and_a_short_limit_do_not_keep_each_other() {
        let timeout = learned();
        let breaker = CircuitBreaker::builder("slower").build().unwrap();
        let mut probes = 0;
        for _ in 0..1000 {
            let Ok(permit) = breaker.try_acquire() else {
                probes += 1;
                sleep(60 * SECOND).await;
                continue;
            };
            match timeout.run(answer_after(SECOND)).await {
                Ok(_) => permit.success(),
                Err(_) => permit.failure(),
            }
        }
        assert_eq!(breaker.state(), CircuitState::Closed);
        assert!(probes <= 2, "opened {probes} times");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_cut_off_at_once_doubles_the_limit_once() {
        let timeout = learned();
        let limit = timeout.current();
        // Ten in a window of 1,024 are above the 99th percentile: what has been learned stays.
        (0..10).for_each(|_| timeout.record_timeout(limit));
        assert_eq!(timeout.current(), 2 * limit);
        timeout.record(10 * MS);
        assert_eq!(timeout.current(), limit);
        // With the eleventh, the percentile is the limit that they were cut off by, and not only after a while.
        timeout.record_timeout(limit);
        timeout.record(10 * MS);
        assert!(timeout.current() >= 3 * limit);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_hangs_is_given_the_longest_limit_and_no_more() {
        let timeout = learned();
        for _ in 0..200 {
            timeout.run(std::future::pending::<Result<(), ()>>()).await.unwrap_err();
        }
        assert_eq!(timeout.current(), 30 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_callers_short_deadline_teaches_nothing() {
        let timeout = learned();
        let before = timeout.current();
        for _ in 0..2000 {
            let hurried = timeout.run(answer_after(SECOND));
            let cut_off = Deadline::within(MS).scope(hurried).await.unwrap_err();
            assert_eq!(cut_off.limit, MS);
        }
        assert_eq!(timeout.current(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn quick_errors_and_dropped_attempts_do_not_shorten_the_limit() {
        let timeout = learned();
        let before = timeout.current();
        for _ in 0..2000 {
            timeout.run(async { Err::<(), _>(()) }).await.unwrap().unwrap_err();
            drop(tokio::time::timeout(MS, timeout.run(answer_after(SECOND))).await);
        }
        assert_eq!(timeout.current(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_runtime_teaches_nothing() {
        for time in [10 * MS, SECOND] {
            let timeout = learned();
            let before = timeout.current();
            let calls: Vec<_> = (0..40)
                .map(|_| {
                    let timeout = timeout.clone();
                    tokio::spawn(async move { timeout.run(answer_after(time)).await.is_ok() })
                })
                .collect();
            tokio::task::yield_now().await;
            // As if something had kept the thread for half a second.
            tokio::time::advance(SECOND / 2).await;
            for call in calls {
                assert_eq!(call.await.unwrap(), time < SECOND);
            }
            timeout.record(10 * MS);
            assert_eq!(timeout.current(), before);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_cut_off_is_told_by_name_and_limit() {
        let timeout = Timeout::fixed(SECOND).unwrap().named("search");
        let started = Instant::now();
        let cut_off = timeout.run(answer_after(2 * SECOND)).await.unwrap_err();
        assert_eq!(started.elapsed(), SECOND);
        assert_eq!(cut_off.to_string(), "attempt 1 on \"search\" had no answer within 1s");
        assert_eq!(timeout.current(), SECOND);
    }

    #[test]
    fn a_limit_that_can_never_hold_is_refused() {
        let refused = |timeout: Result<Timeout, InvalidSetting>| timeout.unwrap_err().field;
        assert_eq!(refused(Timeout::fixed(Duration::ZERO)), "timeout");
        assert_eq!(refused(Timeout::fixed(Duration::MAX)), "timeout");
        let learned = Timeout::learned;
        for factor in [0.0, 1.0, 101.0, -3.0, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(learned().factor(factor).build()), "factor");
        }
        assert_eq!(refused(learned().quantile(1.0).build()), "quantile");
        assert_eq!(refused(learned().min_samples(0).build()), "min_samples");
        assert_eq!(refused(learned().max(Duration::MAX).build()), "max");
        assert_eq!(refused(learned().min(Duration::ZERO).build()), "min");
        assert_eq!(refused(learned().max(MS).build()), "min");
    }
}
