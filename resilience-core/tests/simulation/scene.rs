//! What a seed draws: services with their layers, and who calls them how. Everything goes through the public API.

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use resilience_core::{
    AdaptiveLimit, Attempt, Blame, Bulkhead, Call, CallError, CircuitBreaker, CircuitOpen,
    CircuitState, Deadline, Drained, Hedge, LoadShedder, Name, Outcome, Permit, Pipeline,
    Prioritizer, Priority, Replay, RetryBudget, RetryPolicy, Throttle, Verdict,
};
use tokio::time::{Instant, sleep};

use crate::laws::{Case, Hand, Laws, ServiceLaws, longest_open};
use crate::layers::{build_adaptive, build_breaker, build_budget, build_timeout};
use crate::service::{Answer, Behaviour, Fault, Script, serve};
use crate::trace::{self, End, Fact, Kind, Look, OpenCall, Planned, record};
use crate::world::{Role, jump, spawn};

/// The storm lasts this long; later calls find fine weather.
const STORM: Duration = Duration::from_secs(5);

/// The services of one run and what they share.
pub(crate) struct Scene {
    services: Vec<Service>,
    rng: RefCell<Rng>,
    permits: Cell<usize>,
    /// Permits that their holders forgot: given back when the run is over.
    forgotten: RefCell<Vec<(usize, usize, Permit)>>,
    /// What was last seen of each service, and how long the trace was then.
    looks: RefCell<(usize, Vec<Option<Look>>)>,
}

struct Service {
    pipeline: Pipeline,
    breaker: Option<CircuitBreaker>,
    bulkhead: Option<Bulkhead>,
    adaptive: Option<(AdaptiveLimit, usize)>,
    hedge: Option<Hedge>,
    script: Script,
    deadline: Duration,
}

/// One call to be made.
#[derive(Clone, Debug)]
struct Plan {
    service: usize,
    kind: Kind,
    priority: Priority,
    start: Duration,
    deadline: Option<Duration>,
    scope: Option<Duration>,
    fallback: Option<Behaviour>,
    /// The service that the operation calls in its turn.
    inner: Option<usize>,
}

impl Scene {
    pub(crate) fn draw(rng: &mut Rng, case: Case) -> (Rc<Self>, Laws) {
        let innocent = case != Case::Any;
        let laws = Laws::draw(rng, case);
        let budgets: Vec<_> = laws.budgets.iter().map(build_budget).collect();
        let mut services = Vec::new();
        for (index, settings) in laws.services.iter().enumerate() {
            let script = match innocent {
                true => Script::innocent(rng, settings.latency),
                false => Script::draw(rng, STORM, settings.latency),
            };
            services.push(Service::build(index, settings, &budgets, script, rng));
        }
        let scene = Rc::new(Self {
            looks: RefCell::new((0, vec![None; services.len()])),
            services,
            rng: RefCell::new(rng.fork()),
            permits: Cell::default(),
            forgotten: RefCell::default(),
        });
        scene.people(rng, case);
        scene.hands(&laws);
        (scene, laws)
    }

    pub(crate) fn breakers(&self) -> Vec<Option<CircuitBreaker>> {
        self.services.iter().map(|service| service.breaker.clone()).collect()
    }

