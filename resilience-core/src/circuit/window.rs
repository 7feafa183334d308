//! What a closed circuit remembers of its last calls: how many there were, which failed, which were slow.
//!
//! Both windows count a call that went well without a lock, and remember one that did not under
//! the circuit's. Every count belongs to a generation: a late answer finds another one and is lost.
//!
//! - The *count window* numbers the calls. Of those that failed it keeps the numbers, so "failures
//!   among the last N" is exact at every call, and a success costs one compare-and-swap.
//! - The *time window* counts in [`BUCKETS`] buckets and forgets one at a time: it covers the last
//!   31 to 32 thirty-seconds of its length.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use crate::sync::{AtomicU64, Ordering, update};

/// Which calls a rate is taken over.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlidingWindow {
    /// The last so many. 1 to 1,000,000.
    Calls(u32),
    /// Those that ended within the last so long; in JSON, seconds. 1 ms to 1 day. It slides in steps of a thirty-second of it.
    Time(#[serde(serialize_with = "crate::breaker::seconds")] Duration),
}

/// Calls in a window, and those among them that went badly.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) slow: u64,
}

/// Buckets of a time window. Fewer in models, which try them in every order.
const BUCKETS: usize = if cfg!(circuit_models) { 4 } else { 32 };

/// The part of a window that is shared without a lock.
#[derive(Debug)]
pub(crate) struct Window {
    /// Nanoseconds of a bucket; 0 for a count window.
    width: AtomicU64,
    /// Count window: generation (32 bits), calls so far (32).
    head: AtomicU64,
    /// Time window: the number of the current bucket. A word of its own, because a success that saw
    /// the window as it was may still count in it while it becomes one of another kind.
    current: AtomicU64,
    /// Time window: for each bucket its tag (32 bits) and its calls (32).
    buckets: [AtomicU64; BUCKETS],
}

/// The part of a window that the circuit's lock guards.
#[derive(Debug)]
pub(crate) struct Marks {
    size: u32,
    failures: VecDeque<u32>,
    slow: VecDeque<u32>,
    bad: [Bad; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bad {
    failures: u32,
    slow: u32,
}

/// How a call went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ended {
    pub(crate) failed: bool,
    pub(crate) slow: bool,
}

impl Window {
    pub(crate) fn new() -> (Self, Marks) {
        let window = Self {
            width: AtomicU64::new(0),
            head: AtomicU64::new(0),
            current: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        let marks = Marks {
            size: 1,
            failures: VecDeque::new(),
            slow: VecDeque::new(),
            bad: [Bad::default(); BUCKETS],
        };
        (window, marks)
    }

    /// Counts a call that went well, under `generation`. False if that takes the lock.
    #[inline]
    pub(crate) fn count_success(&self, generation: u32, now: impl FnOnce() -> u64) -> bool {
        let width = self.width.load(Ordering::Relaxed);
        if width == 0 {
            let mut full = false;
            update(&self.head, |head| {
                full = calls(head) == u32::MAX;
                (tag(head) == generation && !full).then_some(head + 1)
            });
            return !full;
        }
        let current = self.current.load(Ordering::Acquire);
        if now() >= end_of(current, width) {
            return false;
        }
        self.add_to_bucket(current, generation);
        true
    }

    /// Counts a call, under `generation`, which is the circuit's. The caller holds the lock.
    pub(crate) fn count(&self, marks: &mut Marks, generation: u32, now: u64, ended: Ended) {
        if self.width.load(Ordering::Relaxed) == 0 {
            let number = self.next_number(marks);
            if ended.failed {
                marks.failures.push_back(number);
            }
            if ended.slow {
                marks.slow.push_back(number);
            }
            marks.forget_before(number + 1);
        } else {
            let current = self.turn_to(marks, generation, now);
            self.add_to_bucket(current, generation);
            let bad = &mut marks.bad[slot(current)];
            bad.failures = bad.failures.saturating_add(ended.failed.into());
            bad.slow = bad.slow.saturating_add(ended.slow.into());
        }
    }

    /// What the window holds at `now`. The caller holds the lock.
    pub(crate) fn tally(&self, marks: &mut Marks, generation: u32, now: u64) -> Tally {
        if self.width.load(Ordering::Relaxed) == 0 {
            let head = calls(self.head.load(Ordering::Acquire));
            marks.forget_before(head);
            return Tally {
                calls: head.min(marks.size).into(),
                failures: marks.failures.len() as u64,
                slow: marks.slow.len() as u64,
            };
        }
        self.turn_to(marks, generation, now);
        let counted =
            self.buckets.iter().map(|bucket| u64::from(calls(bucket.load(Ordering::Acquire))));
        let mut tally = Tally { calls: counted.sum(), ..Tally::default() };
        for bad in &marks.bad {
            tally.failures += u64::from(bad.failures);
            tally.slow += u64::from(bad.slow);
        }
        tally
    }

    /// Empties it for `generation`. The caller holds the lock.
    pub(crate) fn reset(&self, marks: &mut Marks, kind: SlidingWindow, generation: u32, now: u64) {
        marks.failures.clear();
        marks.slow.clear();
        marks.bad.fill(Bad::default());
        match kind {
            SlidingWindow::Calls(size) => {
                marks.size = size;
                self.width.store(0, Ordering::Relaxed);
                self.head.store(u64::from(generation) << 32, Ordering::Release);
            }
            SlidingWindow::Time(length) => {
                let width = (nanos(length) / BUCKETS as u64).max(1);
                let current = bucket_at(now, width);
                for bucket in current - (BUCKETS as u64 - 1)..=current {
                    self.buckets[slot(bucket)].store(empty(bucket, generation), Ordering::Relaxed);
                }
                self.width.store(width, Ordering::Relaxed);
                self.current.store(current, Ordering::Release);
            }
        }
    }

    /// Puts a count window where `left` calls more make it full.
    #[cfg(all(test, circuit_models))]
    pub(super) fn fill_up(&self, left: u32) {
        update(&self.head, |head| Some(head | u64::from(u32::MAX - left)));
    }

    /// The number of the next call of a count window.
    fn next_number(&self, marks: &mut Marks) -> u32 {
        loop {
            let mut number = 0;
            let counted = update(&self.head, |head| {
                number = calls(head);
                (number < u32::MAX).then_some(head + 1)
            });
            if counted {
                return number;
            }
            // Once in four billion calls: count on from a full window. No success moves a full head.
            let shift = u64::from(marks.renumber());
            self.head.fetch_sub(shift, Ordering::AcqRel);
        }
    }

    /// Makes the bucket of `now` the current one, and empties those that have been passed over.
    fn turn_to(&self, marks: &mut Marks, generation: u32, now: u64) -> u64 {
        let current = self.current.load(Ordering::Relaxed);
        let next = bucket_at(now, self.width.load(Ordering::Relaxed)).max(current);
        for bucket in (current + 1).max(next - (BUCKETS as u64 - 1))..=next {
            marks.bad[slot(bucket)] = Bad::default();
            self.buckets[slot(bucket)].store(empty(bucket, generation), Ordering::Relaxed);
        }
        self.current.store(next, Ordering::Release);
        next
    }

    fn add_to_bucket(&self, bucket: u64, generation: u32) {
        // A bucket that is not what it was belongs to another generation, or to another turn.
        let mine = tag(empty(bucket, generation));
        update(&self.buckets[slot(bucket)], |held| {
            (tag(held) == mine && calls(held) < u32::MAX).then_some(held + 1)
        });
    }
}

impl Marks {
    /// Forgets what is no longer among the last `size` of `head` calls.
    fn forget_before(&mut self, head: u32) {
        let first = head.saturating_sub(self.size);
        for marks in [&mut self.failures, &mut self.slow] {
            while marks.front().is_some_and(|number| *number < first) {
                marks.pop_front();
            }
        }
    }

