//! The health check's own connection: an exhausted pool must not look like a dead server.

use std::sync::Arc;

use deadpool_redis::redis::Value;
use resilience_core::{Deadline, Health};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::connect::Connection;
use crate::error::Error;
use crate::pool::Pool;
use crate::pools::Pools;

/// One connection, kept open between checks.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// Where it leads to, and it.
    kept: Mutex<Option<(Arc<Pool>, Connection)>>,
}

/// Looks at the server once, by `deadline`. Without a lane, on a connection of the pool.
pub(crate) async fn look(pools: &Pools, lane: Option<&Lane>, deadline: Deadline) -> Health {
    let started = Instant::now();
    let asked = deadline.scope(async {
        let pool = pools.current()?;
        pool.reap();
        match lane {
            Some(lane) => lane.ask(&pool, deadline).await,
            None => Ok(pools.checkout(deadline).await?.ping(deadline).await?),
        }
    });
    let result = timeout_at(deadline.instant(), asked).await;
    let latency = started.elapsed();
    match result {
        Ok(Ok(Value::ServerError(error))) => {
            let reason = format!("{} {}", error.code(), error.details().unwrap_or_default());
            match error.code() {
                // It answers, and reads still work.
                "MISCONF" | "NOPERM" => Health::degraded(latency, reason),
                _ => Health::unhealthy(latency, reason),
            }
        }
        Ok(Ok(_)) => Health::healthy(latency),
        // Full of our own calls: that says nothing about the server.
        Ok(Err(error @ Error::Exhausted { .. })) => Health::degraded(latency, error.to_string()),
        Ok(Err(error)) => Health::unhealthy(latency, error.to_string()),
        Err(_) => Health::unhealthy(latency, format!("no answer within {latency:?}")),
    }
}

impl Lane {
    /// A PING and its reply. Dropping the future drops the connection, if it has one on its way.
    async fn ask(&self, pool: &Arc<Pool>, deadline: Deadline) -> Result<Value, Error> {
        let mut kept = self.kept.lock().await;
        if let Some((leads_to, mut connection)) = kept.take()
            && Arc::ptr_eq(&leads_to, pool)
            && let Ok(reply) = connection.ping(deadline).await
        {
            *kept = Some((leads_to, connection));
            return Ok(reply);
        }
        let mut connection = pool.connector().open().await?;
        let reply = connection.ping(deadline).await?;
        *kept = Some((Arc::clone(pool), connection));
        Ok(reply)
    }

    /// Closes the connection.
    pub(crate) async fn close(&self) {
        self.kept.lock().await.take();
    }

    /// Whether the connection is open, as far as that can be told without waiting.
    pub(crate) fn is_open(&self) -> bool {
        self.kept.try_lock().is_ok_and(|kept| kept.is_some())
    }
}
