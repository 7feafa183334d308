//! `cargo xtask logs NAME`: shows what a server printed.

use anyhow::Result;
use clap::Args;

use crate::servers::{Servers, Service};

/// Show the end of a server's log
#[derive(Debug, Args)]
pub struct Logs {
    /// Which server
    #[arg(value_enum)]
    pub name: Service,
    /// How many lines
    #[arg(long, short = 'n', default_value_t = 50)]
    pub lines: usize,
}

impl Logs {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If nothing is up, or the server is external.
    pub fn run(self) -> Result<()> {
        Servers::load()?.print_log(self.name, self.lines)
    }
}
