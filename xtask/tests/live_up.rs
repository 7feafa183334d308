//! `up`, `down` and what happens between them, on servers of their own: as if this were another checkout.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use xtask::checkout::servers_dir;
use xtask::clock::{Deadline, pause};
use xtask::process::{Process, Signal};
use xtask::servers::state::{Dir, State};
use xtask::servers::{BackendKind, Servers};

/// A checkout that has nothing but servers.
struct Checkout {
    root: PathBuf,
    backend: BackendKind,
}

impl Checkout {
    fn new(name: &str) -> Self {
        let servers = Servers::load().expect("set by `cargo xtask test`");
        let root = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        Self { root, backend: servers.backend() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(args).env("CARGO_MANIFEST_DIR", self.root.join("xtask"));
        if self.backend != BackendKind::External {
            for url in ["DATABASE_URL", "REDIS_URL", "OPENSEARCH_URL"] {
                command.env_remove(url);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `up` by the way that runs the other servers: all that it needs is there already.
    fn up(&self) -> Command {
        self.command(&["up", "--backend", &self.backend.to_string()])
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn dir(&self) -> Dir {
        Dir::at(servers_dir(&self.root))
    }

    fn processes(&self) -> Vec<Process> {
        let state = self.dir().load().unwrap();
        state
            .into_iter()
            .flat_map(|state| state.servers)
            .filter_map(|record| record.process)
            .collect()
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).output();
    }
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn interrupt(child: &Child) {
    let sent =
        Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
}

fn all_gone(processes: &[Process]) -> bool {
    !processes.iter().any(Process::is_running)
}

#[test]
fn an_interrupted_up_leaves_no_process_behind() {
    let checkout = Checkout::new("interrupted");
    let child = checkout.up().spawn().unwrap();
    let deadline = Deadline::after(Duration::from_secs(120));
    let is_early = || match checkout.backend {
        BackendKind::Native => checkout.processes().len() < 3,
        BackendKind::Compose => checkout.dir().load().unwrap().is_none(),
        BackendKind::External => false,
    };
    while is_early() {
        assert!(!deadline.has_passed(), "it never got as far as to start the servers");
        pause(Duration::from_millis(20));
    }
    let started = checkout.processes();
    // Of external servers none is started: it ends by itself.
    if checkout.backend != BackendKind::External {
        interrupt(&child);
    }
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() == (checkout.backend == BackendKind::External),
        "{}",
        output.status
    );
    assert!(all_gone(&started));
    assert!(!checkout.dir().path().exists());
}

#[test]
fn what_died_is_started_again_and_what_runs_is_left_alone() {
    let checkout = Checkout::new("repaired");
    succeeded(&checkout.up().output().unwrap());
    succeeded(&checkout.run(&["status"]));
    let before = checkout.dir().load().unwrap();

    let (doomed, spared) = {
        let mut processes = checkout.processes();
        let spared = processes.split_off(processes.len().min(2));
        (processes, spared)
    };
    for process in &doomed {
        process.end(Signal::KILL, Duration::from_secs(5)).unwrap();
    }
    succeeded(&checkout.up().output().unwrap());
    succeeded(&checkout.run(&["status"]));
    let ports = |state: &Option<State>| {
        let servers = state.iter().flat_map(|state| state.servers.clone());
        servers.map(|record| (record.service, record.ports)).collect::<Vec<_>>()
    };
    assert_eq!(ports(&before), ports(&checkout.dir().load().unwrap()));
    assert!(all_gone(&doomed));
    assert!(spared.iter().all(Process::is_running));

    let all = checkout.processes();
    assert_eq!(all.len(), doomed.len() + spared.len());
    succeeded(&checkout.run(&["down"]));
    assert!(all_gone(&all));
    assert!(!checkout.dir().path().exists());
    if checkout.backend != BackendKind::External {
        let answer = checkout.run(&["status"]);
        assert!(String::from_utf8_lossy(&answer.stderr).contains("no servers are up"));
    }
}
