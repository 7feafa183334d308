//! How often `#[with_retry]` repeats, what, and how long it waits.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use resilience_core::{Deadline, RetryBudget, with_retry};
use tokio::time::Instant;

#[derive(Debug, PartialEq)]
enum MyError {
    Io(u32),
    Status(u16),
}

/// Fails as often as told, and knows how often it was called.
#[derive(Default)]
struct Service {
    failures: u32,
    calls: AtomicU32,
}

impl Service {
    fn failing(failures: u32) -> Self {
        Self { failures, ..Self::default() }
    }

    fn answer(&self) -> Result<u32, MyError> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if call > self.failures { Ok(call) } else { Err(MyError::Io(call)) }
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn it_waits_as_long_as_it_says() {
    #[with_retry(
        max_retries = 4,
        base_delay = 1.0,
        max_delay = 3,
        exponential_base = 2,
        jitter = false
    )]
    async fn call(service: &Service) -> Result<u32, MyError> {
        service.answer()
    }

    let (service, began) = (Service::failing(4), Instant::now());
    assert_eq!(call(&service).await, Ok(5));
    assert_eq!(began.elapsed(), Duration::from_secs(1 + 2 + 3 + 3));
}

#[tokio::test(start_paused = true)]
async fn python_s_defaults_hold_where_nothing_is_said() {
    #[with_retry]
    async fn call(service: &Service) -> Result<u32, MyError> {
        service.answer()
    }

    let (service, began) = (Service::failing(u32::MAX), Instant::now());
    assert_eq!(call(&service).await, Err(MyError::Io(4)), "the last error, after 3 retries");
    assert!(began.elapsed() <= Duration::from_secs(1 + 2 + 4), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn only_what_is_retryable_is_repeated() {
    #[with_retry(retryable(MyError::Io(_), MyError::Status(503 | 504), MyError::Status(code) if *code == 429))]
    async fn call(calls: &AtomicU32, status: u16) -> Result<(), MyError> {
        calls.fetch_add(1, Ordering::Relaxed);
        Err(MyError::Status(status))
    }

    for (status, expected) in [(404, 1), (503, 4), (504, 4), (429, 4)] {
        let calls = AtomicU32::new(0);
        assert_eq!(call(&calls, status).await, Err(MyError::Status(status)));
        assert_eq!(calls.into_inner(), expected, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_retry_means_one_attempt() {
    #[with_retry(max_retries = 0)]
    async fn call(service: &Service) -> Result<u32, MyError> {
        service.answer()
    }

    let service = Service::failing(1);
    call(&service).await.unwrap_err();
    assert_eq!(service.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_named_budget_bounds_all_functions_together() {
    #[with_retry(max_retries = 100, base_delay = 0, budget = "macro-test")]
    async fn one(service: &Service) -> Result<u32, MyError> {
        service.answer()
    }

    #[with_retry(max_retries = 100, base_delay = 0, budget = "macro-test")]
    fn another(service: &Service) -> Result<u32, MyError> {
        service.answer()
    }

    let service = Service::failing(u32::MAX);
    one(&service).await.unwrap_err();
    assert_eq!(service.calls(), 1 + 10, "the burst of a default budget");
    another(&service).unwrap_err();
    assert_eq!(service.calls(), 1 + 10 + 1, "nothing was left for the other");
    assert!(!RetryBudget::named("macro-test").try_withdraw());
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_past_the_deadline() {
    #[with_retry(max_retries = 9, base_delay = 1, exponential_base = 1, jitter = false)]
    async fn call(service: &Service) -> Result<u32, MyError> {
        service.answer()
    }

    let (service, began) = (Service::failing(u32::MAX), Instant::now());
    let deadline = Deadline::within(Duration::from_millis(2500));
    assert_eq!(deadline.scope(call(&service)).await, Err(MyError::Io(3)));
    assert_eq!(began.elapsed(), Duration::from_secs(2));
}

#[test]
fn a_sync_function_is_repeated_on_its_thread() {
    #[with_retry(base_delay = 0, retryable(MyError::Io(_)))]
    fn call(service: &Service) -> Result<u32, MyError> {
        let answer = service.answer()?;
        Ok(answer)
    }

    assert_eq!(call(&Service::failing(3)), Ok(4));
    assert_eq!(call(&Service::failing(4)), Err(MyError::Io(4)));
}

#[tokio::test(start_paused = true)]
async fn every_attempt_gets_the_arguments_as_they_were() {
    #[with_retry(jitter = false)]
    async fn call(
        service: &Service,
        mut names: Vec<&'static str>,
        (left, mut right): (String, u8),
        seen: &mut Vec<String>,
        _: u8,
    ) -> Result<u32, MyError> {
        names.push("mine");
        right += 1;
        seen.push(format!("{names:?} {left} {right}"));
        drop((names, left));
        service.answer()
    }

    let mut seen = Vec::new();
    let service = Service::failing(2);
    assert_eq!(call(&service, vec!["given"], ("left".into(), 1), &mut seen, 0).await, Ok(3));
    assert_eq!(seen, vec![r#"["given", "mine"] left 2"#; 3]);
}

#[test]
fn a_delay_that_only_shows_at_run_time_panics_by_its_name() {
    #[with_retry(base_delay = Duration::from_secs(90))]
    fn call() -> Result<(), MyError> {
        Ok(())
    }

    let panic = std::panic::catch_unwind(call).unwrap_err();
    let text = panic.downcast_ref::<String>().expect("a formatted message");
    assert!(text.starts_with(&format!("with_retry at {}:", file!())), "{text}");
    assert!(text.ends_with("base_delay is 90s; allowed: up to max_delay"), "{text}");
}
