//! One connection that listens, until it is lost.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use resilience_core::Deadline;
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Acquire, Connection};
use tokio::runtime::Builder;
use tokio::time::{Instant, timeout, timeout_at};

use crate::classify::is_read_only;
use crate::connector::{Connector, Opened};
use crate::defaults::{LISTEN_PING_AFTER, LISTEN_PING_LIMIT};
use crate::endpoints::Origin;
use crate::error::{Error, Unreachable};
use crate::pool::Pool;
use crate::track::silence;

use super::inbox::Inbox;

/// How often to look whether the connection still leads to where it should.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A connection that listens. Dropped, its socket is closed.
pub(super) struct Ear {
    /// Taken when it is dropped.
    listener: Option<PgListener>,
    origin: Arc<Origin>,
    epoch: u64,
    heard_at: Instant,
}

impl Ear {
    /// Connects and listens, by `deadline`.
    pub(super) async fn open(
        connector: &Connector,
        channels: &[Arc<str>],
        deadline: Deadline,
    ) -> Result<Self, Error> {
        // The driver's listener takes no connection but one of a pool of its own. So the first finds out
        // which endpoint answers, and under which credentials, and makes room for it.
        let Opened { raw, origin, epoch, .. } = connector.open(deadline).await?;
        let _ = pin!(raw.close()).poll(&mut Context::from_waker(Waker::noop()));
        let limit = connector.connect_timeout.min(deadline.remaining());
        let label = Arc::clone(&origin.label);
        let opening = Box::pin(Self::open_to(connector, origin, epoch, channels, limit));
        let opened = timeout(limit, opening).await.unwrap_or_else(|_| Err(silence(limit)));
        opened.map_err(|error| Unreachable::new(label, error).into())
    }

    async fn open_to(
        connector: &Connector,
        origin: Arc<Origin>,
        epoch: u64,
        channels: &[Arc<str>],
        limit: Duration,
    ) -> Result<Self, sqlx::Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(limit)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(connector.options_to(&origin)?);
        let listener = PgListener::connect_with(&pool).await?;
        let mut ear = Self { listener: Some(listener), origin, epoch, heard_at: Instant::now() };
        let listening = ear.driver().listen_all(channels.iter().map(|channel| &**channel)).await;
        if let Err(error) = &listening
            && is_read_only(error)
        {
            // A standby, where nobody can listen.
            ear.origin.demote(true);
        }
        ear.heard_at = Instant::now();
        listening.map(|()| ear)
    }

    /// The last sign of life.
    pub(super) fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// Puts what it hears into `inbox` until the connection is lost or no longer the one to use; says why.
    pub(super) async fn hear(&mut self, pool: &Pool, inbox: &Inbox) -> Error {
        let mut look_at = Instant::now() + LOOK_PERIOD;
        loop {
            match timeout_at(look_at, self.driver().try_recv()).await {
                Ok(Ok(Some(heard))) => {
                    self.heard_at = Instant::now();
                    inbox.put(heard.channel(), heard.payload(), heard.process_id(), self.heard_at);
                }
                Ok(Ok(None)) => {
                    let closed = "the server closed the connection";
                    return self.lost(io::Error::new(io::ErrorKind::UnexpectedEof, closed).into());
                }
                Ok(Err(error)) => return self.lost(error),
                Err(_) => {}
            }
            let now = Instant::now();
            if now < look_at {
                continue;
            }
            look_at = now + LOOK_PERIOD;
            if pool.connector.endpoints.refresh() {
                pool.sweep(now);
            }
            if !self.origin.is_current(self.epoch) {
                let why = "its connections are replaced";
                return self.lost(io::Error::new(io::ErrorKind::NotConnected, why).into());
            }
            if now.saturating_duration_since(self.heard_at) >= LISTEN_PING_AFTER {
                match timeout(LISTEN_PING_LIMIT, self.ping()).await {
                    Ok(Ok(())) => self.heard_at = Instant::now(),
                    Ok(Err(error)) => return self.lost(error),
                    Err(_) => return self.lost(silence(LISTEN_PING_LIMIT)),
                }
            }
        }
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.driver().acquire().await?.ping().await
    }

    fn lost(&self, error: sqlx::Error) -> Error {
        Unreachable::new(Arc::clone(&self.origin.label), error).into()
    }

    /// It reconnects by itself when it is used after it has told a loss: it never is.
    fn driver(&mut self) -> &mut PgListener {
        let listener = self.listener.as_mut().expect("only the drop takes it");
        listener.eager_reconnect(false);
        listener
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        // The driver spawns a farewell that waits for an answer. A silent peer gives none, and would keep the
        // task and its socket for a quarter of an hour. On a runtime that runs nothing, both are dropped.
        let Ok(nowhere) = Builder::new_current_thread().build() else { return };
        let inside = nowhere.enter();
        self.listener = None;
        drop(inside);
        nowhere.shutdown_background();
    }
}
