//! `tower`'s own layers at work: retry with a budget, concurrency limit, timeout.

use std::sync::Arc;
use std::time::Duration;

use ::tower::retry::Policy;
use ::tower::retry::budget::{Budget, TpsBudget};
use ::tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::case::{Subject, after_one_poll};

const NAME: &str = "tower";

/// Three retries, as far as the budget goes.
#[derive(Clone)]
struct ThreeTimes {
    left: u32,
    budget: Arc<TpsBudget>,
}

impl ThreeTimes {
    fn new() -> Self {
        Self { left: 3, budget: Arc::new(TpsBudget::new(Duration::from_secs(10), 0, 0.1)) }
    }
}

impl Policy<u64, u64, BoxError> for ThreeTimes {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut u64, result: &mut Result<u64, BoxError>) -> Option<Self::Future> {
        if result.is_ok() {
            self.budget.deposit();
            return None;
        }
        if self.left == 0 || !self.budget.withdraw() {
            return None;
        }
        self.left -= 1;
        Some(std::future::ready(()))
    }

    fn clone_request(&mut self, request: &u64) -> Option<u64> {
        Some(*request)
    }
}

macro_rules! subject {
    ($operation:expr) => {{
        let service = ServiceBuilder::new()
            .retry(ThreeTimes::new())
            .concurrency_limit(64)
            .timeout(Duration::from_secs(30))
            .service(service_fn($operation));
        Subject::serves(NAME, service, async |service, i| service.ready().await?.call(i).await)
    }};
}

/// Around a ready future.
pub fn layers_ready() -> Subject {
    subject!(|i: u64| async move { Ok::<_, BoxError>(i) })
}

/// Around a future that is pending once.
pub fn layers_pending_once() -> Subject {
    subject!(|i: u64| async move { Ok::<_, BoxError>(after_one_poll(i).await) })
}
