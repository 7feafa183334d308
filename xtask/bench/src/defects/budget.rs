//! Budgets that grant other than what they say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_smithy_async::time::{SharedTimeSource, TimeSource};
use aws_smithy_runtime::client::retries::strategy::StandardRetryStrategy;
use aws_smithy_runtime::client::retries::{TokenBucket, TokenBucketBuilder};
use aws_smithy_runtime_api::client::interceptors::context::{
    Error, Input, InterceptorContext, Output,
};
use aws_smithy_runtime_api::client::orchestrator::OrchestratorError;
use aws_smithy_runtime_api::client::retries::{
    AlwaysRetry, RequestAttempts, RetryStrategy, ShouldAttempt,
};
use aws_smithy_runtime_api::client::runtime_components::{
    RuntimeComponents, RuntimeComponentsBuilder,
};
use aws_smithy_types::config_bag::{ConfigBag, Layer};
use aws_smithy_types::retry::{ErrorKind, RetryConfig};
use resilience_core::RetryBudget;
use tokio::time::Instant;
use tower::retry::budget::{Budget, TpsBudget};
use tower_resilience_retry::RetryBudgetBuilder;

use super::{Scenario, Seen};
use crate::subjects::{Refused, pass};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "tower 0.5.3, TpsBudget: shares are rounded to whole calls per retry",
        right: "shares of 0.6, 0.4 and 0.3 grant 600, 400 and 300 for 1,000 calls",
        ours: shares,
        peer: Some(("tower", shares_of_tower)),
    },
    Scenario {
        name: "tower-resilience-retry: the budget ignores tokens_per_second",
        right: "1,000 a second for 50 ms are 50",
        ours: rate,
        peer: Some(("tower-resilience", rate_of_tower_resilience)),
    },
    Scenario {
        name: "smithy runtime 1.16: rewards from several threads are lost",
        right: "all 80,000 by 4 threads are kept",
        ours: rewards,
        peer: Some(("smithy", rewards_of_smithy)),
    },
    Scenario {
        name: "smithy runtime 1.16: refills by the wall clock",
        right: "a wall clock set an hour ahead grants nothing",
        ours: wall_clock,
        peer: Some(("smithy", wall_clock_of_smithy)),
    },
];

/// What is granted after `calls` deposits into an empty budget.
fn granted_for(calls: u64, deposit: impl Fn(), withdraw: impl Fn() -> bool) -> u64 {
    while withdraw() {}
    (0..calls).for_each(|_| deposit());
    count(withdraw)
}

fn count(withdraw: impl Fn() -> bool) -> u64 {
    (0..1_000_000).take_while(|_| withdraw()).count() as u64
}

const SHARES: [f64; 3] = [0.6, 0.4, 0.3];

fn shares() -> Seen {
    seen_shares(SHARES.map(|share| {
        let budget = RetryBudget::new(share, 1000).expect("the settings are valid");
        granted_for(1000, || budget.deposit(), || budget.try_withdraw())
    }))
}

fn shares_of_tower() -> Seen {
    seen_shares(SHARES.map(|share| {
        let budget = TpsBudget::new(Duration::from_secs(10), 0, share as f32);
        granted_for(1000, || budget.deposit(), || budget.withdraw())
    }))
}

fn seen_shares(granted: [u64; 3]) -> Seen {
    let [a, b, c] = granted;
    Seen::new(format!("{a}, {b} and {c}"), granted == [600, 400, 300])
}

/// What an empty budget of 1,000 a second grants after 50 ms or more.
fn granted_by_time(withdraw: impl Fn() -> bool) -> Seen {
    let before = Instant::now();
    while withdraw() {}
    let emptied = Instant::now();
    pass(Duration::from_millis(50));
    let at_least = emptied.elapsed().as_millis() as u64;
    let granted = count(withdraw);
    let at_most = before.elapsed().as_millis() as u64;
    // The moment of the last refill is not seen from here: one token either way.
    Seen::new(
        format!("{granted} in {at_least} ms"),
        (at_least.saturating_sub(1)..=at_most + 1).contains(&granted),
    )
}

fn rate() -> Seen {
    let budget = RetryBudget::builder().burst(1000).ratio(0.0).floor_rate(1000.0).build();
    let budget = budget.expect("the settings are valid");
    granted_by_time(|| budget.try_withdraw())
}

fn rate_of_tower_resilience() -> Seen {
    let budget =
        RetryBudgetBuilder::new().token_bucket().tokens_per_second(1000.0).max_tokens(1000);
    let budget = budget.build().expect("the settings are valid");
    granted_by_time(|| budget.try_withdraw())
}

const THREADS: u64 = 4;
const REWARDS: u64 = 20_000;

/// A lost reward takes two threads at the same instant: so often is it tried.
const ROUNDS: usize = 20;

