//! One look at the database, past the pipeline.
//!
//! An exhausted pool is no sign of a sick database, so the look does not wait for a place: where all are
//! taken it opens one connection of its own, beside the pool, and closes it again. Otherwise it uses the
//! pool's, so that a check opens no connection that would not be opened anyway.

use async_trait::async_trait;
use resilience_core::{Address, Backend, Deadline, Health, HealthCheck, Pipeline, PoolStatus};
use sqlx::Executor;
use tokio::time::{Instant, timeout_at};

use crate::conn::Conn;
use crate::defaults::HEALTH_TIMEOUT;
use crate::error::Error;
use crate::holders::CallSite;
use crate::manager::DatabaseManager;
use crate::session::Session;
use crate::track::silence;

const PING: &str = "SELECT 1";
const TAKEN: CallSite = CallSite::Operation("health");

impl DatabaseManager {
    /// Asks the database for an answer, within 5 s. Bypasses pipeline and queue, and moves no breaker.
    ///
    /// Unhealthy if it gives none, with the reason; never with a secret. Degraded if the server answers,
    /// but has no connection left beside those in use.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn health(&self) -> Health {
        self.check(Deadline::within(HEALTH_TIMEOUT)).await
    }

    async fn look(&self, deadline: Deadline) -> Result<(), Error> {
        if let Some(why) = self.pool.connector.topology().without_primary() {
            // A call would wait for one; how it is now is known.
            return Err(why.into());
        }
        let Some(mut conn) = self.pool.try_acquire(deadline, TAKEN).await? else {
            return self.look_beside_the_pool(deadline).await;
        };
        match ping(&mut conn).await {
            // It had been lying idle since before the server went away; that is not how it is now.
            Err(_) if !conn.is_alive() => {
                drop(conn);
                match self.pool.try_acquire(deadline, TAKEN).await? {
                    Some(mut conn) => ping(&mut conn).await,
                    None => self.look_beside_the_pool(deadline).await,
                }
            }
            result => result,
        }
    }

    async fn look_beside_the_pool(&self, deadline: Deadline) -> Result<(), Error> {
        self.pool.ensure_scout();
        let opened = self.pool.connector.open(deadline).await?;
        let mut session = Session::new(opened, deadline.instant());
        (&mut session).execute(PING).await?;
        session.close();
        Ok(())
    }
}

async fn ping(conn: &mut Conn) -> Result<(), Error> {
    conn.execute(PING).await?;
    Ok(())
}

#[async_trait]
impl HealthCheck for DatabaseManager {
    async fn check(&self, deadline: Deadline) -> Health {
        let started = Instant::now();
        let deadline = Deadline::at(started + HEALTH_TIMEOUT).min(deadline);
        let looked = timeout_at(deadline.instant(), self.look(deadline)).await;
        let latency = started.elapsed();
        match looked.unwrap_or_else(|_| Err(silence(latency).into())) {
            Ok(()) => Health::healthy(latency),
            Err(error) if error.code() == Some("53300") && self.status().in_use > 0 => {
                Health::degraded(latency, error.to_string())
            }
            Err(error) => Health::unhealthy(latency, error.to_string()),
        }
    }

    fn pool_status(&self) -> Option<PoolStatus> {
        Some(self.status())
    }

    fn pipeline(&self) -> Option<Pipeline> {
        Some(self.pipeline.clone())
    }

    fn backend(&self) -> Option<Backend> {
        let connector = &self.pool.connector;
        let first = || connector.endpoints.candidates().into_iter().next();
        let serving = connector.topology().primary().or_else(first);
        let address = serving.as_ref().map(|origin| &origin.endpoint.address);
        Some(Backend {
            system: "postgresql",
            address: address.map(|address| address.host().to_owned().into()),
            port: address.map(Address::port),
        })
    }
}
