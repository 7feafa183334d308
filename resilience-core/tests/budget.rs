//! Fear: retries multiply the load of a service that fails, or are refused though they are owed.

use std::time::Duration;

use proptest::prelude::*;
use resilience_core::RetryBudget;
use tokio::time::advance;

#[derive(Clone, Copy, Debug)]
enum Step {
    Deposit,
    Withdraw,
    WithdrawThrottled,
    Look,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Deposit),
        5 => Just(Step::Withdraw),
        2 => Just(Step::WithdrawThrottled),
        1 => Just(Step::Look),
        2 => (0..3000u64).prop_map(Step::Wait),
    ]
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    /// In thousandths, as is the rate.
    ratio: u64,
    burst: u32,
    floor_rate: u64,
    throttling: Option<(u64, u32)>,
}

fn settings() -> impl Strategy<Value = Settings> {
    let share = || (0..=1000u64, 0..20u32);
    (share(), prop_oneof![Just(0), 0..5000u64], proptest::option::of(share())).prop_map(
        |((ratio, burst), floor_rate, throttling)| Settings {
            ratio,
            burst,
            floor_rate,
            throttling,
        },
    )
}

impl Settings {
    fn budget(self) -> RetryBudget {
        let share = |thousandths: u64| thousandths as f64 / 1000.0;
        let budget = RetryBudget::builder().ratio(share(self.ratio)).burst(self.burst);
        let budget = budget.floor_rate(share(self.floor_rate));
        let budget = match self.throttling {
            Some((ratio, burst)) => budget.throttling(share(ratio), burst),
            None => budget,
        };
        budget.build().unwrap()
    }
}

/// A balance in its plainest form, in millionths of a retry.
#[derive(Clone, Copy, Debug)]
struct Purse {
    held: u64,
    cap: u64,
    granted: u64,
}

impl Purse {
    fn new(burst: u32) -> Self {
        let held = u64::from(burst) * 1_000_000;
        Self { held, cap: held.max(1_000_000), granted: 0 }
    }

    fn earn(&mut self, millionths: u64) {
        self.held = (self.held + millionths).min(self.cap);
    }

    fn spend(&mut self) -> bool {
        let enough = self.held >= 1_000_000;
        if enough {
            self.held -= 1_000_000;
            self.granted += 1;
        }
        enough
    }

    fn whole(&self) -> u32 {
        u32::try_from(self.held / 1_000_000).unwrap()
    }
}

