//! Takes the time: interleaved blocks in rotating order, each subject's median and spread.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::case::{Case, Subject};

/// Blocks of each subject.
const BLOCKS: usize = 40;

/// The length of a block on one thread: short beside a scheduler's slice, so that a busy neighbour spoils few of them.
const BLOCK: Duration = Duration::from_micros(500);

/// The length of a block on several threads, which need time to meet.
const SHARED_BLOCK: Duration = Duration::from_millis(4);

/// Where timers are registered. Nothing drives it: none of them is meant to fire.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread().enable_time().build().expect("it needs no resources")
});

/// One subject's nanoseconds per operation, block by block.
#[derive(Clone, Debug, Default)]
pub struct Timing {
    blocks: Vec<f64>,
}

impl Timing {
    /// Takes in one more block.
    pub fn add(&mut self, nanos: f64) {
        self.blocks.push(nanos);
    }

    /// The median.
    #[must_use]
    pub fn median(&self) -> f64 {
        quantile(self.blocks.clone(), 0.5)
    }

    /// The first and the third quartile.
    #[must_use]
    pub fn quartiles(&self) -> (f64, f64) {
        (quantile(self.blocks.clone(), 0.25), quantile(self.blocks.clone(), 0.75))
    }

    /// The median ratio to another, block by block: what disturbs both in one round disturbs it little.
    #[must_use]
    pub fn ratio(&self, other: &Self) -> f64 {
        self.paired(other, |one, other| one / other)
    }

    /// The median distance from another, block by block.
    #[must_use]
    pub fn above(&self, other: &Self) -> f64 {
        self.paired(other, |one, other| one - other)
    }

    fn paired(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> f64 {
        quantile(self.blocks.iter().zip(&other.blocks).map(|(a, b)| of(*a, *b)).collect(), 0.5)
    }
}

/// Times every subject of a case.
#[must_use]
pub fn time(case: &Case) -> Vec<Timing> {
    let block = if case.threads == 1 { BLOCK } else { SHARED_BLOCK };
    let subjects: Vec<_> = case.subjects.iter().collect();
    let times: Vec<_> = subjects.iter().map(|s| calibrate(s, case.threads, block)).collect();
    let mut timings = vec![Timing::default(); subjects.len()];
    for round in 0..BLOCKS {
        for place in 0..subjects.len() {
            let which = (round + place) % subjects.len();
            let nanos = once(subjects[which], case.threads, times[which]);
            timings[which].add(nanos);
        }
    }
    timings
}

/// How many operations fill a block. It also warms the subject up.
fn calibrate(subject: &Subject, threads: usize, block: Duration) -> u64 {
    let mut times = 16;
    loop {
        let nanos = once(subject, threads, times) * times as f64;
        if nanos * 4.0 >= block.as_nanos() as f64 {
            return ((times as f64 * block.as_nanos() as f64 / nanos) as u64).max(16);
        }
        times *= 2;
    }
}

/// One block: nanoseconds from first to last, for each operation of each thread.
fn once(subject: &Subject, threads: usize, times: u64) -> f64 {
    if threads == 1 {
        pin(0);
        let _inside = RUNTIME.enter();
        let started = Instant::now();
        subject.run(times);
        return started.elapsed().as_nanos() as f64 / times as f64;
    }
    let waiting = AtomicUsize::new(threads);
    let (waiting, runtime) = (&waiting, RUNTIME.handle());
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let work = |thread: usize| {
            move || {
                pin(thread);
                let _inside = runtime.enter();
                waiting.fetch_sub(1, Ordering::AcqRel);
                while waiting.load(Ordering::Acquire) > 0 {
                    std::thread::yield_now();
                }
                let started = Instant::now();
                subject.run(times);
                (started, Instant::now())
            }
        };
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no subject panics")).collect()
    });
    let first = spans.iter().map(|span| span.0).min().expect("there is a thread");
    let last = spans.iter().map(|span| span.1).max().expect("there is a thread");
    (last - first).as_nanos() as f64 / (times * threads as u64) as f64
}

/// Keeps this thread on one of the processors that it may use. Where that is refused, it roams.
pub fn pin(thread: usize) {
    pin_to(None, thread);
}

/// Keeps a process on the processor on which [`pin`] keeps a thread of that number. Where that is refused, it roams.
pub fn pin_process(process: i32, thread: usize) {
    pin_to(Pid::from_raw(process), thread);
}

fn pin_to(process: Option<Pid>, thread: usize) {
    static ALLOWED: LazyLock<Vec<usize>> = LazyLock::new(|| {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        (0..CpuSet::MAX_CPU).rev().filter(|cpu| set.is_set(*cpu)).collect()
    });
    if ALLOWED.is_empty() {
        return;
    }
    let mut one = CpuSet::new();
    one.set(ALLOWED[thread % ALLOWED.len()]);
    let _ = sched_setaffinity(process, &one);
}

/// The value below which that share of `values` lies.
#[must_use]
pub fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    let (below, part) = ((last as f64 * share) as usize, (last as f64 * share).fract());
    values[below] + (values[(below + 1).min(last)] - values[below]) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_between_its_neighbours() {
        let values = vec![4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(values.clone(), 0.5), 2.5);
        assert_eq!(quantile(values.clone(), 0.25), 1.75);
        assert_eq!(quantile(values, 1.0), 4.0);
    }

    #[test]
    fn one_disturbed_block_moves_no_ratio() {
        let ours = Timing { blocks: vec![1.0, 900.0, 1.0, 1.0, 1.0] };
        let peer = Timing { blocks: vec![4.0, 4.0, 4.0, 700.0, 4.0] };
        assert_eq!(ours.ratio(&peer), 0.25);
        assert_eq!(ours.above(&peer), -3.0);
        assert_eq!(ours.median(), 1.0);
    }
}
