//! A PostgreSQL of the test's own, to be killed and stopped. Its programs come from the installed packages.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::Connection;

use super::eventually;
use super::network::Network;

pub struct Throwaway {
    dir: PathBuf,
    host: String,
    pub port: u16,
    /// The network namespace that it runs in, if it is not ours.
    namespace: Option<String>,
    running: Option<Child>,
}

impl Throwaway {
    /// A cluster that is not running yet.
    pub fn new() -> Self {
        static SERVERS: AtomicUsize = AtomicUsize::new(0);
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let dir =
            std::env::temp_dir().join(format!("conn-postgres-{}-{number}", std::process::id()));
        // Below those that systems give to the near end of a connection: while it is down, none comes by it.
        let ports = (0..5_000).map(|next| 15_000 + (std::process::id() + next) % 5_000);
        let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port =
            ports.map(|port| u16::try_from(port).unwrap()).skip(number * 7).find(free).unwrap();
        let made = match is_root() {
            true => Command::new("install")
                .args(["-d", "-o", "postgres", "-m", "700"])
                .arg(&dir)
                .status(),
            false => Command::new("install").args(["-d", "-m", "700"]).arg(&dir).status(),
        };
        assert!(made.unwrap().success(), "cannot make {}", dir.display());
        let host = "127.0.0.1".to_owned();
        let server = Self { dir, host, port, namespace: None, running: None };
        let output = server
            .command("initdb")
            .args(["-D", "data", "--no-sync", "--auth=trust", "--username=postgres", "--locale=C"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        server
    }

    /// The same at the far end of `network`.
    pub fn beyond(network: &Network) -> Self {
        let mut server = Self::new();
        server.host.clone_from(&network.far);
        server.namespace = Some(network.name.clone());
        server.put("data/pg_hba.conf", "host all all all trust\n");
        server
    }

    pub fn url(&self) -> String {
        format!("postgresql://postgres@{}:{}/postgres?sslmode=disable", self.host, self.port)
    }

    /// Writes a file that it alone may read, named from the directory that holds its `data`.
    pub fn put(&self, name: &str, text: &str) {
        let draft = std::env::temp_dir().join(format!("conn-postgres-{}-draft", self.port));
        std::fs::write(&draft, text).unwrap();
        let owner = if is_root() { &["-o", "postgres"][..] } else { &[] };
        let mut install = Command::new("install");
        let status = install.args(owner).args(["-m", "600"]).arg(&draft).arg(self.dir.join(name));
        assert!(status.status().unwrap().success(), "cannot write {name}");
        std::fs::remove_file(&draft).unwrap();
    }

    /// Starts it and waits until it answers.
    pub async fn start(&mut self) {
        let url = self.url();
        let port = self.port.to_string();
        let host = self.host.as_str();
        let args = ["-D", "data", "-h", host, "-p", &port, "-c", "unix_socket_directories=", "-F"];
        let mut running = None;
        eventually("it answers", async || {
            let process: &mut Child = running.get_or_insert_with(|| {
                let log = File::options().append(true).create(true).open(self.dir.join("log"));
                self.command("postgres").args(args).stderr(log.unwrap()).spawn().unwrap()
            });
            // After a kill, its orphans may need a moment to let go of the shared memory.
            if process.try_wait().unwrap().is_some() {
                running = None;
                return false;
            }
            match sqlx::PgConnection::connect(&url).await {
                Ok(mut connection) => connection.ping().await.is_ok(),
                Err(_) => false,
            }
        })
        .await;
        self.running = running;
    }

    /// What it has written to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }

    /// As a crash does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.running.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// It lets nobody in from now on, and ends once the last has left.
    pub fn shut_down_when_left(&self) {
        let leader = self.running.as_ref().unwrap().id();
        let status = Command::new("kill").args(["-TERM", &leader.to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// `STOP`: the kernel goes on accepting for it, and nothing answers. `CONT`: it goes on.
    pub fn signal(&self, signal: &str) {
        let leader = self.running.as_ref().unwrap().id();
        // Its children, too: each backend is a process of its own.
        let children = Command::new("pgrep").args(["-P", &leader.to_string()]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let pids = children.lines().map(str::to_owned).chain([leader.to_string()]);
        for pid in pids {
            // One that has just ended needs no signal.
            let _ = Command::new("kill")
                .args([&format!("-{signal}"), &pid])
                .stderr(Stdio::null())
                .status();
        }
    }

    fn command(&self, program: &str) -> Command {
        self.command_of(&programs().join(program))
    }

    /// `program`, to be run in its directory and as its user.
    pub fn command_of(&self, program: &Path) -> Command {
        let mut command = match is_root() {
            // It refuses to run as root.
            true => {
                let mut command = match &self.namespace {
                    Some(namespace) => {
                        let mut command = Command::new("ip");
                        command.args(["netns", "exec", namespace, "setpriv"]);
                        command
                    }
                    None => Command::new("setpriv"),
                };
                let user = [
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--clear-groups",
                    "--pdeathsig=QUIT",
                    "--",
                ];
                command.args(user).arg(program);
                command
            }
            false => Command::new(program),
        };
        command.current_dir(&self.dir).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.signal("CONT");
            self.signal("QUIT");
            let mut process = self.running.take().expect("it was just seen");
            process.wait().unwrap();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8_lossy(&id.stdout).trim() == "0"
}

/// Where Debian's packages keep the server's programs; else wherever the path leads.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions
        .map(|version| version.path().join("bin"))
        .find(|bin| bin.join("postgres").exists());
    found
        .or_else(on_the_path)
        .expect("the tests need PostgreSQL's server programs (Debian: postgresql)")
}

fn on_the_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|bin| bin.join("postgres").exists())
}

/// How long a recovery may take beyond the breaker's own time.
pub const GRACE: Duration = Duration::from_secs(2);
