//! The pool: lends connections first come, first served, keeps some idle, and closes the rest.
//!
//! A place is the right to hold one connection. There are `pool_size + max_overflow` of them; whoever has
//! one takes an idle connection or opens a new one. Giving back needs no I/O, so neither does dropping.
//! A connection that was used a moment ago is lent as it is; one that lay idle for long is asked first.

mod comeback;
mod fitness;
mod place;
mod queue;
mod reaper;
mod split;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use resilience_core::{
    CircuitBreaker, CircuitState, Deadline, Event, Name, PoolStatus, Standstill, emit,
};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::cancel::Canceller;
use crate::config::DatabaseConfig;
use crate::conn::Conn;
use crate::connector::{Connector, Opened};
use crate::defaults::{LIFETIME_JITTER, SHORTEST_FAIR_ATTEMPT};
use crate::error::{Error, Unreachable};
use crate::follow::Followers;
use crate::holders::{CallSite, Holders};
use crate::listen::Listeners;
use crate::scout::Scout;
use crate::session::Session;

use fitness::Fitness;
pub(crate) use place::Place;
pub(crate) use split::Want;

/// The longest that an idle connection may take to answer.
const TEST_LIMIT: Duration = Duration::from_secs(1);

/// Connections that one warm-up opens at a time, or those who have waited for a primary: a server forks a process
/// for each.
const OPENED_AT_ONCE: usize = 8;

pub(crate) struct Pool {
    name: Name,
    pub(crate) connector: Arc<Connector>,
    canceller: Canceller,
    size: usize,
    min_idle: usize,
    limit: usize,
    acquire_timeout: Duration,
    connect_timeout: Duration,
    idle_timeout: Duration,
    max_lifetime: Duration,
    test_after: Duration,
    leak_threshold: Option<Duration>,
    places: Semaphore,
    /// To connect to a primary that was waited for.
    turns: Semaphore,
    shelf: Mutex<Shelf>,
    waiting: AtomicUsize,
    /// Why connections cannot be opened, since the last that could or that came back well.
    trouble: Mutex<Option<Unreachable>>,
    troubled: AtomicBool,
    reaper: Mutex<Option<JoinHandle<()>>>,
    followers: Followers,
    pub(crate) listeners: Listeners,
    scout: Scout,
    /// What stands before the database as a whole.
    breaker: CircuitBreaker,
}

/// What lies here, and who has the rest.
struct Shelf {
    /// The last to come back is the first to go out, so that a quiet pool shrinks.
    #[expect(clippy::vec_box, reason = "a word is moved with each loan, not the whole session")]
    idle: Vec<Box<Session>>,
    /// How many may lie here: none once the pool is closed.
    room: usize,
    holders: Holders,
}

impl Shelf {
    /// Gives `session` back where there is no room.
    fn put(&mut self, session: Box<Session>) -> Option<Box<Session>> {
        if self.idle.len() >= self.room {
            return Some(session);
        }
        self.idle.push(session);
        None
    }
}

impl Pool {
    pub(crate) fn new(
        config: &DatabaseConfig,
        connector: Connector,
        breaker: CircuitBreaker,
    ) -> Arc<Self> {
        let size = config.tuning.pool_size as usize;
        let limit = size + config.tuning.max_overflow as usize;
        let connector = Arc::new(connector);
        Arc::new(Self {
            name: config.name.clone(),
            canceller: Canceller::new(Arc::clone(&connector)),
            connector,
            size,
            min_idle: config.tuning.min_idle as usize,
            limit,
            acquire_timeout: config.tuning.acquire_timeout,
            connect_timeout: config.tuning.connect_timeout,
            idle_timeout: config.tuning.idle_timeout,
            max_lifetime: config.tuning.max_lifetime,
            test_after: config.tuning.test_after,
            leak_threshold: config.tuning.leak_threshold,
            places: Semaphore::new(limit),
            turns: Semaphore::new(OPENED_AT_ONCE),
            shelf: Mutex::new(Shelf { idle: Vec::new(), room: size, holders: Holders::default() }),
            waiting: AtomicUsize::new(0),
            trouble: Mutex::new(None),
            troubled: AtomicBool::new(false),
            reaper: Mutex::new(None),
            followers: Followers::default(),
            listeners: Listeners::default(),
            scout: Scout::default(),
            breaker,
        })
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Lends a connection by `deadline` to whom `taken` says, to wherever the manager's connections go.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        deadline: Deadline,
        taken: CallSite,
    ) -> impl Future<Output = Result<Conn, Error>> {
        self.acquire_for(Want::Primary, deadline, taken)
    }

