//! Looks at every host over a connection of its own, so that whoever waits for a primary need not.
//!
//! One task for the pool, which ends with it; one connection to each host, beside those of the pool.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use resilience_core::Deadline;
use sqlx::{Executor, PgConnection, Row};
use tokio::select;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::classify::is_going_away;
use crate::connector::Connector;
use crate::endpoints::Origin;
use crate::error::Error;
use crate::greeting::Greeting;
use crate::pool::Pool;
use crate::role::Role;
use crate::topology::{Look, Sight};
use crate::track::{is_silence, silence};
use crate::wal::WalPosition;

/// What the first look at a host may take: whoever wants the first connection waits for it.
const FIRST_LIMIT: Duration = Duration::from_millis(500);
/// What a look may take after that.
const LIMIT: Duration = Duration::from_secs(1);
/// Between two looks at a host at the least, however often one is called for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// The task, once there is one.
#[derive(Default)]
pub(crate) struct Scout(Mutex<Option<JoinHandle<()>>>);

impl Scout {
    /// Starts it, unless it runs or there is nothing to look at.
    pub(crate) fn ensure(&self, pool: &Arc<Pool>) {
        if !pool.connector.topology().is_watched() {
            return;
        }
        let mut task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Some(runtime) = pool.connector.runtime() else { return };
        *task = Some(runtime.spawn(watch(Arc::downgrade(pool))));
    }
}

impl Drop for Scout {
    fn drop(&mut self) {
        let task = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }
}

async fn watch(pool: Weak<Pool>) {
    let Some(mut set) = open(&pool).map(|pool| pool.connector.endpoints.subscribe()) else {
        return;
    };
    loop {
        set.borrow_and_update();
        let origins = {
            let Some(pool) = open(&pool) else { return };
            pool.connector.endpoints.refresh();
            pool.connector.endpoints.all()
        };
        let eyes = join_all(origins.into_iter().map(|origin| keep_looking(pool.clone(), origin)));
        select! {
            _ = eyes => return,
            changed = set.changed() => {
                if changed.is_err() {
                    // Nobody changes it any more.
                    break;
                }
            }
        }
    }
    let Some(origins) = open(&pool).map(|pool| pool.connector.endpoints.all()) else { return };
    join_all(origins.into_iter().map(|origin| keep_looking(pool.clone(), origin))).await;
}

/// The pool, unless it is gone or closed.
fn open(pool: &Weak<Pool>) -> Option<Arc<Pool>> {
    pool.upgrade().filter(|pool| !pool.is_closed())
}

async fn keep_looking(pool: Weak<Pool>, origin: Arc<Origin>) {
    let mut glass = None;
    let mut limit = FIRST_LIMIT;
    loop {
        let Some(pool) = open(&pool) else { return };
        let topology = Arc::clone(pool.connector.topology());
        let (alarms, started) = (topology.alarms(), Instant::now());
        let look = match timeout(limit, look(&pool.connector, &origin, &mut glass, limit)).await {
            Ok(look) => look,
            Err(_) => {
                // Nobody knows what comes next on it.
                glass = None;
                Look::Silent(Arc::new(silence(limit)))
            }
        };
        limit = LIMIT;
        let outcome = topology.record(&origin, look, alarms, started);
        if outcome.moved {
            pool.begin_anew();
        }
        if outcome.condemned {
            pool.sweep(Instant::now());
        }
        // Made before it is known how long to wait: a call in between is heard.
        let called = topology.called();
        let pace = topology.pace();
        drop(pool);
        select! {
            () = sleep(pace) => {}
            () = called => sleep_until(started + SHORTEST_PAUSE).await,
        }
    }
}

/// A connection to look through.
struct Glass {
    raw: PgConnection,
    epoch: u64,
    /// The server refused to tell all.
    is_dim: bool,
}

/// One look at `origin`: over the last connection, and over a new one if that has broken.
async fn look(
    connector: &Connector,
    origin: &Arc<Origin>,
    glass: &mut Option<Glass>,
    limit: Duration,
) -> Look {
    // Taken until the end is seen: cut off in between, it is not used again.
    if let Some(mut used) = glass.take().filter(|glass| origin.is_current(glass.epoch))
        && let Ok(sight) = used.see().await
    {
        *glass = Some(used);
        return Look::Seen(sight);
    }
    let epoch = origin.epoch();
    let raw = match connector.open_beside(origin, Deadline::within(limit)).await {
        Ok(raw) => raw,
        Err(error) => return judge(&error),
    };
    let mut new = Glass { raw, epoch, is_dim: false };
    match new.see().await {
        Ok(sight) => {
            *glass = Some(new);
            Look::Seen(sight)
        }
        Err(error) => judge(&error.into()),
    }
}

fn judge(error: &Error) -> Look {
    let why = match error {
        Error::Unreachable(unreachable) => Arc::clone(&unreachable.error),
        other => Arc::new(sqlx::Error::Io(std::io::Error::other(other.to_string()))),
    };
    match error.sqlx() {
        Some(sqlx::Error::Io(io)) if is_silence(io) => Look::Silent(why),
        _ if is_going_away(error) => Look::Gone(why),
        _ => Look::Answered(why),
    }
}

impl Glass {
    /// Role, how far it is, and its timeline: of a primary that in whose files it writes, of a standby the
    /// latest of those it knows to have replayed.
    const ALL: &str = "\
        SELECT recovers, current_setting('default_transaction_read_only')::bool, \
            CASE WHEN recovers THEN pg_last_wal_replay_lsn() - '0/0' \
                ELSE pg_current_wal_lsn() - '0/0' END::int8, \
            CASE WHEN recovers THEN greatest( \
                    (pg_control_checkpoint()).timeline_id, \
                    (pg_control_recovery()).min_recovery_end_timeline, \
                    (SELECT received_tli FROM pg_stat_wal_receiver)) \
                ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int4 END \
        FROM pg_is_in_recovery() AS recovers";

    async fn see(&mut self) -> Result<Sight, sqlx::Error> {
        if !self.is_dim {
            match self.raw.fetch_one(sqlx::raw_sql(Self::ALL)).await {
                Ok(row) => {
                    let role = Role { is_standby: row.try_get(0)?, is_read_only: row.try_get(1)? };
                    let position = row.try_get::<Option<i64>, _>(2)?;
                    let position = position.map(|bytes| WalPosition::from(bytes.cast_unsigned()));
                    let timeline = row.try_get::<Option<i32>, _>(3)?.unwrap_or_default();
                    return Ok(Sight { role, timeline: timeline.cast_unsigned(), position });
                }
                Err(error @ sqlx::Error::Io(_)) => return Err(error),
                // A managed service keeps some of it to itself, and a proxy may answer otherwise.
                Err(_) => self.is_dim = true,
            }
        }
        let greeting = Greeting::ask(&mut self.raw, false).await?;
        Ok(Sight { role: Role::from(&greeting), timeline: 0, position: None })
    }
}
