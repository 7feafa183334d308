//! Processes that tell each other of their circuits, through a store that can be lost.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use resilience_core::{
    CircuitBreaker, CircuitBreakerBuilder, Deadline, Exchange, ExchangeBuilder, MemoryOpinions,
    Opinion, OpinionStore, ProcessId, StoreError, Tally,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MILLI: Duration = Duration::from_millis(1);
/// How long an opinion counts, and a hint: three periods of a second.
pub(crate) const TTL: Duration = Duration::from_secs(3);
pub(crate) const RESET: Duration = Duration::from_secs(60);

/// A store that counts the exchanges it is asked for, and can be lost.
#[derive(Clone, Default)]
pub(crate) struct Store {
    pub(crate) opinions: MemoryOpinions,
    state: Arc<AtomicU8>,
    asked: Arc<AtomicUsize>,
}

pub(crate) const UP: u8 = 0;
pub(crate) const REFUSES: u8 = 1;
pub(crate) const HANGS: u8 = 2;
pub(crate) const RAVES: u8 = 3;

impl Store {
    pub(crate) fn turn(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl OpinionStore for Store {
    async fn exchange(
        &self,
        process: ProcessId,
        opinions: &[Opinion],
        ttl: Duration,
    ) -> Result<Vec<Tally>, StoreError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.state.load(Ordering::Relaxed) {
            UP => self.opinions.exchange(process, opinions, ttl).await,
            REFUSES => Err(StoreError::new("connection refused")),
            HANGS => std::future::pending().await,
            _ => Ok(Vec::new()),
        }
    }
}

/// One of the processes of a service.
pub(crate) struct Process {
    pub(crate) breaker: CircuitBreaker,
    pub(crate) exchange: Exchange,
}

pub(crate) fn breaker() -> CircuitBreakerBuilder {
    CircuitBreaker::builder("payments").fail_max(5).success_threshold(1)
}

pub(crate) fn exchange(store: &Store, breaker: &CircuitBreaker) -> ExchangeBuilder {
    Exchange::builder(store.clone()).breakers([breaker.clone()]).seed(1)
}

impl Process {
    pub(crate) fn new(store: &Store) -> Self {
        let breaker = breaker().build().unwrap();
        let exchange = exchange(store, &breaker).build().unwrap();
        Self { breaker, exchange }
    }

    pub(crate) fn some(store: &Store, count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::new(store)).collect()
    }

    pub(crate) fn fail(&self, times: usize) {
        for _ in 0..times {
            self.breaker.try_acquire().unwrap().failure();
        }
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.breaker.snapshot().armed
    }

    pub(crate) async fn speak(&self) {
        self.exchange.exchange_once(Deadline::within(SECOND)).await.unwrap();
    }
}

/// All of them speak, then all hear what the last has said.
pub(crate) async fn all_speak(processes: &[Process]) {
    for process in processes.iter().chain(processes) {
        process.speak().await;
    }
}