    /// Lends a connection by `deadline` to whom `taken` says. The pool's own time limits the wait for a place
    /// alone: one that was long must not leave the connect so little that the server is taken for unreachable.
    pub(crate) async fn acquire_for(
        self: &Arc<Self>,
        want: Want,
        deadline: Deadline,
        taken: CallSite,
    ) -> Result<Conn, Error> {
        if self.connector.topology().splits_reads() {
            // Boxed: every future that borrows would carry it.
            return Box::pin(self.acquire_split(want, deadline, taken)).await;
        }
        if let Some(mut place) = self.try_place()? {
            let now = Instant::now();
            if let Some(session) = self.take_idle(&mut place, now, taken).await {
                return Ok(self.lend(session, place, now, Duration::ZERO, Duration::ZERO));
            }
            return self.open(place, deadline, taken, Duration::ZERO).await;
        }
        let started = Instant::now();
        let patience = Deadline::at(started + self.acquire_timeout).min(deadline);
        let mut place = self.queue(patience, started).await?;
        let now = Instant::now();
        let queued = now.saturating_duration_since(started);
        match self.take_idle(&mut place, now, taken).await {
            Some(session) => Ok(self.lend(session, place, now, queued, Duration::ZERO)),
            None => self.open(place, deadline, taken, queued).await,
        }
    }

    /// A connection that is idle and may be lent as it is; `None` where anything is to be waited for.
    pub(crate) fn acquire_idle(self: &Arc<Self>, taken: CallSite) -> Option<Conn> {
        if self.connector.topology().splits_reads() {
            // The last to come back may lead to a replica.
            return None;
        }
        self.places.try_acquire().ok()?.forget();
        let mut place = Place::new(self);
        let now = Instant::now();
        if self.connector.endpoints.refresh() {
            self.sweep(now);
        }
        let session = {
            let mut shelf = self.shelf();
            let session =
                shelf.idle.pop_if(|session| self.fitness(session, now, false) == Fitness::Good)?;
            place.ticket = Some(shelf.holders.enter(now, taken));
            session
        };
        Some(self.lend(session, place, now, Duration::ZERO, Duration::ZERO))
    }

    /// A connection without waiting for a place; `None` if all are taken.
    pub(crate) async fn try_acquire(
        self: &Arc<Self>,
        deadline: Deadline,
        taken: CallSite,
    ) -> Result<Option<Conn>, Error> {
        let Some(mut place) = self.try_place()? else { return Ok(None) };
        let now = Instant::now();
        match self.take_idle(&mut place, now, taken).await {
            Some(session) => {
                Ok(Some(self.lend(session, place, now, Duration::ZERO, Duration::ZERO)))
            }
            None => self.open(place, deadline, taken, Duration::ZERO).await.map(Some),
        }
    }

    /// A place alone, for a connection that will not be handed on.
    pub(crate) async fn place(self: &Arc<Self>, deadline: Deadline) -> Result<Place, Error> {
        match self.try_place()? {
            Some(place) => Ok(place),
            None => self.queue(deadline, Instant::now()).await,
        }
    }

    /// Opens connections until as many are idle as shall be at the least, and one in any case.
    pub(crate) async fn warm_up(self: &Arc<Self>, deadline: Deadline) -> Result<(), Error> {
        drop(self.acquire(deadline, CallSite::Operation("warm_up")).await?);
        let missing = self.min_idle.saturating_sub(self.shelf().idle.len());
        let opening = stream::iter(0..missing).map(|_| self.open_idle(deadline));
        opening.buffer_unordered(OPENED_AT_ONCE).try_for_each(|_| async { Ok(()) }).await
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let shelf = self.shelf();
        PoolStatus {
            in_use: shelf.holders.len(),
            idle: shelf.idle.len(),
            max: self.limit,
            waiting: self.waiting.load(Ordering::Relaxed),
            idle_max: self.size,
            idle_min: self.min_idle,
        }
    }

    /// Waits by `deadline` until all places are free, then closes what is idle. Says how many were not.
    pub(crate) async fn drain(&self, deadline: Deadline) -> usize {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        let returned = timeout_at(deadline.instant(), self.places.acquire_many(all)).await;
        self.places.close();
        // Who looks at the hosts sees that nobody needs it any more.
        self.connector.topology().call();
        let idle = {
            let mut shelf = self.shelf();
            shelf.room = 0;
            std::mem::take(&mut shelf.idle)
        };
        for session in idle {
            session.close();
        }
        self.canceller.drain(deadline).await;
        match returned {
            Ok(Ok(_)) => 0,
            Ok(Err(_)) | Err(_) => self.limit - self.places.available_permits(),
        }
    }

