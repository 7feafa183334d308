//! Fear: the servers of the profile `ha` are not what they are taken for, or stay behind. A test that takes one away has its
//! own.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use xtask::checkout::servers_dir;
use xtask::clock::{Deadline, pause};
use xtask::servers::packages::install;
use xtask::servers::state::Dir;
use xtask::servers::{Backend, BackendKind, Profile, Servers, Service, program};

use support::{Checkout, all_gone, interrupt, succeeded};

/// What every wait of these tests is bounded by.
const PATIENCE: Duration = Duration::from_secs(20);

/// PostgreSQL's servers of the profile `ha`, which nobody else uses. Dropped, they are ended.
struct Ha {
    dir: Dir,
    servers: Servers,
    env: BTreeMap<String, String>,
}

impl Ha {
    fn up(name: &str) -> Self {
        if program("psql").is_none() {
            install(&["postgresql-client"]).unwrap();
        }
        let name = std::env::temp_dir().join(format!("ha-{name}-{}", std::process::id()));
        let dir = Dir::at(servers_dir(&name));
        let backend = match Servers::load().expect("set by `cargo xtask test`").backend() {
            BackendKind::Compose => Backend::Compose,
            BackendKind::Native | BackendKind::External => Backend::Native,
        };
        let only = [Service::Postgres];
        let servers = Servers::up_in(dir.clone(), Profile::Ha, &only, backend).unwrap();
        let env = servers.env().into_iter().collect();
        Self { dir, servers, env }
    }

