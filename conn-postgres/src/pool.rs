//! The pool: lends connections first come, first served, keeps some idle, and closes the rest.
//!
//! A place is the right to hold one connection. There are `pool_size + max_overflow` of them; whoever has
//! one takes an idle connection or opens a new one. Giving back needs no I/O, so neither does dropping.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use resilience_core::{Deadline, Event, Name, PoolStatus, Standstill, emit};
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::DatabaseConfig;
use crate::conn::Conn;
use crate::connector::Connector;
use crate::defaults::{LIFETIME_JITTER, SHORTEST_FAIR_ATTEMPT};
use crate::error::{Error, Exhausted, Unreachable};
use crate::follow::Followers;
use crate::session::Session;
use crate::track::silence;

/// Time for which this process must have stood still for an idle connection to be asked before it is lent:
/// the end of many at once may have gone by unheard, and each would fail a call.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// The longest that such a connection may take to answer.
const TEST_LIMIT: Duration = Duration::from_secs(1);

/// How often idle connections are looked through at the least, while there are any.
const LONGEST_REAPER_PERIOD: Duration = Duration::from_secs(30);

pub(crate) struct Pool {
    name: Name,
    pub(crate) connector: Connector,
    size: usize,
    limit: usize,
    acquire_timeout: Duration,
    idle_timeout: Duration,
    max_lifetime: Duration,
    places: Semaphore,
    /// The last to come back is the first to go out, so that a quiet pool shrinks.
    idle: Mutex<Vec<Session>>,
    lent: AtomicUsize,
    waiting: AtomicUsize,
    closed: AtomicBool,
    /// Why connections cannot be opened, since the last that could or that came back well.
    trouble: Mutex<Option<Unreachable>>,
    troubled: AtomicBool,
    reaper: Mutex<Option<JoinHandle<()>>>,
    followers: Followers,
}

impl Pool {
    pub(crate) fn new(config: &DatabaseConfig, connector: Connector) -> Arc<Self> {
        let size = config.tuning.pool_size as usize;
        let limit = size + config.tuning.max_overflow as usize;
        Arc::new(Self {
            name: config.name.clone(),
            connector,
            size,
            limit,
            acquire_timeout: config.tuning.acquire_timeout,
            idle_timeout: config.tuning.idle_timeout,
            max_lifetime: config.tuning.max_lifetime,
            places: Semaphore::new(limit),
            idle: Mutex::new(Vec::new()),
            lent: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            trouble: Mutex::new(None),
            troubled: AtomicBool::new(false),
            reaper: Mutex::new(None),
            followers: Followers::default(),
        })
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Lends a connection by `deadline`. The pool's own time limits the wait for a place alone: one that
    /// was long must not leave the connect so little that the server is taken for unreachable.
    pub(crate) async fn acquire(self: &Arc<Self>, deadline: Deadline) -> Result<Conn, Error> {
        if let Some(place) = self.try_place()? {
            let now = Instant::now();
            if let Some(session) = self.take_idle(now).await {
                return Ok(self.lend(session, place, now, Duration::ZERO, Duration::ZERO));
            }
            return self.open(place, deadline, Duration::ZERO).await;
        }
        let started = Instant::now();
        let patience = Deadline::at(started + self.acquire_timeout).min(deadline);
        let place = self.queue(patience, started).await?;
        let now = Instant::now();
        let queued = now.saturating_duration_since(started);
        match self.take_idle(now).await {
            Some(session) => Ok(self.lend(session, place, now, queued, Duration::ZERO)),
            None => self.open(place, deadline, queued).await,
        }
    }

    /// A connection without waiting for a place; `None` if all are taken.
    pub(crate) async fn try_acquire(
        self: &Arc<Self>,
        deadline: Deadline,
    ) -> Result<Option<Conn>, Error> {
        let Some(place) = self.try_place()? else { return Ok(None) };
        let now = Instant::now();
        match self.take_idle(now).await {
            Some(session) => {
                Ok(Some(self.lend(session, place, now, Duration::ZERO, Duration::ZERO)))
            }
            None => self.open(place, deadline, Duration::ZERO).await.map(Some),
        }
    }

    /// A place alone, for a connection that will not be handed on.
    pub(crate) async fn place(self: &Arc<Self>, deadline: Deadline) -> Result<Place, Error> {
        match self.try_place()? {
            Some(place) => Ok(place),
            None => self.queue(deadline, Instant::now()).await,
        }
    }

    /// Counts a connection beside those of the pool as lent, for as long as it is held.
    pub(crate) fn lent(&self) -> Lent<'_> {
        self.lent.fetch_add(1, Ordering::Relaxed);
        Lent(self)
    }

