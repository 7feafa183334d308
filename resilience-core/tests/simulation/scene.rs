//! What a seed draws: services with their layers, and who calls them how. Everything goes through the public API.

mod caller;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use resilience_core::{
    CircuitBreaker, CircuitOpen, CircuitState, Deadline, Drained, Outcome, Permit, Priority,
    Replay, Verdict,
};
use tokio::time::sleep;

use crate::laws::{Case, Hand, Laws, longest_open};
use crate::layers::{Service, build_budget};
use crate::service::{Behaviour, Script};
use crate::trace::{self, Fact, Kind, Look, record};
use crate::world::{Role, spawn};

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
    pub(crate) async fn recover(&self) {
        for service in 0..self.services.len() {
            let Some(breaker) = &self.services[service].breaker else {
                record(Fact::Recovered { service, state: None });
                continue;
            };
            if is_forced(breaker.state()) {
                self.handle(service, Hand::Reset);
            }
            let rules = breaker.settings();
            // A lease may have grown by the time this process stood still.
            sleep(2 * STORM).await;
            // A lost probe's lease, then the timeout of the circuit that this opens, then good answers.
            for _ in 0..2 {
                sleep(longest_open(&rules).max(rules.probe_lease)).await;
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
