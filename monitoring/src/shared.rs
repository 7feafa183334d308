//! What a manager's clones and tasks share: monitors, rules, alerts and the ways to their handlers.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use resilience_core::{CircuitRegistry, Name};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::board::Board;
use crate::delivery::Courier;
use crate::meters::{CheckMeters, Gauges};
use crate::names::MAX_NAMES;
use crate::ratio::FailureRatios;
use crate::summary::overall;
use crate::wall_clock::Clock;
use crate::{
    Alert, AlertRule, CircuitReport, HealthSummary, InvalidMonitoring, Metrics, Readiness,
    ReadinessPolicy, ReadyStatus, Service, ServiceHealth, ServiceMonitor, circuits, defaults,
};

/// When to ask again while starting or draining.
const SOON: Duration = Duration::from_secs(1);

/// What a manager is built with.
pub(crate) struct Setup {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) policy: ReadinessPolicy,
    pub(crate) version: Option<Arc<str>>,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) runtime: Option<Handle>,
    pub(crate) clock: Clock,
}

pub(crate) struct Shared {
    pub(crate) setup: Setup,
    pub(crate) built: Instant,
    pub(crate) couriers: Mutex<Vec<Arc<Courier>>>,
    pub(crate) rules: Mutex<Vec<Box<dyn AlertRule>>>,
    pub(crate) board: Mutex<Board>,
    monitors: RwLock<BTreeMap<Name, ServiceMonitor>>,
    ratios: Mutex<FailureRatios>,
    gauges: Mutex<Gauges>,
    /// Held while something is taken in and set going, so that it is neither twice nor never.
    pub(crate) entrance: Mutex<()>,
    /// Told whenever a check has ended.
    news: Arc<Notify>,
    /// Told whenever the ends of checks were judged.
    pub(crate) looked: Notify,
    /// Whether every service has been looked at once.
    up: AtomicBool,
    pub(crate) draining: AtomicBool,
}

