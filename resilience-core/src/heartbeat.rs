//! Whether this process itself stood still: a service is not to blame for an answer nobody could read.
//!
//! A task on each runtime beats every [`BEAT`]. A beat that comes late means that the runtime was
//! blocked, or the whole process stopped, and for how long. It begins with the first attempt that has
//! to wait, and ends with its runtime.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, sleep};

/// Time between two beats.
const BEAT: Duration = Duration::from_millis(100);

/// A beat may be this late and say nothing: timers are exact to a millisecond, and schedulers are busy.
const TOLERANCE: Duration = Duration::from_millis(25);

/// Standstills that are remembered; one that is forgotten counts as none.
const REMEMBERED: usize = 32;

/// The share of an attempt during which this process may stand still before its end says nothing.
const FAIR_SHARE: u32 = 4;

static HEARTS: LazyLock<Mutex<HashMap<Id, Arc<Heart>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The heart of the runtime that this thread last asked from.
    static NEAREST: RefCell<Option<(Id, Arc<Heart>)>> = const { RefCell::new(None) };
}

/// Begins to beat on this runtime, if it does not yet.
pub(crate) fn start() {
    nearest();
}

/// Whether an attempt that began at `since` and ended `now`, or was given `limit`, had so little of
/// its time taken by this process that its end speaks of the service.
pub(crate) fn was_fair(since: Instant, now: Instant, limit: Duration) -> bool {
    nearest().is_none_or(|heart| heart.lock().stood_still(since, now) <= limit / FAIR_SHARE)
}

fn nearest() -> Option<Arc<Heart>> {
    // Outside a runtime nothing can wait, so nothing can be late.
    let runtime = Handle::try_current().ok()?;
    let id = runtime.id();
    NEAREST.with_borrow_mut(|nearest| match nearest {
        Some((known, heart)) if *known == id => Some(Arc::clone(heart)),
        _ => {
            let heart = heart_of(&runtime);
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
        // At once too: the runtime may have stood still between the spawn and this.
        heart.lock().beat(Instant::now());
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

    fn beat(&mut self, now: Instant) {
        if let Some(standstill) = self.standstill_until(now) {
            if self.standstills.len() == REMEMBERED {
                self.standstills.pop_front();
            }
            self.standstills.push_back(standstill);
            let (since, until) = standstill;
            tracing::debug!(target: "shared_external::heartbeat", time = ?(until - since), "this process stood still");
        }
        self.last = now;
    }

    /// How much of the time from `since` to `now` this process stood still.
    fn stood_still(&self, since: Instant, now: Instant) -> Duration {
        let standstills = self.standstills.iter().copied().chain(self.standstill_until(now));
        standstills
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
        let since = Instant::now();
        sleep(3600 * 1000 * MS).await;
        assert!(was_fair(since, Instant::now(), 1000 * MS));
        assert_eq!(nearest().unwrap().lock().standstills.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_standstill_counts_before_the_late_beat_and_after_it() {
        start();
        sleep(50 * MS).await;
        let since = Instant::now();
        tokio::time::advance(2050 * MS).await;
        let stood_still = || nearest().unwrap().lock().stood_still(since, since + 2050 * MS);
        assert_eq!(stood_still(), 2000 * MS);
        sleep(1000 * MS).await;
        assert_eq!(stood_still(), 2000 * MS);
        assert!(!was_fair(since, Instant::now(), 7900 * MS));
        assert!(was_fair(since, Instant::now(), 8000 * MS));
        assert!(
            was_fair(since + 2050 * MS, Instant::now(), MS),
            "it is none of a later attempt's affair"
        );
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
