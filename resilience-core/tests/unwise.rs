//! Fear: settings that contradict each other, or hardly do what was meant, and nobody is told.

#[path = "support/log.rs"]
mod log;

use std::time::Duration;

use resilience_core::{
    AdaptiveLimit, AnyError, Bulkhead, Call, CircuitBreaker, InvalidSetting, Pipeline,
    PipelineBuilder, RetryPolicy, Throttle, Timeout, Unwise,
};

use log::Log;

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

const SECOND: Duration = Duration::from_secs(1);

/// A line that is logged for the first time while another thread begins to listen may be lost to it.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn lease(name: &'static str, lease: Duration) -> CircuitBreaker {
    CircuitBreaker::builder(name).probe_lease(lease).build().unwrap()
}

fn retrying(name: &'static str) -> Pipeline {
    Pipeline::builder(name).retry(RetryPolicy::default()).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_unwise_setting_is_told_once_by_its_name_and_listed() {
    let _alone = ALONE.lock().await;
    let log = Log::listen("shared_external=warn");
    let (outer, inner) = (retrying("outer"), retrying("inner"));
    let wide = Pipeline::builder("wide")
        .deadline(Duration::from_secs(30))
        .bulkhead(Bulkhead::new("wide", 11, Duration::ZERO).unwrap())
        .pool_size(10)
        .build()
        .unwrap();
    let wider = Pipeline::builder("wider")
        .adaptive_limit(AdaptiveLimit::builder("wider").initial(10).max(11).build().unwrap())
        .pool_size(10)
        .build()
        .unwrap();
    let lost = Pipeline::builder("lost").breaker(lease("lost", SECOND)).build().unwrap();
    let learned = Pipeline::builder("learned")
        .deadline(Duration::from_secs(20))
        .attempt_timeout(Timeout::learned().build().unwrap())
        .build()
        .unwrap();
    assert!(outer.unwise().is_empty());
    for _ in 0..3 {
        wide.run(Call::read(), &AnyError, |_| async { Ok::<_, Refused>(1) }).await.unwrap();
        // Not only once it is too late: a call that goes well tells too.
        let nested = |_| inner.run(Call::read(), &AnyError, |_| async { Ok::<_, Refused>(1) });
        outer.run(Call::read(), &AnyError, nested).await.unwrap();
    }
    let text = log.end();
    let reaches = Unwise::AttemptTimeoutReachesDeadline;
    assert_eq!(wide.unwise(), [reaches, Unwise::BulkheadWiderThanPool]);
    assert_eq!(wider.unwise(), [Unwise::BulkheadWiderThanPool]);
    assert_eq!(lost.unwise(), [Unwise::ProbeOutlivesLease]);
    assert_eq!(learned.unwise(), [reaches]);
    assert_eq!((inner.unwise(), outer.unwise()), (vec![], vec![Unwise::NestedRetries]));
    for (pipeline, word) in [
        ("wide", "attempt_timeout_reaches_deadline"),
        ("wide", "bulkhead_wider_than_pool"),
        ("wider", "bulkhead_wider_than_pool"),
        ("lost", "probe_outlives_lease"),
        ("learned", "attempt_timeout_reaches_deadline"),
        ("outer", "nested_retries"),
    ] {
        let name = format!("name={pipeline} ");
        let parts = ["WARN shared_external::pipeline", &name, word];
        let told = text.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        assert_eq!(told.count(), 1, "{word} of {pipeline}");
    }
    assert_eq!(text.lines().count(), 6);
}

#[tokio::test(start_paused = true)]
async fn settings_that_are_wise_are_told_nothing() {
    let exact = Pipeline::builder("exact")
        .deadline(Duration::from_secs(31))
        .bulkhead(Bulkhead::new("exact", 10, Duration::ZERO).unwrap())
        .pool_size(10)
        .build()
        .unwrap();
    let (once, inner) = (Pipeline::builder("once").build().unwrap(), retrying("inner"));
    let nested = |_| inner.run(Call::read(), &AnyError, |_| async { Ok::<_, Refused>(1) });
    once.run(Call::read(), &AnyError, nested).await.unwrap();
    let limit = AdaptiveLimit::builder("moving").max(10).build().unwrap();
    let moving = Pipeline::builder("moving").adaptive_limit(limit).pool_size(10).build().unwrap();
    for wise in [exact, once, moving] {
        assert_eq!(wise.unwise(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn no_default_is_unwise() {
    let breaker = || Pipeline::builder("defaults").breaker(CircuitBreaker::new("defaults"));
    let bulkhead = Bulkhead::builder("defaults").build().unwrap();
    let limit = AdaptiveLimit::builder("defaults").build().unwrap();
    let learned = Timeout::learned().build().unwrap();
    for defaults in [
        Pipeline::builder("defaults"),
        Pipeline::optional_service("defaults"),
        breaker(),
        breaker().bulkhead(bulkhead.clone()),
        breaker().adaptive_limit(limit),
        breaker().bulkhead(bulkhead).attempt_timeout(learned),
    ] {
        assert_eq!(defaults.build().unwrap().unwise(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_may_be_taken_for_lost_is_told_to_the_millisecond() {
    let _alone = ALONE.lock().await;
    let bulkhead = || Bulkhead::builder("b").wait(4 * SECOND);
    let limit = || AdaptiveLimit::builder("a").wait(4 * SECOND);
    let builder = || Pipeline::builder("p").attempt_timeout(6 * SECOND).deadline(30 * SECOND);
    let learned = || Timeout::learned().max(6 * SECOND).build().unwrap();
    for (settings, longest) in [
        (builder(), 6 * SECOND),
        (builder().attempt_timeout(learned()), 6 * SECOND),
        (builder().bulkhead(bulkhead().build().unwrap()), 10 * SECOND),
        (builder().adaptive_limit(limit().build().unwrap()), 10 * SECOND),
        // Nobody waits where nobody may, nor past the deadline.
        (builder().bulkhead(bulkhead().queue(0).build().unwrap()), 6 * SECOND),
        (builder().adaptive_limit(limit().queue(0).build().unwrap()), 6 * SECOND),
        (builder().bulkhead(bulkhead().build().unwrap()).deadline(8 * SECOND), 8 * SECOND),
    ] {
        for (time, told) in [
            (longest, vec![]),
            (longest - Duration::from_millis(1), vec![Unwise::ProbeOutlivesLease]),
        ] {
            let pipeline = settings.clone().breaker(lease("p", time)).build().unwrap();
            assert_eq!(pipeline.unwise(), told, "{settings:?}");
        }
    }
}

#[test]
fn what_contradicts_itself_cannot_be_built() {
    let refused = |builder: PipelineBuilder| -> InvalidSetting { builder.build().unwrap_err() };
    let zero = refused(Pipeline::builder("zero").deadline(Duration::ZERO));
    assert_eq!(zero.field, "deadline");
    let zero = refused(Pipeline::builder("zero").attempt_timeout(Duration::ZERO));
    assert_eq!(zero.field, "attempt_timeout");
    assert_eq!(zero.to_string(), "attempt_timeout is 0ns; allowed: above 0, up to 30 years");
    let endless = refused(Pipeline::builder("endless").attempt_timeout(Duration::MAX));
    assert_eq!(endless.field, "attempt_timeout");
    let zero = refused(Pipeline::builder("zero").pool_size(0));
    assert_eq!(zero.field, "pool_size");
    let guards = Pipeline::builder("guards").breaker(CircuitBreaker::new("hard"));
    let guards = refused(guards.throttle(Throttle::new("soft")));
    let limits =
        Pipeline::builder("limits").bulkhead(Bulkhead::new("fixed", 1, Duration::ZERO).unwrap());
    let limits = refused(limits.adaptive_limit(AdaptiveLimit::builder("moving").build().unwrap()));
    for (error, field, both, cure) in [
        (guards, "throttle", ["hard", "soft"], "a breaker or a throttle, not both"),
        (
            limits,
            "adaptive_limit",
            ["fixed", "moving"],
            "a bulkhead or an adaptive limit, not both",
        ),
    ] {
        let text = error.to_string();
        assert_eq!(error.field, field);
        assert!(both.iter().all(|name| text.contains(name)) && text.contains(cure), "{text}");
    }
}
