//! Places under a limit that may move, and a fair, bounded queue for them.
//!
//! One word counts both those who hold a place and those who wait for one: a place is taken by one
//! compare-and-swap and given back by one subtraction. The queue is locked only when somebody waits.
//!
//! Nobody overtakes: as long as one waits, a place that comes free is for the first in the queue, and
//! whoever comes new goes to its end. A place is handed over by counting it for the one who waited and
//! taking that one out of the queue, in one step; so one who leaves the queue and is no longer found in
//! it has a place to pass on.

#[cfg(all(test, circuit_models))]
mod models;

use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::timeout_at;

use crate::observe::{Event, RefusingLayer, emit};
use crate::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError};
use crate::{BulkheadFull, Deadline, FullReason, InvalidSetting, Name, Rejections};

/// One more in the queue; those in flight are counted below it.
const ONE_WAITING: u64 = 1 << 32;

/// The longest wait for a place that can be set.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Counts who is in and who waits. It hands out no guards: its users make their own.
#[derive(Debug)]
pub(crate) struct Places {
    word: AtomicU64,
    /// Written only under the queue's lock.
    limit: AtomicU32,
    max_waiting: u32,
    wait: Duration,
    queue: Mutex<Queue>,
    queue_full: AtomicU64,
    timed_out: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    /// In the order of their tickets.
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    waker: Waker,
}

impl Places {
    pub(crate) fn new(limit: u32, Line { max_waiting, wait }: Line) -> Self {
        Self {
            word: AtomicU64::new(0),
            limit: AtomicU32::new(limit),
            max_waiting,
            wait,
            queue: Mutex::default(),
            queue_full: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
        }
    }

    /// Takes a place if one is free and nobody waits for it. Whoever took one owes a
    /// [`give_back`](Self::give_back).
    #[inline]
    pub(crate) fn try_take(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let take = |word: u64| (word < u64::from(limit)).then_some(word + 1);
        self.word.try_update(Ordering::AcqRel, Ordering::Relaxed, take).is_ok()
    }

    /// Takes a place, waiting for it in the queue. An `Ok` owes a [`give_back`](Self::give_back).
    ///
    /// Dropping the future loses the turn in the queue and nothing else.
    pub(crate) async fn take(&self, deadline: Deadline) -> Result<(), FullReason> {
        let Some(turn) = self.queue_up()? else { return Ok(()) };
        let until = Deadline::within(self.wait).min(deadline);
        timeout_at(until.instant(), turn).await.map_err(|_| {
            self.timed_out.fetch_add(1, Ordering::Relaxed);
            FullReason::TimedOut
        })
    }

    /// Gives a place back, to the first in the queue if there is one.
    #[inline]
    pub(crate) fn give_back(&self) {
        if self.word.fetch_sub(1, Ordering::AcqRel) >= ONE_WAITING {
            self.hand_out();
        }
    }

    /// Moves the limit. Whoever does so has a place to give back, and with it all that has become free.
    pub(crate) fn set_limit(&self, limit: u32) {
        let _queue = self.lock();
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn in_flight(&self) -> usize {
        in_flight(self.word.load(Ordering::Relaxed)) as usize
    }

    pub(crate) fn waiting(&self) -> usize {
        waiting(self.word.load(Ordering::Relaxed)) as usize
    }

    /// The longest that anyone waits for a place.
    pub(crate) fn wait(&self) -> Duration {
        if self.max_waiting == 0 { Duration::ZERO } else { self.wait }
    }

    pub(crate) fn rejected(&self) -> Rejections {
        Rejections {
            queue_full: self.queue_full.load(Ordering::Relaxed),
            timed_out: self.timed_out.load(Ordering::Relaxed),
        }
    }

    /// A turn in the queue; `None` if a place came free before it was joined.
    fn queue_up(&self) -> Result<Option<Turn<'_>>, FullReason> {
        let mut queue = self.lock();
        let limit = self.limit.load(Ordering::Relaxed);
        let room = if self.wait.is_zero() { 0 } else { self.max_waiting };
        let before = self.word.try_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
            if word < u64::from(limit) {
                Some(word + 1)
            } else {
                (waiting(word) < room).then_some(word + ONE_WAITING)
            }
        });
        match before {
            Ok(word) if word < u64::from(limit) => Ok(None),
            Ok(_) => {
                let ticket = queue.next_ticket;
                queue.next_ticket += 1;
                queue.waiters.push_back(Waiter { ticket, waker: Waker::noop().clone() });
                Ok(Some(Turn { places: self, ticket, over: false }))
            }
            Err(_) => {
                self.queue_full.fetch_add(1, Ordering::Relaxed);
                Err(FullReason::QueueFull)
            }
        }
    }

    /// Hands free places to those who wait. Nobody is woken under a lock.
    fn hand_out(&self) {
        while let Some(waker) = self.admit_first() {
            waker.wake();
        }
    }

    /// Counts the first in the queue as one in flight, if there is a place for it.
    fn admit_first(&self) -> Option<Waker> {
        let mut queue = self.lock();
        let limit = self.limit.load(Ordering::Relaxed);
        let admit = |word: u64| {
            (waiting(word) > 0 && in_flight(word) < limit).then(|| word - ONE_WAITING + 1)
        };
        self.word.try_update(Ordering::AcqRel, Ordering::Relaxed, admit).ok()?;
        Some(queue.waiters.pop_front().expect("the word counts those in the queue").waker)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_flight(word: u64) -> u32 {
    word as u32
}

fn waiting(word: u64) -> u32 {
    (word >> 32) as u32
}

impl Queue {
    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }
}

