//! `cargo xtask down`: ends the servers that `up` started.

use anyhow::Result;
use clap::Args;

use crate::progress::say;
use crate::servers::Servers;

/// End the servers that `up` started, and remove their data
///
/// Ends exactly the processes that `up` wrote down. Downloads stay, so that the next `up` is quick.
#[derive(Debug, Args)]
pub struct Down {}

impl Down {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If a server does not end.
    pub fn run(self) -> Result<()> {
        let any = Servers::down()?;
        say("xtask", if any { "down" } else { "nothing was up" });
        Ok(())
    }
}