    /// Closes idle connections that may not be used on, and those that nobody needed for long, but for as
    /// many as shall be idle at the least.
    pub(crate) fn sweep(&self, now: Instant) {
        let expired: Vec<_> = {
            let idle = &mut self.shelf().idle;
            let mut expired: Vec<_> =
                idle.extract_if(.., |session| !session.track.is_current(now)).collect();
            let spare = idle.len().saturating_sub(self.min_idle);
            // Those that have lain longest come first.
            expired.extend(idle.extract_if(..spare, |session| self.is_unneeded(session, now)));
            expired
        };
        for session in expired {
            session.close();
        }
        self.canceller.tidy();
    }

    /// Starts what looks at the hosts, where there are several.
    pub(crate) fn ensure_scout(self: &Arc<Self>) {
        self.scout.ensure(self);
    }

    /// What failed is gone: the primary is another, or a server that was silent answers. Its failures keep nobody away.
    pub(crate) fn begin_anew(&self) {
        self.settle_trouble(None);
        if matches!(self.breaker.state(), CircuitState::Open | CircuitState::HalfOpen) {
            self.breaker.reset();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.places.is_closed()
    }

    /// Why nothing is lent once draining has begun.
    pub(crate) fn refusal(&self) -> Error {
        let pool = self.name.clone();
        match self.is_closed() {
            true => Error::Closed { pool },
            false => Error::Draining { pool },
        }
    }

    /// The connection that came back last, unless it may not be used on or does not answer when asked.
    async fn take_idle(
        &self,
        place: &mut Place,
        now: Instant,
        taken: CallSite,
    ) -> Option<Box<Session>> {
        if self.connector.endpoints.refresh() {
            self.sweep(now);
        }
        loop {
            let (mut session, fitness) = {
                let mut shelf = self.shelf();
                let session = shelf.idle.pop()?;
                let fitness = self.fitness(&session, now, shelf.idle.len() < self.min_idle);
                if fitness == Fitness::Good {
                    place.ticket = Some(shelf.holders.enter(now, taken));
                }
                (session, fitness)
            };
            match fitness {
                Fitness::Good => return Some(session),
                Fitness::Over => session.close(),
                // Boxed: it is seldom needed, and every future that borrows would carry it.
                Fitness::Doubtful => match Box::pin(session.answers(TEST_LIMIT)).await {
                    true => {
                        place.hold(now, taken);
                        return Some(session);
                    }
                    false => self.condemn(session),
                },
            }
        }
    }

    /// Closes a connection that did not answer, and those that have been idle for as long: to ask each
    /// would cost its borrower as long again.
    fn condemn(&self, session: Box<Session>) {
        let since = session.track.idle_since;
        let others: Vec<_> = {
            let idle = &mut self.shelf().idle;
            idle.extract_if(.., |other| other.track.idle_since <= since).collect()
        };
        tracing::debug!(target: "shared_external::postgres", pool = %self.name, ?session, others = others.len(), "an idle connection did not answer; those idle for longer are closed too");
        for other in others {
            other.close();
        }
    }

    async fn open(
        self: &Arc<Self>,
        mut place: Place,
        deadline: Deadline,
        taken: CallSite,
        queued: Duration,
    ) -> Result<Conn, Error> {
        let turn = match self.connector.topology().lacks_primary() {
            // Boxed: it is seldom needed, and every future that borrows would carry it.
            true => Some(Box::pin(self.turn(deadline)).await?),
            false => None,
        };
        if turn.is_some()
            && let Some(session) = self.take_returned(&mut place, taken).await
        {
            return Ok(self.lend(session, place, Instant::now(), queued, Duration::ZERO));
        }
        let (session, elapsed) = self.open_session(deadline).await?;
        drop(turn);
        let now = Instant::now();
        place.hold(now, taken);
        Ok(self.lend(session, place, now, queued, elapsed))
    }

    /// Opens a connection that nobody waits for. Says whether there was room for one.
    async fn open_idle(self: &Arc<Self>, deadline: Deadline) -> Result<bool, Error> {
        let Some(_place) = self.try_place()? else { return Ok(false) };
        if self.shelf().idle.len() > self.places.available_permits() {
            // Each of the idle ones may be wanted, and together with this one they would be too many.
            return Ok(false);
        }
        let (session, _) = self.open_session(deadline).await?;
        let surplus = self.shelf().put(session);
        if let Some(session) = surplus {
            session.close();
        }
        Ok(true)
    }

    /// Opens a connection by `deadline`. Says how long it took.
    async fn open_session(
        self: &Arc<Self>,
        deadline: Deadline,
    ) -> Result<(Box<Session>, Duration), Error> {
        // Before the connect: what is out of date may be why it fails.
        self.followers.ensure(self);
        self.ensure_scout();
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
        Ok(self.settle_opened(opened, opening))
    }

    /// A connection that has just been opened, as one of the pool's; and how long it took since `opening`.
    fn settle_opened(
        self: &Arc<Self>,
        opened: Opened,
        opening: Instant,
    ) -> (Box<Session>, Duration) {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(opening);
        emit(&Event::ConnectionCreated { pool: &self.name, elapsed });
        let session = Box::new(Session::new(opened, now + self.lifetime()));
        self.ensure_reaper();
        (session, elapsed)
    }

    fn lend(
        &self,
        session: Box<Session>,
        place: Place,
        now: Instant,
        queued: Duration,
        opening: Duration,
    ) -> Conn {
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

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // No section panics half-way through a change.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("status", &self.status())
            .field("canceller", &self.canceller)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use resilience_core::Outcome;
    use tokio::time::advance;

    use super::*;
    use crate::config::DatabaseConfigBuilder;
    use crate::holders::Holder;

    const SECOND: Duration = Duration::from_secs(1);

    /// A pool whose server nobody asks.
    pub(super) fn pool(
        change: impl FnOnce(DatabaseConfigBuilder) -> DatabaseConfigBuilder,
    ) -> Arc<Pool> {
        let builder = DatabaseConfig::builder("postgresql://app@db.invalid/app");
        let config = change(builder).build().unwrap();
        let connector = Connector::new(&config, Connector::hosts(&config));
        Pool::new(&config, connector, CircuitBreaker::new("test"))
    }

    /// A place of `pool` that is held by `word`.
    pub(super) async fn held(pool: &Arc<Pool>, word: &'static str) -> Place {
        let mut place = pool.place(Deadline::within(SECOND)).await.unwrap();
        place.hold(Instant::now(), CallSite::Operation(word));
        place
    }

    #[tokio::test(start_paused = true)]
    async fn an_exhausted_pool_tells_who_has_had_a_connection_for_longest() {
        let pool = pool(|it| it.pool_size(1).max_overflow(2).acquire_timeout(2 * SECOND));
        let deadline = Deadline::within(60 * SECOND);
        let third = held(&pool, "ping").await;
        let _first = held(&pool, "export").await;
        advance(3 * SECOND).await;
        let _second = held(&pool, "report").await;
        drop(third);
        let _connecting = pool.place(deadline).await.unwrap();

        let error = pool.acquire(deadline, CallSite::Operation("late")).await.unwrap_err();
        let Error::Exhausted(told) = error else { panic!("{error}") };
        assert_eq!((told.limit, told.in_use, told.waited), (3, 2, 2 * SECOND));
        let export = Holder { held: 5 * SECOND, taken: CallSite::Operation("export") };
        assert_eq!(told.longest, Some(export));
        assert_eq!(pool.status().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_is_forgotten_with_its_place() {
        let pool = pool(|it| it);
        let place = held(&pool, "migrate").await;
        assert_eq!(pool.status().in_use, 1);
        drop(place);
        assert_eq!(pool.status().in_use, 0);
        assert_eq!(pool.shelf().holders.longest(Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn another_primary_closes_a_circuit_that_the_last_one_opened_and_no_other() {
        let pool = pool(|it| it);
        for _ in 0..pool.breaker.settings().fail_max.unwrap() {
            pool.breaker.try_acquire().unwrap().settle(Outcome::Failure);
        }
        assert_eq!(pool.breaker.state(), CircuitState::Open);
        pool.begin_anew();
        assert_eq!(pool.breaker.state(), CircuitState::Closed);
        pool.breaker.force_open();
        pool.begin_anew();
        assert_eq!(pool.breaker.state(), CircuitState::ForcedOpen, "somebody wanted it open");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_is_not_called_closed_while_it_drains() {
        let pool = pool(|it| it.pool_size(1).max_overflow(0));
        assert!(matches!(pool.refusal(), Error::Draining { .. }));
        let _held = held(&pool, "export").await;
        assert_eq!(pool.drain(Deadline::within(SECOND)).await, 1);
        assert!(matches!(pool.refusal(), Error::Closed { .. }));
        let refused = pool.acquire(Deadline::within(SECOND), CallSite::here()).await.unwrap_err();
        assert!(matches!(refused, Error::Closed { .. }), "{refused}");
    }
}
