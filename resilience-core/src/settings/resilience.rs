//! The settings of deadline, retry and breaker, which every connector has, and the pipeline they make.

use std::time::Duration;

use super::{Problems, Quantity};
use crate::{
    CircuitBreaker, InvalidSetting, Name, Pipeline, PipelineBuilder, RetryBudget, RetryPolicy,
};

/// When a connector's calls end, how often they are repeated, and when its circuit opens. The defaults
/// are the connector's, for they go by what its backend is to an application.
///
/// Durations lie above 0 and are a day at the most.
#[derive(Clone, Copy, Debug)]
pub struct Resilience {
    /// Time of a call with all its attempts, where the caller sets none.
    pub deadline: Duration,
    /// Time of one attempt.
    pub attempt_timeout: Duration,
    /// Attempts after the first. 0 to 100.
    pub max_retries: u32,
    /// First wait between attempts. Up to `max_delay`.
    pub base_delay: Duration,
    /// Longest wait between attempts.
    pub max_delay: Duration,
    /// Failures in a row that open the circuit. 1 to 1,000,000.
    pub fail_max: u32,
    /// How long the circuit stays open before a probe.
    pub reset_timeout: Duration,
    /// Probes that must succeed to close the circuit. 1 to 1,000,000.
    pub success_threshold: u32,
    /// Probes in flight at once. 1 to 1,000.
    pub half_open_max_calls: u32,
}

impl Resilience {
    /// Each of them under its key; that of the attempt timeout is what the backend's users call it.
    pub fn quantities(
        &mut self,
        attempt_timeout: &'static str,
    ) -> [(&'static str, Quantity<'_>); 9] {
        use Quantity::{Count, Duration};
        [
            ("deadline", Duration(&mut self.deadline)),
            (attempt_timeout, Duration(&mut self.attempt_timeout)),
            ("max_retries", Count(&mut self.max_retries, 0..=100)),
            ("base_delay", Duration(&mut self.base_delay)),
            ("max_delay", Duration(&mut self.max_delay)),
            ("fail_max", Count(&mut self.fail_max, 1..=1_000_000)),
            ("reset_timeout", Duration(&mut self.reset_timeout)),
            ("success_threshold", Count(&mut self.success_threshold, 1..=1_000_000)),
            ("half_open_max_calls", Count(&mut self.half_open_max_calls, 1..=1_000)),
        ]
    }

    /// Notes what does not go together. Each quantity by itself is [checked](Problems::check) with the
    /// connector's own.
    pub fn check(&self, problems: &mut Problems) {
        problems.check_delays(self.base_delay, self.max_delay);
    }

