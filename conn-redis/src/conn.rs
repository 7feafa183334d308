//! The connection that a closure is given, which knows in what state it would go back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_redis::redis::aio::ConnectionLike;
use deadpool_redis::redis::{
    Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerError, ServerErrorKind,
    Value,
};
use resilience_core::Deadline;
use tokio::time::{Instant, timeout_at};

use crate::classify::is_part_way;
use crate::commands::{Session, is_blocking, may_write};
use crate::error::{NotSent, Overdue, made_from};
use crate::pool::Lease;

/// A borrowed connection to Redis, for the length of one attempt.
///
/// It is a [`ConnectionLike`]: `AsyncCommands`, `cmd(…).query_async(&mut conn)`, pipelines and
/// scripts work on it as on any other. `WATCH`, `MULTI` and `EXEC` have it for themselves.
///
/// Dropping it gives it back. One whose command has no reply yet (a future that was dropped, a `BLPOP`
/// that still waits), or that is not what it was (`SELECT`, `SUBSCRIBE`, a `WATCH` that is still on), is
/// closed instead, so that no other borrower meets what was left behind. Its place in the pool is free
/// at once.
///
/// ```no_run
/// # async fn example(redis: conn_redis::RedisManager) -> Result<(), conn_redis::CallError<conn_redis::Error>> {
/// use conn_redis::redis::{AsyncCommands, cmd, pipe};
///
/// // A balance that nobody else may change in between: EXEC answers nil if someone did.
/// let changed: Option<(i64,)> = redis
///     .write(|mut conn| async move {
///         cmd("WATCH").arg("balance").exec_async(&mut conn).await?;
///         let balance: i64 = conn.get("balance").await?;
///         Ok(pipe().atomic().decr("balance", balance / 10).query_async(&mut conn).await?)
///     })
///     .await?;
/// # let _ = changed; Ok(()) }
/// ```
#[derive(Debug)]
pub struct RedisConn {
    lease: Lease,
    /// When the attempt is cut off.
    until: Deadline,
    session: Session,
    /// Whether a command was sent whose reply has not come.
    awaiting: bool,
    footprint: Arc<Footprint>,
}

/// What remains of an attempt once its connection is gone.
#[derive(Debug, Default)]
pub(crate) struct Footprint {
    wrote: AtomicBool,
}

impl Footprint {
    /// Whether a command may have changed something.
    pub(crate) fn wrote(&self) -> bool {
        self.wrote.load(Ordering::Relaxed)
    }
}

impl RedisConn {
    pub(crate) fn new(lease: Lease, until: Deadline) -> Self {
        Self {
            lease,
            until,
            session: Session::default(),
            awaiting: false,
            footprint: Arc::default(),
        }
    }

    pub(crate) fn footprint(&self) -> Arc<Footprint> {
        Arc::clone(&self.footprint)
    }

    /// Notes that `commands` are about to be sent: from here on they may have been executed.
    fn before<'a>(&mut self, commands: impl Iterator<Item = &'a Cmd>) -> Result<Sent, RedisError> {
        if self.lease.is_lost() {
            return Err(NotSent.into());
        }
        if self.awaiting {
            // The future of the command before was dropped: what it leaves behind is not for others.
            self.lease.spoil();
        }
        self.awaiting = true;
        let wrote_before = self.footprint.wrote();
        let mut blocks = false;
        for command in commands {
            self.session.sent(command);
            blocks |= is_blocking(command);
            if may_write(command) {
                self.footprint.wrote.store(true, Ordering::Relaxed);
            }
        }
        Ok(Sent {
            at: Instant::now(),
            wrote_before,
            until: blocks.then(|| shortly_before(self.until)),
        })
    }

    /// Notes what became of them. `refused` says of replies that nothing was executed.
    fn after<T>(
        &mut self,
        sent: &Sent,
        result: RedisResult<T>,
        refused: impl FnOnce(&T) -> bool,
    ) -> RedisResult<T> {
        let in_vain = match &result {
            Ok(replies) => refused(replies),
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::ExecAbort) => {
                self.session.transaction_ended();
                let causes = error.clone().into_server_errors();
                self.heed(causes.iter().flat_map(|causes| causes.iter().map(|(_, cause)| cause)));
                true
            }
            // A command without words is not sent.
            Err(error) if error.kind() == ErrorKind::Client => true,
            Err(error) => {
                self.awaiting = false;
                self.lease.spoil();
                if made_from::<Overdue>(error).is_none() {
                    self.lease.pool.sweep(sent.at);
                }
                return result.map_err(not_a_mismatch);
            }
        };
        self.awaiting = false;
        if in_vain {
            self.footprint.wrote.store(sent.wrote_before, Ordering::Relaxed);
        }
        result
    }

    /// A server that has become a replica is not where writes belong: the next connection looks anew.
    fn heed<'a>(&mut self, mut errors: impl Iterator<Item = &'a ServerError>) {
        if errors.any(|error| error.kind() == Some(ServerErrorKind::ReadOnly)) {
            self.lease.spoil();
            self.lease.pool.sweep(Instant::now());
        }
    }
}

