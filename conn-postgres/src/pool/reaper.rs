//! What a pool needs done when nobody comes by: closing what is idle for too long, opening what is missing,
//! telling who has had a connection for too long.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use resilience_core::{Deadline, Event, emit};
use tokio::join;
use tokio::time::{Instant, sleep};

use super::Pool;
use crate::holders::Holder;

/// How often idle connections are looked through at the least, while there are any.
const LONGEST_REAPER_PERIOD: Duration = Duration::from_secs(30);

/// How often holders are looked through at the least, where a threshold is set: how late a leak may be told.
const LONGEST_LOOK_PERIOD: Duration = Duration::from_secs(1);

/// How often at the most.
const SHORTEST_LOOK_PERIOD: Duration = Duration::from_millis(10);

impl Pool {
    /// Starts the task that looks after connections when nobody comes by, unless it runs. It ends with
    /// the pool.
    pub(super) fn ensure_reaper(self: &Arc<Self>) {
        let mut reaper = self.reaper.lock().unwrap_or_else(PoisonError::into_inner);
        if reaper.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Some(runtime) = self.connector.runtime() else { return };
        let period = (self.idle_timeout.min(self.max_lifetime) / 2).min(LONGEST_REAPER_PERIOD);
        let (pool, threshold) = (Arc::downgrade(self), self.leak_threshold);
        *reaper = Some(runtime.spawn(async move {
            match threshold {
                Some(threshold) => {
                    join!(reap(pool.clone(), period), look(pool, threshold));
                }
                None => reap(pool, period).await,
            }
        }));
    }

    /// Closes what is idle for too long, and opens what is missing.
    async fn tend(self: Arc<Self>) {
        self.connector.endpoints.refresh();
        self.sweep(Instant::now());
        while self.shelf().idle.len() < self.min_idle {
            // Where one cannot be opened, the next will not be either.
            match Box::pin(self.open_idle(Deadline::within(self.connect_timeout))).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return,
            }
        }
    }

    /// Tells of those who have held a connection for `threshold`, each once.
    fn tell_the_late(&self, threshold: Duration) {
        let late = self.shelf().holders.newly_late(threshold, Instant::now());
        for Holder { held, taken } in late {
            tracing::warn!(target: "shared_external::postgres", pool = %self.name, %taken, ?held, "a connection is held for longer than leak_threshold: give it back sooner, or set a higher threshold");
            emit(&Event::ConnectionLeaked { pool: &self.name, held });
        }
    }
}

async fn reap(pool: Weak<Pool>, period: Duration) {
    loop {
        sleep(period).await;
        let Some(pool) = pool.upgrade() else { return };
        pool.tend().await;
    }
}

async fn look(pool: Weak<Pool>, threshold: Duration) {
    let period = (threshold / 4).clamp(SHORTEST_LOOK_PERIOD, LONGEST_LOOK_PERIOD);
    loop {
        sleep(period).await;
        let Some(pool) = pool.upgrade() else { return };
        pool.tell_the_late(threshold);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{LazyLock, Mutex};

    use resilience_core::{Observe, add_observer};

    use super::*;
    use crate::holders::CallSite;
    use crate::pool::tests::pool;

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn lines(&self, level: &str) -> Vec<String> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().filter(|line| line.contains(level)).map(str::to_owned).collect()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// How many leaks of the pool `leaky` were told.
    #[derive(Default)]
    struct Leaks(AtomicUsize);

    impl Observe for Leaks {
        fn on_event(&self, event: &Event<'_>) {
            if let Event::ConnectionLeaked { pool, held } = event
                && &***pool == "leaky"
            {
                assert!(*held >= 10 * SECOND);
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    static LEAKS: LazyLock<Arc<Leaks>> = LazyLock::new(Arc::default);

    #[tokio::test(start_paused = true)]
    async fn a_leak_is_told_once_by_its_line_and_its_end_too() {
        let log = Log::default();
        let writer = {
            let log = log.clone();
            move || log.clone()
        };
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        add_observer(Arc::<Leaks>::clone(&LEAKS));
        let leaks = || LEAKS.0.load(Ordering::Relaxed);

        let pool = pool(|it| it.name("leaky").leak_threshold(10 * SECOND));
        pool.ensure_reaper();
        let mut place = pool.place(Deadline::within(SECOND)).await.unwrap();
        let (line, taken) = (line!(), CallSite::here());
        place.hold(Instant::now(), taken);

        sleep(Duration::from_millis(9_900)).await;
        assert_eq!((log.lines("WARN").len(), leaks()), (0, 0), "told too early");
        sleep(LONGEST_LOOK_PERIOD + SECOND / 10).await;
        assert_eq!((log.lines("WARN").len(), leaks()), (1, 1), "told too late");
        let site = format!("{}:{line}:", file!());
        assert!(log.lines("WARN")[0].contains(&site), "{site} is not in {:?}", log.lines("WARN"));
        sleep(60 * SECOND).await;
        assert_eq!((log.lines("WARN").len(), leaks()), (1, 1), "told again");

        assert_eq!(log.lines("INFO").len(), 0);
        drop(place);
        assert_eq!(log.lines("INFO").len(), 1);
        assert!(log.lines("INFO")[0].contains(&site));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_without_a_threshold_warns_of_nobody() {
        let log = Log::default();
        let writer = {
            let log = log.clone();
            move || log.clone()
        };
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let pool = pool(|it| it);
        pool.ensure_reaper();
        let mut place = pool.place(Deadline::within(SECOND)).await.unwrap();
        place.hold(Instant::now(), CallSite::here());
        sleep(3600 * SECOND).await;
        drop(place);
        assert_eq!((log.lines("WARN").len(), log.lines("INFO").len()), (0, 0));
    }
}