    /// Lowers the numbers of what is still remembered; says by how much.
    fn renumber(&mut self) -> u32 {
        self.forget_before(u32::MAX);
        let shift = u32::MAX - self.size;
        self.failures.iter_mut().chain(&mut self.slow).for_each(|number| *number -= shift);
        shift
    }
}

/// Nanoseconds, up to 584 years.
pub(crate) fn nanos(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos().into())
}

/// The bucket of `now`. The first ones are never current, so that there are always 32 to look at.
fn bucket_at(now: u64, width: u64) -> u64 {
    now / width + BUCKETS as u64
}

/// The first nanosecond after a bucket.
fn end_of(bucket: u64, width: u64) -> u64 {
    bucket.saturating_sub(BUCKETS as u64 - 1).saturating_mul(width)
}

#[expect(clippy::cast_possible_truncation, reason = "less than 32")]
fn slot(bucket: u64) -> usize {
    (bucket % BUCKETS as u64) as usize
}

/// The bucket's word before its first call. Its tag differs from that of any other generation.
#[expect(clippy::cast_possible_truncation, reason = "a tag is the lower half of the sum")]
fn empty(bucket: u64, generation: u32) -> u64 {
    let tag = (bucket as u32).wrapping_add(generation.wrapping_mul(0x9E37_79B1));
    u64::from(tag) << 32
}

fn tag(word: u64) -> u32 {
    (word >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is the count")]
fn calls(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets the other thread go even if this one panics.
    struct Release<'a>(&'a AtomicU64);

    impl Drop for Release<'_> {
        fn drop(&mut self) {
            self.0.store(u64::MAX / 2, Ordering::Release);
        }
    }

    #[test]
    fn a_success_beside_the_four_billionth_call_is_not_lost() {
        const ROUNDS: u64 = 30_000;
        let (window, mut marks) = Window::new();
        let (window, round) = (&window, &AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for now in 1..=ROUNDS {
                    while round.load(Ordering::Acquire) < 2 * now - 1 {
                        std::hint::spin_loop();
                    }
                    (0..fastrand::u8(..16)).for_each(|_| std::hint::spin_loop());
                    window.count_success(7, || 0);
                    round.fetch_add(1, Ordering::AcqRel);
                }
            });
            let _release = Release(round);
            for now in 1..=ROUNDS {
                window.reset(&mut marks, SlidingWindow::Calls(100), 7, 0);
                window.head.store(7 << 32 | u64::from(u32::MAX - 1), Ordering::Release);
                round.fetch_add(1, Ordering::AcqRel);
                (0..fastrand::u8(..16)).for_each(|_| std::hint::spin_loop());
                window.count(&mut marks, 7, 0, Ended { failed: true, slow: false });
                while round.load(Ordering::Acquire) < 2 * now {
                    std::hint::spin_loop();
                }
                assert_eq!(tag(window.head.load(Ordering::Acquire)), 7);
            }
        });
    }
}