    /// Those of the tests that leave every server as it is. The last of them ends them.
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Ha>> = Mutex::new(Weak::new());

        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let ha = Arc::new(Self::up("shared"));
            *shared = Arc::downgrade(&ha);
            ha
        })
    }

    fn psql(&self, variable: &str) -> Command {
        let mut psql = Command::new("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]);
        psql.args(["--set=ON_ERROR_STOP=1", &self.env[variable]]);
        psql.env("PGSSLROOTCERT", &self.env["DATABASE_CA_FILE"]).env("PGSSLMODE", "verify-full");
        psql.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        psql
    }

    /// Runs a query at the address in `variable`; what it gives, or what was said against it.
    fn try_sql(&self, variable: &str, query: &str) -> Result<String, String> {
        let mut psql = self.psql(variable).args(["--command", query]).spawn().unwrap();
        let deadline = Deadline::after(PATIENCE);
        while psql.try_wait().unwrap().is_none() {
            if deadline.has_passed() {
                psql.kill().unwrap();
                return Err(format!("no answer within {PATIENCE:?}"));
            }
            pause(Duration::from_millis(10));
        }
        let output = psql.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn sql(&self, variable: &str, query: &str) -> String {
        self.try_sql(variable, query).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    fn session(&self, variable: &str) -> Session {
        let mut psql = self.psql(variable).stdin(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(psql.stdout.take().unwrap());
        Session { psql, answers }
    }

    /// Whether the standby has seen as many rows of `log` as the primary was told of.
    fn follows(&self, rows: usize) -> bool {
        let counted = self.try_sql("HA_STANDBY_URL", "SELECT count(*) FROM log");
        counted == Ok(rows.to_string())
    }
}

impl Drop for Ha {
    fn drop(&mut self) {
        let ended = Servers::down_in(&self.dir);
        if !std::thread::panicking() {
            assert!(ended.unwrap());
        }
    }
}

/// A session that stays open between its queries.
struct Session {
    psql: Child,
    answers: BufReader<ChildStdout>,
}

impl Session {
    /// The one line that a query answers; `None` once the connection is cut.
    fn ask(&mut self, query: &str) -> Option<String> {
        writeln!(self.psql.stdin.as_mut()?, "{query};").ok()?;
        let mut line = String::new();
        self.answers.read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(line.trim().to_owned())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.psql.stdin.take());
        let _ = self.psql.wait();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Deadline::after(PATIENCE);
    while !holds() {
        assert!(!deadline.has_passed(), "not within {PATIENCE:?}: {what}");
        pause(Duration::from_millis(50));
    }
}

#[test]
fn no_commit_is_acknowledged_that_the_standby_has_not() {
    let mut ha = Ha::up("synchronous");
    ha.sql("HA_PRIMARY_URL", "CREATE TABLE log (n int); INSERT INTO log VALUES (1)");
    until("the standby has the row", || ha.follows(1));
    let standbys = "SELECT application_name, state, sync_state, ssl
        FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)";
    let seen = ha.sql("TEST_DATABASE_ADMIN_URL", standbys);
    assert_eq!(seen, "standby|streaming|sync|t");

    ha.servers.stop(Service::Standby).unwrap();
    let mut insert = ha.psql("HA_PRIMARY_URL");
    insert.args(["--command", "INSERT INTO log VALUES (2)"]);
    let mut insert = insert.spawn().unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("the commit waits", || ha.sql("TEST_DATABASE_ADMIN_URL", waiting) == "1");
    assert!(insert.try_wait().unwrap().is_none());

    ha.servers.start(Service::Standby).unwrap();
    ha.servers.wait_ready(Service::Standby, PATIENCE).unwrap();
    until("the commit goes on", || insert.try_wait().unwrap().is_some());
    assert!(insert.wait().unwrap().success());
    until("the standby has both rows", || ha.follows(2));
}

#[test]
fn a_promoted_standby_has_every_commit_and_waits_for_nobody() {
    let mut ha = Ha::up("promoted");
    let rows = "CREATE TABLE log (n int); INSERT INTO log SELECT generate_series(1, 100)";
    ha.sql("HA_PRIMARY_URL", rows);
    let refused = ha.try_sql("HA_STANDBY_URL", "INSERT INTO log VALUES (0)").unwrap_err();
    assert!(refused.contains("read-only transaction"), "{refused}");

    assert_eq!(ha.sql("HA_STANDBY_ADMIN_URL", "SELECT pg_promote(true, 20)"), "t");
    ha.servers.stop(Service::Postgres).unwrap();
    assert!(ha.servers.check(Service::Postgres).is_err());
    let insert = "INSERT INTO log VALUES (101); SELECT count(*) FROM log";
    assert_eq!(ha.sql("HA_STANDBY_URL", insert), "101");
    assert_eq!(ha.sql("HA_PROXIED_STANDBY_URL", "SELECT pg_is_in_recovery()"), "f");

    ha.servers.restart(Service::Standby).unwrap();
    assert_eq!(ha.sql("HA_STANDBY_URL", "SELECT count(*) FROM log"), "101");
    assert_eq!(ha.sql("HA_STANDBY_URL", "SELECT pg_is_in_recovery()"), "f");
}

#[test]
fn pgbouncer_lends_a_connection_for_a_transaction_and_no_longer() {
    let ha = Ha::shared();
    let backend = "SELECT pg_backend_pid()";
    let mut one = ha.session("HA_PGBOUNCER_URL");
    let mut two = ha.session("HA_PGBOUNCER_URL");
    let lent = one.ask(backend).unwrap();
    assert_eq!(two.ask(backend), Some(lent.clone()), "a session keeps what it does not use");
    assert_eq!(one.ask(&format!("BEGIN; {backend}")), Some(lent.clone()));
    assert_ne!(two.ask(backend).unwrap(), lent, "a transaction loses its connection");
    assert_eq!(one.ask(&format!("{backend}; COMMIT")), Some(lent));

    let mut plain = ha.psql("HA_PGBOUNCER_URL");
    let plain = plain.env("PGSSLMODE", "disable").args(["--command", "SELECT 1"]).output().unwrap();
    let said = String::from_utf8_lossy(&plain.stderr);
    assert!(!plain.status.success() && said.contains("SSL required"), "{said}");
}

#[test]
fn a_toxic_cuts_what_goes_through_its_proxy_and_nothing_else() {
    let ha = Ha::shared();
    for (name, proxied, direct) in [
        ("primary", "HA_PROXIED_PRIMARY_URL", "HA_PRIMARY_URL"),
        ("standby", "HA_PROXIED_STANDBY_URL", "HA_STANDBY_URL"),
        ("pgbouncer", "HA_PROXIED_PGBOUNCER_URL", "HA_PGBOUNCER_URL"),
    ] {
        let (mut cut, mut spared) = (ha.session(proxied), ha.session(direct));
        let both = [cut.ask("SELECT 1"), spared.ask("SELECT 1")];
        assert!(both.iter().all(|one| one.as_deref() == Some("1")), "{name}: {both:?}");

        let toxics = format!("/proxies/{name}/toxics");
        let toxic = r#"{"name": "cut", "type": "reset_peer", "attributes": {"timeout": 0}}"#;
        let (status, said) = ha.servers.toxiproxy("POST", &toxics, toxic).unwrap();
        assert_eq!(status, 200, "{said}");
        assert_eq!(cut.ask("SELECT 2"), None, "{name}");
        assert!(ha.try_sql(proxied, "SELECT 2").is_err(), "{name}");
        assert_eq!(spared.ask("SELECT 2").as_deref(), Some("2"), "{name}");

        let (status, said) = ha.servers.toxiproxy("DELETE", &format!("{toxics}/cut"), "").unwrap();
        assert_eq!(status, 204, "{said}");
        assert_eq!(ha.sql(proxied, "SELECT 3"), "3", "{name}");
    }
}

#[test]
fn a_taken_port_is_replaced_and_down_leaves_no_process_and_no_file() {
    let checkout = Checkout::new("ha-down");
    // Those that other tests have now may be free by the time that `up` looks.
    let mut taken = Vec::new();
    for service in Profile::Ha.select(&[Service::Postgres]).unwrap() {
        for (purpose, port) in service.ports() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).ok();
            taken.extend(listener.map(|listener| (listener, service, purpose, port)));
        }
    }
    let up = up(&checkout).output().unwrap();
    succeeded(&up);
    if checkout.backend != BackendKind::Compose {
        let said = String::from_utf8_lossy(&up.stderr);
        for (_, service, purpose, port) in &taken {
            let line = format!("{service}: port {port} is taken: {purpose} on ");
            assert!(said.contains(&line), "no {line} in {said}");
        }
    }
    drop(taken);

    let shown = checkout.run(&["status"]);
    succeeded(&shown);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let printed = checkout.run(&["env"]);
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(!shown.contains("redis") && !printed.contains("REDIS"), "only PostgreSQL was named");
    for name in ["postgres", "standby", "pgbouncer", "toxiproxy"] {
        assert!(shown.contains(name), "{shown}");
        succeeded(&checkout.run(&["logs", name]));
    }
    for name in ["DATABASE_URL", "HA_PRIMARY_URL", "HA_STANDBY_URL", "HA_PGBOUNCER_URL"] {
        assert!(printed.contains(&format!("export {name}='postgresql")), "{printed}");
    }

    let (processes, dir) = (checkout.processes(), checkout.dir().path().to_path_buf());
    if checkout.backend != BackendKind::Compose {
        assert_eq!(processes.len(), 4);
        assert!(left_in(&dir).len() > 4, "the look at what is left sees the servers");
    }
    succeeded(&checkout.run(&["down"]));
    assert!(all_gone(&processes));
    assert_eq!(left_in(&dir), Vec::<PathBuf>::new());
    assert!(!dir.exists());
}

