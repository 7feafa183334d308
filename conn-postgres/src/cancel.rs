//! Ends at the server what was cut short here.
//!
//! A statement whose socket was closed goes on until the server looks at the socket, which it seldom does while
//! it computes or waits. So the backend is handed over, by plain code that waits for nothing, to a task that
//! has one connection of its own for each endpoint. It asks softly first (`pg_cancel_backend`), which the
//! server's log takes for the everyday thing that it is. That does not hold where the backend had not begun yet;
//! who is still there a moment later is ended (`pg_terminate_backend`).
//!
//! ```text
//! cut ──► asked ── gone within the grace ──► done
//!           └───── still there ──► told ──┬─ gone ──► done
//!                                    ▲    └─ still there ─┐ given up after a few times
//!                                    └────────────────────┘
//! ```
//!
//! A process id may be a stranger's by the time it is used: it counts only together with the time at which its
//! process began, in the very statement that signals it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use resilience_core::Deadline;
use sqlx::{Connection, PgConnection};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::connector::Connector;
use crate::endpoints::Origin;
use crate::error::Error;
use crate::greeting::Greeting;
use crate::track::silence;

/// Backends of one endpoint that wait for their turn. What is more than that is left to the server's own checks.
const WAITING: usize = 1024;

/// Backends signalled by one statement.
const AT_ONCE: usize = 128;

/// How long a backend may take to go away before it is asked again, and harder. A healthy one needs a
/// millisecond or two.
const GRACE: Duration = Duration::from_millis(20);

/// How often a backend is signalled. One that runs code which heeds no signal is left to itself.
const SIGNALS_AT_MOST: u32 = 8;

/// The longest that the server may take to pass signals on.
const SIGNAL_LIMIT: Duration = Duration::from_secs(1);

/// How long nothing is tried after a failure: the server has other worries.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the connection is kept for the next cut.
const KEPT: Duration = Duration::from_secs(5);

/// Ends at the server what was cut short here.
pub(crate) struct Canceller {
    connector: Arc<Connector>,
    /// One for each endpoint at which something was cut lately.
    lines: Mutex<Vec<Line>>,
    figures: Arc<Figures>,
}

/// The way to an endpoint's task. The task ends when it is let go of, and when it was not needed for a while.
struct Line {
    origin: Arc<Origin>,
    cuts: mpsc::Sender<Backend>,
    task: JoinHandle<()>,
}

/// What became of what was cut.
#[derive(Debug, Default)]
struct Figures {
    /// Asked to give up their statement.
    cancelled: AtomicU64,
    /// Told to go, each time counted.
    terminated: AtomicU64,
    /// Left to the server's own checks: too many at once, or the server could not be asked.
    dropped: AtomicU64,
}

/// A process of the server, and what tells it from a later one with the same number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Backend {
    pid: i32,
    since: i64,
}

/// What was under way on a connection when its socket was closed, and where.
#[derive(Debug)]
pub(crate) struct Cut {
    origin: Arc<Origin>,
    backend: Backend,
}

impl Cut {
    /// `None` where the server did not say enough of its process to be sure of it later.
    pub(crate) fn new(origin: &Arc<Origin>, greeting: Greeting) -> Option<Self> {
        let backend = Backend { pid: greeting.backend, since: greeting.since? };
        Some(Self { origin: Arc::clone(origin), backend })
    }
}

impl Canceller {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self { connector, lines: Mutex::default(), figures: Arc::default() }
    }

    /// Has `cut` ended at the server, and waits for nothing. `is_last` where no others are expected.
    pub(crate) fn cancel(&self, cut: Cut, is_last: bool) {
        let Cut { origin, backend } = cut;
        if self.connector.is_behind_pgbouncer() {
            return;
        }
        let mut lines = self.lines();
        lines.retain(|line| !line.cuts.is_closed());
        let index = match lines.iter().position(|line| Arc::ptr_eq(&line.origin, &origin)) {
            Some(index) => index,
            None => {
                let Some(line) = self.open_line(origin) else { return self.figures.lose(1) };
                lines.push(line);
                lines.len() - 1
            }
        };
        if lines[index].cuts.try_send(backend).is_err() {
            self.figures.lose(1);
        }
        if is_last {
            lines.swap_remove(index);
        }
    }

    /// `None` where there is no runtime to run the task.
    fn open_line(&self, origin: Arc<Origin>) -> Option<Line> {
        let runtime = self.connector.runtime()?;
        let (cuts, coming) = mpsc::channel(WAITING);
        let work = Work {
            connector: Arc::clone(&self.connector),
            origin: Arc::clone(&origin),
            figures: Arc::clone(&self.figures),
            coming,
            targets: Vec::new(),
            control: None,
        };
        Some(Line { origin, cuts, task: runtime.spawn(work.run()) })
    }

    /// Lets go of the connections for this once what was handed over is done, and waits for that by `deadline`.
    pub(crate) async fn drain(&self, deadline: Deadline) {
        let lines = std::mem::take(&mut *self.lines());
        let ends = lines.into_iter().map(|line| line.task);
        // What is not done by then ends by itself, each step of it within its own time.
        let _ = timeout_at(deadline.instant(), join_all(ends)).await;
    }

    /// Lets go of the connections to endpoints that are no longer used.
    pub(crate) fn tidy(&self) {
        self.lines().retain(|line| !line.origin.is_retired());
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        f.debug_struct("Canceller")
            .field("cancelled", &figure(&self.figures.cancelled))
            .field("terminated", &figure(&self.figures.terminated))
            .field("dropped", &figure(&self.figures.dropped))
            .finish_non_exhaustive()
    }
}

