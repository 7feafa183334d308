//! `cargo xtask env`: the running servers' addresses, for a shell.

use anyhow::Result;
use clap::Args;

use crate::servers::Servers;

/// Print the running servers' addresses as shell commands
///
/// For use by hand: `eval "$(cargo xtask env)"`, then `cargo test` or `cargo run` as you like.
#[derive(Debug, Args)]
pub struct Env {}

impl Env {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If nothing is up.
    pub fn run(self) -> Result<()> {
        for (name, value) in Servers::load()?.env() {
            println!("export {name}='{}'", value.replace('\'', r"'\''"));
        }
        Ok(())
    }
}