    /// Spawns everybody who will call.
    fn people(self: &Rc<Self>, rng: &mut Rng, case: Case) {
        let innocent = case != Case::Any;
        let herds = if case == Case::Crowded { 2 } else { 50 };
        let services = self.services.len();
        for _ in 0..rng.usize(20..60) {
            let service = rng.usize(..services);
            let maybe = |rng: &mut Rng, of: u8, from, to| {
                (!innocent && rng.u8(..of) == 0).then(|| Duration::from_millis(rng.u64(from..to)))
            };
            // What runs twice at once within one task could not be told apart.
            let hedged = self.services[service].hedge.is_some();
            let plan = Plan {
                service,
                kind: [Kind::Read, Kind::Write, Kind::WriteIdempotent][rng.usize(..3)],
                priority: Priority::ALL[rng.usize(..5)],
                // In herds, so that they meet.
                start: Duration::from_millis(rng.u64(..herds) * 100 + rng.u64(..20)),
                deadline: maybe(rng, 4, 0, 1_500),
                scope: maybe(rng, 6, 1, 2_000),
                fallback: (rng.u8(..4) == 0).then(|| draw_fallback(rng)),
                inner: (rng.u8(..3) == 0 && service + 1 < services && !innocent && !hedged)
                    .then(|| rng.usize(service + 1..services)),
            };
            let drop_after = (rng.u8(..6) == 0).then(|| rng.u32(1..6));
            let scene = Rc::clone(self);
            spawn(Role::Client { drop_after }, async move { scene.call(plan).await });
        }
        for _ in 0..rng.usize(..12) {
            let (service, start) = (rng.usize(..services), rng.u64(..5_000));
            let longest = if innocent { 250 } else { 800 };
            let (start, hold) = (Duration::from_millis(start), rng.u64(..longest));
            let outcome = match innocent {
                true => Outcome::Success,
                false => Outcome::ALL[rng.usize(..4)],
            };
            let forget = !innocent && rng.u8(..5) == 0;
            let scene = Rc::clone(self);
            spawn(Role::Client { drop_after: None }, async move {
                sleep(start).await;
                scene.hold(service, Duration::from_millis(hold), outcome, forget).await;
            });
        }
        if rng.u8(..3) == 0 {
            let service = rng.usize(..services);
            let start = Duration::from_millis(rng.u64(1_000..5_000));
            let within = Duration::from_millis(rng.u64(..1_500));
            let scene = Rc::clone(self);
            spawn(Role::Steady, async move {
                sleep(start).await;
                let deadline = Deadline::within(within);
                let limit = trace::time_of(deadline.instant());
                record(Fact::DrainBegan { service, deadline: limit });
                let Drained { abandoned } = scene.services[service].pipeline.drain(deadline).await;
                record(Fact::DrainEnded { service, abandoned });
            });
        }
    }

    /// Spawns whoever handles breakers by hand.
    fn hands(self: &Rc<Self>, laws: &Laws) {
        for (service, laws) in laws.services.iter().enumerate() {
            for (at, hand) in laws.breaker.iter().flat_map(|laws| laws.hands.clone()) {
                let scene = Rc::clone(self);
                spawn(Role::Steady, async move {
                    sleep(at).await;
                    scene.handle(service, hand);
                });
            }
        }
    }

    fn handle(&self, service: usize, hand: Hand) {
        let Some(breaker) = &self.services[service].breaker else { return };
        record(Fact::Handling { service, hand });
        match hand {
            Hand::ForceOpen => breaker.force_open(),
            Hand::ForceClosed => breaker.force_closed(),
            Hand::Disable => breaker.disable(),
            Hand::MetricsOnly => breaker.metrics_only(),
            Hand::Reset => breaker.reset(),
            Hand::Reconfigure(rules) => breaker.reconfigure(rules).expect("drawn within range"),
        }
        record(Fact::Handled { service, generation: breaker.snapshot().generation });
    }

    async fn call(self: Rc<Self>, plan: Plan) {
        sleep(plan.start).await;
        // A caller's own affair.
        let _ = match plan.scope {
            Some(within) => Deadline::within(within).scope(self.call_now(&plan, None)).await,
            None => self.call_now(&plan, None).await,
        };
    }