impl Figures {
    fn lose(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }
}

/// The task of one endpoint.
struct Work {
    connector: Arc<Connector>,
    origin: Arc<Origin>,
    figures: Arc<Figures>,
    coming: mpsc::Receiver<Backend>,
    /// Those that are looked after, as many as may wait at the most.
    targets: Vec<Target>,
    control: Option<Control>,
}

/// A backend that may be there still.
struct Target {
    backend: Backend,
    /// How often it was signalled.
    signals: u32,
    /// When to look after it.
    due: Instant,
}

/// A connection beside the pool, for signals alone.
struct Control {
    raw: PgConnection,
    /// The origin's epoch before it was opened.
    epoch: u64,
}

impl Work {
    /// Whoever is there and is who was meant, and signals it.
    const SIGNAL: &str = "SELECT it.pid, CASE WHEN meant.is_told THEN pg_terminate_backend(it.pid) \
                          ELSE pg_cancel_backend(it.pid) END \
                          FROM unnest($1, $2, $3) AS meant (pid, since, is_told) \
                          JOIN pg_stat_activity AS it ON it.pid = meant.pid \
                          AND (extract(epoch FROM it.backend_start) * 1000000)::int8 = meant.since \
                          WHERE pg_has_role(it.usesysid, 'USAGE')";

    async fn run(mut self) {
        while self.next().await {
            let Err(error) = Box::pin(self.signal()).await else { continue };
            tracing::debug!(target: "shared_external::postgres", endpoint = %self.origin.label, left = self.targets.len(), %error, "cannot cancel what was cut; the server finds out by itself");
            self.figures.lose(self.targets.len() as u64);
            self.targets.clear();
            self.rest().await;
        }
        if let Some(control) = self.control {
            let _ = timeout(SIGNAL_LIMIT, control.raw.close()).await;
        }
    }

    /// Waits until there is someone to look after. `false` if nobody comes any more, or nobody came for long.
    async fn next(&mut self) -> bool {
        let due = self.targets.iter().map(|target| target.due).min();
        let until = due.unwrap_or_else(|| Instant::now() + KEPT);
        if self.targets.len() >= WAITING {
            sleep_until(until).await;
            return true;
        }
        match timeout_at(until, self.coming.recv()).await {
            Ok(Some(backend)) => self.targets.push(Target::new(backend)),
            Ok(None) if due.is_some() => sleep_until(until).await,
            Ok(None) => return false,
            // From here on, the next cut starts another task; those that slipped in are taken along.
            Err(_) if due.is_none() => self.coming.close(),
            Err(_) => {}
        }
        while self.targets.len() < WAITING
            && let Ok(backend) = self.coming.try_recv()
        {
            self.targets.push(Target::new(backend));
        }
        !self.targets.is_empty()
    }

    /// Signals those that are due, and forgets those that are gone.
    async fn signal(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        self.targets.sort_by_key(|target| target.due);
        let due = self.targets.iter().take_while(|target| target.due <= now).count();
        let due = due.min(AT_ONCE);
        if due == 0 {
            return Ok(());
        }
        let mut control = self.control().await?;
        let meant = &self.targets[..due];
        let asking = sqlx::query_as::<_, (i32, bool)>(Self::SIGNAL)
            .bind(meant.iter().map(|target| target.backend.pid).collect::<Vec<_>>())
            .bind(meant.iter().map(|target| target.backend.since).collect::<Vec<_>>())
            .bind(meant.iter().map(|target| target.signals > 0).collect::<Vec<_>>())
            .fetch_all(&mut control.raw);
        let there = timeout(SIGNAL_LIMIT, asking).await;
        let there = there.unwrap_or_else(|_| Err(silence(SIGNAL_LIMIT)))?;
        self.control = Some(control);

        let others = self.targets.split_off(due);
        for mut target in std::mem::replace(&mut self.targets, others) {
            if !there.iter().any(|(pid, _)| *pid == target.backend.pid) {
                continue;
            }
            let figures = &*self.figures;
            let figure = if target.signals == 0 { &figures.cancelled } else { &figures.terminated };
            figure.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(target: "shared_external::postgres", endpoint = %self.origin.label, backend = target.backend.pid, signals = target.signals, "a backend was told to stop what was cut");
            target.signals += 1;
            match target.signals < SIGNALS_AT_MOST {
                true => {
                    target.due = now + GRACE * target.signals;
                    self.targets.push(target);
                }
                false => figures.lose(1),
            }
        }
        Ok(())
    }

    /// The connection for signals: the one there is, unless something has happened to others of its time.
    async fn control(&mut self) -> Result<Control, Error> {
        if let Some(control) = self.control.take()
            && self.origin.is_current(control.epoch)
        {
            return Ok(control);
        }
        let epoch = self.origin.epoch();
        let deadline = Deadline::within(self.connector.connect_timeout);
        let raw = self.connector.open_beside(&self.origin, deadline).await?;
        Ok(Control { raw, epoch })
    }

    /// Lets [`PAUSE`] go by, unless nobody comes any more.
    async fn rest(&mut self) {
        let until = Instant::now() + PAUSE;
        while self.targets.len() < WAITING
            && let Ok(coming) = timeout_at(until, self.coming.recv()).await
        {
            let Some(backend) = coming else { return };
            self.targets.push(Target::new(backend));
        }
        sleep_until(until).await;
    }
}

impl Target {
    fn new(backend: Backend) -> Self {
        Self { backend, signals: 0, due: Instant::now() }
    }
}
