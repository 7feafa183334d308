//! How often a dependency may be called: a rate, with a burst above it.
//!
//! Evenly by the generic cell rate algorithm (ITU-T I.371), as the crate `governor` has it: the state is
//! one word, and leave is given by one compare-and-swap.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::Quota;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use tokio::time::{Instant, sleep_until};

use crate::observe::{Event, RefusingLayer, emit};
use crate::places::{LONGEST_WAIT, Line, Places};
use crate::{Deadline, InvalidSetting, Name, RateLimited};

/// The longest time in which a used burst may come back: what the state of the algorithm holds with ease.
const LONGEST_REFILL: Duration = Duration::from_secs(365 * 24 * 3600);

/// So many calls in so much time, evenly, and a burst above that. Cheap to clone: clones share the rate.
///
/// In any stretch of time no more calls get leave than its share of the rate and one burst. It holds
/// for this process alone. Those who wait are served in the order they came.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::{Deadline, RateLimiter};
///
/// let limiter = RateLimiter::builder("mail", 10, Duration::from_secs(1)).burst(2).build()?;
/// limiter.try_acquire()?;
/// limiter.try_acquire()?;
/// assert_eq!(limiter.try_acquire().unwrap_err().retry_after, Duration::from_millis(100));
/// limiter.acquire(Deadline::within(Duration::from_secs(1))).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RateLimiter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: Name,
    cells: governor::RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Duration>>,
    clock: Ticks,
    /// The time from one call to the next at the full rate.
    interval: Duration,
    /// A single place: whoever has it is the next to get leave, and is the only one with a timer.
    next: Places,
    may_wait: bool,
    delayed: AtomicU64,
    rejected: AtomicU64,
}

impl RateLimiter {
    /// A limiter of `calls` (1 or more) in `time` (above 0, a day at the most), at least a nanosecond
    /// for each.
    pub fn builder(name: impl Into<Name>, calls: u32, time: Duration) -> RateLimiterBuilder {
        let queue = Line::default().max_waiting;
        RateLimiterBuilder { name: name.into(), calls, time, burst: calls, queue }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.shared.name
    }

    /// Leave to make one call, if it may be made now and nobody waits for it.
    ///
    /// # Errors
    ///
    /// [`RateLimited`] with the time until another try is worth making.
    pub fn try_acquire(&self) -> Result<(), RateLimited> {
        let ahead = self.shared.ahead();
        match ahead {
            0 => self.shared.check().map_err(|ready| self.shared.reject(until(ready))),
            _ => Err(self.shared.reject(self.shared.time_of(ahead + 1))),
        }
    }

    /// Leave to make one call, waiting for it until `deadline`; refused at once if it cannot be had
    /// by then.
    ///
    /// # Errors
    ///
    /// [`RateLimited`] when the queue is full or the turn would come too late.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the turn in the queue and nothing else: no call is counted.
    pub async fn acquire(&self, deadline: Deadline) -> Result<(), RateLimited> {
        if self.shared.ahead() == 0 && self.shared.check().is_ok() {
            return Ok(());
        }
        // Boxed, so that who need not wait does not carry the size of two timers.
        Box::pin(self.shared.queue(deadline)).await.map_err(|wait| self.shared.reject(wait))
    }

    /// How many calls wait for leave.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.ahead()
    }

    /// Calls that got leave only after a wait, since it was made.
    #[must_use]
    pub fn delayed(&self) -> u64 {
        self.shared.delayed.load(Ordering::Relaxed)
    }

    /// Calls refused since it was made.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.shared.rejected.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Takes leave, or says when there may be one.
    fn check(&self) -> Result<(), Instant> {
        self.cells.check().map_err(|not_until| self.clock.0 + not_until.earliest_possible())
    }

    /// Waits for leave in the queue; `Err` says after what time another try is worth making.
    async fn queue(&self, deadline: Deadline) -> Result<(), Duration> {
        let ahead = self.ahead();
        let soonest = self.time_of(ahead);
        if !self.may_wait || soonest > deadline.remaining() {
            return Err(self.time_of(ahead + 1));
        }
        self.next.take(deadline).await.map_err(|_| self.time_of(self.ahead() + 1))?;
        let _next = Next(&self.next);
        let mut waited = ahead > 0;
        while let Err(ready) = self.check() {
            if ready > deadline.instant() {
                return Err(until(ready));
            }
            sleep_until(ready).await;
            waited = true;
        }
        self.delayed.fetch_add(u64::from(waited), Ordering::Relaxed);
        Ok(())
    }

    /// How many get leave before one who comes now.
    fn ahead(&self) -> usize {
        self.next.in_flight() + self.next.waiting()
    }

    /// The time that `calls` take at the full rate.
    fn time_of(&self, calls: usize) -> Duration {
        self.interval.saturating_mul(u32::try_from(calls).unwrap_or(u32::MAX))
    }

    fn reject(&self, retry_after: Duration) -> RateLimited {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        emit(&Event::Refused { name: &self.name, layer: RefusingLayer::RateLimit });
        RateLimited { name: self.name.clone(), retry_after }
    }
}

