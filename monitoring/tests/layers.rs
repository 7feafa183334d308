//! Fear: a layer refuses, hedges or fills up, and whoever is on call cannot see it.

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use monitoring::{MonitoringManager, install_metrics};
use resilience_core::{
    AdaptiveLimit, AnyError, Bulkhead, Call, CallError, CircuitBreaker, Deadline, Exchange, Health,
    HealthCheck, Hedge, LoadShedder, MemoryOpinions, Opinion, OpinionStore, Pipeline, Prioritizer,
    Priority, ProcessId, RateLimiter, RetryBudget, RetryPolicy, StoreError, Tally, Throttle,
    ThrottlePermit,
};
use support::secs;
use tokio::time::{advance, sleep};

const MS: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct Refused;

/// A service that can be had through a pipeline alone.
struct Behind(Pipeline);

#[async_trait]
impl HealthCheck for Behind {
    async fn check(&self, _: Deadline) -> Health {
        Health::healthy(MS)
    }

    fn pipeline(&self) -> Option<Pipeline> {
        Some(self.0.clone())
    }
}

/// A manager that watches services called as their pipelines are.
fn watching(pipelines: &[&Pipeline]) -> MonitoringManager {
    let mut builder = MonitoringManager::builder().metrics(install_metrics());
    for pipeline in pipelines {
        let check = Arc::new(Behind((*pipeline).clone()));
        builder = builder.optional(pipeline.name().clone(), check);
    }
    builder.build().unwrap()
}

fn has(manager: &MonitoringManager, lines: &[&str]) {
    let text = manager.render_metrics().unwrap();
    for line in lines {
        assert!(text.lines().any(|held| held == *line), "{line} is missing in\n{text}");
    }
}