    pub(crate) fn status(&self) -> PoolStatus {
        PoolStatus {
            in_use: self.lent.load(Ordering::Relaxed),
            idle: self.idle().len(),
            max: self.limit,
            waiting: self.waiting.load(Ordering::Relaxed),
            idle_max: self.size,
            idle_min: 0,
        }
    }

    /// Takes a session back: idle if it may be used on and there is room, else closed.
    pub(crate) fn give_back(&self, mut session: Session, now: Instant) {
        self.lent.fetch_sub(1, Ordering::Relaxed);
        if !session.is_clean() {
            let epoch_is_over = !session.track.is_current(now);
            tracing::debug!(target: "shared_external::postgres", pool = %self.name, ?session, "connection discarded");
            drop(session);
            if epoch_is_over {
                self.sweep(now);
            }
            return;
        }
        if self.troubled.load(Ordering::Relaxed) {
            self.settle_trouble(None);
        }
        if !session.track.is_current(now) {
            session.close();
            return self.sweep(now);
        }
        session.track.renew(now);
        let surplus = {
            let mut idle = self.idle();
            match idle.len() < self.size && !self.closed.load(Ordering::Acquire) {
                true => {
                    idle.push(session);
                    None
                }
                false => Some(session),
            }
        };
        if let Some(session) = surplus {
            session.close();
        }
    }

    /// Waits by `deadline` until all places are free, then closes what is idle. Says how many were not.
    pub(crate) async fn drain(&self, deadline: Deadline) -> usize {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        let returned = timeout_at(deadline.instant(), self.places.acquire_many(all)).await;
        self.closed.store(true, Ordering::Release);
        self.places.close();
        let idle = std::mem::take(&mut *self.idle());
        for session in idle {
            session.close();
        }
        match returned {
            Ok(Ok(_)) => 0,
            Ok(Err(_)) | Err(_) => self.limit - self.places.available_permits(),
        }
    }

    /// Closes idle connections that may not be used on.
    pub(crate) fn sweep(&self, now: Instant) {
        let expired: Vec<_> = {
            let mut idle = self.idle();
            idle.extract_if(.., |session| !self.may_lend(session, now)).collect()
        };
        for session in expired {
            session.close();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn closed_error(&self) -> Error {
        Error::Closed { pool: self.name.clone() }
    }

    fn try_place(self: &Arc<Self>) -> Result<Option<Place>, Error> {
        match self.places.try_acquire() {
            Ok(permit) => {
                permit.forget();
                Ok(Some(Place(Arc::clone(self))))
            }
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(self.closed_error()),
        }
    }

    async fn queue(self: &Arc<Self>, deadline: Deadline, started: Instant) -> Result<Place, Error> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _queued = Queued(self);
        match timeout_at(deadline.instant(), self.places.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(Place(Arc::clone(self)))
            }
            Ok(Err(_)) => Err(self.closed_error()),
            Err(_) => Err(self.waited_in_vain(started)),
        }
    }

