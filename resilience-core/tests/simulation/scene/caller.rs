//! A call of a scene: how it is made, and what is recorded of it.

use std::panic::resume_unwind;
use std::rc::Rc;
use std::time::Duration;

use resilience_core::{Attempt, Blame, Call, CallError, Deadline, Replay, Verdict};
use tokio::time::Instant;

use super::{Plan, Scene};
use crate::service::{Answer, Behaviour, Fault, serve};
use crate::trace::{self, End, Fact, Kind, OpenCall, Planned, record};

impl Scene {
    /// Makes the call, within the attempt of another if it is the inner one.
    pub(super) async fn call_now(
        self: &Rc<Self>,
        plan: &Plan,
        around: Option<usize>,
    ) -> Result<(), Fault> {
        let Plan { service: index, kind, .. } = *plan;
        let service = &self.services[index];
        let own = plan.deadline.map(Deadline::within);
        let deadline = own.unwrap_or_else(|| Deadline::within(service.deadline)).inherited();
        let open =
            OpenCall::begin(index, kind, deadline.instant(), plan.fallback.is_some(), around);
        let call = match kind {
            Kind::Read => Call::read(),
            Kind::Write => Call::write(),
            Kind::WriteIdempotent => Call::write_idempotent(),
        };
        let call = own.map_or(call, |deadline| call.by(deadline)).rank(plan.priority);
        let id = open.id;
        let operation = |attempt| self.attempt(plan, id, attempt);
        let Some(fallback) = plan.fallback else {
            let result = service.pipeline.run(call, &Fault::read, operation).await;
            return tell(open, result);
        };
        let falling_back = |_| async move {
            record(Fact::FellBack { call: id });
            serve(usize::MAX, fallback).await.map_err(Alternative::Failed)
        };
        let result = service.pipeline.run_or(call, &Fault::read, operation, falling_back).await;
        match result {
            Err(Alternative::Primary(error)) => tell(open, Err(error)),
            Err(Alternative::Failed(fault)) => {
                open.end(End::FallbackError);
                Err(fault)
            }
            Ok(()) => tell(open, Ok(())),
        }
    }

    fn attempt(
        self: &Rc<Self>,
        plan: &Plan,
        call: usize,
        attempt: Attempt,
    ) -> impl Future<Output = Result<(), Fault>> + use<> {
        let service = &self.services[plan.service];
        let generation = service.breaker.as_ref().map(|breaker| breaker.snapshot().generation);
        let (number, deadline) = (attempt.number, trace::time_of(attempt.deadline.instant()));
        record(Fact::Attempted { call, number, deadline, generation });
        let guard = InAttempt { call, number, answered: false };
        let now = trace::time_of(Instant::now());
        let behaviour = service.script.behaviour(&mut self.rng.borrow_mut(), now);
        if matches!(behaviour, Behaviour::PanicAtOnce) {
            resume_unwind(Box::new(Planned));
        }
        let inner = plan.inner.map(|service| Plan {
            service,
            start: Duration::ZERO,
            deadline: None,
            scope: None,
            fallback: None,
            inner: None,
            ..plan.clone()
        });
        let scene = Rc::clone(self);
        async move {
            let result = match inner {
                Some(plan) => Box::pin(scene.call_now(&plan, Some(call))).await,
                None => serve(call, behaviour).await,
            };
            guard.answer(Answer(result.err()));
            result
        }
    }
}

/// Why a call with a fallback has no value.
enum Alternative {
    Primary(CallError<Fault>),
    Failed(Fault),
}

impl From<CallError<Fault>> for Alternative {
    fn from(error: CallError<Fault>) -> Self {
        Self::Primary(error)
    }
}

/// Records a call's end; returns what a pipeline around it makes of that.
fn tell(open: OpenCall, result: Result<(), CallError<Fault>>) -> Result<(), Fault> {
    let refused = Verdict::local(Replay::Safe);
    let (end, verdict) = match result {
        Ok(()) => {
            open.end(End::Value);
            return Ok(());
        }
        Err(CallError::Inner(failed)) => {
            let not_executed = matches!(failed.verdict.replay, Replay::Safe | Replay::Transaction);
            (End::Inner { not_executed }, failed.verdict)
        }
        Err(CallError::AttemptTimeout(_)) => {
            (End::AttemptTimeout, Verdict::service(Replay::IfIdempotent))
        }
        Err(CallError::DeadlineExceeded(over)) => {
            let replay = if over.attempts == 0 { Replay::Safe } else { Replay::IfIdempotent };
            let verdict = Verdict { blame: Blame::Local, replay, retry_after: None };
            (End::DeadlineExceeded, verdict)
        }
        Err(CallError::CircuitOpen(open)) => {
            (End::CircuitOpen, Verdict::service(Replay::Safe).after(open.retry_after))
        }
        Err(CallError::BulkheadFull(_)) => (End::BulkheadFull, refused),
        Err(CallError::Throttled(_)) => (End::Throttled, refused),
        Err(CallError::RateLimited(_)) => (End::RateLimited, refused),
        Err(CallError::Shed(_)) => (End::Shed, refused),
        Err(CallError::Injected(_)) => (End::Injected, Verdict::service(Replay::Safe)),
        Err(CallError::Draining(_)) => (End::Draining, refused),
        Err(_) => (End::OtherRefusal, refused),
    };
    open.end(end);
    Err(verdict.into())
}

/// An attempt from its start to its answer.
struct InAttempt {
    call: usize,
    number: u32,
    answered: bool,
}

impl InAttempt {
    fn answer(mut self, answer: Answer) {
        self.answered = true;
        record(Fact::Answered { call: self.call, number: self.number, answer });
    }
}

impl Drop for InAttempt {
    fn drop(&mut self) {
        let Self { call, number, answered } = *self;
        match (answered, std::thread::panicking()) {
            (true, _) => {}
            (false, true) => record(Fact::Panicked { call, number }),
            (false, false) => record(Fact::Cut { call, number }),
        }
    }
}
