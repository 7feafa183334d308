//! Whether this process itself stood still: a service is not to blame for an answer nobody could read.
//!
//! A task on each runtime beats every [`BEAT`]. A beat that comes late means that the runtime was
//! blocked, or the whole process stopped, and for how long. It begins with the first attempt that has
//! to wait, or the first [`Standstill`] that watches, and ends with its runtime.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, sleep};

use crate::deadline::later;

/// Time between two beats.
const BEAT: Duration = Duration::from_millis(100);

/// A beat may be this late and say nothing: timers are exact to a millisecond, and schedulers are busy.
const TOLERANCE: Duration = Duration::from_millis(25);

/// A timer may be this late and say nothing.
const LATE: Duration = Duration::from_millis(10);

/// Standstills that are remembered; one that is forgotten counts as none. Were every beat late, they would
/// reach back a minute.
const REMEMBERED: usize = 512;

/// The share of an attempt during which this process may stand still before its end says nothing.
const FAIR_SHARE: u32 = 4;

static HEARTS: LazyLock<Mutex<HashMap<Id, Arc<Heart>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The heart of the runtime that this thread last asked from.
    static NEAREST: RefCell<Option<(Id, Arc<Heart>)>> = const { RefCell::new(None) };
}

/// Whether this process itself stood still while something was waited for: its runtime was blocked, or
/// it was stopped as a whole. What ends meanwhile, or runs out of time, says nothing of a service.
///
/// A [`Pipeline`](crate::Pipeline) judges its attempts so. This is for whoever judges by themselves: a
/// health check, a node that is passed over after a failure.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use resilience_core::Standstill;
/// use tokio::time::{sleep, timeout};
///
/// let standstill = Standstill::watch();
/// let answer = timeout(Duration::from_millis(200), async {
///     sleep(Duration::from_millis(1)).await; // asked
///     std::thread::sleep(Duration::from_millis(300)); // somebody blocks the runtime
///     sleep(Duration::from_millis(1)).await; // answered, but not heard in time
/// });
/// assert!(answer.await.is_err());
/// assert!(standstill.excuses());
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Standstill {
    since: Instant,
}

impl Standstill {
    /// Watches this runtime from now on. Outside a tokio runtime, nothing is ever seen to stand still.
    #[must_use]
    pub fn watch() -> Self {
        start();
        Self::since(Instant::now())
    }

    /// Looks back to `since`, as far as this runtime was watched by then: it is from the first
    /// [`watch`](Self::watch), or the first attempt of a pipeline that has to wait.
    #[must_use]
    pub const fn since(since: Instant) -> Self {
        Self { since }
    }

    /// How long this process has stood still since then, on the runtime where this is asked. Less than
    /// 25 ms at a time do not count, and of each time up to 100 ms may be missing: it is seen by the beats
    /// that did not come.
    #[must_use]
    pub fn time(&self) -> Duration {
        stood_still(self.since, Instant::now())
    }

    /// Whether that is more than a quarter of the time since then: too much to blame anybody else.
    #[must_use]
    pub fn excuses(&self) -> bool {
        let now = Instant::now();
        !was_fair(self.since, now, now.saturating_duration_since(self.since))
    }
}

/// Begins to beat on this runtime, if it does not yet.
pub(crate) fn start() {
    nearest(|runtime| Some(heart_of(runtime)));
}

/// Whether an attempt that began at `since` and ended `now`, or was given `limit`, had so little of
/// its time taken by this process that its end speaks of the service.
///
/// It starts no heart: a runtime without timers must not have one.
pub(crate) fn was_fair(since: Instant, now: Instant, limit: Duration) -> bool {
    // Less than a beat may be late is no standstill, though a longer one may have come before it: a runtime
    // that nobody drove until this attempt has had no chance to beat.
    let most = TOLERANCE.max(limit / FAIR_SHARE);
    // Where one task alone was held up, or for less than a beat, its own end comes late.
    let late = now.saturating_duration_since(later(since, limit));
    !held_up(late, limit) && stood_still(since, now) <= most
}

/// Whether what should have ended after `time` has ended so `late` that it says more of this process than
/// of what it waited for.
pub(crate) fn held_up(late: Duration, time: Duration) -> bool {
    late > LATE.max(time / FAIR_SHARE)
}

/// Whether this process itself explains much of how long something took that ends now, after `elapsed`.
/// It costs nothing where that is less than a standstill.
pub(crate) fn explains(elapsed: Duration) -> bool {
    let since = || Instant::now().checked_sub(elapsed);
    elapsed > TOLERANCE && since().is_some_and(|since| Standstill::since(since).excuses())
}

/// How much of the time from `since` to `now` this process stood still.
pub(crate) fn stood_still(since: Instant, now: Instant) -> Duration {
    let known = nearest(|runtime| hearts().get(&runtime.id()).cloned());
    known.map_or(Duration::ZERO, |heart| heart.lock().stood_still(since, now))
}

