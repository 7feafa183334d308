//! Exact counts of a breaker's calls that cost a call no contended write.
//!
//! Each thread adds in a stripe of its own, with a plain load and store; the sum is taken when
//! somebody looks. Threads beyond the number of cores share one more stripe, by atomic additions.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use serde::Serialize;

use crate::Outcome;

/// Attempts by outcome.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct OutcomeCounts {
    /// [`Outcome::Success`].
    pub success: u64,
    /// [`Outcome::Failure`].
    pub failure: u64,
    /// [`Outcome::Excluded`].
    pub excluded: u64,
    /// [`Outcome::Cancelled`].
    pub cancelled: u64,
}

impl OutcomeCounts {
    /// The count of `outcome`.
    #[must_use]
    pub const fn of(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Success => self.success,
            Outcome::Failure => self.failure,
            Outcome::Excluded => self.excluded,
            Outcome::Cancelled => self.cancelled,
        }
    }
}

/// What a breaker counts, besides what its circuit needs to know.
#[derive(Debug)]
pub(super) struct Counts {
    /// One for each thread that has a number.
    own: Box<[Stripe]>,
    /// That of all other threads.
    shared: Stripe,
}

/// The counts of one thread, in cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe {
    outcomes: [AtomicU64; 4],
    not_permitted: AtomicU64,
}

impl Counts {
    pub(super) fn new() -> Self {
        let own = (0..*THREADS).map(|_| Stripe::default()).collect();
        Self { own, shared: Stripe::default() }
    }

    #[inline]
    pub(super) fn add(&self, outcome: Outcome) {
        self.with_stripe(|stripe| &stripe.outcomes[outcome as usize]);
    }

    pub(super) fn add_not_permitted(&self) {
        self.with_stripe(|stripe| &stripe.not_permitted);
    }

    pub(super) fn outcomes(&self) -> OutcomeCounts {
        let sum = |outcome: Outcome| self.sum(|stripe| &stripe.outcomes[outcome as usize]);
        OutcomeCounts {
            success: sum(Outcome::Success),
            failure: sum(Outcome::Failure),
            excluded: sum(Outcome::Excluded),
            cancelled: sum(Outcome::Cancelled),
        }
    }

    pub(super) fn not_permitted(&self) -> u64 {
        self.sum(|stripe| &stripe.not_permitted)
    }

    #[inline]
    fn with_stripe(&self, count: impl FnOnce(&Stripe) -> &AtomicU64) {
        match self.own.get(number()) {
            Some(stripe) => {
                let count = count(stripe);
                // Nobody else writes it, so nothing is lost between the two.
                count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            }
            None => {
                count(&self.shared).fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn sum(&self, count: impl Fn(&Stripe) -> &AtomicU64) -> u64 {
        let stripes = self.own.iter().chain([&self.shared]);
        stripes.map(|stripe| count(stripe).load(Ordering::Relaxed)).sum()
    }
}

/// How many threads have a stripe of their own: the cores of this machine, 4 to 128.
static THREADS: LazyLock<usize> = LazyLock::new(|| {
    std::thread::available_parallelism().map_or(4, std::num::NonZero::get).clamp(4, 128)
});

/// Numbers that no living thread has, the least last.
static FREE: LazyLock<Mutex<Vec<usize>>> =
    LazyLock::new(|| Mutex::new((0..*THREADS).rev().collect()));

const UNASKED: usize = usize::MAX;
const NONE: usize = usize::MAX - 1;

thread_local! {
    /// This thread's number, without a destructor so that reading it is one load.
    static NUMBER: Cell<usize> = const { Cell::new(UNASKED) };
    static LEASE: Lease = Lease::take();
}

/// A thread's number for as long as the thread lives.
struct Lease(Option<usize>);

impl Lease {
    fn take() -> Self {
        Self(FREE.lock().unwrap_or_else(PoisonError::into_inner).pop())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What this thread may still count while it ends goes to the shared stripe.
        NUMBER.set(NONE);
        if let Some(number) = self.0 {
            // The lock hands what this thread wrote over to the next that has the number.
            FREE.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        }
    }
}

#[inline]
fn number() -> usize {
    match NUMBER.get() {
        UNASKED => ask(),
        number => number,
    }
}

#[cold]
fn ask() -> usize {
    // An `Err` is a thread that is ending.
    let number = LEASE.try_with(|lease| lease.0).ok().flatten().unwrap_or(NONE);
    NUMBER.set(number);
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_count_is_lost_however_many_threads_come_and_go() {
        let counts = Counts::new();
        for _ in 0..3 {
            std::thread::scope(|scope| {
                for _ in 0..*THREADS + 4 {
                    scope.spawn(|| {
                        for _ in 0..10_000 {
                            counts.add(Outcome::Success);
                            counts.add_not_permitted();
                        }
                    });
                }
            });
        }
        let all = 3 * (*THREADS as u64 + 4) * 10_000;
        assert_eq!((counts.outcomes().success, counts.not_permitted()), (all, all));
        assert_eq!(counts.outcomes().failure, 0);
    }
}
