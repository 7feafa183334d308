//! The servers that demos and live tests talk to: started, found again, stopped, killed and asked how they are.

mod addresses;
pub mod certs;
mod compose;
mod external;
pub mod java;
mod native;
pub mod opensearch;
pub mod opensearch_home;
pub mod packages;
pub mod pgbouncer;
pub mod ports;
pub mod postgres;
pub mod probe;
pub mod profile;
pub mod redis;
pub mod state;
pub mod toxiproxy;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use crate::process::Signal;
pub use packages::{program, tail};
pub use profile::{Profile, Service};

use certs::ClientFiles;
use profile::{API, TLS};
use state::{Dir, Record, State};

/// Which way of running the servers is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Backend {
    /// What runs already; else external if DATABASE_URL, REDIS_URL and OPENSEARCH_URL are all set; else compose where a
    /// container engine answers; else native.
    #[default]
    Auto,
    /// Containers, as compose.yaml says.
    Compose,
    /// Processes of this machine, from Debian's packages and from Maven.
    Native,
    /// Servers that somebody else runs; their URLs are in the environment.
    External,
}

/// What runs the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Containers.
    Compose,
    /// Processes of this machine.
    Native,
    /// Somebody else.
    External,
}

impl std::fmt::Display for BackendKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Compose => "compose",
            Self::Native => "native",
            Self::External => "external",
        })
    }
}

/// How one server is.
#[derive(Clone, Debug)]
pub struct Status {
    /// Which one.
    pub service: Service,
    /// Its process, where it is one of this machine's and lives.
    pub pid: Option<u32>,
    /// What its ports are for, and their numbers.
    pub ports: Vec<(String, u16)>,
    /// Where its output goes, where that is a file.
    pub log: Option<PathBuf>,
    /// Why it does not answer; `None` if it does.
    pub trouble: Option<String>,
}

/// The running servers of this checkout.
///
/// ```no_run
/// use std::time::Duration;
/// use xtask::servers::{Service, Servers, Signal};
///
/// # fn main() -> anyhow::Result<()> {
/// let mut servers = Servers::load()?;
/// servers.kill(Service::Redis, Signal::KILL)?;
/// servers.start(Service::Redis)?;
/// servers.wait_ready(Service::Redis, Duration::from_secs(10))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Servers {
    dir: Dir,
    state: Option<State>,
}

impl Servers {
    /// Starts what does not answer, waits until all do, and says what it does on standard error. At once if all run.
    ///
    /// # Errors
    ///
    /// If a server cannot be had, or other servers run than those asked for. What was started here is ended then.
    pub fn up(profile: Profile, backend: Backend) -> Result<Self> {
        Self::up_in(Dir::of_checkout(), profile, &[], backend)
    }

    /// As [`up`](Self::up), in a directory of one's own, and only the backends of `names`; all if none is named. For
    /// tests that take such servers away as nobody else uses.
    ///
    /// # Errors
    ///
    /// As `up`, and if a name is of no server of this profile.
    pub fn up_in(dir: Dir, profile: Profile, names: &[Service], backend: Backend) -> Result<Self> {
        let wanted = profile.select(names)?;
        let _guard = dir.lock()?;
        let state = Self::bring_up(&dir, profile, &wanted, backend);
        if !matches!(state, Ok(Some(_))) && matches!(dir.load(), Ok(None)) {
            dir.remove()?;
        }
        Ok(Self { state: state?, dir })
    }

    fn bring_up(
        dir: &Dir,
        profile: Profile,
        wanted: &[Service],
        backend: Backend,
    ) -> Result<Option<State>> {
        let state = dir.load()?;
        let kind = choose(backend, state.as_ref(), dir)?;
        if let Some(state) = &state {
            // More than what is asked for will do.
            let has_all = wanted.iter().all(|service| state.find(*service).is_some());
            if state.backend != kind || !has_all {
                bail!(
                    "other servers run here, by {}: end them by `cargo xtask down`",
                    state.backend
                );
            }
        }
        Ok(match kind {
            BackendKind::External => {
                external::require(wanted)?;
                None
            }
            BackendKind::Compose => Some(compose::up(dir, profile, wanted, state)?),
            BackendKind::Native => Some(native::up(dir, profile, wanted, state)?),
        })
    }

