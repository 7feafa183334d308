//! What the application wrote, kept apart: a panic in what a check tells of itself is an answer left
//! out, not the end of the watch over everything else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use async_trait::async_trait;
use resilience_core::{
    Backend, Bulkhead, CircuitBreaker, Deadline, Health, HealthCheck, Pipeline, PoolStatus,
};

/// A check whose [`check`](HealthCheck::check) may panic, for it runs in a task of its own, but which
/// tells the rest or nothing.
pub(crate) struct Guarded(pub(crate) Arc<dyn HealthCheck>);

#[async_trait]
impl HealthCheck for Guarded {
    async fn check(&self, deadline: Deadline) -> Health {
        self.0.check(deadline).await
    }

    fn pool_status(&self) -> Option<PoolStatus> {
        told(|| self.0.pool_status())
    }

    fn pipeline(&self) -> Option<Pipeline> {
        told(|| self.0.pipeline())
    }

    fn breaker(&self) -> Option<CircuitBreaker> {
        told(|| self.0.breaker())
    }

    fn bulkhead(&self) -> Option<Bulkhead> {
        told(|| self.0.bulkhead())
    }

    fn backend(&self) -> Option<Backend> {
        told(|| self.0.backend())
    }
}

fn told<T>(ask: impl FnOnce() -> Option<T>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(ask)).ok().flatten()
}