fn refused(manager: &MonitoringManager, layer: &str, times: u64) {
    assert!(times > 0, "{layer} was to refuse");
    has(
        manager,
        &[&format!(r#"resilience_refusals_total{{name="prices",layer="{layer}"}} {times}"#)],
    );
}

async fn ask(pipeline: &Pipeline, takes: Duration) -> Result<(), CallError<Refused>> {
    let operation = |_| async move {
        sleep(takes).await;
        Ok(())
    };
    pipeline.run(Call::read(), &AnyError, operation).await
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_refuses_is_counted_by_its_name_and_kind() {
    let manager = watching(&[]);
    let soon = || Deadline::within(10 * MS);

    let breaker = CircuitBreaker::builder("prices").fail_max(1).build().unwrap();
    breaker.try_acquire().unwrap().failure();
    (0..3).for_each(|_| drop(breaker.try_acquire().unwrap_err()));
    refused(&manager, "breaker", 3);

    let bulkhead = Bulkhead::builder("prices").limit(1).queue(1).build().unwrap();
    let limit = AdaptiveLimit::builder("prices").initial(1).max(1).queue(1).build().unwrap();
    let (_place, _taken) = (bulkhead.try_acquire().unwrap(), limit.try_acquire().unwrap());
    // Of two, one finds the queue full, and the other waits in vain.
    let (one, other) = tokio::join!(bulkhead.acquire(soon()), bulkhead.acquire(soon()));
    assert!(one.is_err() && other.is_err() && bulkhead.try_acquire().is_none());
    refused(&manager, "bulkhead", 2);
    let (one, other) = tokio::join!(limit.acquire(soon()), limit.acquire(soon()));
    assert!(one.is_err() && other.is_err() && limit.try_acquire().is_none());
    refused(&manager, "adaptive", 2);

    let throttle = Throttle::builder("prices").seed(7).build().unwrap();
    (0..100).for_each(|_| drop(throttle.try_acquire().map(ThrottlePermit::failure)));
    refused(&manager, "throttle", throttle.snapshot().refused);

    let limiter = RateLimiter::builder("prices", 1, secs(60)).build().unwrap();
    limiter.try_acquire().unwrap();
    limiter.try_acquire().unwrap_err();
    limiter.acquire(soon()).await.unwrap_err();
    refused(&manager, "rate_limit", limiter.rejected());

    let shedder = LoadShedder::new("prices", &Prioritizer::new(), 1).unwrap();
    let mut inside = Vec::new();
    for _ in 0..200 {
        advance(10 * MS).await;
        inside.extend(shedder.admit(Priority::Low));
    }
    refused(&manager, "shed", shedder.refused(Priority::Low));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_is_one_refusal() {
    let breaker = CircuitBreaker::builder("orders").fail_max(1).build().unwrap();
    let retry = RetryPolicy::builder().max_retries(3).build().unwrap();
    let pipeline = Pipeline::builder("orders").breaker(breaker).retry(retry).build().unwrap();
    let manager = watching(&[&pipeline]);
    let fails = |_| async { Err::<(), _>(Refused) };
    let _ = pipeline.run(Call::read(), &AnyError, fails).await;
    assert!(matches!(ask(&pipeline, MS).await, Err(CallError::CircuitOpen(_))));
    has(
        &manager,
        &[
            r#"resilience_refusals_total{name="orders",layer="breaker"} 1"#,
            r#"resilience_circuit_breaker_not_permitted_calls_total{name="orders"} 1"#,
            r#"resilience_circuit_breaker_state{name="orders",state="open"} 1"#,
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn a_limit_shows_where_it_stands_and_who_waits() {
    let limit = AdaptiveLimit::builder("search").initial(2).max(9).build().unwrap();
    let search = Pipeline::builder("search").adaptive_limit(limit).build().unwrap();
    let bulkhead = Bulkhead::new("mail", 3, secs(5)).unwrap();
    let mail = Pipeline::builder("mail").bulkhead(bulkhead).build().unwrap();
    let manager = watching(&[&search, &mail]);
    let mut calls = tokio::task::JoinSet::new();
    for pipeline in [&search, &search, &search, &mail] {
        let pipeline = pipeline.clone();
        calls.spawn(async move { ask(&pipeline, secs(1)).await.unwrap() });
    }
    sleep(MS).await;
    let places = |name: &str, max: usize, available: usize, in_flight: usize, waiting: usize| {
        has(
            &manager,
            &[
                &format!(
                    r#"resilience_bulkhead_max_allowed_concurrent_calls{{name="{name}"}} {max}"#
                ),
                &format!(
                    r#"resilience_bulkhead_available_concurrent_calls{{name="{name}"}} {available}"#
                ),
                &format!(
                    r#"resilience_bulkhead_calls{{name="{name}",state="in_flight"}} {in_flight}"#
                ),
                &format!(r#"resilience_bulkhead_calls{{name="{name}",state="waiting"}} {waiting}"#),
            ],
        );
    };
    places("search", 2, 0, 2, 1);
    places("mail", 3, 2, 1, 0);
    calls.join_all().await;
    for _ in 0..20 {
        let (one, other) = tokio::join!(ask(&search, MS), ask(&search, MS));
        one.and(other).unwrap();
    }
    let found = search.adaptive_limit().unwrap().limit();
    places("search", found, found, 0, 0);
    assert!(found > 2, "it has grown");
}

#[tokio::test(start_paused = true)]
async fn a_throttle_shows_its_share_and_a_budget_what_is_left() {
    let throttle = Throttle::builder("rates").seed(7).build().unwrap();
    let budget = RetryBudget::new(0.0, 5).unwrap();
    let retry = RetryPolicy::builder().max_retries(1).budget(budget).build().unwrap();
    let rates = Pipeline::builder("rates").throttle(throttle).retry(retry).build().unwrap();
    let manager = watching(&[&rates]);
    has(
        &manager,
        &[
            r#"resilience_throttle_rejection_ratio{name="rates"} 0"#,
            r#"resilience_retry_budget_balance{name="rates"} 5"#,
        ],
    );
    let fails = |_| async { Err::<(), _>(Refused) };
    let _ = rates.run(Call::read(), &AnyError, fails).await;
    let share = rates.throttle().unwrap().rejection_probability();
    assert!(share > 0.4, "{share}");
    has(
        &manager,
        &[
            &format!(r#"resilience_throttle_rejection_ratio{{name="rates"}} {share}"#),
            r#"resilience_retry_budget_balance{name="rates"} 4"#,
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn hedges_are_told_by_what_became_of_them() {
    let hedge = Hedge::builder().delay(50 * MS).budget(RetryBudget::new(0.0, 2).unwrap());
    let stock = Pipeline::builder("stock").hedge(hedge.build().unwrap()).build().unwrap();
    let manager = watching(&[&stock]);
    let mut made = 0;
    // The second attempt of all is quick: it wins. The fourth is not. For a sixth there is no budget.
    for _ in 0..3 {
        let operation = |_| {
            made += 1;
            let takes = if made == 2 { MS } else { 200 * MS };
            async move {
                sleep(takes).await;
                Ok::<_, Refused>(())
            }
        };
        stock.run(Call::read(), &AnyError, operation).await.unwrap();
    }
    has(
        &manager,
        &[
            r#"resilience_hedges_total{name="stock",kind="started"} 2"#,
            r#"resilience_hedges_total{name="stock",kind="won"} 1"#,
            r#"resilience_hedges_total{name="stock",kind="refused"} 1"#,
        ],
    );
}

/// A store that has no answer.
struct Lost;

#[async_trait]
impl OpinionStore for Lost {
    async fn exchange(
        &self,
        _: ProcessId,
        _: &[Opinion],
        _: Duration,
    ) -> Result<Vec<Tally>, StoreError> {
        Err(StoreError::new("connection refused"))
    }
}

#[tokio::test(start_paused = true)]
async fn what_other_processes_say_shows_once_and_so_does_their_silence() {
    let manager = watching(&[]);
    let store = MemoryOpinions::default();
    let breaker = || CircuitBreaker::builder("payments").fail_max(1).build().unwrap();
    let (here, there) = (breaker(), breaker());
    there.try_acquire().unwrap().failure();
    let exchange = |breaker: &CircuitBreaker| {
        Exchange::builder(store.clone()).breakers([breaker.clone()]).quorum(0.5, 1).build().unwrap()
    };
    let (heard, said) = (exchange(&here), exchange(&there));
    said.exchange_once(Deadline::within(secs(1))).await.unwrap();
    // Armed, and then only renewed.
    for _ in 0..2 {
        heard.exchange_once(Deadline::within(secs(1))).await.unwrap();
    }
    assert!(here.snapshot().armed);
    let alone = Exchange::builder(Lost).breakers([here]).build().unwrap();
    alone.exchange_once(Deadline::within(secs(1))).await.unwrap_err();
    has(
        &manager,
        &[
            r#"resilience_circuit_breaker_armings_total{name="payments"} 1"#,
            r#"resilience_opinion_exchanges_total{outcome="answered"} 3"#,
            r#"resilience_opinion_exchanges_total{outcome="failed"} 1"#,
        ],
    );
}
