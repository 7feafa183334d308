//! Which pool is the current one: the endpoints may change, and with them where the connections lead.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use deadpool::managed::{PoolError, TimeoutType};
use resilience_core::{Deadline, Endpoint, PoolStatus, Role, WatchedEndpoints};
use tokio::time::Instant;

use crate::address::Target;
use crate::config::RedisConfig;
use crate::connect::Connector;
use crate::error::Error;
use crate::pool::{Lease, Pool};

/// The pool of today, and what it takes to make that of tomorrow.
#[derive(Debug)]
pub(crate) struct Pools {
    config: RedisConfig,
    /// Connections that may be lent out at once.
    size: usize,
    endpoints: Option<WatchedEndpoints>,
    current: ArcSwapOption<Current>,
    /// Held while the current one is being replaced.
    replacing: Mutex<()>,
    closed: AtomicBool,
}

/// A pool, and the endpoints as they were when it was chosen.
#[derive(Debug)]
struct Current {
    pool: Arc<Pool>,
    seen: Option<Arc<[Endpoint]>>,
}

impl Pools {
    pub(crate) fn new(
        config: RedisConfig,
        size: usize,
        endpoints: Option<WatchedEndpoints>,
    ) -> Self {
        let pools = Self {
            config,
            size,
            endpoints,
            current: ArcSwapOption::empty(),
            replacing: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        if pools.endpoints.is_none() {
            let pool = Arc::new(pools.pool(pools.config.url.target.clone()));
            pools.current.store(Some(Arc::new(Current { pool, seen: None })));
        }
        pools
    }

    /// Borrows a connection from the current pool, by `by`.
    pub(crate) async fn checkout(&self, by: Deadline) -> Result<Lease, Error> {
        let asked = Instant::now();
        loop {
            let pool = self.current()?;
            match pool.checkout(by).await {
                Ok(lease) => return Ok(lease),
                Err(PoolError::Backend(error)) => return Err(error.into()),
                Err(PoolError::Timeout(TimeoutType::Wait)) => return Err(pool.why_none(asked)),
                // It was replaced while we stood in its queue.
                Err(PoolError::Closed) => {}
                Err(
                    PoolError::Timeout(_)
                    | PoolError::NoRuntimeSpecified
                    | PoolError::PostCreateHook(_),
                ) => {
                    unreachable!(
                        "the only limit is that of the queue, with a runtime and without hooks"
                    )
                }
            }
        }
    }

    /// The pool for the endpoint of this moment.
    pub(crate) fn current(&self) -> Result<Arc<Pool>, Error> {
        let name = || self.config.name.clone();
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed { name: name() });
        }
        let current = self.current.load();
        let Some(endpoints) = &self.endpoints else {
            let current =
                current.as_ref().expect("without endpoints it is there from the beginning");
            return Ok(Arc::clone(&current.pool));
        };
        let now = Arc::clone(&endpoints.borrow().endpoints);
        if let Some(current) = current.as_ref().filter(|current| is_of(current, &now)) {
            return Ok(Arc::clone(&current.pool));
        }
        drop(current);
        match self.follow(endpoints) {
            Some(pool) => Ok(pool),
            None if self.closed.load(Ordering::Acquire) => Err(Error::Closed { name: name() }),
            None => Err(Error::NoEndpoint { name: name() }),
        }
    }

    /// Figures of the current pool; of none, zeros.
    pub(crate) fn status(&self) -> PoolStatus {
        match self.current.load().as_ref() {
            Some(current) => current.pool.status(),
            None => PoolStatus { max: self.size, idle_max: self.size, ..PoolStatus::default() },
        }
    }

    /// Lends nothing more, for good.
    pub(crate) fn close(&self) {
        let _alone = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Release);
        if let Some(current) = self.current.load().as_ref() {
            current.pool.close();
        }
    }

    /// Takes the endpoints as they are; where another comes first now, its pool takes over.
    fn follow(&self, endpoints: &WatchedEndpoints) -> Option<Arc<Pool>> {
        let _alone = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Acquire) {
            return None;
        }
        let set = endpoints.borrow().clone();
        let candidates = set.candidates();
        // Writes go there too: a replica is second best.
        let first = candidates
            .iter()
            .find(|endpoint| endpoint.role != Role::Replica)
            .or(candidates.first());
        let old = self.current.load_full();
        let target = first.map(|endpoint| Target::endpoint(endpoint));
        let same = old.as_ref().filter(|old| Some(&old.pool.connector().target) == target.as_ref());
        let pool = match (same, target) {
            (Some(same), _) => Some(Arc::clone(&same.pool)),
            (None, Some(target)) => Some(Arc::new(self.pool(target))),
            (None, None) => None,
        };
        let seen = Some(set.endpoints);
        self.current.store(pool.clone().map(|pool| Arc::new(Current { pool, seen })));
        let from = old.as_ref().map(|old| Arc::clone(&old.pool.connector().endpoint));
        let to = pool.as_ref().map(|pool| Arc::clone(&pool.connector().endpoint));
        if from != to {
            tracing::debug!(target: "shared_external::redis", name = %self.config.name, from = from.as_deref(), to = to.as_deref(), "endpoint chosen");
        }
        match (&old, &pool) {
            (Some(old), Some(pool)) if Arc::ptr_eq(&old.pool, pool) => {}
            (Some(old), _) => old.pool.close(),
            (None, _) => {}
        }
        pool
    }

    fn pool(&self, target: Target) -> Pool {
        let RedisConfig { name, url, tls, tuning, runtime } = self.config.clone();
        let endpoint = target.to_string().into();
        let limit = tuning.connect_timeout;
        let connector = Connector { name, target, endpoint, login: url.login, tls, limit, runtime };
        Pool::new(connector, self.size, tuning)
    }
}