impl ConnectionLike for RedisConn {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let sent = self.before(std::iter::once(cmd))?;
            let result = within(sent.until, self.lease.driver().req_packed_command(cmd)).await;
            let reply = self.after(&sent, result, was_refused)?;
            self.session.answered(cmd, &reply);
            self.heed(refusals(std::slice::from_ref(&reply)));
            Ok(reply)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let sent = self.before(pipeline.cmd_iter())?;
            let result = within(
                sent.until,
                self.lease.driver().req_packed_commands(pipeline, offset, count),
            )
            .await;
            let all_refused = |replies: &Vec<Value>| replies.iter().all(was_refused);
            let replies = self.after(&sent, result, all_refused)?;
            self.heed(refusals(&replies));
            if !pipeline.is_transaction() {
                pipeline
                    .cmd_iter()
                    .zip(&replies)
                    .for_each(|(cmd, reply)| self.session.answered(cmd, reply));
                return Ok(replies);
            }
            self.session.transaction_ended();
            // redis-rs expects an array from EXEC, and would take a refusal for a reply of another type.
            let refusal = refusals(&replies).next().cloned();
            refusal.map_or(Ok(replies), |refusal| Err(refusal.into()))
        })
    }

    fn get_db(&self) -> i64 {
        self.lease.database
    }
}

impl Drop for RedisConn {
    fn drop(&mut self) {
        if self.awaiting {
            self.lease.spoil();
            if self.until.has_passed(Instant::now()) {
                // Not the caller's patience but the attempt ended: others like it may be as silent.
                self.lease.pool.doubt();
            }
        }
        if !self.session.is_clean() {
            self.lease.spoil();
        }
    }
}

/// Commands on their way.
struct Sent {
    at: Instant,
    /// Whether one before them may have changed something.
    wrote_before: bool,
    /// When to give up on them, if they may rightly take their time.
    until: Option<Deadline>,
}

/// A moment before `deadline`: who wants to say why it failed must do so before it is cut off.
pub(crate) fn shortly_before(deadline: Deadline) -> Deadline {
    let now = Instant::now();
    let left = deadline.remaining_at(now);
    Deadline::at(now + left - (left / 20).min(Duration::from_millis(50)))
}

async fn within<T>(until: Option<Deadline>, reply: RedisFuture<'_, T>) -> RedisResult<T> {
    match until {
        None => reply.await,
        Some(until) => {
            timeout_at(until.instant(), reply).await.unwrap_or_else(|_| Err(Overdue.into()))
        }
    }
}

fn refusals(replies: &[Value]) -> impl Iterator<Item = &ServerError> {
    replies.iter().filter_map(|reply| match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    })
}

/// Whether a reply says that nothing was executed. An EXEC's array is no refusal, whatever it holds.
pub(crate) fn was_refused(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if !is_part_way(error))
}

/// Bytes that are no reply at all, in words that cannot be mistaken for a reply of another type than was
/// asked for: redis-rs has one kind for both.
fn not_a_mismatch(error: RedisError) -> RedisError {
    match error.kind() {
        ErrorKind::Parse => io::Error::new(io::ErrorKind::InvalidData, error).into(),
        _ => error,
    }
}