    /// Exhausted, if connections work; else why they do not.
    fn waited_in_vain(&self, started: Instant) -> Error {
        emit(&Event::AcquireTimedOut { pool: &self.name });
        let (waited, in_use) = (started.elapsed(), self.lent.load(Ordering::Relaxed));
        if let Some(trouble) = &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            return trouble.clone().into();
        }
        if in_use == 0 {
            // Every place is taken by someone who is still connecting.
            let endpoints = self.connector.endpoints.candidates();
            let label =
                endpoints.first().map_or_else(|| "any endpoint".into(), |it| Arc::clone(&it.label));
            return Unreachable::new(label, silence(waited)).into();
        }
        Exhausted { pool: self.name.clone(), limit: self.limit, in_use, waited, spent: false }
            .into()
    }

    async fn take_idle(&self, now: Instant) -> Option<Session> {
        if self.connector.endpoints.refresh() {
            self.sweep(now);
        }
        loop {
            let mut session = self.idle().pop()?;
            if !self.may_lend(&session, now) {
                session.close();
                continue;
            }
            if Standstill::since(session.track.idle_since).time() < SUSPICIOUS {
                return Some(session);
            }
            // Boxed: it is seldom needed, and every future that borrows would carry it.
            if Box::pin(session.answers(TEST_LIMIT)).await {
                return Some(session);
            }
            tracing::debug!(target: "shared_external::postgres", pool = %self.name, ?session, "an idle connection was lost while this process stood still");
        }
    }

    fn may_lend(&self, session: &Session, now: Instant) -> bool {
        let idle = now.saturating_duration_since(session.track.idle_since);
        session.track.is_current(now) && idle < self.idle_timeout
    }

    async fn open(
        self: &Arc<Self>,
        place: Place,
        deadline: Deadline,
        queued: Duration,
    ) -> Result<Conn, Error> {
        // Before the connect: what is out of date may be why it fails.
        self.followers.ensure(self);
        let (opening, standstill) = (Instant::now(), Standstill::watch());
        let hurried = deadline.remaining_at(opening) < SHORTEST_FAIR_ATTEMPT;
        let opened = match self.connector.open(deadline).await {
            Ok(opened) => opened,
            Err(error) => {
                if let Error::Unreachable(unreachable) = &error
                    && !hurried
                    && !standstill.excuses()
                {
                    self.settle_trouble(Some(unreachable.clone()));
                }
                return Err(error);
            }
        };
        self.settle_trouble(None);
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(opening);
        emit(&Event::ConnectionCreated { pool: &self.name, elapsed });
        let session = Session::new(opened, now + self.lifetime());
        self.ensure_reaper();
        Ok(self.lend(session, place, now, queued, elapsed))
    }

    fn lend(
        &self,
        session: Session,
        place: Place,
        now: Instant,
        queued: Duration,
        opening: Duration,
    ) -> Conn {
        self.lent.fetch_add(1, Ordering::Relaxed);
        emit(&Event::ConnectionAcquired { pool: &self.name, waited: queued + opening });
        Conn::new(session, place, now, queued)
    }

    fn lifetime(&self) -> Duration {
        self.max_lifetime.mul_f64(1.0 + LIFETIME_JITTER * (2.0 * fastrand::f64() - 1.0))
    }

    fn settle_trouble(&self, trouble: Option<Unreachable>) {
        self.troubled.store(trouble.is_some(), Ordering::Relaxed);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        // No section panics half-way through a change.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the task that closes idle connections when nobody comes by, unless it runs. It ends with
    /// the pool.
    fn ensure_reaper(self: &Arc<Self>) {
        let mut reaper = self.reaper.lock().unwrap_or_else(PoisonError::into_inner);
        if reaper.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Some(runtime) = self.connector.runtime() else { return };
        let period = (self.idle_timeout.min(self.max_lifetime) / 2).min(LONGEST_REAPER_PERIOD);
        *reaper = Some(runtime.spawn(reap(Arc::downgrade(self), period)));
    }
}

async fn reap(pool: Weak<Pool>, period: Duration) {
    loop {
        sleep(period).await;
        let Some(pool) = pool.upgrade() else { return };
        pool.connector.endpoints.refresh();
        pool.sweep(Instant::now());
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// The right to hold one connection, given back on drop.
#[derive(Debug)]
pub(crate) struct Place(Arc<Pool>);

impl Place {
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.add_permits(1);
    }
}

/// A connection that counts as lent.
pub(crate) struct Lent<'a>(&'a Pool);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.lent.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Queued<'a>(&'a Pool);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
