//! The share of the last hour and day in which a service was up, in bounded memory.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::json;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: usize = 60;
const DAY: usize = 24 * 60;

/// The share of time in which a service was not unhealthy, 0 to 1; `None` while nothing is known.
///
/// Serialises as `{"1h": 1.0, "24h": 0.98}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct UptimeRatios {
    /// Over the last hour.
    #[serde(rename = "1h", serialize_with = "json::ratio")]
    pub hour: Option<f64>,
    /// Over the last 24 hours.
    #[serde(rename = "24h", serialize_with = "json::ratio")]
    pub day: Option<f64>,
}

/// A ring of the last 1,440 minutes.
#[derive(Debug)]
pub(crate) struct Uptime {
    minutes: Box<[Minute]>,
    /// When the current minute began, and its place in the ring.
    began: Instant,
    current: usize,
    /// Up to when all time is accounted for.
    until: Instant,
}

/// Milliseconds of one minute: 60,000 fit.
#[derive(Clone, Copy, Debug, Default)]
struct Minute {
    known: u16,
    up: u16,
}

impl Uptime {
    pub(crate) fn new(now: Instant) -> Self {
        let minutes = vec![Minute::default(); DAY].into_boxed_slice();
        Self { minutes, began: now, current: 0, until: now }
    }

    /// Accounts for the time up to `now`: `up` says how the service was since the last time.
    pub(crate) fn advance(&mut self, now: Instant, up: Option<bool>) {
        if now.saturating_duration_since(self.began) > MINUTE * DAY as u32 {
            // Nobody looked for over a day: of that day only the last 24 hours can count.
            self.began = now - MINUTE * DAY as u32;
            self.until = self.until.max(self.began);
        }
        while now >= self.began + MINUTE {
            self.account(self.began + MINUTE, up);
            self.began += MINUTE;
            self.current = (self.current + 1) % DAY;
            self.minutes[self.current] = Minute::default();
        }
        self.account(now, up);
    }

    pub(crate) fn ratios(&self) -> UptimeRatios {
        UptimeRatios { hour: self.ratio(HOUR), day: self.ratio(DAY) }
    }

    fn account(&mut self, to: Instant, up: Option<bool>) {
        let passed = to.saturating_duration_since(self.until).as_millis();
        let passed = u16::try_from(passed).unwrap_or(u16::MAX);
        // What is less than a millisecond waits for the next time.
        self.until += Duration::from_millis(passed.into());
        if let Some(up) = up {
            let minute = &mut self.minutes[self.current];
            minute.known = minute.known.saturating_add(passed);
            minute.up = minute.up.saturating_add(if up { passed } else { 0 });
        }
    }

    fn ratio(&self, minutes: usize) -> Option<f64> {
        let (mut known, mut up) = (0_u64, 0_u64);
        for back in 0..minutes {
            let minute = self.minutes[(self.current + DAY - back) % DAY];
            known += u64::from(minute.known);
            up += u64::from(minute.up);
        }
        #[expect(clippy::cast_precision_loss, reason = "a day has 86,400,000 milliseconds")]
        (known > 0).then(|| up as f64 / known as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_is_known_counts_neither_way() {
        let start = Instant::now();
        let mut uptime = Uptime::new(start);
        uptime.advance(start + minutes(30), None);
        assert_eq!(uptime.ratios(), UptimeRatios { hour: None, day: None });
        uptime.advance(start + minutes(40), Some(true));
        assert_eq!(uptime.ratios(), UptimeRatios { hour: Some(1.0), day: Some(1.0) });
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_leaves_the_hour_before_it_leaves_the_day() {
        let start = Instant::now();
        let mut uptime = Uptime::new(start);
        uptime.advance(start + minutes(30), Some(true));
        uptime.advance(start + minutes(60), Some(false));
        let ratios = uptime.ratios();
        assert!((ratios.hour.unwrap() - 0.5).abs() < 0.02, "{ratios:?}");
        assert_eq!(ratios.day, Some(0.5));
        uptime.advance(start + minutes(120), Some(true));
        let ratios = uptime.ratios();
        assert_eq!(ratios.hour, Some(1.0));
        assert_eq!(ratios.day, Some(0.75));
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_steps_add_up_to_the_whole() {
        let start = Instant::now();
        let mut uptime = Uptime::new(start);
        for step in 1..=40_000_u64 {
            uptime.advance(start + Duration::from_micros(step * 700), Some(step / 1000 % 2 == 0));
        }
        assert_eq!(uptime.ratios().hour.map(|ratio| (ratio * 100.0).round()), Some(50.0));
        let known: u64 = uptime.minutes.iter().map(|minute| u64::from(minute.known)).sum();
        assert_eq!(known, 28_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_week_without_a_look_costs_no_more_than_a_day() {
        let start = Instant::now();
        let mut uptime = Uptime::new(start);
        uptime.advance(start + minutes(10), Some(false));
        uptime.advance(start + minutes(7 * 24 * 60), Some(true));
        let ratios = uptime.ratios();
        assert_eq!(ratios.day, Some(1.0));
        assert_eq!(ratios.hour, Some(1.0));
    }
}
