//! The connections to one place: lent out, taken back, and seen off when they are lost or old.
//!
//! The counting is deadpool's. What it cannot know is decided here: which idle connection is still good
//! (without a round trip, unless there is a reason for doubt), and, when nobody gets one, whose fault that is.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    self, Manager, Metrics, Object, PoolConfig, PoolError, QueueMode, RecycleError, RecycleResult,
    Timeouts,
};
use resilience_core::{Deadline, Event, Name, PoolStatus, Standstill, emit};
use tokio::time::Instant;

use crate::connect::{Connection, Connector};
use crate::error::{ConnectCause, ConnectError, Error};
use crate::tuning::Tuning;

/// Time for the answer of an idle connection that is being tested.
const TEST_LIMIT: Duration = Duration::from_secs(1);

/// Time for which this process must have stood still for an idle connection to be tested: its end may have
/// come, and its driver had no time to notice.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// How often idle connections are looked through for those whose time is over.
const REAP_EVERY: Duration = Duration::from_secs(10);

/// The connections to one place.
#[derive(Debug)]
pub(crate) struct Pool {
    lent: managed::Pool<Opener>,
    reaped: Mutex<Instant>,
}

/// A connection that belongs to a pool.
#[derive(Debug)]
pub(crate) struct Pooled {
    connection: Connection,
    /// When it was last given back.
    used: Instant,
    /// When it is too old.
    expires: Instant,
    /// How long it took to open, until it is first lent.
    opening: Duration,
}

/// A borrowed connection. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Lease {
    /// There until the drop.
    object: Option<Object<Opener>>,
    pub(crate) pool: Arc<Pool>,
    since: Instant,
    /// How long the borrower waited because of other borrowers.
    pub(crate) queued: Duration,
    spoiled: bool,
}

impl Pool {
    /// A pool of up to `size` connections that `connector` opens.
    pub(crate) fn new(connector: Connector, size: usize, tuning: Tuning) -> Self {
        let name = connector.name.clone();
        let opener = Opener { connector, name, tuning, seen: Mutex::default() };
        let lent = managed::Pool::builder(opener)
            // The last one back goes out first, so that what is not needed grows old.
            .config(PoolConfig {
                max_size: size,
                queue_mode: QueueMode::Lifo,
                ..PoolConfig::default()
            })
            .runtime(Runtime::Tokio1)
            .build()
            .expect("the runtime that its timeouts need is given");
        Self { lent, reaped: Mutex::new(Instant::now()) }
    }

    /// Borrows a connection: an idle one, else a new one, else the next to come back.
    ///
    /// Dropping the future loses the place in the queue and nothing else.
    pub(crate) async fn checkout(
        self: &Arc<Self>,
        by: Deadline,
    ) -> Result<Lease, PoolError<ConnectError>> {
        self.reap();
        let opener = self.opener();
        let asked = Instant::now();
        let wait = opener.tuning.acquire_timeout.min(by.remaining());
        let limits = Timeouts { wait: Some(wait), ..Timeouts::default() };
        let mut object = by.scope(self.lent.timeout_get(&limits)).await?;
        let now = Instant::now();
        let queued = (now - asked).saturating_sub(std::mem::take(&mut object.opening));
        emit(&Event::ConnectionAcquired { pool: &opener.name, waited: now - asked });
        Ok(Lease {
            object: Some(object),
            pool: Arc::clone(self),
            since: now,
            queued,
            spoiled: false,
        })
    }

    /// What it means that nobody gave a connection back since `asked`: that all are in use, or that
    /// those ahead of us cannot connect either.
    pub(crate) fn why_none(&self, asked: Instant) -> Error {
        let opener = self.opener();
        emit(&Event::AcquireTimedOut { pool: &opener.name });
        let endpoint = Arc::clone(&opener.connector.endpoint);
        let waited = asked.elapsed();
        match &opener.seen().failed {
            Some((at, error)) if *at >= asked => return error.clone().into(),
            _ => {}
        }
        let status = self.lent.status();
        if status.size == 0 {
            let cause = ConnectCause::TimedOut { what: "connection", after: waited };
            return ConnectError { endpoint, cause }.into();
        }
        Error::Exhausted { endpoint, limit: status.max_size, waited }
    }

    /// Closes the connections that have lain idle since before `then`: one like them was lost since.
    pub(crate) fn sweep(&self, then: Instant) {
        let swept = self.lent.retain(|pooled, _| pooled.used >= then).removed.len();
        if swept > 0 {
            let opener = self.opener();
            tracing::debug!(target: "shared_external::redis", name = %opener.name, endpoint = %opener.connector.endpoint, swept, "a connection was lost; the idle ones are closed");
        }
    }