/// The heart of this runtime, known to this thread or found by `find`.
fn nearest(find: impl FnOnce(&Handle) -> Option<Arc<Heart>>) -> Option<Arc<Heart>> {
    // Outside a runtime nothing can wait, so nothing can be late.
    let runtime = Handle::try_current().ok()?;
    let id = runtime.id();
    NEAREST.with_borrow_mut(|nearest| match nearest {
        Some((known, heart)) if *known == id => Some(Arc::clone(heart)),
        _ => {
            let heart = find(&runtime)?;
            *nearest = Some((id, Arc::clone(&heart)));
            Some(heart)
        }
    })
}

fn heart_of(runtime: &Handle) -> Arc<Heart> {
    let id = runtime.id();
    let heart = Arc::new(Heart(Mutex::new(Pulse::begin(Instant::now()))));
    let found = Arc::clone(hearts().entry(id).or_insert_with(|| Arc::clone(&heart)));
    if Arc::ptr_eq(&found, &heart) {
        // Not under the lock: a runtime that is ending drops the task at once.
        runtime.spawn(beat(heart, Ends(id)));
    }
    found
}

fn hearts() -> MutexGuard<'static, HashMap<Id, Arc<Heart>>> {
    HEARTS.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn beat(heart: Arc<Heart>, _ends: Ends) {
    loop {
        // The first at once: what was begun may be polled late already.
        let standstill = heart.lock().beat(Instant::now());
        if let Some(time) = standstill {
            tracing::debug!(target: "shared_external::heartbeat", ?time, "this process stood still");
        }
        sleep(BEAT).await;
    }
}

/// Forgets the heart of a runtime that ends.
struct Ends(Id);

impl Drop for Ends {
    fn drop(&mut self) {
        hearts().remove(&self.0);
    }
}

#[derive(Debug)]
struct Heart(Mutex<Pulse>);

impl Heart {
    fn lock(&self) -> MutexGuard<'_, Pulse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the last beat was, and between which instants there should have been more.
#[derive(Debug)]
struct Pulse {
    last: Instant,
    standstills: VecDeque<(Instant, Instant)>,
}

impl Pulse {
    fn begin(now: Instant) -> Self {
        Self { last: now, standstills: VecDeque::new() }
    }

    /// Takes in a beat; says how late it was, if it was.
    fn beat(&mut self, now: Instant) -> Option<Duration> {
        let standstill = self.standstill_until(now);
        self.last = now;
        let (since, until) = standstill?;
        if self.standstills.len() == REMEMBERED {
            self.standstills.pop_front();
        }
        self.standstills.push_back((since, until));
        Some(until - since)
    }

    /// How much of the time from `since` to `now` this process stood still.
    fn stood_still(&self, since: Instant, now: Instant) -> Duration {
        let remembered = self.standstills.iter().rev().copied();
        let standstills = self.standstill_until(now).into_iter().chain(remembered);
        standstills
            .take_while(|(_, ended)| *ended > since)
            .map(|(begun, ended)| ended.min(now).saturating_duration_since(begun.max(since)))
            .sum()
    }

    fn standstill_until(&self, now: Instant) -> Option<(Instant, Instant)> {
        let due = self.last + BEAT;
        (now > due + TOLERANCE).then_some((due, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_runs_never_stands_still() {
        start();
        let standstill = Standstill::watch();
        sleep(3600 * 1000 * MS).await;
        assert!(!standstill.excuses());
        assert_eq!(standstill.time(), Duration::ZERO);
        assert_eq!(nearest(|_| None).unwrap().lock().standstills.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_standstill_counts_before_the_late_beat_and_after_it() {
        start();
        sleep(50 * MS).await;
        let since = Instant::now();
        tokio::time::advance(2050 * MS).await;
        let stood_still =
            || nearest(|_| None).unwrap().lock().stood_still(since, since + 2050 * MS);
        assert_eq!(stood_still(), 2000 * MS);
        sleep(1000 * MS).await;
        assert_eq!(stood_still(), 2000 * MS);
        assert!(!was_fair(since, Instant::now(), 7900 * MS));
        assert!(was_fair(since, Instant::now(), 8000 * MS));
        let later = Standstill::since(since + 2050 * MS);
        assert!(
            !later.excuses() && later.time().is_zero(),
            "it is none of a later attempt's affair"
        );
        assert_eq!(Standstill::since(since).time(), 2000 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_comes_late_is_unfair_though_the_runtime_ran() {
        start();
        let since = Instant::now();
        sleep(1250 * MS).await;
        assert!(was_fair(since, Instant::now(), 1000 * MS));
        sleep(MS).await;
        assert!(!was_fair(since, Instant::now(), 1000 * MS));
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let mut pulse = Pulse::begin(Instant::now());
            for second in 1..1000 {
                pulse.beat(pulse.last + Duration::from_secs(second));
            }
            assert_eq!(pulse.standstills.len(), REMEMBERED);
        });
    }

    #[test]
    fn a_heart_ends_with_its_runtime_and_the_next_has_its_own() {
        let id = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                start();
                Handle::current().id()
            })
        };
        let (first, second) = (id(), id());
        let hearts = hearts();
        assert!(!hearts.contains_key(&first) && !hearts.contains_key(&second));
    }
}
