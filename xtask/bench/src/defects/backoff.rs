//! Waits past their cap, and waits that all end at once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::executor::block_on;
use layered::{Execute, Service, Stack};
use resilience_core::Backoff;
use seatbelt::retry::Retry;
use seatbelt::{RecoveryInfo, ResilienceContext};
use tick::ClockControl;

use super::{Scenario, Seen};
use crate::subjects::Refused;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "backon 1.6: jittered delays exceed max_delay",
        right: "none of 16,000 does",
        ours: past_the_cap,
        peer: Some(("backon", past_the_cap_of_backon)),
    },
    Scenario {
        name: "seatbelt 0.11: delays past the cap are all identical",
        right: "1,000 delays at the cap are spread",
        ours: at_the_cap,
        peer: Some(("seatbelt", at_the_cap_of_seatbelt)),
    },
];

const BASE: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(1);
const CALLS: usize = 2000;
const WAITS: usize = 8;

fn seen_past_the_cap(waits: impl Iterator<Item = Duration>) -> Seen {
    let waits: Vec<_> = waits.collect();
    let past = waits.iter().filter(|wait| **wait > MAX).count();
    let longest = waits.iter().max().copied().unwrap_or_default();
    Seen::new(
        format!("{past} of {}, the longest {:.2} s", waits.len(), longest.as_secs_f64()),
        past == 0 && waits.len() == CALLS * WAITS,
    )
}

fn ours() -> impl Iterator<Item = Duration> {
    let builder = Backoff::builder().base_delay(BASE).max_delay(MAX);
    builder.build().expect("the settings are valid")
}

fn past_the_cap() -> Seen {
    seen_past_the_cap((0..CALLS).flat_map(|_| ours().take(WAITS)))
}

fn past_the_cap_of_backon() -> Seen {
    let builder = ExponentialBuilder::default().with_jitter().with_min_delay(BASE);
    let builder = builder.with_max_delay(MAX).with_max_times(WAITS);
    seen_past_the_cap((0..CALLS).flat_map(|_| builder.build()))
}

/// Waits so far into a call that they are at the cap.
const CAPPED: usize = 1000;
const FIRST: usize = 20;

fn seen_at_the_cap(waits: &[Duration]) -> Seen {
    let different: HashSet<_> = waits.iter().collect();
    Seen::new(
        format!("{} of {} are different", different.len(), waits.len()),
        waits.len() == CAPPED && different.len() > CAPPED / 2,
    )
}

fn at_the_cap() -> Seen {
    let waits: Vec<_> = ours().skip(FIRST).take(CAPPED).collect();
    seen_at_the_cap(&waits)
}

fn at_the_cap_of_seatbelt() -> Seen {
    let context = ResilienceContext::new(ClockControl::new().auto_advance_timers(true).to_clock());
    let waits = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&waits);
    let service = (
        Retry::layer("backoff", &context)
            .clone_input()
            .recovery_with(|_: &Result<(), Refused>, _| RecoveryInfo::retry())
            .base_delay(BASE)
            .max_delay(MAX)
            .use_jitter(true)
            .max_retry_attempts((FIRST + CAPPED) as u32)
            .on_retry(move |_, args| {
                seen.lock().expect("nobody panics").push(args.retry_delay());
            }),
        Execute::new(|(): ()| async { Err::<(), _>(Refused) }),
    );
    let _ = block_on(service.into_service().execute(()));
    let waits = waits.lock().expect("nobody panics");
    seen_at_the_cap(&waits[FIRST.min(waits.len())..])
}
