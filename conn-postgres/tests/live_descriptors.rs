//! A process out of file descriptors, the row of the table in `classify` that takes a process of its own.

mod support;

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use resilience_core::{CallError, CircuitState, Replay, Verdict};

/// Sets how many descriptors this process may have, and leaves the most that it may ask for.
fn allow(descriptors: usize) {
    let pid = std::process::id().to_string();
    let limit = format!("--nofile={descriptors}:");
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(status.unwrap().success());
}

/// All that are left.
fn take_all() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[tokio::test]
async fn a_process_out_of_descriptors_does_not_blame_the_server() {
    let (db, _) = support::manager_with(|it| it.max_retries(0).fail_max(1));
    let held = db.acquire().await.unwrap();
    allow(100);
    let taken = take_all();
    let error = db.write(async |_| Ok(())).await.unwrap_err();
    drop(taken);
    allow(1000);
    let CallError::Inner(failed) = error else { panic!("{error}") };
    assert_eq!(failed.verdict, Verdict::local(Replay::Safe), "{}", failed.error);
    assert_eq!(db.breaker().state(), CircuitState::Closed);
    let text = failed.error.to_string();
    assert!(text.contains("cannot connect to") && text.contains("Too many open files"), "{text}");

    tokio::time::timeout(Duration::from_secs(5), db.write(async |_| Ok(())))
        .await
        .unwrap()
        .unwrap();
    drop(held);
}
