//! What tests of `up` share: a checkout that has nothing but servers.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use xtask::checkout::{root, servers_dir};
use xtask::process::Process;
use xtask::servers::state::Dir;
use xtask::servers::{BackendKind, Servers};

/// A checkout that has nothing but servers. Dropped, they are ended.
pub(crate) struct Checkout {
    root: PathBuf,
    pub(crate) backend: BackendKind,
}

impl Checkout {
    pub(crate) fn new(name: &str) -> Self {
        let servers = Servers::load().expect("set by `cargo xtask test`");
        let own = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        fs::create_dir_all(&own).unwrap();
        fs::copy(root().join("compose.yaml"), own.join("compose.yaml")).unwrap();
        Self { root: own, backend: servers.backend() }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
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

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn dir(&self) -> Dir {
        Dir::at(servers_dir(&self.root))
    }

    pub(crate) fn processes(&self) -> Vec<Process> {
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
        let _ = fs::remove_dir_all(&self.root);
    }
}

pub(crate) fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn interrupt(child: &Child) {
    let sent =
        Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
}

pub(crate) fn all_gone(processes: &[Process]) -> bool {
    !processes.iter().any(Process::is_running)
}
