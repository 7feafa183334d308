//! A PostgreSQL of the test's own, to be killed and stopped. Its programs come from the installed packages.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::Connection;
use tokio::time::{Instant, sleep};

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
        let server = Self::empty();
        let args = ["-D", "data", "--no-sync", "--auth=trust", "--username=postgres", "--locale=C"];
        server.run("initdb", &args);
        server
    }

    /// A standby of `primary`, which must be running; not running yet itself.
    pub fn standby_of(primary: &Self) -> Self {
        let server = Self::empty();
        let name =
            format!("port={} host=127.0.0.1 user=postgres application_name=standby", primary.port);
        let args = ["-D", "data", "--no-sync", "-R", "-X", "stream", "-c", "fast", "-d", &name];
        server.run("pg_basebackup", &args);
        server
    }

    fn empty() -> Self {
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
        Self { dir, host, port, namespace: None, running: None }
    }

    /// Runs a program to its end.
    fn run(&self, program: &str, args: &[&str]) {
        let output = self.command(program).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
        let settings = [
            "unix_socket_directories=",
            // A standby that has lost its primary looks for it again, and at whether it is to be promoted.
            "wal_retrieve_retry_interval=100ms",
        ];
        let settings = settings.iter().flat_map(|setting| ["-c", setting]);
        let args = ["-D", "data", "-h", host, "-p", &port, "-F"].into_iter();
        let args: Vec<_> = args.chain(settings).collect();
        let mut running = None;
        eventually("it answers", async || {
            let process: &mut Child = running.get_or_insert_with(|| {
                let log = File::options().append(true).create(true).open(self.dir.join("log"));
                self.command("postgres").args(&args).stderr(log.unwrap()).spawn().unwrap()
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

    /// Ends sessions, writes everything down and to its standbys, and stops: `pg_ctl stop --mode fast`.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.running.take() {
            let _ = Command::new("kill").args(["-INT", &process.id().to_string()]).status();
            process.wait().unwrap();
        }
    }

    /// A connection past all that is under test.
    pub async fn connect(&self) -> sqlx::PgConnection {
        sqlx::PgConnection::connect(&self.url()).await.unwrap()
    }

    /// Runs `sql` on a connection of its own.
    pub async fn sql(&self, sql: &str) {
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
        sql.execute(&mut self.connect().await).await.unwrap();
    }

    /// What `sql` gives, on a connection of its own.
    pub async fn ask<T>(&self, sql: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        sqlx::query_scalar(sql).fetch_one(&mut self.connect().await).await.unwrap()
    }

    /// Waits until it takes `write`, by a look every 10 ms that is none of what is under test; says when.
    pub async fn accepts(&self, write: &'static str) -> Instant {
        let mut probe = self.connect().await;
        while sqlx::raw_sql(write).execute(&mut probe).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
        Instant::now()
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

/// A primary and its synchronous standby, both running.
pub struct Pair {
    pub primary: Throwaway,
    pub standby: Throwaway,
}

impl Pair {
    /// What is acknowledged is on the standby's disk.
    pub async fn start() -> Self {
        let mut primary = Throwaway::new();
        primary.start().await;
        let mut standby = Throwaway::standby_of(&primary);
        standby.start().await;
        let attached = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        eventually("the standby streams", async || primary.ask::<i64>(attached).await == 1).await;
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'").await;
        primary.sql("SELECT pg_reload_conf()").await;
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        eventually("it is synchronous", async || primary.ask::<i64>(synchronous).await == 1).await;
        Self { primary, standby }
    }

    /// Both, the primary first.
    pub fn url(&self) -> String {
        let (primary, standby) = (self.primary.port, self.standby.port);
        format!(
            "postgresql://postgres@127.0.0.1:{primary},127.0.0.1:{standby}/postgres?sslmode=disable"
        )
    }

    /// Both, the standby first.
    pub fn url_reversed(&self) -> String {
        let (primary, standby) = (self.primary.port, self.standby.port);
        format!(
            "postgresql://postgres@127.0.0.1:{standby},127.0.0.1:{primary}/postgres?sslmode=disable"
        )
    }

    /// Makes the standby a primary; returns when it is told to be, which is before it takes writes.
    pub async fn promote(&self) {
        self.standby.sql("SELECT pg_promote(false)").await;
    }

    /// A crash of the primary with every process of it: what is under way is cut off.
    pub fn kill_primary(&mut self) {
        self.primary.signal("KILL");
        self.primary.kill();
    }

    /// The recipe of a planned switchover; how long the servers took for it.
    pub async fn switch_over(&mut self) -> Duration {
        let Self { primary, standby } = &mut *self;
        let started = Instant::now();
        primary.sql("ALTER SYSTEM SET default_transaction_read_only = on").await;
        primary.sql("SELECT pg_reload_conf()").await;
        let running = "SELECT count(*) FROM pg_stat_activity \
                       WHERE backend_type = 'client backend' AND state <> 'idle' AND pid <> pg_backend_pid()";
        let read_only = "SELECT current_setting('default_transaction_read_only')::bool";
        eventually("nothing is under way", async || {
            primary.ask::<bool>(read_only).await && primary.ask::<i64>(running).await == 0
        })
        .await;
        primary.stop();
        standby.sql("SELECT pg_promote(false)").await;
        let recovers = "SELECT pg_is_in_recovery()";
        eventually("it is promoted", async || !standby.ask::<bool>(recovers).await).await;
        started.elapsed()
    }

    /// Waits until the standby has replayed all that the primary has written.
    pub async fn caught_up(&self) {
        let position: i64 = self.primary.ask("SELECT (pg_current_wal_lsn() - '0/0')::int8").await;
        let replayed = "SELECT (pg_last_wal_replay_lsn() - '0/0')::int8";
        eventually("it is replayed", async || self.standby.ask::<i64>(replayed).await >= position)
            .await;
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