    /// Deadline, retries paid by `budget`, breaker and attempt timeout, to which the connector adds the
    /// limit that is its own. `wait` is the longest that an attempt waits for a place or a connection: a
    /// probe's lease covers it.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`], of settings that were not checked.
    pub fn pipeline(
        &self,
        name: &Name,
        wait: Duration,
        budget: RetryBudget,
    ) -> Result<PipelineBuilder, InvalidSetting> {
        let retry = RetryPolicy::builder()
            .name(name.clone())
            .max_retries(self.max_retries)
            .base_delay(self.base_delay)
            .max_delay(self.max_delay)
            .budget(budget)
            .build()?;
        let breaker = CircuitBreaker::builder(name.clone())
            .fail_max(self.fail_max)
            .reset_timeout(self.reset_timeout)
            .success_threshold(self.success_threshold)
            .half_open_max_calls(self.half_open_max_calls)
            .probe_lease(wait.saturating_add(self.attempt_timeout))
            .build()?;
        Ok(Pipeline::builder(name.clone())
            .deadline(self.deadline)
            .attempt_timeout(self.attempt_timeout)
            .retry(retry)
            .breaker(breaker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Settings, quantity::LONGEST};

    const SECOND: Duration = Duration::from_secs(1);

    fn resilience() -> Resilience {
        Resilience {
            deadline: 60 * SECOND,
            attempt_timeout: 30 * SECOND,
            max_retries: 3,
            base_delay: SECOND,
            max_delay: 60 * SECOND,
            fail_max: 5,
            reset_timeout: 60 * SECOND,
            success_threshold: 3,
            half_open_max_calls: 1,
        }
    }

    fn set(it: &mut Resilience, key: &str, count: u32, duration: Duration) {
        for (name, quantity) in it.quantities("timeout") {
            match quantity {
                Quantity::Count(held, _) if name == key => *held = count,
                Quantity::Duration(held) if name == key => *held = duration,
                _ => {}
            }
        }
    }

    /// What is wrong with `it`; if nothing is, it makes a pipeline.
    fn wrong(mut it: Resilience) -> Vec<String> {
        let mut problems = Problems::by_field();
        problems.check(it.quantities("timeout"));
        it.check(&mut problems);
        match problems.finish() {
            Err(error) => error.problems().iter().map(ToString::to_string).collect(),
            Ok(()) => {
                let wait = LONGEST;
                it.pipeline(&"test".into(), wait, RetryBudget::default()).unwrap().build().unwrap();
                Vec::new()
            }
        }
    }

    #[test]
    fn a_count_holds_its_ends_and_nothing_beyond() {
        for (key, least, most) in [
            ("max_retries", 0_u32, 100),
            ("fail_max", 1, 1_000_000),
            ("success_threshold", 1, 1_000_000),
            ("half_open_max_calls", 1, 1_000),
        ] {
            let allowed = format!("allowed: a whole number from {least} to {most}");
            for count in [least.wrapping_sub(1), least, most, most + 1] {
                let (mut by_field, variable) = (resilience(), format!("DB_{key}").to_uppercase());
                set(&mut by_field, key, count, Duration::ZERO);
                let mut settings = Settings::from_pairs("db", [(&*variable, count.to_string())]);
                settings.read_into(resilience().quantities("timeout"));
                let by_variable =
                    settings.finish().map_err(|error| error.problems()[0].to_string());
                if (least..=most).contains(&count) {
                    assert_eq!(
                        (wrong(by_field), by_variable),
                        (Vec::new(), Ok(())),
                        "{key} {count}"
                    );
                } else {
                    assert_eq!(wrong(by_field), [format!("{key} is \"{count}\"; {allowed}")]);
                    assert_eq!(by_variable, Err(format!("{variable} is \"{count}\"; {allowed}")));
                }
            }
        }
    }

    #[test]
    fn a_duration_holds_its_ends_and_nothing_beyond() {
        let instant = Duration::from_nanos(1);
        for key in ["deadline", "timeout", "base_delay", "max_delay", "reset_timeout"] {
            for duration in [Duration::ZERO, instant, LONGEST, LONGEST + instant] {
                let mut by_field = resilience();
                // Of the two delays, the other follows.
                match key {
                    "base_delay" => by_field.max_delay = LONGEST,
                    "max_delay" => by_field.base_delay = instant,
                    _ => {}
                }
                set(&mut by_field, key, 0, duration);
                let found = wrong(by_field);
                if duration == instant || duration == LONGEST {
                    assert!(found.is_empty(), "{found:?}");
                } else {
                    let expected =
                        format!("{key} is \"{duration:?}\"; allowed: above 0, a day at the most");
                    assert_eq!(found[0], expected);
                }
            }
            let variable = format!("DB_{key}").to_uppercase();
            for (text, allowed) in [("0", false), ("1ms", true), ("24h", true), ("86401", false)] {
                let mut settings = Settings::from_pairs("db", [(&*variable, text)]);
                let mut it = resilience();
                settings.read_into(it.quantities("timeout"));
                assert_eq!(settings.finish().is_ok(), allowed, "{key} {text}");
            }
        }
    }

    #[test]
    fn every_setting_is_read_from_its_own_variable() {
        let pairs = [
            ("DB_DEADLINE", "2"),
            ("DB_SOCKET_TIMEOUT", "3"),
            ("DB_MAX_RETRIES", "4"),
            ("DB_BASE_DELAY", "5"),
            ("DB_MAX_DELAY", "6"),
            ("DB_FAIL_MAX", "7"),
            ("DB_RESET_TIMEOUT", "8"),
            ("DB_SUCCESS_THRESHOLD", "9"),
            ("DB_HALF_OPEN_MAX_CALLS", "10"),
        ];
        let expected = Resilience {
            deadline: 2 * SECOND,
            attempt_timeout: 3 * SECOND,
            max_retries: 4,
            base_delay: 5 * SECOND,
            max_delay: 6 * SECOND,
            fail_max: 7,
            reset_timeout: 8 * SECOND,
            success_threshold: 9,
            half_open_max_calls: 10,
        };
        let (mut settings, mut read) = (Settings::from_pairs("db", pairs), resilience());
        settings.read_into(read.quantities("socket_timeout"));
        settings.finish().unwrap();
        assert_eq!(format!("{read:?}"), format!("{expected:?}"));
    }

    #[test]
    fn a_first_delay_beyond_the_longest_is_refused() {
        let found = wrong(Resilience { base_delay: 2 * SECOND, max_delay: SECOND, ..resilience() });
        assert_eq!(found, ["base_delay is \"2s\"; allowed: up to max_delay, which is 1s"]);
        assert!(
            wrong(Resilience { base_delay: SECOND, max_delay: SECOND, ..resilience() }).is_empty()
        );
    }

    #[test]
    fn the_pipeline_is_built_of_these_settings_and_no_others() {
        let it = Resilience {
            deadline: 11 * SECOND,
            attempt_timeout: 2 * SECOND,
            max_retries: 4,
            base_delay: 5 * SECOND,
            max_delay: 6 * SECOND,
            fail_max: 7,
            reset_timeout: 8 * SECOND,
            success_threshold: 9,
            half_open_max_calls: 10,
        };
        let budget = RetryBudget::default();
        let builder = it.pipeline(&"shop".into(), 3 * SECOND, budget.clone()).unwrap();
        let pipeline = builder.build().unwrap();
        assert_eq!((&**pipeline.name(), pipeline.deadline()), ("shop", 11 * SECOND));
        assert_eq!(pipeline.attempt_timeout().longest(), 2 * SECOND);
        let retry = pipeline.retry();
        assert!(retry.max_retries() == 4 && retry.budget().unwrap().is_same(&budget));
        let expected = crate::Backoff::builder().base_delay(5 * SECOND).max_delay(6 * SECOND);
        let seeded = |backoff: crate::Backoff| format!("{:?}", backoff.jittered_with_seed(1));
        assert_eq!(seeded(retry.backoff()), seeded(expected.build().unwrap()));
        let breaker = pipeline.breaker().unwrap();
        assert_eq!(&**breaker.name(), "shop");
        let settings = breaker.settings();
        assert_eq!((settings.fail_max, settings.reset_timeout), (Some(7), 8 * SECOND));
        assert_eq!((settings.success_threshold, settings.half_open_max_calls), (9, 10));
        assert_eq!(settings.probe_lease, 5 * SECOND);
    }
}
