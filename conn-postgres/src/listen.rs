//! LISTEN: notifications as they come, over a connection that is replaced when it breaks, with every gap told.

mod ear;
mod inbox;

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use resilience_core::{Attempt, Backoff, Call, Deadline, Polling};
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::classify::PgClassifier;
use crate::connector::AbortOnDrop;
use crate::defaults::{LISTEN_FIRST_WAIT, LISTEN_LONGEST_WAIT};
use crate::error::Error;
use crate::manager::DatabaseManager;
use crate::pgbouncer::refusal;
use crate::pool::Pool;

use ear::Ear;
use inbox::Inbox;

/// The most bytes of a channel's name: the server would cut a longer one, and NOTIFY refuses it.
const LONGEST_NAME: usize = 63;

/// What a [`Listener`] hears.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Heard {
    /// A NOTIFY.
    Notification {
        /// Where it was sent to.
        channel: Arc<str>,
        /// What it says; empty if nothing.
        payload: String,
        /// The process of the server that sent it.
        backend: u32,
    },
    /// Notifications may be missing here: read anew what they tell of.
    Gap {
        /// The last moment until which nothing is missing.
        since: Instant,
        /// From then until nothing was missing any more.
        lasted: Duration,
        /// How many were dropped because they were not taken in time. What was sent while there was no
        /// connection is not among them: nobody counts that.
        dropped: u64,
    },
}

/// Listens for notifications until it is dropped or the manager drains. A [`Stream`] that ends then.
///
/// Its connection is its own: it takes no place of the pool, and [`status`](DatabaseManager::status) does not
/// count it; a server's `max_connections` needs one for each listener. It is asked for an answer when nothing
/// was heard for 5 s, so that a silent peer is noticed within 10 s; it is replaced when it is lost, when its
/// endpoint is no longer the one to use, or when credentials or certificates have changed, for as long as it
/// takes: at first within 100 ms, after failures within up to 10 s.
///
/// A server sends notifications to those who listen and keeps none. So each time that some may have been
/// missed, a [`Heard::Gap`] comes before the next notification. There is none at the first connect: whoever
/// reads its table after [`listen`](DatabaseManager::listen) has returned misses nothing.
///
/// Up to 1,024 notifications wait to be taken. What comes beyond is dropped, and told as a gap.
///
/// ```no_run
/// use conn_postgres::Heard;
///
/// # async fn run_the_jobs() -> Result<(), conn_postgres::Error> { Ok(()) }
/// # async fn example(db: conn_postgres::DatabaseManager) -> Result<(), conn_postgres::Error> {
/// let mut listener = db.listen(["jobs"]).await?;
/// run_the_jobs().await?;
/// while let Some(heard) = listener.recv().await {
///     match heard {
///         Heard::Notification { channel, payload, .. } => println!("{channel}: {payload}"),
///         Heard::Gap { lasted, dropped, .. } => println!("heard nothing for {lasted:?}, {dropped} dropped"),
///         _ => {}
///     }
///     run_the_jobs().await?;
/// }
/// # Ok(()) }
/// ```
#[must_use = "dropped, it listens no longer"]
pub struct Listener {
    inbox: Arc<Inbox>,
    _keeper: AbortOnDrop<()>,
}

impl Listener {
    /// The next notification or gap; `None` once the manager drains and all that was heard has been taken.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: it may be one branch of a `select!`.
    pub async fn recv(&mut self) -> Option<Heard> {
        poll_fn(|cx| self.inbox.poll_take(cx)).await
    }

    /// Why there is no connection; `None` while there is one.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.inbox.trouble()
    }
}

impl Stream for Listener {
    type Item = Heard;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        self.inbox.poll_take(cx)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inbox.fmt(f)
    }
}

impl DatabaseManager {
    /// Listens on `channels`. Their names are taken as they are: `Jobs` is not `jobs`, and SQL that names one
    /// so needs quotes (`NOTIFY "Jobs"`, or `SELECT pg_notify('Jobs', …)`).
    ///
    /// Once it has returned, every later notification is heard, or told as a gap.
    ///
    /// # Errors
    ///
    /// Why the first connection could not be had within the call's deadline: [`Error::Unreachable`],
    /// [`Error::Rejected`], [`Error::Draining`], [`Error::Closed`]. That there is no channel, or that a name is
    /// empty, holds a zero byte or has more than 63 bytes. That the server is behind PgBouncer in transaction
    /// mode: there, nobody can listen.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn listen<C>(&self, channels: impl IntoIterator<Item = C>) -> Result<Listener, Error>
    where
        C: Into<Arc<str>>,
    {
        let channels = checked(channels.into_iter().map(Into::into).collect())?;
        if self.pool.connector.is_behind_pgbouncer() {
            return Err(refusal("listen()", "listen at the server's own address").into());
        }
        let (pool, channels) = (&self.pool, &channels);
        let operation = |attempt: Attempt| async move {
            // Where connections live, which may outlive the runtime of who asks.
            let runtime = pool.connector.runtime().ok_or(sqlx::Error::WorkerCrashed)?;
            let (opener, names) = (Arc::clone(pool), Arc::clone(channels));
            let opening =
                async move { Ear::open(&opener.connector, &names, attempt.deadline).await };
            let mut opening = AbortOnDrop(runtime.spawn(opening));
            let ear = (&mut opening.0).await.map_err(|_| sqlx::Error::WorkerCrashed)??;
            let inbox = Arc::new(Inbox::new(Arc::clone(channels)));
            let keeper = runtime.spawn(keep_listening(Arc::clone(pool), ear, Arc::clone(&inbox)));
            Ok(Listener { inbox, _keeper: AbortOnDrop(keeper) })
        };
        let call = Call::read().named("listen");
        let result = self.pipeline.run(call, &PgClassifier, operation).await;
        result.map_err(|error| self.error_of(error))
    }
}

