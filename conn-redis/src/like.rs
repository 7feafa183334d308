//! The manager as a connection: code written for redis-rs moves over unchanged.

use deadpool_redis::redis::aio::ConnectionLike;
use deadpool_redis::redis::{
    Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, ServerError, Value,
};
use resilience_core::{Blame, Call, CallError, Replay, Verdict};

use crate::classify::{answered, graver, uncertain};
use crate::commands::{is_read_only, may_write, needs_own_connection};
use crate::conn::{RedisConn, was_refused};
use crate::error::{Error, into_redis_error};
use crate::manager::{Failure, RedisManager, verdict};

/// Each command, and each redis-rs pipeline, is a call of its own, on whichever connection is free.
///
/// Commands that only read are repeated like a [`read`](RedisManager::read), all others like a
/// [`write`](RedisManager::write). Those that mean something only to others on the same connection
/// (`WATCH`, `MULTI`, `SELECT`, `SUBSCRIBE` and their like) are refused: give them a closure. A command
/// that blocks must do so for less than `REDIS_SOCKET_TIMEOUT`.
///
/// Errors are redis-rs's own. What is not the driver's to say (an open circuit, say) is of
/// [`ErrorKind::Io`]; [`call_error`](crate::call_error) gets it back:
///
/// | the call's error | `is_timeout()` | `is_connection_refusal()` |
/// |---|---|---|
/// | deadline exceeded, attempt timeout | yes | no |
/// | circuit open, cannot connect, no endpoint | no | yes |
/// | bulkhead full, pool exhausted, draining, closed | no | no |
///
/// A refused login is of [`ErrorKind::AuthenticationFailed`].
impl ConnectionLike for RedisManager {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            if let Some(name) = needs_own_connection(cmd) {
                return Err(alone(&name));
            }
            let send = |mut conn: RedisConn| async move {
                Ok(conn.req_packed_command(cmd).await?.extract_error()?)
            };
            let call = if is_read_only(cmd) { Call::read() } else { Call::write() };
            self.run(call, &command_verdict, |attempt| Box::pin(self.attempt(attempt, &send)))
                .await
                .map_err(into_redis_error)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let send = |mut conn: RedisConn| async move {
                Ok(conn.req_packed_commands(pipeline, offset, count).await?)
            };
            let (manager, send) = (&*self, &send);
            let attempt = |attempt| async move {
                let replies = Box::pin(manager.attempt(attempt, send)).await?;
                let Some(first) = errors(&replies).next().cloned() else { return Ok(replies) };
                let wrote = wrote(pipeline, &replies);
                Err(Failure { error: Error::Redis(first.into()), wrote, replies })
            };
            let reads = pipeline.cmd_iter().all(is_read_only);
            let call = if reads { Call::read() } else { Call::write() };
            match manager.pipeline().run(call, &command_verdict, attempt).await {
                Ok(replies) => Ok(replies),
                // Whoever sent the pipeline sorts them out: it may want those beside the errors.
                Err(CallError::Inner(failed)) if !failed.error.replies.is_empty() => {
                    Ok(failed.error.replies)
                }
                Err(error) => Err(into_redis_error(error.map_inner(|failure| failure.error))),
            }
        })
    }

    /// The database of the URL.
    fn get_db(&self) -> i64 {
        self.database()
    }
}

/// What a failed command means. Of a script that is not loaded, only the caller has the text.
fn command_verdict(failure: &Failure) -> Verdict {
    let verdict = match errors(&failure.replies).map(answered).reduce(graver) {
        Some(verdict) if failure.wrote => uncertain(verdict),
        Some(verdict) => verdict,
        None => verdict(failure),
    };
    match verdict.blame {
        Blame::Caller => Verdict { replay: Replay::Never, ..verdict },
        Blame::Service | Blame::Local => verdict,
    }
}

/// Whether a pipeline changed something, going by its replies.
fn wrote(pipeline: &Pipeline, replies: &[Value]) -> bool {
    let done = |(cmd, reply): (&Cmd, &Value)| may_write(cmd) && !was_refused(reply);
    match pipeline.is_transaction() {
        true => pipeline.cmd_iter().any(may_write),
        false => pipeline.cmd_iter().zip(replies).any(done),
    }
}

/// The errors among replies, and within that of an EXEC.
fn errors(replies: &[Value]) -> impl Iterator<Item = &ServerError> {
    replies
        .iter()
        .flat_map(|reply| match reply {
            Value::Array(replies) => replies,
            reply => std::slice::from_ref(reply),
        })
        .filter_map(|reply| match reply {
            Value::ServerError(error) => Some(error),
            _ => None,
        })
}

fn alone(name: &str) -> RedisError {
    let detail = format!(
        "{name} concerns one connection, and each command may go to another: use RedisManager::write"
    );
    (ErrorKind::Client, "not without a connection of its own", detail).into()
}