impl Shared {
    pub(crate) fn new(setup: Setup, rules: Vec<Box<dyn AlertRule>>) -> Self {
        Self {
            setup,
            built: Instant::now(),
            couriers: Mutex::default(),
            rules: Mutex::new(rules),
            board: Mutex::default(),
            monitors: RwLock::default(),
            ratios: Mutex::default(),
            gauges: Mutex::default(),
            entrance: Mutex::default(),
            news: Arc::default(),
            looked: Notify::new(),
            up: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    pub(crate) fn take_in(&self, service: Service) -> Result<ServiceMonitor, InvalidMonitoring> {
        let plan = service.plan(self.setup.interval, self.setup.timeout)?;
        let name = plan.name.clone();
        let refuse = |field, value, allowed| {
            Err(InvalidMonitoring { field, of: format!("service {name:?}"), value, allowed })
        };
        let mut monitors = self.monitors.write().unwrap_or_else(PoisonError::into_inner);
        if monitors.contains_key(&name) {
            return refuse("name", format!("{name:?}"), "a name that no other service has");
        }
        if monitors.len() >= MAX_NAMES {
            return refuse("number", (MAX_NAMES + 1).to_string(), "256 at the most");
        }
        let meters = self.setup.metrics.as_ref().map(|_| CheckMeters::new(&name));
        let monitor =
            ServiceMonitor::watching(plan, self.setup.clock, meters, Arc::clone(&self.news));
        if let (Some(metrics), Some(backend)) =
            (&self.setup.metrics, monitor.plan().check.backend())
        {
            metrics.observer().describe(&monitor.calls_name(), backend);
        }
        monitors.insert(name, monitor.clone());
        Ok(monitor)
    }

    pub(crate) fn monitors(&self) -> Vec<ServiceMonitor> {
        let monitors = self.monitors.read().unwrap_or_else(PoisonError::into_inner);
        monitors.values().cloned().collect()
    }

    pub(crate) fn summary(&self) -> HealthSummary {
        let monitors = self.monitors();
        let mut services: BTreeMap<_, _> =
            monitors.iter().map(|monitor| (monitor.name().clone(), monitor.health())).collect();
        let circuit_breakers = self.circuits(&monitors, &mut services);
        HealthSummary {
            overall_health: overall(services.values()),
            version: self.setup.version.clone(),
            uptime: self.built.elapsed(),
            checked_at: services.values().filter_map(|service| service.checked_at).max(),
            services,
            alerts: lock(&self.board).alerts().cloned().collect(),
            circuit_breakers,
        }
    }

    /// Every breaker of the process, with its failure ratio, which is filled in at `services` too.
    fn circuits(
        &self,
        monitors: &[ServiceMonitor],
        services: &mut BTreeMap<Name, ServiceHealth>,
    ) -> BTreeMap<Name, CircuitReport> {
        let mut breakers = CircuitRegistry::global().all();
        for breaker in monitors.iter().filter_map(|monitor| monitor.plan().check.breaker()) {
            if !breakers.iter().any(|known| known.is_same(&breaker)) {
                breakers.push(breaker);
            }
        }
        let mut reports = circuits::by_name(breakers);
        let now = Instant::now();
        let mut ratios = lock(&self.ratios);
        for report in reports.values_mut() {
            ratios.sample(&report.circuit, now);
            report.failure_ratio = report.failure_ratio.or_else(|| ratios.of(&report.circuit));
        }
        drop(ratios);
        for own in services.values_mut().filter_map(|service| service.breaker.as_mut()) {
            let of_all = || reports.get(&own.circuit.name)?.failure_ratio;
            own.failure_ratio = own.failure_ratio.or_else(of_all);
        }
        reports
    }

    pub(crate) fn readiness(&self, begun: bool) -> Readiness {
        let services = self.summary().services;
        let policy = self.setup.policy;
        let up = begun && services.values().all(|service| service.age.is_some());
        let up = self.up.fetch_or(up, Ordering::AcqRel) || up;
        let blocking = |monitor: &ServiceMonitor| {
            let health = services.get(monitor.name())?;
            policy.blocks(health.criticality, health.status).then(|| monitor.plan().interval)
        };
        let (status, retry_after) = if self.draining.load(Ordering::Acquire) {
            (ReadyStatus::Draining, Some(SOON))
        } else if !up {
            (ReadyStatus::Starting, Some(SOON))
        } else if let Some(next) = self.monitors().iter().filter_map(blocking).min() {
            (ReadyStatus::NotReady, Some(next.max(SOON)))
        } else {
            (ReadyStatus::Ready, None)
        };
        let services = services.iter().map(|(name, health)| (name.clone(), health.into()));
        Readiness { status, policy, services: services.collect(), retry_after }
    }

    pub(crate) async fn evaluate_for_ever(&self) {
        let mut ticks = interval(defaults::EVALUATE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.news.notified() => {}
            }
            self.evaluate();
            self.looked.notify_waiters();
        }
    }

    /// Lets every rule judge, tells what changed, and shows it all to the recorder.
    fn evaluate(&self) {
        let summary = self.summary();
        let now = self.setup.clock.now();
        // Taken out, so that a rule may add another.
        let mut rules = std::mem::take(&mut *lock(&self.rules));
        for rule in &mut rules {
            let judged = catch_unwind(AssertUnwindSafe(|| {
                let name = rule.name();
                let firing = lock(&self.board).firing(name);
                (name, rule.judge(&summary, &firing))
            }));
            let Ok((name, findings)) = judged else {
                tracing::error!(target: "shared_external::monitoring", "an alert rule panicked; its alerts stay as they are");
                continue;
            };
            let notices = lock(&self.board).apply(name, findings, now);
            for notice in notices {
                self.tell(&notice);
            }
        }
        let mut added = lock(&self.rules);
        rules.append(&mut added);
        *added = rules;
        drop(added);
        self.publish(&summary);
    }

    fn tell(&self, notice: &Alert) {
        tracing::debug!(target: "shared_external::monitoring", key = %notice.key, severity = %notice.severity, resolved = notice.is_resolved(), "alert");
        for courier in lock(&self.couriers).iter() {
            courier.send(notice.clone());
        }
    }

    pub(crate) fn publish(&self, summary: &HealthSummary) {
        if self.setup.metrics.is_none() {
            return;
        }
        let mut gauges = lock(&self.gauges);
        for monitor in self.monitors() {
            if let Some(health) = summary.services.get(monitor.name()) {
                let check = &monitor.plan().check;
                let (bulkhead, pipeline) = (check.bulkhead(), check.pipeline());
                let service = gauges.service(monitor.name(), &monitor.calls_name(), health);
                service.layers(bulkhead.as_ref(), pipeline.as_ref());
            }
        }
        gauges.circuits(summary.circuit_breakers.values());
        gauges.alerts(lock(&self.board).alerts().map(|alert| alert.severity));
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No section can panic half-way through a change: what the application wrote runs outside.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