    /// Makes the call, within the attempt of another if it is the inner one.
    async fn call_now(self: &Rc<Self>, plan: &Plan, around: Option<usize>) -> Result<(), Fault> {
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

    /// Uses the breaker of a service by itself.
    async fn hold(&self, service: usize, time: Duration, outcome: Outcome, forget: bool) {
        let Some(breaker) = &self.services[service].breaker else { return };
        let Some((id, permit)) = self.acquire(service, breaker) else { return };
        let mut held = Holding { service, id, permit: Some(permit) };
        sleep(time).await;
        let permit = held.permit.take().expect("it was put there");
        if forget {
            self.forgotten.borrow_mut().push((service, id, permit));
            return;
        }
        record(Fact::Settled { service, permit: id, outcome });
        permit.settle(outcome);
    }

    fn acquire(&self, service: usize, breaker: &CircuitBreaker) -> Option<(usize, Permit)> {
        let permit = match breaker.try_acquire() {
            Ok(permit) => permit,
            Err(CircuitOpen { retry_after, .. }) => {
                record(Fact::Refused { service, state: breaker.state(), retry_after });
                return None;
            }
        };
        let id = self.permits.get();
        self.permits.set(id + 1);
        record(Fact::Held { service, permit: id, generation: permit.generation() });
        Some((id, permit))
    }

    /// Records how the layers look from outside, if anything has happened.
    pub(crate) fn look(&self) {
        let (seen, looks) = &mut *self.looks.borrow_mut();
        let happened = trace::len() > *seen;
        for (index, service) in self.services.iter().enumerate() {
            let snapshot = service.breaker.as_ref().map(CircuitBreaker::snapshot);
            let look = Look {
                state: snapshot.as_ref().map_or(CircuitState::Closed, |seen| seen.state),
                generation: snapshot.as_ref().map_or(0, |seen| seen.generation),
                probes_out: snapshot.is_some_and(|seen| {
                    seen.state == CircuitState::HalfOpen && seen.retry_after.is_some()
                }),
                places: service.places(),
                waiting: service.waiting(),
                limit: service.adaptive.as_ref().map_or(0, |(limit, _)| limit.limit()),
                hedges: service.hedge.as_ref().map_or(0, |hedge| hedge.counts().started),
            };
            if happened || looks[index] != Some(look) {
                record(Fact::Seen { task: trace::task(), service: index, look });
                looks[index] = Some(look);
            }
        }
        *seen = trace::len();
    }

    /// After the storm: no circuit may be stuck, whatever became of its probes.
    pub(crate) fn recover(&self) {
        for service in 0..self.services.len() {
            let Some(breaker) = &self.services[service].breaker else {
                record(Fact::Recovered { service, state: None });
                continue;
            };
            if is_forced(breaker.state()) {
                self.handle(service, Hand::Reset);
            }
            let rules = breaker.settings();
            // A lost probe's lease, then the timeout of the circuit that this opens, then good answers.
            for _ in 0..2 {
                jump(longest_open(&rules).max(rules.probe_lease));
                for _ in 0..rules.success_threshold {
                    if let Some((permit, held)) = self.acquire(service, breaker) {
                        let outcome = Outcome::Success;
                        record(Fact::Settled { service, permit, outcome });
                        held.settle(outcome);
                    }
                }
            }
            record(Fact::Recovered { service, state: Some(breaker.state()) });
        }
        for (service, permit, held) in self.forgotten.take() {
            record(Fact::Settled { service, permit, outcome: Outcome::Failure });
            held.failure();
        }
        self.look();
    }
}

impl Service {
    /// Places that are free, of the most there may be.
    fn places(&self) -> usize {
        match (&self.bulkhead, &self.adaptive) {
            (Some(bulkhead), _) => bulkhead.available(),
            (None, Some((limit, most))) => most.saturating_sub(limit.in_flight()),
            (None, None) => 0,
        }
    }

    fn waiting(&self) -> usize {
        let adaptive = self.adaptive.as_ref().map_or(0, |(limit, _)| limit.waiting());
        self.bulkhead.as_ref().map_or(adaptive, Bulkhead::waiting)
    }