    /// The servers that `up` started here, else the external ones; `None` if there are neither.
    ///
    /// # Errors
    ///
    /// If what `up` wrote down cannot be read.
    pub fn find() -> Result<Option<Self>> {
        let dir = Dir::of_checkout();
        let state = dir.load()?;
        Ok((state.is_some() || external::is_available(&dir)).then_some(Self { dir, state }))
    }

    /// The servers that `up` started here, else the external ones.
    ///
    /// # Errors
    ///
    /// If there are neither.
    pub fn load() -> Result<Self> {
        Self::find()?.context("no servers are up: start them by `cargo xtask up`")
    }

    /// What runs them.
    #[must_use]
    pub fn backend(&self) -> BackendKind {
        self.state.as_ref().map_or(BackendKind::External, |state| state.backend)
    }

    /// The variables that live tests and the example service read: URLs, credentials, certificate files.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let own = |state| addresses::env(state, &self.client_files());
        self.state.as_ref().map_or_else(external::env, own)
    }

    /// A port of a server of ours, by what it is for: [`profile::TLS`] or another of [`Service::ports`].
    #[must_use]
    pub fn port(&self, service: Service, purpose: &str) -> Option<u16> {
        self.state.as_ref()?.find(service)?.ports.get(purpose).copied()
    }

    /// The directory of their data, certificates and logs; `None` for external servers.
    #[must_use]
    pub fn dir(&self) -> Option<PathBuf> {
        self.state.as_ref().map(|_| self.dir.path().to_path_buf())
    }

    /// Asks every server how it is.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let Some(state) = &self.state else {
            let external = |service| {
                let trouble = external::check(service).err().map(|error| format!("{error:#}"));
                Status { service, pid: None, ports: Vec::new(), log: None, trouble }
            };
            return external::services().into_iter().map(external).collect();
        };
        let one = |record: &Record| {
            let native = state.backend == BackendKind::Native;
            let process = record.process.as_ref().filter(|process| process.is_running());
            let trouble = if native && process.is_none() {
                Some("not running".to_owned())
            } else {
                check(&self.dir, record).err().map(|error| format!("{error:#}"))
            };
            Status {
                service: record.service,
                pid: process.map(|process| process.pid),
                ports: record.ports.clone().into_iter().collect(),
                log: native.then(|| record.log.clone()),
                trouble,
            }
        };
        state.servers.iter().map(one).collect()
    }

    /// Whether the server answers, asked once over TLS.
    ///
    /// # Errors
    ///
    /// What it said instead, or why nothing came.
    pub fn check(&self, service: Service) -> Result<()> {
        match &self.state {
            Some(state) => check(&self.dir, record(state, service)?),
            None => external::check(service),
        }
    }

    /// GETs `path` from OpenSearch as its administrator: the HTTP status and the body.
    ///
    /// # Errors
    ///
    /// If no answer comes, or the server is external.
    pub fn opensearch_get(&self, path: &str) -> Result<(u16, String)> {
        let state =
            self.state.as_ref().context("an external server is not asked behind its back")?;
        probe::get(record(state, Service::Opensearch)?.port(TLS), &self.client_files().ca, path)
    }

    /// Gives toxiproxy an order by its HTTP interface, such as `POST /proxies/primary/toxics`: the status and the body.
    ///
    /// # Errors
    ///
    /// If no answer comes, or toxiproxy is not ours.
    pub fn toxiproxy(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let port = self.port(Service::Toxiproxy, API).context("toxiproxy is not ours to order")?;
        probe::order(port, method, path, body)
    }

    /// Starts a server that was stopped or killed, with its data, on its port; nothing if it runs. Does not wait.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(&mut self, service: Service) -> Result<()> {
        self.change(|dir, state| match state.backend {
            BackendKind::Compose => compose::start(dir, state, service),
            _ => native::start(dir, state, service),
        })
    }

    /// Stops a server gracefully and waits for its end; by SIGKILL if it takes too long.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn stop(&mut self, service: Service) -> Result<()> {
        self.change(|dir, state| match state.backend {
            BackendKind::Compose => compose::stop(dir, state, service),
            _ => native::stop(dir, state, service),
        })
    }

    /// Signals a server and all its processes, for fault drills. SIGKILL is waited for; after SIGSTOP comes SIGCONT.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&mut self, service: Service, signal: Signal) -> Result<()> {
        self.change(|dir, state| {
            if state.backend == BackendKind::Compose {
                return compose::kill(dir, state, service, signal);
            }
            let running =
                record(state, service)?.process.as_ref().filter(|process| process.is_running());
            let process = running.with_context(|| format!("{service} does not run"))?;
            if signal == Signal::KILL {
                return process.end(Signal::KILL, Duration::from_secs(5));
            }
            process.signal_tree(signal)?;
            Ok(())
        })
    }

    /// Stops a server, starts it again and waits until it answers.
    ///
    /// # Errors
    ///
    /// If it does not end, start or answer.
    pub fn restart(&mut self, service: Service) -> Result<()> {
        self.stop(service)?;
        self.start(service)?;
        self.wait_ready(service, native::START_PATIENCE)
    }

    /// Waits until the server answers.
    ///
    /// # Errors
    ///
    /// If it does not within `patience`; the end of its log is in the error.
    pub fn wait_ready(&self, service: Service, patience: Duration) -> Result<()> {
        let state = self.state.as_ref().context("external servers are not ours to wait for")?;
        native::wait_ready(&self.dir, record(state, service)?, patience)
    }

    /// Prints the last `lines` lines of a server's log to standard output.
    ///
    /// # Errors
    ///
    /// If it is not ours to see.
    pub fn print_log(&self, service: Service, lines: usize) -> Result<()> {
        let state =
            self.state.as_ref().context("the logs of external servers are not ours to see")?;
        if state.backend == BackendKind::Compose {
            return compose::logs(&self.dir, state, service, lines);
        }
        println!("{}", tail(&record(state, service)?.log, lines));
        Ok(())
    }

    /// Ends all servers of this checkout and removes their data. Says whether there were any.
    ///
    /// # Errors
    ///
    /// If one does not end; the others are ended.
    pub fn down() -> Result<bool> {
        Self::down_in(&Dir::of_checkout())
    }

    /// As [`down`](Self::down), for the servers of a directory.
    ///
    /// # Errors
    ///
    /// As `down`.
    pub fn down_in(dir: &Dir) -> Result<bool> {
        if !dir.path().exists() {
            return Ok(false);
        }
        let _guard = dir.lock()?;
        let state = dir.load()?;
        match &state {
            Some(state) if state.backend == BackendKind::Compose => compose::down(dir, state)?,
            Some(state) => native::down(state)?,
            None => {}
        }
        dir.remove()?;
        Ok(state.is_some())
    }

    fn client_files(&self) -> ClientFiles {
        ClientFiles::in_dir(&self.dir.certs())
    }

    /// Changes what is written down, as it is now and not as it was when we read it.
    fn change(&mut self, change: impl FnOnce(&Dir, &mut State) -> Result<()>) -> Result<()> {
        if self.state.is_none() {
            bail!("external servers are not ours to start or stop");
        }
        let _guard = self.dir.lock()?;
        let mut state =
            self.dir.load()?.context("the servers were ended meanwhile by `cargo xtask down`")?;
        let changed = change(&self.dir, &mut state);
        self.state = Some(state);
        changed
    }
}

fn choose(backend: Backend, state: Option<&State>, dir: &Dir) -> Result<BackendKind> {
    match backend {
        Backend::Auto => Ok(match state {
            Some(state) => state.backend,
            None if external::is_available(dir) => BackendKind::External,
            None if compose::is_available() => BackendKind::Compose,
            None => BackendKind::Native,
        }),
        Backend::Compose if state.is_none() && !compose::is_available() => {
            bail!("no container engine answers here (`docker compose version`, `docker info`)")
        }
        Backend::Compose => Ok(BackendKind::Compose),
        Backend::Native => Ok(BackendKind::Native),
        Backend::External if external::is_available(dir) => Ok(BackendKind::External),
        Backend::External => bail!("for external servers, set {}", external::URLS.join(", ")),
    }
}

fn record(state: &State, service: Service) -> Result<&Record> {
    state.find(service).with_context(|| format!("{service} is not in this profile"))
}

/// Whether the server of this record answers.
fn check(dir: &Dir, record: &Record) -> Result<()> {
    let port = record.port(record.service.asked_at());
    probe::check(record.service, port, &ClientFiles::in_dir(&dir.certs()).ca)
}
