//! `seatbelt` at work, on tokio's clock. Its breaker has one window: a share of failures over a time.

use std::time::Duration;

use layered::{Execute, Service, Stack};
use seatbelt::breaker::Breaker;
use seatbelt::retry::Retry;
use seatbelt::timeout::Timeout;
use seatbelt::{RecoveryInfo, ResilienceContext};
use tick::Clock;

use super::Refused;
use crate::case::{Subject, after_one_poll};

const NAME: &str = "seatbelt";

type Answer = Result<u64, Refused>;

fn context() -> ResilienceContext<u64, Answer> {
    ResilienceContext::new(Clock::new_tokio())
}

fn recovery(answer: &Answer) -> RecoveryInfo {
    if answer.is_ok() { RecoveryInfo::never() } else { RecoveryInfo::retry() }
}

/// Closed.
pub fn closed() -> Subject {
    let context = context();
    let service = (
        Breaker::layer("bench", &context)
            .recovery_with(|answer, _| recovery(answer))
            .rejected_input_error(|_, _| Refused),
        Execute::new(|i: u64| async move { Ok(i) }),
    );
    let service = service.into_service();
    Subject::polls(NAME, async move |i| service.execute(i).await)
}

/// Retry, breaker and attempt timeout around `operation`.
fn three_layers<F>(
    operation: impl Fn(u64) -> F + Send + Sync + 'static,
) -> impl Service<u64, Out = Answer>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let context = context();
    let service = (
        Retry::layer("bench", &context).clone_input().recovery_with(|answer, _| recovery(answer)),
        Breaker::layer("bench", &context)
            .recovery_with(|answer, _| recovery(answer))
            .rejected_input_error(|_, _| Refused),
        Timeout::layer("bench", &context)
            .timeout_error(|_| Refused)
            .timeout(Duration::from_secs(30)),
        Execute::new(operation),
    );
    service.into_service()
}

/// The same within a timeout of the whole, which is its deadline.
fn four_layers<F>(
    operation: impl Fn(u64) -> F + Send + Sync + 'static,
) -> impl Service<u64, Out = Answer>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let service = (
        Timeout::layer("bench", &context())
            .timeout_error(|_| Refused)
            .timeout(Duration::from_secs(60)),
        three_layers(operation),
    );
    service.into_service()
}

/// Retry, breaker and attempt timeout around a ready future.
pub fn three_layers_ready() -> Subject {
    let service = three_layers(|i| async move { Ok(i) });
    Subject::polls("seatbelt, 3 layers", async move |i| service.execute(i).await)
}

/// Timeout, retry, breaker and attempt timeout around a ready future.
pub fn four_layers_ready() -> Subject {
    let service = four_layers(|i| async move { Ok(i) });
    Subject::polls(NAME, async move |i| service.execute(i).await)
}

/// Retry, breaker and attempt timeout around a future that is pending once.
pub fn three_layers_pending_once() -> Subject {
    let service = three_layers(|i| async move { Ok(after_one_poll(i).await) });
    Subject::polls("seatbelt, 3 layers", async move |i| service.execute(i).await)
}

/// Timeout, retry, breaker and attempt timeout around a future that is pending once.
pub fn four_layers_pending_once() -> Subject {
    let service = four_layers(|i| async move { Ok(after_one_poll(i).await) });
    Subject::polls(NAME, async move |i| service.execute(i).await)
}
