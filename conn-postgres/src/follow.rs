//! The tasks that look for new credentials and certificates while the pool is in use.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::access::Watched;
use crate::pool::Pool;

/// How far the looks are spread, as a share of their period either way: processes started together do not
/// ask together.
const JITTER: f64 = 0.1;

/// What a provider's period is held within.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// They end with the pool, or with the runtime that they were started on.
#[derive(Default)]
pub(crate) struct Followers(Mutex<Vec<JoinHandle<()>>>);

impl Followers {
    /// Starts them, unless they run or there is nothing to look at.
    pub(crate) fn ensure(&self, pool: &Arc<Pool>) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !tasks.is_empty() && !tasks.iter().any(JoinHandle::is_finished) {
            return;
        }
        let Some(runtime) = pool.connector.runtime() else { return };
        for task in tasks.drain(..) {
            task.abort();
        }
        let follow = |(what, period)| runtime.spawn(follow(Arc::downgrade(pool), what, period));
        tasks.extend(pool.connector.watched().map(follow));
    }
}

async fn follow(pool: Weak<Pool>, what: Watched, period: Duration) {
    let period = period.clamp(SHORTEST, LONGEST);
    loop {
        sleep(period.mul_f64(1.0 + JITTER * (2.0 * fastrand::f64() - 1.0))).await;
        let Some(pool) = pool.upgrade().filter(|pool| !pool.is_closed()) else { return };
        pool.connector.look(what).await;
        pool.sweep(Instant::now());
    }
}
