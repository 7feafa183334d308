//! Its manager: the calls, health and drain.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use resilience_conformance::{Subject, Told, Way, Work, unsupported};
use resilience_core::{
    Attempt, Backend, Call, CallError, Deadline, Drained, Health, HealthCheck, Pipeline, PoolStatus,
};
use tokio::time::{Instant, timeout_at};

use super::pool::Shared;
use super::{Errors, Flaw};

#[derive(Debug)]
pub(crate) struct Manager(pub(crate) Arc<Shared>);

#[async_trait]
impl Subject for Manager {
    fn watched(&self) -> &dyn HealthCheck {
        self
    }

    async fn run(&self, way: Way, work: Work) -> Result<String, CallError<Told>> {
        let shared = &self.0;
        let call = match way {
            Way::Read if shared.has(Flaw::RepeatsNothing) => Call::write().named("read"),
            Way::Read => Call::read(),
            Way::Write if shared.has(Flaw::RepeatsEveryWrite) => Call::write_idempotent(),
            Way::Write => Call::write(),
            Way::WriteIdempotent => Call::write_idempotent(),
            Way::Call(call) => call,
            _ => return Err(unsupported(way)),
        };
        if matches!(work, Work::Glance) {
            return Err(unsupported(work));
        }
        let operation = |attempt: Attempt| {
            let work = work.clone();
            async move { shared.acquire(attempt.deadline).await?.perform(work).await }
        };
        let answer = shared.pipeline.run(call, &Errors(shared.flaw), operation).await;
        answer.map_err(|error| error.map_inner(|error| Told::of(&error)))
    }

    async fn health(&self) -> Health {
        self.check(Deadline::within(Duration::from_secs(2))).await
    }

    async fn warm_up(&self, deadline: Deadline) -> Result<(), Told> {
        self.0.acquire(deadline).await.map(drop).map_err(|error| Told::of(&error))
    }

    async fn drain(&self, deadline: Deadline) -> Drained {
        let shared = &self.0;
        let deadline = match shared.flaw {
            Some(Flaw::DrainsWithoutWaiting) => Deadline::within(Duration::ZERO),
            Some(Flaw::DrainsForEver) => Deadline::within(Duration::from_secs(60)),
            _ => deadline,
        };
        let drained = shared.pipeline.drain(deadline).await;
        shared.places.close();
        if !shared.has(Flaw::KeepsConnectionsAfterDrain) {
            shared.idle.lock().unwrap().clear();
        }
        drained
    }

    fn twin(&self) -> Arc<dyn Subject> {
        Arc::new(Self(Arc::clone(&self.0)))
    }
}

#[async_trait]
impl HealthCheck for Manager {
    async fn check(&self, deadline: Deadline) -> Health {
        let (started, shared) = (Instant::now(), &self.0);
        let look = async {
            match shared.flaw {
                Some(Flaw::AsksHealthThroughTheCircuit) => {
                    let asked = self.run(Way::Read, Work::Echo("health".into())).await;
                    asked.map(drop).map_err(|error| error.to_string())
                }
                _ => shared.look().await.map_err(|error| error.to_string()),
            }
        };
        let looked = match shared.flaw {
            Some(Flaw::WaitsForHealthForEver) => look.await,
            _ => {
                timeout_at(deadline.instant(), look).await.unwrap_or_else(|_| Err("silent".into()))
            }
        };
        match looked {
            Ok(()) => Health::healthy(started.elapsed()),
            Err(reason) => Health::unhealthy(started.elapsed(), reason),
        }
    }

    fn pool_status(&self) -> Option<PoolStatus> {
        let limit = self.0.setup.limit as usize;
        Some(PoolStatus {
            in_use: self.0.lent.load(Ordering::Relaxed),
            idle: self.0.idle.lock().unwrap().len(),
            max: limit,
            waiting: self.0.waiting.load(Ordering::Relaxed),
            idle_max: limit,
            idle_min: 0,
        })
    }

    fn pipeline(&self) -> Option<Pipeline> {
        Some(self.0.pipeline.clone())
    }

    fn backend(&self) -> Option<Backend> {
        let address = self.0.address()?;
        Some(Backend {
            system: "lines",
            address: Some(address.host().to_owned().into()),
            port: Some(address.port()),
        })
    }
}
