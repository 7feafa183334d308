//! `cargo xtask nightly`: what takes too long for every change.

use anyhow::Result;
use clap::Args;

use crate::demo::Demo;

/// Run what takes too long for `ci`: the whole demo
#[derive(Debug, Args)]
pub struct Nightly {}

impl Nightly {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If a claim of the demo fails.
    pub fn run(self) -> Result<()> {
        Demo { serve: false }.run()
    }
}
