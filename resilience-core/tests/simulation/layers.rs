//! The layers of a service, built from what a seed drew.

use std::time::Duration;

use fastrand::Rng;
use resilience_core::{AdaptiveLimit, CircuitBreaker, Name, RetryBudget, Timeout};

use crate::laws::{AdaptiveLaws, BreakerLaws, BudgetLaws, ServiceLaws};

pub(crate) fn build_budget(laws: &BudgetLaws) -> RetryBudget {
    let budget = RetryBudget::builder().ratio(laws.ratio).burst(laws.burst);
    let budget = budget.floor_rate(laws.floor_rate);
    let budget = match laws.throttling {
        Some((ratio, burst)) => budget.throttling(ratio, burst),
        None => budget,
    };
    budget.build().expect("drawn within range")
}

pub(crate) fn build_timeout(laws: &ServiceLaws, rng: &mut Rng) -> Timeout {
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

pub(crate) fn build_adaptive(
    name: &Name,
    laws: &AdaptiveLaws,
    most: usize,
    wait: Duration,
) -> AdaptiveLimit {
    let small = |count: usize| u32::try_from(count).expect("it is small");
    let limit = AdaptiveLimit::builder(name.clone())
        .algorithm(laws.algorithm)
        .min(small(laws.min))
        .max(small(most))
        .initial(small(laws.initial))
        .wait(wait);
    limit.build().expect("drawn within range")
}

pub(crate) fn build_breaker(name: &Name, laws: &BreakerLaws) -> CircuitBreaker {
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
