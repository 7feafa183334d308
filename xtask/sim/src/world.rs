//! The world's clock and chance: virtual time, and random numbers that follow from one seed.

use std::future::Future;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};

/// Runs `simulation` to its end in virtual time: whenever nobody has anything to do, the clock goes on to the next
/// timer. It may `spawn_local`. Every random number drawn on this thread follows from `seed`, those of
/// resilience-core's jitter too.
pub fn simulate<T>(seed: u64, simulation: impl Future<Output = T>) -> T {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O asks nothing of the system");
    runtime.block_on(LocalSet::new().run_until(simulation))
}

/// The mean of `figure` over `runs` worlds, each with a seed of its own.
pub fn mean_over<const N: usize>(
    runs: u32,
    seed: u64,
    mut figures: impl FnMut(u64) -> [f64; N],
) -> [f64; N] {
    let mut seeds = fastrand::Rng::with_seed(seed);
    let mut sums = [0.0; N];
    for _ in 0..runs {
        let run = figures(seeds.u64(..));
        sums.iter_mut().zip(run).for_each(|(sum, figure)| *sum += figure);
    }
    sums.map(|sum| sum / f64::from(runs))
}

/// A time drawn from the exponential distribution, such as that between two arrivals of a Poisson process.
#[must_use]
pub fn exponential(mean: Duration) -> Duration {
    // 1 − u is never 0.
    mean.mul_f64(-(1.0 - fastrand::f64()).ln())
}

/// A Poisson process of arrivals. It keeps its own time: timers count whole milliseconds, and sleeping from one arrival to
/// the next would add up what each rounds off.
#[derive(Debug)]
pub struct Arrivals {
    last: Instant,
}

impl Arrivals {
    /// A process that begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self { last: Instant::now() }
    }

    /// Waits for the next arrival at the `rate` a second that holds now.
    pub async fn next(&mut self, rate: f64) {
        self.last += exponential(Duration::from_secs(1)).div_f64(rate);
        sleep_until(self.last).await;
    }
}

/// A number drawn from the normal distribution (Box and Muller).
#[must_use]
pub fn normal(mean: f64, deviation: f64) -> f64 {
    let radius = (-2.0 * (1.0 - fastrand::f64()).ln()).sqrt();
    mean + deviation * radius * (std::f64::consts::TAU * fastrand::f64()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_mean_they_are_asked_for() {
        fastrand::seed(1);
        let n = 20_000;
        let mean = |draw: &dyn Fn() -> f64| (0..n).map(|_| draw()).sum::<f64>() / f64::from(n);
        let times = mean(&|| exponential(Duration::from_secs(2)).as_secs_f64());
        assert!((times - 2.0).abs() < 0.1, "{times}");
        let normals = mean(&|| normal(10.0, 2.0));
        assert!((normals - 10.0).abs() < 0.1, "{normals}");
        let spread = mean(&|| (normal(10.0, 2.0) - 10.0).powi(2)).sqrt();
        assert!((spread - 2.0).abs() < 0.1, "{spread}");
    }

    #[test]
    fn arrivals_keep_their_rate_though_timers_are_coarse() {
        let elapsed = simulate(1, async {
            let start = Instant::now();
            let mut arrivals = Arrivals::begin();
            for _ in 0..20_000 {
                arrivals.next(1000.0).await;
            }
            start.elapsed().as_secs_f64()
        });
        assert!((elapsed - 20.0).abs() < 0.5, "20,000 arrivals at 1,000 a second took {elapsed} s");
    }
}