    fn build(
        index: usize,
        laws: &ServiceLaws,
        budgets: &[RetryBudget],
        script: Script,
        rng: &mut Rng,
    ) -> Self {
        let name = Name::from(format!("service-{index}"));
        let breaker = laws.breaker.as_ref().map(|laws| build_breaker(&name, laws));
        let bulkhead = laws.bulkhead.filter(|_| laws.adaptive.is_none()).map(|(places, wait)| {
            Bulkhead::new(name.clone(), places, wait).expect("drawn within range")
        });
        let mut retry = RetryPolicy::builder()
            .max_retries(laws.max_retries)
            .base_delay(laws.max_delay / rng.u32(1..10))
            .max_delay(laws.max_delay)
            .jitter(rng.bool())
            .seed(rng.u64(..));
        if let Some(budget) = laws.budget {
            retry = retry.budget(budgets[budget].clone());
        }
        let mut pipeline = Pipeline::builder(name.clone())
            .deadline(laws.deadline)
            .timeout(build_timeout(laws, rng))
            .retry(retry.build().expect("drawn within range"));
        if let Some(breaker) = &breaker {
            pipeline = pipeline.breaker(breaker.clone());
        }
        if let Some(bulkhead) = &bulkhead {
            pipeline = pipeline.bulkhead(bulkhead.clone());
        }
        let adaptive = laws
            .adaptive
            .as_ref()
            .zip(laws.bulkhead)
            .map(|(laws, (most, wait))| (build_adaptive(&name, laws, most, wait), most));
        if let Some((limit, _)) = &adaptive {
            pipeline = pipeline.adaptive_limit(limit.clone());
        }
        if let Some(laws) = &laws.throttle {
            let throttle = Throttle::builder(name.clone())
                .window(laws.window)
                .multiplier(laws.multiplier)
                .max_rejection(laws.max_rejection)
                .seed(rng.u64(..));
            pipeline = pipeline.throttle(throttle.build().expect("drawn within range"));
        }
        if let Some(limit) = laws.shed {
            let shedder = LoadShedder::new(name.clone(), &Prioritizer::new(), limit);
            pipeline = pipeline.shed(shedder.expect("drawn within range"));
        }
        let hedge = laws.hedge.as_ref().map(|laws| {
            let budget = budgets[laws.budget].clone();
            let hedge = Hedge::builder().delay(laws.delay).max_hedges(laws.max_hedges);
            hedge.budget(budget).build().expect("drawn within range")
        });
        if let Some(hedge) = &hedge {
            pipeline = pipeline.hedge(hedge.clone());
        }
        #[cfg(feature = "rate-limit")]
        if let Some(laws) = &laws.rate {
            let limiter =
                resilience_core::RateLimiter::builder(name.clone(), laws.calls, laws.time)
                    .burst(laws.burst)
                    .queue(laws.queue);
            pipeline = pipeline.rate_limit(limiter.build().expect("drawn within range"));
        }
        #[cfg(feature = "chaos")]
        if let Some(laws) = &laws.chaos {
            let chaos = resilience_core::Chaos::builder(name.clone())
                .faults(laws.faults)
                .latency(laws.delayed, Duration::ZERO..=laws.delay)
                .enabled(laws.enabled)
                .seed(rng.u64(..));
            pipeline = pipeline.chaos(chaos.build().expect("drawn within range"));
        }
        let pipeline = pipeline.build().expect("drawn within range");
        Self { pipeline, breaker, bulkhead, adaptive, hedge, script, deadline: laws.deadline }
    }
}

/// Whether a circuit is held in its state by hand.
fn is_forced(state: CircuitState) -> bool {
    use CircuitState::{Closed, HalfOpen, Open};
    !matches!(state, Closed | HalfOpen | Open)
}

fn draw_fallback(rng: &mut Rng) -> Behaviour {
    let after = Duration::from_millis(rng.u64(..200));
    match rng.u8(..4) {
        0 => Behaviour::Silence { executes: false },
        1 => {
            let fault = Some(Verdict::service(Replay::Never).into());
            Behaviour::Reply { after, fault, executes: false }
        }
        _ => Behaviour::Reply { after, fault: None, executes: false },
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

/// A permit in the hands of a task that may be dropped.
struct Holding {
    service: usize,
    id: usize,
    permit: Option<Permit>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        if self.permit.is_some() {
            let outcome = Outcome::Cancelled;
            record(Fact::Settled { service: self.service, permit: self.id, outcome });
        }
    }
}