fn until(ready: Instant) -> Duration {
    ready.saturating_duration_since(Instant::now())
}

/// Whose turn it is; dropping it lets the next one come.
struct Next<'a>(&'a Places);

impl Drop for Next<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// tokio's clock as `governor` reads it: time since the limiter was made.
#[derive(Clone, Copy, Debug)]
struct Ticks(Instant);

impl Clock for Ticks {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Settings of a [`RateLimiter`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct RateLimiterBuilder {
    name: Name,
    calls: u32,
    time: Duration,
    burst: u32,
    queue: u32,
}

impl RateLimiterBuilder {
    /// Calls that may be made at once after a rest. 1 or more, and back within a year; default: the
    /// calls of the rate.
    ///
    /// tokio's timers tick in milliseconds: where more calls than `burst` fall due in one, those that
    /// wait get less than the rate.
    pub fn burst(self, calls: u32) -> Self {
        Self { burst: calls, ..self }
    }

    /// Calls that may wait for leave; one more is refused at once. 0 means that none may wait.
    /// Default 1,024.
    pub fn queue(self, max_waiting: u32) -> Self {
        Self { queue: max_waiting, ..self }
    }

    /// The limiter, with its whole burst to give.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a value out of its range.
    pub fn build(self) -> Result<RateLimiter, InvalidSetting> {
        let Self { name, calls, time, burst, queue } = self;
        let nanos = match u64::try_from(time.as_nanos()) {
            Ok(nanos @ 1..) if time <= LONGEST_WAIT => nanos,
            _ => return Err(InvalidSetting::new("rate time", time, "above 0, to a day")),
        };
        if calls == 0 || u64::from(calls) > nanos {
            return Err(InvalidSetting::new("rate calls", calls, "1 to one in a nanosecond"));
        }
        // Rounded up: the rate is an upper bound.
        let interval = Duration::from_nanos(nanos.div_ceil(u64::from(calls)));
        let refill = interval.checked_mul(burst).filter(|refill| *refill <= LONGEST_REFILL);
        let (Some(burst_size), Some(_)) = (NonZeroU32::new(burst), refill) else {
            return Err(InvalidSetting::new("burst", burst, "1 or more, and back within a year"));
        };
        let quota = Quota::with_period(interval).expect("it is above 0").allow_burst(burst_size);
        let clock = Ticks(Instant::now());
        // The deadline bounds each wait; the first in the queue has left it for the place.
        let line = Line { max_waiting: queue.saturating_sub(1), wait: LONGEST_WAIT };
        Ok(RateLimiter {
            shared: Arc::new(Shared {
                name,
                cells: governor::RateLimiter::direct_with_clock(quota, clock),
                clock,
                interval,
                next: Places::new(1, line),
                may_wait: queue > 0,
                delayed: AtomicU64::new(0),
                rejected: AtomicU64::new(0),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinSet, yield_now};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limiter(calls: u32, burst: u32, queue: u32) -> RateLimiter {
        RateLimiter::builder("mail", calls, SECOND).burst(burst).queue(queue).build().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_says_when_to_come_back() {
        let limiter = limiter(10, 2, 0);
        for _ in 0..3 {
            limiter.try_acquire().unwrap();
            limiter.try_acquire().unwrap();
            let refused = limiter.try_acquire().unwrap_err();
            assert_eq!(refused.retry_after, SECOND / 10);
            tokio::time::advance(refused.retry_after - Duration::from_nanos(1)).await;
            limiter.try_acquire().unwrap_err();
            tokio::time::advance(Duration::from_nanos(1)).await;
            limiter.try_acquire().unwrap();
            tokio::time::advance(SECOND).await;
        }
        assert_eq!((limiter.rejected(), limiter.delayed()), (6, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn no_load_gets_more_than_the_rate_and_one_burst() {
        let limiter = limiter(100, 7, 1024);
        let started = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..20 {
            let limiter = limiter.clone();
            callers.spawn(async move {
                let end = Deadline::at(started + 10 * SECOND);
                let mut calls = 0;
                while limiter.acquire(end).await.is_ok() {
                    calls += 1;
                }
                calls
            });
        }
        let shares = callers.join_all().await;
        // The last is due at the very end, which is still in time.
        assert_eq!(shares.iter().sum::<u32>(), 1007, "{shares:?}");
        assert!(shares.iter().all(|share| (49..=57).contains(share)), "in turn: {shares:?}");
        assert_eq!((limiter.delayed(), limiter.waiting()), (1000, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_what_would_come_too_late() {
        let limiter = limiter(1, 1, 10);
        limiter.try_acquire().unwrap();
        let started = Instant::now();
        let soon = Deadline::within(SECOND / 2);
        assert_eq!(limiter.acquire(soon).await.unwrap_err().retry_after, SECOND);
        assert_eq!((started.elapsed(), limiter.rejected()), (Duration::ZERO, 1));
        let waiting = tokio::spawn({
            let limiter = limiter.clone();
            async move { limiter.acquire(Deadline::within(9 * SECOND)).await }
        });
        yield_now().await;
        // One waits for the next second: nobody else gets it, and who could not wait for two is told so.
        let refused = limiter.acquire(Deadline::within(SECOND / 2)).await.unwrap_err();
        assert_eq!((refused.retry_after, started.elapsed()), (2 * SECOND, Duration::ZERO));
        tokio::time::advance(SECOND).await;
        limiter.try_acquire().unwrap_err();
        waiting.await.unwrap().unwrap();
        assert_eq!(started.elapsed(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_wait_uses_up_no_call() {
        let limiter = limiter(1, 1, 10);
        limiter.try_acquire().unwrap();
        let wait = |limiter: RateLimiter| async move {
            limiter.acquire(Deadline::within(9 * SECOND)).await.map(|()| Instant::now())
        };
        let started = Instant::now();
        let first = tokio::spawn(wait(limiter.clone()));
        yield_now().await;
        let second = tokio::spawn(wait(limiter.clone()));
        yield_now().await;
        assert_eq!(limiter.waiting(), 2);
        first.abort();
        assert_eq!(second.await.unwrap().unwrap(), started + SECOND);
        assert_eq!(limiter.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_does_not_grow_without_end() {
        let endless = || Deadline::within(Duration::MAX);
        for room in [0, 1, 3] {
            let limiter = limiter(1, 1, room);
            limiter.try_acquire().unwrap();
            let mut waiting = JoinSet::new();
            for _ in 0..room {
                let limiter = limiter.clone();
                waiting.spawn(async move { limiter.acquire(endless()).await.unwrap() });
                yield_now().await;
            }
            assert_eq!(limiter.waiting(), room as usize);
            let started = Instant::now();
            limiter.acquire(endless()).await.unwrap_err();
            assert_eq!((started.elapsed(), limiter.rejected()), (Duration::ZERO, 1), "{room}");
            waiting.join_all().await;
            assert_eq!(limiter.delayed(), u64::from(room));
        }
    }

    #[test]
    fn settings_that_make_no_limiter_are_refused() {
        let field = |calls, time, burst| {
            RateLimiter::builder("mail", calls, time).burst(burst).build().unwrap_err().field
        };
        assert_eq!(field(0, SECOND, 1), "rate calls");
        assert_eq!(field(1_000_000_001, SECOND, 1), "rate calls");
        assert_eq!(field(1, Duration::ZERO, 1), "rate time");
        assert_eq!(field(1, Duration::MAX, 1), "rate time");
        assert_eq!(field(1, SECOND, 0), "burst");
        assert_eq!(field(1, LONGEST_WAIT, u32::MAX), "burst");
    }
}
