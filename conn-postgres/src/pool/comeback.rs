//! After a silence: the server is asked until it answers, so that a circuit which that opened need not wait out its time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Pool;
use crate::endpoints::Origin;

/// The first pause between two asks. It grows by half each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest: how late the return of a server is noticed that was away for long.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Pool {
    /// Asks `origin`, which fell silent, until it answers, and then closes the circuit: many calls failed at once
    /// by one fact, which holds no longer. Nobody else can find that out while the circuit keeps callers away.
    pub(super) fn await_comeback(self: &Arc<Self>, origin: &Arc<Origin>) {
        let Some(runtime) = self.connector.runtime() else { return };
        let Some(awaited) = origin.await_comeback() else { return };
        let (pool, origin) = (Arc::downgrade(self), Arc::clone(origin));
        runtime.spawn(async move {
            let _awaited = awaited;
            let mut pause = FIRST_PAUSE;
            loop {
                sleep(pause).await;
                let is_back = origin.look.is_answered().await;
                let Some(pool) = pool.upgrade() else { return };
                if pool.is_closed() || origin.is_retired() {
                    return;
                }
                if is_back {
                    pool.begin_anew();
                    return;
                }
                pause = (pause + pause / 2).min(LONGEST_PAUSE);
            }
        });
    }
}