fn paused() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_history_grants_more_or_less_than_the_plain_model(
        settings in settings(),
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        paused().block_on(async move {
            let budget = settings.budget();
            let mut purse = Purse::new(settings.burst);
            let mut second = settings.throttling.map(|(ratio, burst)| (ratio, Purse::new(burst)));
            let (mut calls, mut millis) = (0, 0);
            for step in steps {
                match step {
                    Step::Deposit => {
                        budget.deposit();
                        purse.earn(settings.ratio * 1000);
                        if let Some((ratio, purse)) = &mut second {
                            purse.earn(*ratio * 1000);
                        }
                        calls += 1;
                    }
                    Step::Withdraw => prop_assert_eq!(budget.try_withdraw(), purse.spend()),
                    Step::WithdrawThrottled => {
                        let pays = second.as_mut().map_or(&mut purse, |(_, purse)| purse);
                        prop_assert_eq!(budget.try_withdraw_throttled(), pays.spend());
                    }
                    Step::Look => {
                        prop_assert_eq!(budget.balance(), purse.whole());
                        let throttled = second.as_ref().map_or(&purse, |(_, purse)| purse);
                        prop_assert_eq!(budget.throttling_balance(), throttled.whole());
                    }
                    Step::Wait(time) => {
                        advance(Duration::from_millis(time)).await;
                        purse.earn(settings.floor_rate * time);
                        millis += time;
                    }
                }
                let owed = |ratio: u64, burst: u32| ratio * 1000 * calls + u64::from(burst) * 1_000_000;
                let floor = settings.floor_rate * millis;
                prop_assert!(purse.granted * 1_000_000 <= owed(settings.ratio, settings.burst) + floor);
                if let (Some((ratio, burst)), Some((_, purse))) = (settings.throttling, &second) {
                    prop_assert!(purse.granted * 1_000_000 <= owed(ratio, burst));
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_rate_that_divides_by_nothing_never_earns_too_much(
        rate in 0.0..1000f64,
        waits in proptest::collection::vec((1..10_000_000_000u64, 0..5u32), 1..60),
    ) {
        paused().block_on(async move {
            let budget = RetryBudget::builder().ratio(0.0).burst(0).floor_rate(rate).build().unwrap();
            let (mut nanos, mut granted) = (0u128, 0u128);
            for (wait, tries) in waits {
                // The paused clock ticks in milliseconds for timers, but tells the time to the nanosecond.
                advance(Duration::from_nanos(wait)).await;
                nanos += u128::from(wait);
                granted += (0..tries).filter(|_| budget.try_withdraw()).count() as u128;
                let earned = (rate * 1e6).floor() as u128 * nanos / 1_000_000_000;
                prop_assert!(granted * 1_000_000 <= earned, "{granted} of {earned} after {nanos} ns");
            }
            Ok(())
        })?;
    }
}

#[test]
fn no_ratio_is_rounded_to_one_over_a_whole_number() {
    for (ratio, granted) in [
        (0.6, 600),
        (0.4, 400),
        (0.3, 300),
        (0.1, 100),
        (0.57, 570),
        (0.999, 999),
        (1.0, 1000),
        (0.0, 0),
    ] {
        let budget = RetryBudget::new(ratio, 10).unwrap();
        while budget.try_withdraw() {}
        let retries = (0..1000).filter(|_| {
            budget.deposit();
            budget.try_withdraw()
        });
        assert_eq!(retries.count(), granted, "{ratio}");
    }
}

#[test]
fn no_interleaving_mints_or_loses_a_retry() {
    let budget = RetryBudget::new(0.25, 1_000_000).unwrap();
    // Half full: nothing is refused for want of a retry, and nothing is cut off at the burst.
    for _ in 0..500_000 {
        assert!(budget.try_withdraw());
    }
    let work = |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut left, mut taken) = (100_000, 0);
        while left > 0 {
            match rng.bool() {
                true => {
                    budget.deposit();
                    left -= 1;
                }
                false => taken += u32::from(budget.try_withdraw()),
            }
        }
        taken
    };
    let taken: u32 = std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..4).map(|seed| scope.spawn(move || work(seed))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(taken + budget.balance(), 500_000 + 400_000 / 4, "neither more nor less");
}

#[test]
fn a_full_balance_that_is_contended_stays_within_its_burst() {
    let budget = RetryBudget::new(1.0, 3).unwrap();
    let taken: u32 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut taken = 0;
                    for _ in 0..10_000 {
                        budget.deposit();
                        assert!(budget.balance() <= 3);
                        taken += u32::from(budget.try_withdraw());
                    }
                    taken
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert!(taken <= 40_003, "{taken} retries for 40,000 calls");
}

#[test]
fn without_a_burst_a_retry_can_still_be_saved_up() {
    let budget = RetryBudget::new(0.5, 0).unwrap();
    assert!(!budget.try_withdraw(), "nothing to begin with");
    for _ in 0..100 {
        budget.deposit();
    }
    assert!(budget.try_withdraw() && !budget.try_withdraw());
    let none = RetryBudget::new(0.0, 0).unwrap();
    none.deposit();
    assert!(!none.try_withdraw());
}

#[test]
fn a_storm_of_refusals_leaves_other_retries_what_they_are_owed() {
    let shared = RetryBudget::new(0.1, 2).unwrap();
    assert!(shared.try_withdraw_throttled() && shared.try_withdraw_throttled());
    assert!(!shared.try_withdraw(), "one balance pays for both, unless told otherwise");

    let apart = RetryBudget::builder().ratio(0.1).burst(2).throttling(0.2, 3).build().unwrap();
    assert_eq!((apart.balance(), apart.throttling_balance()), (2, 3));
    while apart.try_withdraw_throttled() {}
    assert_eq!((apart.balance(), apart.throttling_balance()), (2, 0));
    while apart.try_withdraw() {}
    for _ in 0..10 {
        apart.deposit();
    }
    assert_eq!((apart.balance(), apart.throttling_balance()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_is_seldom_called_gets_its_floor() {
    let budget = RetryBudget::builder().ratio(0.0).burst(2).floor_rate(0.1).build().unwrap();
    while budget.try_withdraw() {}
    advance(Duration::from_millis(9_999)).await;
    assert!(!budget.try_withdraw());
    advance(Duration::from_millis(1)).await;
    assert!(budget.try_withdraw() && !budget.try_withdraw());
    advance(Duration::from_secs(24 * 3600)).await;
    assert_eq!(budget.balance(), 2, "no more than the burst, however long it was quiet");
}

#[test]
fn a_share_that_is_none_is_refused() {
    let field = |builder: resilience_core::RetryBudgetBuilder| builder.build().unwrap_err().field;
    for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert_eq!(RetryBudget::new(ratio, 10).unwrap_err().field, "budget ratio");
        let throttling = RetryBudget::builder().throttling(ratio, 1);
        assert_eq!(field(throttling), "budget throttling ratio");
    }
    for rate in [-1.0, 1000.1, f64::NAN, f64::INFINITY] {
        assert_eq!(field(RetryBudget::builder().floor_rate(rate)), "budget floor_rate");
    }
    assert_eq!(field(RetryBudget::builder().burst(1_000_001)), "budget burst");
    assert_eq!(field(RetryBudget::builder().throttling(0.1, u32::MAX)), "budget throttling burst");
}

#[test]
fn names_without_end_do_not_grow_without_end() {
    let one = RetryBudget::named("one-name");
    while one.try_withdraw() {}
    assert!(!RetryBudget::named("one-name").try_withdraw(), "one name is one budget");
    assert!(RetryBudget::named("another-name").try_withdraw());

    let before = RetryBudget::names_dropped();
    for number in 0..2000 {
        let _ = RetryBudget::named(&format!("name-{number}"));
    }
    assert_eq!(RetryBudget::names_dropped() - before, 2000 + 2 - 1024);
    // Those beyond share one budget: together they are owed a single burst.
    let beyond =
        (3000..4000).filter(|number| RetryBudget::named(&format!("name-{number}")).try_withdraw());
    assert_eq!(beyond.count(), 10);
    assert!(!RetryBudget::named("one-name").try_withdraw(), "those that are there stay");
}