fn is_of(current: &Current, endpoints: &Arc<[Endpoint]>) -> bool {
    current.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, endpoints))
}

#[cfg(test)]
mod tests {
    use resilience_core::{Address, EndpointSet};
    use tokio::sync::watch;

    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(Address::new("127.0.0.1", port))
    }

    fn pools(set: EndpointSet) -> (watch::Sender<EndpointSet>, Pools) {
        let (sender, receiver) = watch::channel(set);
        let config = RedisConfig::builder("redis://localhost/0").build().unwrap();
        (sender, Pools::new(config, 2, Some(receiver)))
    }

    fn port(pools: &Pools) -> Option<String> {
        pools.current().ok().map(|pool| pool.connector().endpoint.to_string())
    }

    #[test]
    fn the_first_candidate_is_followed() {
        let (sender, pools) = pools(EndpointSet::fixed([endpoint(1), endpoint(2)]));
        assert_eq!(port(&pools).as_deref(), Some("127.0.0.1:1"));
        let mut ill = endpoint(1);
        ill.conditions.healthy = false;
        sender.send_replace(EndpointSet::fixed([ill, endpoint(2)]));
        assert_eq!(port(&pools).as_deref(), Some("127.0.0.1:2"));
    }

    #[test]
    fn a_change_that_leaves_the_first_alone_costs_no_connection() {
        let (sender, pools) = pools(EndpointSet::fixed([endpoint(1)]));
        let before = pools.current().unwrap();
        sender.send_replace(EndpointSet::fixed([endpoint(1), endpoint(2)]));
        assert!(Arc::ptr_eq(&before, &pools.current().unwrap()));
    }

    #[test]
    fn a_replica_is_not_where_writes_go() {
        let mut replica = endpoint(1);
        replica.role = Role::Replica;
        let (sender, pools) = pools(EndpointSet::fixed([replica.clone(), endpoint(2)]));
        assert_eq!(port(&pools).as_deref(), Some("127.0.0.1:2"));
        sender.send_replace(EndpointSet::fixed([replica]));
        assert_eq!(port(&pools).as_deref(), Some("127.0.0.1:1"));
    }

    #[test]
    fn no_endpoint_is_said_so_until_there_is_one() {
        let (sender, pools) = pools(EndpointSet::fixed([]));
        assert!(matches!(pools.current(), Err(Error::NoEndpoint { .. })));
        sender.send_replace(EndpointSet::fixed([endpoint(1)]));
        assert_eq!(port(&pools).as_deref(), Some("127.0.0.1:1"));
        pools.close();
        assert!(matches!(pools.current(), Err(Error::Closed { .. })));
    }
}
