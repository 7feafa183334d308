//! Who is inside, and whether anyone may still come in: what draining needs to know.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::timeout_at;

use crate::Deadline;

const CLOSED: usize = 1 << (usize::BITS - 1);

/// What a drain left behind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use = "calls may have been abandoned"]
pub struct Drained {
    /// Calls still running at the deadline.
    pub abandoned: usize,
}

/// Counts those inside and lets nobody in once closed. One word: the top bit closes, the rest count.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    word: AtomicUsize,
    empty: Notify,
}

impl Gate {
    /// Lets one call in, unless the gate is closed.
    #[inline]
    pub(crate) fn enter(&self) -> Option<Inside<'_>> {
        // Not an addition that is taken back: a drain would count those who are turned away.
        let count = |word: usize| (word & CLOSED == 0).then_some(word + 1);
        let entered = self.word.try_update(Ordering::AcqRel, Ordering::Acquire, count);
        entered.is_ok().then(|| Inside(self))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Closes the gate and waits until all are out, or `deadline`.
    pub(crate) async fn drain(&self, deadline: Deadline) -> Drained {
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
        let all_out = async {
            loop {
                let mut notified = std::pin::pin!(self.empty.notified());
                notified.as_mut().enable();
                if self.inside() == 0 {
                    return;
                }
                notified.await;
            }
        };
        let _ = timeout_at(deadline.instant(), all_out).await;
        Drained { abandoned: self.inside() }
    }

    fn inside(&self) -> usize {
        self.word.load(Ordering::Acquire) & !CLOSED
    }

    #[inline]
    fn leave(&self) {
        if self.word.fetch_sub(1, Ordering::AcqRel) == CLOSED + 1 {
            self.empty.notify_waiters();
        }
    }
}

/// One call inside the gate; dropping it is leaving.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_the_last_call_and_lets_no_new_one_in() {
        let gate = Arc::new(Gate::default());
        let inside = gate.enter().unwrap();
        let drain = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.drain(Deadline::within(Duration::from_secs(60))).await }
        });
        tokio::task::yield_now().await;
        assert!(gate.enter().is_none());
        drop(inside);
        assert_eq!(drain.await.unwrap(), Drained { abandoned: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_cannot_finish_says_what_it_abandons() {
        let gate = Arc::new(Gate::default());
        let _inside = (gate.enter(), gate.enter());
        assert_eq!(
            gate.drain(Deadline::within(Duration::from_secs(1))).await,
            Drained { abandoned: 2 }
        );
    }

    #[test]
    fn those_who_are_turned_away_are_never_counted_as_inside() {
        let gate = Arc::new(Gate::default());
        gate.word.store(CLOSED, Ordering::Release);
        let done = std::sync::atomic::AtomicBool::new(false);
        let all_there = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    all_there.wait();
                    while !done.load(Ordering::Acquire) {
                        assert!(gate.enter().is_none());
                    }
                });
            }
            all_there.wait();
            let most = (0..200_000).map(|_| gate.inside()).max();
            done.store(true, Ordering::Release);
            assert_eq!(most, Some(0));
        });
    }
}
