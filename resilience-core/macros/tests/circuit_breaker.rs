//! What `#[circuit_breaker]` counts, refuses and remembers.

use std::future::pending;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use resilience_core::{
    CircuitBreaker, CircuitOpen, CircuitRegistry, CircuitState, OutcomeCounts, circuit_breaker,
};

#[derive(Debug, PartialEq)]
enum MyError {
    Validation(&'static str),
    Status(u16),
    Io,
    Open(CircuitOpen),
}

impl From<CircuitOpen> for MyError {
    fn from(open: CircuitOpen) -> Self {
        Self::Open(open)
    }
}

fn breaker(name: &str) -> CircuitBreaker {
    CircuitRegistry::global().get(name).expect("the first call lists it")
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_open_the_circuit_until_the_timeout_is_over() {
    #[circuit_breaker("opens", fail_max = 2, reset_timeout = 60, success_threshold = 1)]
    async fn call(result: Result<u8, MyError>) -> Result<u8, MyError> {
        result
    }

    assert_eq!(call(Ok(7)).await, Ok(7));
    assert_eq!(call(Err(MyError::Io)).await, Err(MyError::Io));
    assert_eq!(call(Err(MyError::Io)).await, Err(MyError::Io));
    let Err(MyError::Open(open)) = call(Ok(7)).await else { panic!("the circuit is open") };
    assert_eq!((&*open.name, open.retry_after), ("opens", Duration::from_secs(60)));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(call(Ok(7)).await, Ok(7));
    assert_eq!(breaker("opens").state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn python_s_defaults_hold_where_nothing_is_said() {
    #[circuit_breaker(name = "defaults")]
    async fn call() -> Result<(), MyError> {
        Ok(())
    }

    call().await.unwrap();
    assert_eq!(breaker("defaults").settings(), CircuitBreaker::new("any").settings());
}

#[tokio::test(start_paused = true)]
async fn every_argument_arrives_whatever_its_form() {
    const FAIL_MAX: u32 = 4;

    fn timeout() -> Duration {
        Duration::from_millis(1500)
    }

    mod names {
        pub(super) const SERVICE: &str = "every-argument";
    }

    #[circuit_breaker(names::SERVICE, fail_max = FAIL_MAX, reset_timeout = timeout(), success_threshold = 1 + 1)]
    async fn call() -> Result<(), MyError> {
        Ok(())
    }

    #[circuit_breaker("in-decimals", reset_timeout = 0.25)]
    async fn decimal() -> Result<(), MyError> {
        Ok(())
    }

    #[circuit_breaker("computed", reset_timeout = 2 * 30)]
    async fn computed() -> Result<(), MyError> {
        Ok(())
    }

    call().await.unwrap();
    let settings = breaker("every-argument").settings();
    assert_eq!(
        (settings.fail_max.unwrap(), settings.reset_timeout, settings.success_threshold),
        (4, Duration::from_millis(1500), 2)
    );
    decimal().await.unwrap();
    assert_eq!(breaker("in-decimals").settings().reset_timeout, Duration::from_millis(250));
    computed().await.unwrap();
    assert_eq!(breaker("computed").settings().reset_timeout, Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn an_excluded_error_moves_no_count() {
    #[circuit_breaker(
        "excludes",
        fail_max = 2,
        excluded(MyError::Validation(_), MyError::Status(code) if (400..500).contains(code))
    )]
    async fn call(error: MyError) -> Result<(), MyError> {
        Err(error)
    }

    call(MyError::Io).await.unwrap_err();
    for _ in 0..5 {
        call(MyError::Validation("no name")).await.unwrap_err();
        call(MyError::Status(404)).await.unwrap_err();
    }
    assert_eq!(breaker("excludes").state(), CircuitState::Closed);
    call(MyError::Status(503)).await.unwrap_err();
    assert_eq!(breaker("excludes").state(), CircuitState::Open, "the first failure still counted");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_blames_nobody_and_frees_its_probe() {
    #[circuit_breaker("dropped", fail_max = 1, reset_timeout = 10)]
    async fn call(hang: bool) -> Result<(), MyError> {
        if hang { pending().await } else { Err(MyError::Io) }
    }

    tokio::time::timeout(Duration::from_secs(1), call(true)).await.unwrap_err();
    assert_eq!(breaker("dropped").state(), CircuitState::Closed);
    call(false).await.unwrap_err();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::timeout(Duration::from_secs(1), call(true)).await.unwrap_err();
    assert_eq!(call(false).await, Err(MyError::Io), "the next call is the probe");
    let cancelled = OutcomeCounts { cancelled: 2, failure: 2, ..OutcomeCounts::default() };
    assert_eq!(breaker("dropped").snapshot().calls, cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure() {
    #[circuit_breaker("panics", fail_max = 1)]
    async fn call() -> Result<(), MyError> {
        panic!("as a bug does")
    }

    #[circuit_breaker("panics-in-sync", fail_max = 1)]
    fn sync_call() -> Result<(), MyError> {
        panic!("as a bug does")
    }

    assert!(tokio::spawn(call()).await.unwrap_err().is_panic());
    assert_eq!(breaker("panics").state(), CircuitState::Open);
    std::panic::catch_unwind(sync_call).unwrap_err();
    assert_eq!(breaker("panics-in-sync").state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn one_name_is_one_breaker_in_all_functions() {
    #[circuit_breaker("shared", fail_max = 2)]
    async fn read() -> Result<(), MyError> {
        Err(MyError::Io)
    }

    #[circuit_breaker("shared", fail_max = 2)]
    fn write() -> Result<(), MyError> {
        Err(MyError::Io)
    }

    assert_eq!(read().await, Err(MyError::Io));
    assert_eq!(write(), Err(MyError::Io));
    assert!(matches!(read().await, Err(MyError::Open(_))));
    assert!(matches!(write(), Err(MyError::Open(_))));
}

#[tokio::test(start_paused = true)]
async fn every_type_a_generic_function_takes_shares_its_breaker() {
    #[circuit_breaker("generic", fail_max = 2)]
    async fn call<T: std::str::FromStr>(text: &str) -> Result<T, MyError> {
        text.parse().map_err(|_| MyError::Io)
    }

    assert_eq!(call::<u8>("12").await, Ok(12));
    assert_eq!(call::<u8>("x").await, Err(MyError::Io));
    assert_eq!(call::<bool>("x").await, Err(MyError::Io));
    assert!(matches!(call::<u64>("12").await, Err(MyError::Open(_))));
}

#[tokio::test(start_paused = true)]
async fn the_registry_is_asked_once_not_per_call() {
    #[circuit_breaker("asked-once", fail_max = 1)]
    async fn call() -> Result<(), MyError> {
        Err(MyError::Io)
    }

    assert!(CircuitRegistry::global().get("asked-once").is_none(), "nor before the first");
    assert_eq!(call().await, Err(MyError::Io));
    CircuitRegistry::global().insert(CircuitBreaker::new("asked-once"));
    assert!(matches!(call().await, Err(MyError::Open(_))), "the breaker it found first");
}

#[tokio::test(start_paused = true)]
async fn other_settings_under_one_name_are_warned_of_once_with_both_places() {
    #[circuit_breaker("contested", fail_max = 1)]
    async fn first() -> Result<(), MyError> {
        Ok(())
    }
    const FIRST: u32 = line!() - 4;

    #[circuit_breaker("contested", fail_max = 9)]
    async fn second() -> Result<(), MyError> {
        Err(MyError::Io)
    }
    const SECOND: u32 = line!() - 4;

    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    first().await.unwrap();
    for _ in 0..3 {
        second().await.unwrap_err();
    }
    assert_eq!(breaker("contested").settings().fail_max, Some(1));
    let text = log.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    for expected in [
        "WARN".to_owned(),
        "contested".to_owned(),
        format!("first={}:{FIRST}:", file!()),
        format!("second={}:{SECOND}:", file!()),
    ] {
        assert!(text.contains(&expected), "{expected} in {text}");
    }
}

#[test]
fn a_setting_that_only_shows_at_run_time_panics_by_its_name() {
    #[circuit_breaker("invalid", fail_max = "".len().try_into().expect("it is 0"))]
    fn no_failures() -> Result<(), MyError> {
        Ok(())
    }

    #[circuit_breaker("invalid", reset_timeout = -f64::from(3_u8))]
    fn negative() -> Result<(), MyError> {
        Ok(())
    }

    let text = panic_text(no_failures);
    assert!(text.starts_with(&format!("circuit_breaker at {}:", file!())), "{text}");
    assert!(text.ends_with("fail_max is 0; allowed: 1 to 67108863"), "{text}");
    assert_eq!(panic_text(negative), "reset_timeout is -3; allowed: seconds, 0 or more");
}

fn panic_text(call: fn() -> Result<(), MyError>) -> String {
    *std::panic::catch_unwind(call).unwrap_err().downcast().expect("a formatted message")
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