/// A turn in the queue: ready when its place has been counted.
struct Turn<'a> {
    places: &'a Places,
    ticket: u64,
    over: bool,
}

impl Future for Turn<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.places.lock();
        let Some(position) = queue.position(self.ticket) else {
            drop(queue);
            self.over = true;
            return Poll::Ready(());
        };
        let waker = &mut queue.waiters[position].waker;
        if !waker.will_wake(cx.waker()) {
            let old = mem::replace(waker, cx.waker().clone());
            drop(queue);
            drop(old);
        }
        Poll::Pending
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut queue = self.places.lock();
        match queue.position(self.ticket) {
            Some(position) => {
                let waiter = queue.waiters.remove(position);
                self.places.word.fetch_sub(ONE_WAITING, Ordering::AcqRel);
                drop(queue);
                drop(waiter);
            }
            None => {
                drop(queue);
                self.places.give_back();
            }
        }
    }
}

/// How many may wait, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) max_waiting: u32,
    pub(crate) wait: Duration,
}

impl Line {
    pub(crate) fn checked(self) -> Result<Self, InvalidSetting> {
        match self.wait > LONGEST_WAIT {
            true => Err(InvalidSetting::new("wait", self.wait, "a day or less")),
            false => Ok(self),
        }
    }
}

impl Default for Line {
    fn default() -> Self {
        Self { max_waiting: 1024, wait: Duration::from_secs(5) }
    }
}

/// Places under a name, which whoever gets none of them is told.
#[derive(Debug)]
pub(crate) struct NamedPlaces {
    pub(crate) name: Name,
    layer: RefusingLayer,
    places: Places,
}

impl NamedPlaces {
    pub(crate) fn new(layer: RefusingLayer, name: Name, limit: u32, line: Line) -> Self {
        Self { name, layer, places: Places::new(limit, line) }
    }

    /// Takes a place, reading the clock only if it must wait. An `Ok` owes a
    /// [`give_back`](Places::give_back).
    #[inline]
    pub(crate) async fn acquire(&self, deadline: Deadline) -> Result<(), BulkheadFull> {
        if self.try_take() {
            return Ok(());
        }
        // Boxed, so that who need not wait does not carry the size of a timer.
        Box::pin(self.take(deadline)).await.map_err(|reason| {
            emit(&Event::Refused { name: &self.name, layer: self.layer });
            let (name, limit) = (self.name.clone(), self.limit());
            BulkheadFull { name, limit, reason }
        })
    }
}

impl Deref for NamedPlaces {
    type Target = Places;

    #[inline]
    fn deref(&self) -> &Places {
        &self.places
    }
}

/// What a guard points back to: lent for a call, shared for what outlives it.
#[derive(Debug)]
pub(crate) enum Home<'a, T> {
    Lent(&'a T),
    Shared(Arc<T>),
}

impl<T> Deref for Home<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Lent(home) => home,
            Self::Shared(home) => home,
        }
    }
}
