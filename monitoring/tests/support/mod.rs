//! What the tests share: a check and a handler that do as they are told.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use monitoring::{
    Alert, AlertError, AlertHandler, AlertSeverity, MonitoringBuilder, MonitoringManager,
};
use resilience_core::{CircuitBreaker, Deadline, Health, HealthCheck};
use tokio::time::Instant;

/// Lets paused time pass, with all that happens in it.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A manager that looks every second and judges by itself.
pub fn every_second() -> MonitoringBuilder {
    MonitoringManager::builder().interval(secs(1))
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Does {
    Answer,
    Limp,
    Fail,
    Hang,
    Panic,
}

/// A service's check that does as it is told, and notes when.
pub struct Puppet {
    does: Mutex<Does>,
    looks: Mutex<Vec<Instant>>,
    running: AtomicUsize,
    most: AtomicUsize,
    breaker: Option<CircuitBreaker>,
}

impl Puppet {
    pub fn that(does: Does) -> Arc<Self> {
        Arc::new(Self::new(does, None))
    }

    pub fn behind(breaker: &CircuitBreaker) -> Arc<Self> {
        Arc::new(Self::new(Does::Answer, Some(breaker.clone())))
    }

    fn new(does: Does, breaker: Option<CircuitBreaker>) -> Self {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { does: Mutex::new(does), looks: Mutex::default(), running, most, breaker }
    }

    pub fn now(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    /// When it was asked.
    pub fn looks(&self) -> Vec<Instant> {
        self.looks.lock().unwrap().clone()
    }

    /// How many checks ran at once, at the most.
    pub fn most_at_once(&self) -> usize {
        self.most.load(SeqCst)
    }
}

#[async_trait::async_trait]
impl HealthCheck for Puppet {
    async fn check(&self, _: Deadline) -> Health {
        struct Running<'a>(&'a AtomicUsize);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        self.looks.lock().unwrap().push(Instant::now());
        self.most.fetch_max(self.running.fetch_add(1, SeqCst) + 1, SeqCst);
        let _running = Running(&self.running);
        let does = *self.does.lock().unwrap();
        let latency = Duration::from_millis(2);
        match does {
            Does::Answer => Health::healthy(latency),
            Does::Limp => Health::degraded(latency, "a replica is down"),
            Does::Fail => Health::unhealthy(latency, "connection refused"),
            Does::Hang => std::future::pending().await,
            Does::Panic => panic!("a bug in the check"),
        }
    }

    fn breaker(&self) -> Option<CircuitBreaker> {
        self.breaker.clone()
    }
}

/// An alert as a handler saw it: key, severity, whether it was over.
pub type Seen = (String, AlertSeverity, bool);

/// A handler that does as it is told, and notes what it delivered.
#[derive(Default)]
pub struct Ledger {
    delivered: Mutex<Vec<Seen>>,
    tries: AtomicUsize,
    /// What it does with the next ones; then it delivers.
    next: Mutex<VecDeque<Does>>,
}

impl Ledger {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A ledger that first does `does` that many times.
    pub fn first(does: Does, times: usize) -> Arc<Self> {
        let ledger = Self::new();
        ledger.next.lock().unwrap().extend(std::iter::repeat_n(does, times));
        ledger
    }

    pub fn delivered(&self) -> Vec<Seen> {
        self.delivered.lock().unwrap().clone()
    }

    pub fn tries(&self) -> usize {
        self.tries.load(SeqCst)
    }
}

#[async_trait::async_trait]
impl AlertHandler for Ledger {
    async fn handle(&self, alert: &Alert) -> Result<(), AlertError> {
        self.tries.fetch_add(1, SeqCst);
        let does = self.next.lock().unwrap().pop_front();
        match does.unwrap_or(Does::Answer) {
            Does::Answer | Does::Limp => {}
            Does::Fail => return Err(AlertError::new("the chat is down")),
            Does::Hang => std::future::pending().await,
            Does::Panic => panic!("a bug in the handler"),
        }
        let seen = (alert.key.to_string(), alert.severity, alert.is_resolved());
        self.delivered.lock().unwrap().push(seen);
        Ok(())
    }
}
