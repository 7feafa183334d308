//! Models of a service under load. None of them cares whether anybody still waits for the answer: work that a caller
//! gave up on is done all the same, which is what makes a collapse last.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter;
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

/// A service of some workers that take what arrives in its order, each for the same time; the queue before them has no
/// bound. It can keep up with `workers / time` a second.
#[derive(Debug)]
pub struct Station {
    time: Cell<Duration>,
    /// When each worker will be free.
    free: RefCell<BinaryHeap<Reverse<Instant>>>,
    arrived: Cell<u64>,
}

impl Station {
    /// An idle service.
    #[must_use]
    pub fn new(workers: usize, time: Duration) -> Self {
        let free = iter::repeat_n(Reverse(Instant::now()), workers).collect();
        Self { time: Cell::new(time), free: RefCell::new(free), arrived: Cell::new(0) }
    }

    /// From now on each piece of work takes `time`.
    pub fn set_time(&self, time: Duration) {
        self.time.set(time);
    }

    /// Queues up and does one piece of work. Dropping the future frees nothing.
    pub async fn work(&self) {
        self.arrived.set(self.arrived.get() + 1);
        let end = {
            let mut free = self.free.borrow_mut();
            let Reverse(first) = free.pop().expect("a service has a worker");
            let end = first.max(Instant::now()) + self.time.get();
            free.push(Reverse(end));
            end
        };
        sleep_until(end).await;
    }

    /// How long what arrives now would wait for a worker.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let free = self.free.borrow();
        let Reverse(first) = free.peek().expect("a service has a worker");
        first.saturating_duration_since(Instant::now())
    }

    /// Work that has arrived so far.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.arrived.get()
    }
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

    #[test]
    fn a_queue_is_as_long_as_the_theory_says() {
        // One worker, fixed time, load 0.8: the mean wait is 0.8 · time / (2 · (1 − 0.8)), by Pollaczek and Khinchine.
        let time = Duration::from_millis(100);
        let mean = simulate(1, async {
            let service = Rc::new(Station::new(1, time));
            let mut arrivals = Arrivals::begin();
            let mut sum = Duration::ZERO;
            for _ in 0..50_000 {
                arrivals.next(8.0).await;
                sum += service.wait();
                let service = Rc::clone(&service);
                spawn_local(async move { service.work().await });
            }
            sum.as_secs_f64() / 50_000.0
        });
        assert!((mean - 0.2).abs() < 0.02, "a wait of {mean} s");
    }

    #[test]
    fn a_full_service_does_what_its_workers_can() {
        simulate(1, async {
            let service = Station::new(10, SECOND / 10);
            for _ in 0..1000 {
                timeout(Duration::ZERO, service.work()).await.unwrap_err();
            }
            assert_eq!((service.arrived(), service.wait()), (1000, 10 * SECOND));
            service.set_time(SECOND / 5);
            timeout(Duration::ZERO, service.work()).await.unwrap_err();
            assert_eq!(service.wait(), 10 * SECOND, "nine workers are free then");
        });
    }
}