    /// Has every idle connection tested before it is lent again: one like them was silent for too long.
    pub(crate) fn doubt(&self) {
        self.opener().seen().doubted = Some(Instant::now());
    }

    /// Closes idle connections whose time is over, now and then.
    pub(crate) fn reap(&self) {
        let now = Instant::now();
        {
            let Ok(mut reaped) = self.reaped.try_lock() else { return };
            if now.saturating_duration_since(*reaped) < REAP_EVERY {
                return;
            }
            *reaped = now;
        }
        let idle_timeout = self.opener().tuning.idle_timeout;
        let reaped = self.lent.retain(|pooled, _| {
            !pooled.is_over(now) && now.saturating_duration_since(pooled.used) < idle_timeout
        });
        if !reaped.removed.is_empty() {
            tracing::debug!(target: "shared_external::redis", name = %self.opener().name, reaped = reaped.removed.len(), "idle connections closed");
        }
    }

    /// Lends nothing more; closes idle connections now, and the others when they come back.
    pub(crate) fn close(&self) {
        self.lent.close();
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.opener().connector
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let managed::Status { max_size, size, available, waiting } = self.lent.status();
        PoolStatus {
            in_use: size - available,
            idle: available,
            max: max_size,
            waiting,
            idle_max: max_size,
            idle_min: 0,
        }
    }

    fn opener(&self) -> &Opener {
        self.lent.manager()
    }
}

impl Lease {
    /// Has the connection closed on return.
    pub(crate) fn spoil(&mut self) {
        self.spoiled = true;
    }
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.object.as_ref().expect("it is there until the drop").connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.object.as_mut().expect("it is there until the drop").connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut object) = self.object.take() else { return };
        let now = Instant::now();
        if self.spoiled || object.connection.is_lost() {
            // Out of the pool, so that its place is free at once; the drop closes the socket.
            drop(Object::take(object));
        } else {
            object.used = now;
            drop(object);
        }
        emit(&Event::ConnectionReleased { pool: &self.pool.opener().name, used: now - self.since });
    }
}

impl Pooled {
    fn is_over(&self, now: Instant) -> bool {
        self.connection.is_lost() || self.expires <= now
    }
}

/// What deadpool asks for connections.
#[derive(Debug)]
pub(crate) struct Opener {
    connector: Connector,
    name: Name,
    tuning: Tuning,
    seen: Mutex<Seen>,
}

/// What the pool's connections have told of the server.
#[derive(Debug, Default)]
struct Seen {
    /// When the last connection could not be opened, and why.
    failed: Option<(Instant, ConnectError)>,
    /// Connections unused since then must be tested.
    doubted: Option<Instant>,
    /// Connections unused since then are not to be trusted any more.
    condemned: Option<Instant>,
}

impl Opener {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Manager for Opener {
    type Type = Pooled;
    type Error = ConnectError;

    async fn create(&self) -> Result<Pooled, ConnectError> {
        let started = Instant::now();
        let connection = self.connector.open().await.inspect_err(|error| {
            self.seen().failed = Some((Instant::now(), error.clone()));
        })?;
        let now = Instant::now();
        // A tenth more or less, or all the connections of a busy start would expire together.
        let lifetime = self.tuning.max_lifetime.mul_f64(0.9 + 0.2 * fastrand::f64());
        Ok(Pooled { connection, used: now, expires: now + lifetime, opening: now - started })
    }

    async fn recycle(&self, pooled: &mut Pooled, _: &Metrics) -> RecycleResult<ConnectError> {
        let now = Instant::now();
        let used = pooled.used;
        let (doubted, condemned) = {
            let seen = self.seen();
            (seen.doubted.is_some_and(|at| at >= used), seen.condemned.is_some_and(|at| at >= used))
        };
        if condemned || pooled.is_over(now) {
            return Err(RecycleError::message("lost or expired"));
        }
        let doubted = doubted || Standstill::since(used).time() >= SUSPICIOUS;
        if doubted || now.saturating_duration_since(used) >= self.tuning.test_after {
            let by = Deadline::within(TEST_LIMIT).inherited();
            if let Err(error) = pooled.connection.ping(by).await {
                tracing::debug!(target: "shared_external::redis", name = %self.name, endpoint = %self.connector.endpoint, %error, "an idle connection failed its test");
                self.seen().condemned = Some(now);
                return Err(RecycleError::message("failed its test"));
            }
        }
        Ok(())
    }
}