/// Ends all listeners of a pool.
#[derive(Debug)]
pub(crate) struct Listeners(watch::Sender<bool>);

impl Default for Listeners {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Listeners {
    pub(crate) fn end(&self) {
        self.0.send_replace(true);
    }
}

fn checked(channels: Arc<[Arc<str>]>) -> Result<Arc<[Arc<str>]>, Error> {
    let why = match channels
        .iter()
        .find(|name| name.is_empty() || name.len() > LONGEST_NAME || name.contains('\0'))
    {
        Some(name) if name.is_empty() => "a channel to listen to needs a name".to_owned(),
        Some(name) if name.contains('\0') => {
            format!("the channel name {name:?} holds a zero byte, which no name may")
        }
        Some(name) => format!(
            "the channel name {name:?} has {} bytes; a name has up to {LONGEST_NAME}",
            name.len()
        ),
        None if channels.is_empty() => "there is no channel to listen to; name one".to_owned(),
        None => return Ok(channels),
    };
    Err(sqlx::Error::InvalidArgument(why).into())
}

/// Hears, and listens anew whenever the connection is lost, until the pool's listeners are to end.
async fn keep_listening(pool: Arc<Pool>, ear: Ear, inbox: Arc<Inbox>) {
    let _end = EndOnDrop(&inbox);
    let mut ended = pool.listeners.0.subscribe();
    select! {
        _ = ended.wait_for(|ended| *ended) => {}
        () = keep_hearing(&pool, ear, &inbox) => {}
    }
}

async fn keep_hearing(pool: &Pool, mut ear: Ear, inbox: &Inbox) {
    let waits = Backoff::exponential(LISTEN_FIRST_WAIT, LISTEN_LONGEST_WAIT, 2.0).jittered();
    let mut polling = Polling::new(waits);
    loop {
        let opened = Instant::now();
        let error = ear.hear(pool, inbox).await;
        let since = ear.heard_at();
        drop(ear);
        // One that was taken up and cut at once, time and again, must not be asked without a pause.
        if opened.elapsed() >= LISTEN_LONGEST_WAIT {
            polling.succeeded();
        }
        tell_trouble(pool, inbox, error);
        ear = loop {
            sleep(polling.wait(None)).await;
            let deadline = Deadline::within(pool.connector.connect_timeout);
            match Box::pin(Ear::open(&pool.connector, inbox.channels(), deadline)).await {
                Ok(ear) => break ear,
                Err(error) => tell_trouble(pool, inbox, error),
            }
        };
        let lasted = since.elapsed();
        tracing::debug!(target: "shared_external::postgres", pool = %pool.name(), ?lasted, "listening again");
        inbox.resume(since, Instant::now());
    }
}

fn tell_trouble(pool: &Pool, inbox: &Inbox, error: Error) {
    tracing::debug!(target: "shared_external::postgres", pool = %pool.name(), %error, "cannot listen; trying again");
    inbox.interrupt(error.to_string());
}

struct EndOnDrop<'a>(&'a Inbox);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_server_would_cut_is_refused_with_its_limit() {
        let error = |names: &[&str]| {
            let names = names.iter().map(|name| Arc::from(*name)).collect();
            checked(names).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(error(&["jobs", "J\"obs; DROP TABLE jobs", &"é".repeat(31)]), Ok(()));
        let long = "x".repeat(64);
        let told = format!("the channel name {long:?} has 64 bytes; a name has up to 63");
        assert_eq!(error(&["jobs", &long]), Err(told));
        for (names, told) in [
            (&[][..], "there is no channel to listen to; name one"),
            (&["jobs", ""], "a channel to listen to needs a name"),
            (&["a\0b"], "the channel name \"a\\0b\" holds a zero byte, which no name may"),
        ] {
            assert_eq!(error(names), Err(told.to_owned()));
        }
    }
}
