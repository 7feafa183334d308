//! What the log shows: each choice and change at DEBUG, and a source that fails as one WARN.

mod support;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use discovery::ServiceRegistry;
use resilience_core::{Freshness, Outcome};
use support::until;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines(&self, parts: &[&str]) -> usize {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }
}

#[tokio::test(start_paused = true)]
async fn choices_and_changes_are_seen_and_trouble_is_told_once() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("shared_external=debug")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let path = std::env::temp_dir().join(format!("logs-{}.toml", std::process::id()));
    std::fs::write(&path, "[services.redis]\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n")
        .unwrap();
    let registry = ServiceRegistry::from_file(&path).unwrap();
    let mut watched = registry.endpoints("redis").unwrap();
    let line =
        |parts: &[&str]| log.lines(&[&["shared_external::discovery", "redis"], parts].concat());
    assert_eq!(line(&["DEBUG", "endpoints changed", "127.0.0.1:1,127.0.0.1:2"]), 1);

    registry.pick("redis").unwrap();
    assert_eq!(line(&["DEBUG", "endpoint chosen", "endpoint=127.0.0.1:1"]), 1);
    for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Success] {
        registry.report("redis", "127.0.0.1:1", outcome).unwrap();
    }
    assert_eq!(line(&["DEBUG", "endpoint is unhealthy", "127.0.0.1:1", "report"]), 1);
    assert_eq!(line(&["DEBUG", "endpoint is healthy again", "127.0.0.1:1"]), 1);

    std::fs::write(&path, "password = \"hunter2\n").unwrap();
    let stale =
        |set: &resilience_core::EndpointSet| matches!(set.freshness, Freshness::Stale { .. });
    until(&mut watched, stale).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    std::fs::write(&path, "[services.redis]\nendpoints = [\"127.0.0.1:3\"]\n").unwrap();
    until(&mut watched, |set| !stale(set)).await;
    for _ in 0..2 {
        std::fs::write(&path, "[services]\n").unwrap();
        until(&mut watched, stale).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        std::fs::write(&path, "[services.redis]\nendpoints = [\"127.0.0.1:3\"]\n").unwrap();
        until(&mut watched, |set| !stale(set)).await;
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(log.lines(&["WARN", "the file is broken", "does not parse (line 1)"]), 1);
    assert_eq!(log.lines(&["INFO", "the file is good again"]), 1);
    assert_eq!(line(&["WARN", "the file no longer names the service"]), 2);
    assert_eq!(log.lines(&["hunter2"]), 0);
}
