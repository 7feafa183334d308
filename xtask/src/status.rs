//! `cargo xtask status`: asks each server how it is.

use anyhow::{Result, bail};
use clap::Args;

use crate::servers::Servers;

/// Ask each server how it is
///
/// Ends with 0 if all answer, with 1 if one does not or nothing is up.
#[derive(Debug, Args)]
pub struct Status {}

impl Status {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If nothing is up, or a server does not answer.
    pub fn run(self) -> Result<()> {
        let servers = Servers::load()?;
        if !print(&servers) {
            bail!("not all servers answer: `cargo xtask up` starts what is down");
        }
        Ok(())
    }
}

/// Prints a line for each server; says whether all answer.
#[must_use]
pub fn print(servers: &Servers) -> bool {
    let all = servers.status();
    for one in &all {
        let state = one.trouble.as_deref().unwrap_or("up");
        let mut line = format!("{:<11} {state}", one.service);
        if let Some(pid) = one.pid {
            line.push_str(&format!(", pid {pid}"));
        }
        for (purpose, port) in &one.ports {
            line.push_str(&format!(", {purpose} localhost:{port}"));
        }
        if let Some(log) = &one.log {
            line.push_str(&format!(", log {}", log.display()));
        }
        println!("{line}");
    }
    all.iter().all(|one| one.trouble.is_none())
}