/// The least that is kept of all rewards in any round.
fn seen_rewards(round: impl Fn() -> u64) -> Seen {
    let least = (0..ROUNDS).map(|_| round()).min().unwrap_or_default();
    Seen::new(
        format!("{least} are kept in the worst of {ROUNDS} rounds"),
        least == THREADS * REWARDS,
    )
}

fn by_four_threads(reward: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..REWARDS).for_each(|_| reward()));
        }
    });
}

fn rewards() -> Seen {
    seen_rewards(|| {
        let budget = RetryBudget::new(1.0, CAPACITY).expect("the settings are valid");
        while budget.try_withdraw() {}
        by_four_threads(|| budget.deposit());
        count(|| budget.try_withdraw())
    })
}

fn rewards_of_smithy() -> Seen {
    seen_rewards(|| {
        let sdk = Sdk::new(TokenBucket::builder().success_reward(1.0));
        by_four_threads(|| sdk.succeed());
        count(|| sdk.may_retry(ErrorKind::TransientError))
    })
}

fn wall_clock() -> Seen {
    // Nothing here could set it: no code of ours names `SystemTime`, which clippy.toml bans.
    let budget = RetryBudget::builder().burst(1000).ratio(0.0).floor_rate(0.01).build();
    let budget = budget.expect("the settings are valid");
    while budget.try_withdraw() {}
    let granted = count(|| budget.try_withdraw());
    Seen::new(format!("{granted} granted; it has no wall clock to set"), granted == 0)
}

fn wall_clock_of_smithy() -> Seen {
    let sdk = Sdk::new(TokenBucket::builder().refill_rate(1.0));
    let before = count(|| sdk.may_retry(ErrorKind::TransientError));
    sdk.clock.seconds.fetch_add(3600, Ordering::Relaxed);
    let after = count(|| sdk.may_retry(ErrorKind::TransientError));
    Seen::new(format!("{before} before it, {after} granted by it"), after == 0)
}

const CAPACITY: u32 = 100_000;

/// The SDK's standard strategy around a bucket: its public way to pay for retries and to be rewarded for successes.
struct Sdk {
    strategy: StandardRetryStrategy,
    config: ConfigBag,
    throttled: RuntimeComponents,
    transient: RuntimeComponents,
    clock: WallClock,
}

/// A wall clock that can be set.
#[derive(Clone, Debug, Default)]
struct WallClock {
    seconds: Arc<AtomicU64>,
}

#[expect(clippy::disallowed_types, reason = "the peer reads the wall clock")]
impl TimeSource for WallClock {
    fn now(&self) -> std::time::SystemTime {
        std::time::SystemTime::UNIX_EPOCH
            + Duration::from_secs(self.seconds.load(Ordering::Relaxed))
    }
}

impl Sdk {
    /// Around an emptied bucket of `CAPACITY`, from which one retry takes one.
    fn new(bucket: TokenBucketBuilder) -> Self {
        let bucket = bucket.capacity(CAPACITY as usize).timeout_retry_cost(1);
        let mut layer = Layer::new("budget");
        layer.store_put(RetryConfig::standard());
        layer.store_put(RequestAttempts::new(1));
        layer.store_put(bucket.throttling_retry_cost(CAPACITY).build());
        let clock = WallClock::default();
        let components = |kind| {
            RuntimeComponentsBuilder::for_tests()
                .with_time_source(Some(SharedTimeSource::new(clock.clone())))
                .with_retry_classifier(AlwaysRetry(kind))
                .build()
                .expect("nothing is missing")
        };
        let sdk = Self {
            strategy: StandardRetryStrategy::new(),
            config: ConfigBag::of_layers(vec![layer]),
            throttled: components(ErrorKind::ThrottlingError),
            transient: components(ErrorKind::TransientError),
            clock,
        };
        assert!(sdk.may_retry(ErrorKind::ThrottlingError), "the full bucket pays for the dearest");
        sdk
    }

    fn may_retry(&self, kind: ErrorKind) -> bool {
        let components = match kind {
            ErrorKind::ThrottlingError => &self.throttled,
            _ => &self.transient,
        };
        let answer = Err(OrchestratorError::operation(Error::erase(Refused)));
        let decision =
            self.strategy.should_attempt_retry(&context(answer), components, &self.config);
        !matches!(decision.expect("all is configured"), ShouldAttempt::No)
    }

    /// One call that succeeds at once; a strategy is made for each call.
    fn succeed(&self) {
        let answer = Ok(Output::erase(()));
        let strategy = StandardRetryStrategy::new();
        let _ = strategy.should_attempt_retry(&context(answer), &self.transient, &self.config);
    }
}

fn context(answer: Result<Output, OrchestratorError<Error>>) -> InterceptorContext {
    let mut context = InterceptorContext::new(Input::erase(()));
    context.set_output_or_error(answer);
    context
}
