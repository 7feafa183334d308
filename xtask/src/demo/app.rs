//! The example service as a process: built, started on a free port, asked, ended.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cargo::Cargo;
use crate::checkout;
use crate::clock::{Deadline, pause};
use crate::interrupt;
use crate::process::{Launch, Process, Signal};
use crate::servers::{program, tail};

use super::http::Client;

/// The example service, running. Dropped, it is ended.
#[derive(Debug)]
pub struct App {
    process: Process,
    log: PathBuf,
    client: Client,
    address: SocketAddr,
}

impl App {
    /// Builds the example service and starts it with `env`, its log in `log`.
    ///
    /// # Errors
    ///
    /// If it does not build, start or answer; the end of its log is in the error.
    pub fn start(env: Vec<(String, String)>, log: PathBuf) -> Result<Self> {
        let built = Cargo::new("build --package campaigns").run(&[])?;
        if !built.success() {
            bail!("the example service does not build");
        }
        Self::start_built(env, log)
    }

    fn start_built(mut env: Vec<(String, String)>, log: PathBuf) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        env.push(("CAMPAIGNS_LISTEN".to_owned(), address.to_string()));
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| checkout::root().join("target"), PathBuf::from);
        let campaigns = target.join("debug/campaigns");
        // It ends with us, even if we are killed.
        let launch = Launch {
            program: program("setpriv").context("setpriv is missing: install util-linux")?,
            args: vec![
                "--pdeathsig".to_owned(),
                "TERM".to_owned(),
                campaigns.display().to_string(),
            ],
            env,
            dir: checkout::root(),
            user: None,
        };
        let _ = std::fs::remove_file(&log);
        let process = Process::start(&launch, &log)?;
        let app = Self { process, log, client: Client::new(address), address };
        let deadline = Deadline::after(Duration::from_secs(20));
        while !app.client.get("/health").is_ok_and(|reply| reply.status == 200) {
            interrupt::check()?;
            if deadline.has_passed() || !app.process.is_running() {
                bail!("the example service does not answer:\n{}", tail(&app.log, 20));
            }
            pause(Duration::from_millis(20));
        }
        Ok(app)
    }

    /// The service's HTTP side.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// All that it has logged so far.
    ///
    /// # Errors
    ///
    /// If the log cannot be read.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(&self.log)
            .with_context(|| format!("cannot read {}", self.log.display()))
    }

    /// Stops it for as long as `meanwhile` takes, as a debugger or a full machine would: nothing of it runs.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn stopped<T>(&self, meanwhile: impl FnOnce() -> T) -> Result<T> {
        self.process.signal_tree(Signal::STOP)?;
        let result = meanwhile();
        self.process.signal_tree(Signal::CONT)?;
        Ok(result)
    }

    /// Tells it to end, and nothing more.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn terminate(&self) -> Result<()> {
        self.process.signal_tree(Signal::TERM)?;
        Ok(())
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if let Err(error) = self.process.end(Signal::TERM, Duration::from_secs(12)) {
            eprintln!("the example service does not end: {error:#}");
        }
    }
}
