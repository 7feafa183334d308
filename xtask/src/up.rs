//! `cargo xtask up`: brings the servers up and waits until they answer.

use anyhow::{Result, bail};
use clap::Args;

use crate::clock::Stopwatch;
use crate::progress::{say, seconds};
use crate::servers::state::Dir;
use crate::servers::{Backend, BackendKind, Profile, Servers, Service};
use crate::{interrupt, status};

/// Start PostgreSQL, Redis and OpenSearch, or those that are named, and wait until they answer
///
/// Servers that run already are left alone, one that died is started again with its data: a second `up` costs nothing.
/// In profile `ha`, PostgreSQL has a synchronous standby, PgBouncer, and toxiproxy before all three.
/// They listen on loopback only, with TLS and throw-away certificates, and stay until `cargo xtask down`.
/// `cargo xtask env` prints their addresses. Ctrl-C ends what was started.
#[derive(Debug, Args)]
pub struct Up {
    /// Only these, with what belongs to them in the profile
    #[arg(value_enum, value_name = "NAME")]
    pub names: Vec<Service>,
    /// Which set of servers
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// What runs them
    #[arg(long, value_enum, default_value_t)]
    pub backend: Backend,
}

impl Up {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If a server cannot be had or does not answer in time.
    pub fn run(self) -> Result<()> {
        interrupt::catch()?;
        let clock = Stopwatch::start();
        let servers = Servers::up_in(Dir::of_checkout(), self.profile, &self.names, self.backend)?;
        if servers.backend() == BackendKind::External {
            say("xtask", "the servers are external: their URLs are in the environment");
        }
        say("xtask", format!("up ({}) after {}", servers.backend(), seconds(clock.elapsed())));
        if !status::print(&servers) {
            bail!("not all servers answer");
        }
        Ok(())
    }
}
