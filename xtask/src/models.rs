//! `cargo xtask models`: each interleaving of a few threads on the core's atomics, tried by loom.

use anyhow::Result;
use clap::Args;

use crate::cargo::Cargo;
use crate::interrupt;

/// Try every interleaving of a few threads on a circuit
///
/// The models are tests of resilience-core that loom runs. They are compiled apart, below target/models.
#[derive(Debug, Args)]
pub struct Models {
    /// How often threads may be interrupted in one interleaving: at 3 it takes minutes
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub preemptions: u32,
}

impl Models {
    /// Runs the command. Ends this process with cargo's exit code if a model fails: its panic has said which.
    ///
    /// # Errors
    ///
    /// If cargo cannot be run.
    pub fn run(self) -> Result<()> {
        interrupt::catch()?;
        self.cargo().run_or_exit()
    }

    /// Optimised, for there are millions of interleavings; but an overflow is still an error.
    pub(crate) fn cargo(&self) -> Cargo {
        let tests = "test --locked --release --target-dir target/models -p resilience-core --lib";
        Cargo::new(tests)
            .args(["models::"])
            .env("RUSTFLAGS", "--cfg=circuit_models")
            .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true")
            .env("LOOM_MAX_PREEMPTIONS", &self.preemptions.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_can_be_repeated_as_it_is_printed() {
        let shown = Models { preemptions: 3 }.cargo().to_string();
        let env = "RUSTFLAGS=--cfg=circuit_models CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true LOOM_MAX_PREEMPTIONS=3";
        let test = "cargo test --locked --release --target-dir target/models -p resilience-core --lib models::";
        assert_eq!(shown, format!("{env} {test}"));
    }
}