#[test]
fn an_interrupted_up_leaves_no_standby_and_no_proxy_behind() {
    let checkout = Checkout::new("ha-interrupted");
    let child = up(&checkout).spawn().unwrap();
    let dir = checkout.dir().path().to_path_buf();
    // PgBouncer, toxiproxy and the primary run; the standby is being made.
    until("three servers run", || match checkout.backend {
        BackendKind::Compose => checkout.dir().load().unwrap().is_some(),
        BackendKind::Native | BackendKind::External => checkout.processes().len() >= 3,
    });
    let started = checkout.processes();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("interrupted"), "{said}");
    assert!(all_gone(&started));
    assert_eq!(left_in(&dir), Vec::<PathBuf>::new());
    assert!(!dir.exists());
}

/// `up` of PostgreSQL's servers by the way that runs the others; natively where somebody else runs those.
fn up(checkout: &Checkout) -> Command {
    let backend = match checkout.backend {
        BackendKind::Compose => "compose",
        BackendKind::Native | BackendKind::External => "native",
    };
    checkout.command(&["up", "--profile", "ha", "--backend", backend, "postgres"])
}

/// The processes that work in `dir`, or did before it was removed, whoever started them.
fn left_in(dir: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let works_there =
        |process: &PathBuf| fs::read_link(process.join("cwd")).is_ok_and(|at| at.starts_with(dir));
    processes.filter(works_there).collect()
}
