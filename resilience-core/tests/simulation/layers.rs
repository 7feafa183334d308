//! The layers of a service, built from what a seed drew.

use std::time::Duration;

use fastrand::Rng;
use resilience_core::{
    AdaptiveLimit, Bulkhead, CircuitBreaker, Hedge, LoadShedder, Name, Pipeline, Prioritizer,
    RetryBudget, RetryPolicy, Throttle, Timeout,
};

use crate::laws::{AdaptiveLaws, BreakerLaws, BudgetLaws, ServiceLaws};
use crate::service::Script;

/// A service behind its pipeline, and some of the layers of that by themselves.
pub(crate) struct Service {
    pub(crate) pipeline: Pipeline,
    pub(crate) breaker: Option<CircuitBreaker>,
    pub(crate) bulkhead: Option<Bulkhead>,
    pub(crate) adaptive: Option<(AdaptiveLimit, usize)>,
    pub(crate) hedge: Option<Hedge>,
    pub(crate) script: Script,
    pub(crate) deadline: Duration,
}

impl Service {
    pub(crate) fn build(
        index: usize,
        laws: &ServiceLaws,
        budgets: &[RetryBudget],
        script: Script,
        rng: &mut Rng,
    ) -> Self {
        let name = Name::from(format!("service-{index}"));
        let breaker = laws.breaker.as_ref().map(|laws| build_breaker(&name, laws));
        let bulkhead = laws
            .bulkhead
            .filter(|_| laws.adaptive.is_none())
            .map(|(places, wait)| Bulkhead::new(name.clone(), small(places), wait))
            .map(|bulkhead| bulkhead.expect("drawn within range"));
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
            .attempt_timeout(build_timeout(laws, rng))
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
            let shedder = LoadShedder::new(name.clone(), &Prioritizer::new(), small(limit));
            pipeline = pipeline.shedder(shedder.expect("drawn within range"));
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
            pipeline = pipeline.rate_limiter(limiter.build().expect("drawn within range"));
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

    /// Places that are free, of the most there may be.
    pub(crate) fn places(&self) -> usize {
        match (&self.bulkhead, &self.adaptive) {
            (Some(bulkhead), _) => bulkhead.available(),
            (None, Some((limit, most))) => most.saturating_sub(limit.in_flight()),
            (None, None) => 0,
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        let adaptive = self.adaptive.as_ref().map_or(0, |(limit, _)| limit.waiting());
        self.bulkhead.as_ref().map_or(adaptive, Bulkhead::waiting)
    }
}

pub(crate) fn build_budget(laws: &BudgetLaws) -> RetryBudget {
    let budget = RetryBudget::builder().ratio(laws.ratio).burst(laws.burst);
    let budget = budget.floor_rate(laws.floor_rate);
    let budget = match laws.throttling {
        Some((ratio, burst)) => budget.throttling(ratio, burst),
        None => budget,
    };
    budget.build().expect("drawn within range")
}

fn build_timeout(laws: &ServiceLaws, rng: &mut Rng) -> Timeout {
    let Some(most) = laws.learned_up_to else {
        return Timeout::fixed(laws.attempt_timeout).expect("drawn within range");
    };
    let learned = Timeout::learned()
        .quantile([0.5, 0.9, 0.99][rng.usize(..3)])
        .factor(1.5 + rng.f64())
        .min(laws.attempt_timeout)
        .max(most)
        .min_samples(rng.u32(1..10));
    learned.build().expect("drawn within range")
}

/// As settings count calls.
fn small(count: usize) -> u32 {
    u32::try_from(count).expect("it is small")
}

fn build_adaptive(name: &Name, laws: &AdaptiveLaws, most: usize, wait: Duration) -> AdaptiveLimit {
    let limit = AdaptiveLimit::builder(name.clone())
        .algorithm(laws.algorithm)
        .min(small(laws.min))
        .max(small(most))
        .initial(small(laws.initial))
        .wait(wait);
    limit.build().expect("drawn within range")
}

fn build_breaker(name: &Name, laws: &BreakerLaws) -> CircuitBreaker {
    let rules = laws.settings;
    let mut breaker = CircuitBreaker::builder(name.clone())
        .window(rules.window)
        .minimum_calls(rules.minimum_calls)
        .reset_timeout(rules.reset_timeout)
        .reset_timeout_jitter(rules.reset_timeout_jitter)
        .success_threshold(rules.success_threshold)
        .half_open_max_calls(rules.half_open_max_calls)
        .probe_lease(rules.probe_lease);
    breaker =
        rules.fail_max.map_or(breaker.clone().without_fail_max(), |most| breaker.fail_max(most));
    if let Some(rate) = rules.failure_rate {
        breaker = breaker.failure_rate(rate);
    }
    if let Some(slow) = rules.slow_calls {
        breaker = breaker.slow_call_rate(slow.rate, slow.slower_than);
    }
    if let Some(growth) = rules.reset_timeout_growth {
        breaker = breaker.reset_timeout_growth(growth.factor, growth.max);
    }
    if let Some(time) = rules.recovery {
        breaker = breaker.recovery(time);
    }
    let breaker = breaker.build().expect("drawn within range");
    assert_eq!(breaker.settings(), rules);
    breaker
}
