//! `cargo xtask nightly`: what takes too long for every change.

use anyhow::{Result, bail};
use clap::Args;

use crate::cargo::Cargo;
use crate::demo::Demo;
use crate::fuzz::{Fuzz, Target};
use crate::interrupt;
use crate::models::Models;
use crate::progress::say;

/// Run what takes too long for `ci`: a hundred thousand simulated worlds, finer interleavings, ten thousand
/// cancellations, ten minutes of fuzzing for each target, and the whole demo
#[derive(Debug, Args)]
pub struct Nightly {}

impl Nightly {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If a promise is broken in one of the worlds or interleavings or by a cancellation, an input breaks a
    /// target, or a claim of the demo fails.
    pub fn run(self) -> Result<()> {
        interrupt::catch()?;
        for cargo in [simulation(), Models { preemptions: 3 }.cargo(), cancellations()] {
            say("nightly", &cargo);
            if !cargo.run(&[])?.success() {
                bail!("to repeat it: {cargo}");
            }
        }
        for target in Target::ALL {
            Fuzz { target, seconds: 600 }.run()?;
        }
        Demo { serve: false }.run()
    }
}

/// Whole pipelines in worlds that seeds draw.
fn simulation() -> Cargo {
    let tests = "test --locked --release -p resilience-core --all-features --test simulation";
    Cargo::new(tests).args(["--", "--nocapture"]).env("SIMULATION_SEEDS", "100000")
}

/// Calls cut at random points; the test starts its own server.
fn cancellations() -> Cargo {
    let tests = "test --locked --release -p conn-postgres --test live_cancellation_storm";
    Cargo::new(tests).args(["--", "--nocapture"]).env("CANCELLATIONS", "10000")
}
