//! Models of a service under load. None of them cares whether anybody still waits for the answer: work that a caller
//! gave up on is done all the same, which is what makes a collapse last.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A service whose work takes longer the more of it is in flight: it takes `base + slope · in flight`, this one
/// included, as counted when it begins.
///
/// By Little's law it can keep up with less than `1 / slope` a second, whatever its callers do.
#[derive(Debug)]
pub struct Contended {
    base: Duration,
    slope: Duration,
    ends: RefCell<BinaryHeap<Reverse<Instant>>>,
    begun: Cell<u64>,
}

impl Contended {
    /// An idle service.
    #[must_use]
    pub fn new(base: Duration, slope: Duration) -> Self {
        Self { base, slope, ends: RefCell::default(), begun: Cell::new(0) }
    }

    /// Does one piece of work. Dropping the future frees nothing.
    pub async fn work(&self) {
        let now = Instant::now();
        let in_flight = u32::try_from(self.in_flight() + 1).expect("fewer calls than that");
        let end = now + self.base + self.slope * in_flight;
        self.ends.borrow_mut().push(Reverse(end));
        self.begun.set(self.begun.get() + 1);
        sleep_until(end).await;
    }

    /// Work that is being done now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        done_by(&self.ends, Instant::now())
    }

    /// Work begun so far.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun.get()
    }
}

/// Forgets what ended by `now`, and counts what is left.
fn done_by(ends: &RefCell<BinaryHeap<Reverse<Instant>>>, now: Instant) -> usize {
    let mut ends = ends.borrow_mut();
    while ends.peek().is_some_and(|Reverse(end)| *end <= now) {
        ends.pop();
    }
    ends.len()
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::spawn_local;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::world::{Arrivals, simulate};

    const SECOND: Duration = Duration::from_secs(1);
    const SLOPE: Duration = Duration::from_millis(10);

    #[test]
    fn work_in_flight_is_rate_times_time() {
        // N = λ · (base + slope · N): 40 a second leave 40 / (1 − 0.4) in flight.
        let mean = simulate(1, async {
            let service = Rc::new(Contended::new(SECOND, SLOPE));
            let (mut sum, mut looks) = (0, 0);
            let (start, mut arrivals) = (Instant::now(), Arrivals::begin());
            while start.elapsed() < 120 * SECOND {
                arrivals.next(40.0).await;
                if start.elapsed() > 20 * SECOND {
                    sum += service.in_flight();
                    looks += 1;
                }
                let service = Rc::clone(&service);
                spawn_local(async move { service.work().await });
            }
            f64::from(u32::try_from(sum).unwrap()) / f64::from(looks)
        });
        assert!((mean - 40.0 / 0.6).abs() < 4.0, "{mean} in flight");
    }

    #[test]
    fn work_that_nobody_waits_for_is_done_all_the_same() {
        simulate(1, async {
            let service = Contended::new(SECOND, SLOPE);
            timeout(SECOND / 10, service.work()).await.unwrap_err();
            assert_eq!(service.in_flight(), 1);
            sleep(SECOND).await;
            assert_eq!((service.in_flight(), service.begun()), (0, 1));
        });
    }
}
