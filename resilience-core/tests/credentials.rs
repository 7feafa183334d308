//! Fear: a rotation takes down what worked, or whoever gives out credentials does.

#[path = "support/log.rs"]
mod log;

use std::future::{pending, ready};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resilience_core::{
    CredentialError, CredentialProvider, Credentials, Deadline, EnvCredentials, FileCredentials,
    FnCredentials, Rotating, RotationError, Version,
};
use tokio::time::{Instant, sleep};

use log::Log;

const LIMIT: Duration = Duration::from_secs(5);

type Check = Result<(), CredentialError>;

fn by() -> Deadline {
    Deadline::within(LIMIT)
}

fn token(text: &str) -> Credentials {
    Credentials::token(text)
}

async fn passes<T>(_: Arc<Version<T>>) -> Check {
    Ok(())
}

async fn is_refused<T>(_: Arc<Version<T>>) -> Check {
    Err("password authentication failed".into())
}

fn holding(text: &str) -> Rotating<Credentials> {
    Rotating::holding("db", token(text))
}

fn held(rotating: &Rotating<Credentials>) -> String {
    rotating.current().unwrap().value.expose_password().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_new_value_that_is_refused_never_takes_the_place_of_the_good_one() {
    let login = holding("old");
    let before = login.current().unwrap();
    let refused = login.refresh(by(), ready(Ok(token("wrong"))), is_refused).await;
    assert!(matches!(refused, Err(RotationError::Refused(_))), "{refused:?}");
    assert!(login.is_current(&before));
    assert_eq!(held(&login), "old");

    login.refresh(by(), ready(Ok(token("new"))), passes).await.unwrap();
    assert_eq!(held(&login), "new");
    assert!(!login.is_current(&before), "who was let in under the old value does not know it");
    assert_eq!((login.counts().rotations, login.counts().failures), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_same_value_again_is_neither_checked_nor_a_rotation() {
    let login = holding("same");
    let before = login.current().unwrap();
    let unasked = |_| async { panic!("it was checked") };
    login.refresh(by(), ready(Ok(token("same"))), unasked).await.unwrap();
    assert!(login.is_current(&before));
    assert_eq!(login.counts().rotations, 0);
}

#[tokio::test(start_paused = true)]
async fn a_provider_or_a_check_that_hangs_or_panics_ends_by_the_deadline_and_harms_nobody() {
    let login = holding("good");
    let started = Instant::now();
    let hung = login.refresh(by(), pending(), passes).await;
    assert!(matches!(hung, Err(RotationError::TimedOut { elapsed }) if elapsed == LIMIT));
    let hung = login.refresh(by(), ready(Ok(token("new"))), |_| pending()).await;
    assert!(matches!(hung, Err(RotationError::TimedOut { .. })), "{hung:?}");
    assert_eq!(started.elapsed(), 2 * LIMIT);

    let panics = async { panic!("the provider's own trouble") };
    let panicked = login.refresh(by(), panics, passes).await;
    assert!(matches!(panicked, Err(RotationError::Panicked)), "{panicked:?}");
    let panics = |_| async { panic!("the check's own trouble") };
    let panicked = login.refresh(by(), ready(Ok(token("new"))), panics).await;
    assert!(matches!(panicked, Err(RotationError::Panicked)), "{panicked:?}");
    assert_eq!(held(&login), "good");

    login.refresh(by(), ready(Ok(token("new"))), passes).await.unwrap();
    assert_eq!(held(&login), "new", "an earlier panic stands in the way");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_that_ask_at_once_are_one_question() {
    let (login, asked) = (holding("old"), AtomicUsize::new(0));
    let ask = || {
        let fetch = async {
            asked.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(50)).await;
            Ok(token("new"))
        };
        login.refresh(by(), fetch, passes)
    };
    let all = futures(100, ask).await;
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert!(all.iter().all(|one| one.as_ref().unwrap().generation == 2));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_dropped_or_in_a_hurry_takes_nobody_with_it() {
    let login = holding("old");
    let slowly = || async {
        sleep(Duration::from_secs(1)).await;
        Ok(token("new"))
    };
    let short = Deadline::within(Duration::from_millis(100));
    let (hurried, patient) =
        tokio::join!(login.refresh(short, slowly(), passes), login.refresh(by(), slowly(), passes));
    assert!(matches!(hurried, Err(RotationError::TimedOut { .. })), "{hurried:?}");
    assert_eq!(patient.unwrap().generation, 2);

    let login = holding("old");
    {
        let dropped = login.refresh(by(), slowly(), passes);
        assert!(tokio::time::timeout(Duration::from_millis(100), dropped).await.is_err());
    }
    assert_eq!(held(&login), "old");
    assert_eq!(login.refresh(by(), slowly(), passes).await.unwrap().generation, 2);
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_refused_one_after_the_other_are_no_storm_of_questions() {
    let (login, asked) = (holding("old"), AtomicUsize::new(0));
    let refused = login.current().unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        let fetch = async {
            asked.fetch_add(1, Ordering::Relaxed);
            Ok(token("old"))
        };
        assert!(login.renew(&refused, by(), fetch, passes).await.is_none());
        sleep(Duration::from_millis(10)).await;
    }
    let asked = asked.load(Ordering::Relaxed);
    assert!((4..=60).contains(&asked), "{asked} questions in a minute");
    sleep(Duration::from_secs(11)).await;
    let renewed = login.renew(&refused, by(), ready(Ok(token("new"))), passes).await;
    assert_eq!(renewed.unwrap().generation, 2);

    let unasked = async { panic!("there was something newer already") };
    let renewed = login.renew(&refused, by(), unasked, passes).await;
    assert_eq!(renewed.unwrap().generation, 2);
}

/// A look that began before the service changed its mind must not decide for who was refused after it.
#[tokio::test(start_paused = true)]
async fn who_is_refused_does_not_take_an_older_looks_word_for_it() {
    let (login, asked) = (holding("old"), AtomicUsize::new(0));
    let refused = login.current().unwrap();
    let slowly = |answer: Check| async move {
        sleep(Duration::from_millis(50)).await;
        answer
    };
    let look = login.refresh(by(), ready(Ok(token("new"))), |_| slowly(Err("not yet".into())));
    let renew = || async {
        let fetch = async {
            asked.fetch_add(1, Ordering::Relaxed);
            Ok(token("new"))
        };
        sleep(Duration::from_millis(10)).await;
        login.renew(&refused, by(), fetch, |_| slowly(Ok(()))).await
    };
    let (look, renewed) = tokio::join!(look, futures(100, renew));
    assert!(matches!(look, Err(RotationError::Refused(_))), "{look:?}");
    assert!(renewed.iter().all(|one| one.as_ref().unwrap().generation == 2));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_provider_is_one_warning_and_its_end_one_line_and_neither_tells_the_secret()
 {
    let log = Log::listen("shared_external=info");
    let login = holding("hunter2");
    for _ in 0..5 {
        let lost = ready(Err("the vault is sealed".into()));
        login.refresh(by(), lost, passes).await.unwrap_err();
    }
    login.refresh(by(), ready(Ok(token("hunter3"))), passes).await.unwrap();
    let shown = format!("{login:?} {:?}", login.current());
    let text = log.end();
    assert_eq!(text.matches("WARN").count(), 1, "{text}");
    assert!(text.contains("the vault is sealed"), "{text}");
    assert!(text.contains("values can be renewed again"), "{text}");
    assert!(!format!("{text}{shown}").contains("hunter"), "{text}{shown}");
    assert_eq!(login.counts().failures, 5);
}

#[tokio::test(start_paused = true)]
async fn a_function_is_asked_each_time() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let provider = FnCredentials::new(move |_| {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        async move { Ok(Credentials::new("app", number.to_string())) }
    });
    assert_eq!(provider.credentials(by()).await.unwrap(), Credentials::new("app", "0"));
    assert_eq!(provider.credentials(by()).await.unwrap(), Credentials::new("app", "1"));
    assert_eq!(provider.period(), None);
    assert_eq!(provider.every(LIMIT).period(), Some(LIMIT));
    let fixed = token("fixed");
    assert_eq!((fixed.credentials(by()).await.unwrap(), fixed.period()), (fixed.clone(), None));
}

#[tokio::test]
async fn a_variable_that_is_missing_is_named() {
    // Cargo sets these for each test.
    let provider = EnvCredentials::new("CARGO_PKG_VERSION").username_in("CARGO_PKG_NAME");
    let expected = Credentials::new("resilience-core", env!("CARGO_PKG_VERSION"));
    assert_eq!(provider.credentials(by()).await.unwrap(), expected);
    let provider = EnvCredentials::new("NO_SUCH_PASSWORD");
    let error = provider.credentials(by()).await.unwrap_err();
    assert_eq!(error.to_string(), "the variable NO_SUCH_PASSWORD is not set");
}

#[tokio::test]
async fn files_are_read_as_they_are_now_and_a_half_written_one_is_not_taken() {
    let dir = Dir::new("files");
    let (username, password) = (dir.0.join("username"), dir.0.join("password"));
    let provider = FileCredentials::new(&password).username_in(&username);
    let error = provider.credentials(by()).await.unwrap_err().to_string();
    assert!(error.contains("password cannot be read (entity not found)"), "{error}");

    std::fs::write(&username, "app\n").unwrap();
    std::fs::write(&password, " hunter2 \r\n").unwrap();
    let read = provider.credentials(by()).await.unwrap();
    assert_eq!(read, Credentials::new("app", " hunter2 "), "only a line end does not count");

    for (wrong, told) in
        [(vec![], "is empty"), (vec![b'x'; 70_000], "is larger"), (vec![0xFF], "cannot be read")]
    {
        std::fs::write(&password, wrong).unwrap();
        let error = provider.credentials(by()).await.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

/// Kubernetes swaps a whole directory behind a symbolic link: no file in it is ever written to.
#[cfg(unix)]
#[tokio::test]
async fn a_secret_that_is_swapped_behind_a_link_is_seen() {
    let dir = Dir::new("link");
    let link = dir.0.join("data");
    for version in ["one", "two"] {
        std::fs::create_dir(dir.0.join(version)).unwrap();
        std::fs::write(dir.0.join(version).join("password"), version).unwrap();
    }
    let provider = FileCredentials::new(link.join("password"));
    std::os::unix::fs::symlink("one", &link).unwrap();
    assert_eq!(provider.credentials(by()).await.unwrap(), token("one"));
    let next = dir.0.join("next");
    std::os::unix::fs::symlink("two", &next).unwrap();
    std::fs::rename(&next, &link).unwrap();
    assert_eq!(provider.credentials(by()).await.unwrap(), token("two"));
}

async fn futures<F: Future>(count: usize, make: impl Fn() -> F) -> Vec<F::Output> {
    let mut all: Vec<_> = (0..count).map(|_| Box::pin(make())).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|cx| {
        all.retain_mut(|future| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => {
                done.push(output);
                false
            }
            std::task::Poll::Pending => true,
        });
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("credentials-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
