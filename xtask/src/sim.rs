//! `cargo xtask sim`: simulations of the core's own types, each beside the figure published for it.

use anyhow::Result;
use clap::Args;

use crate::cargo::Cargo;
use crate::interrupt;

/// Simulate overload, outages and contention, and compare with published figures
///
/// Each simulation drives resilience-core's own types in virtual time. Prints a table; fails if a figure misses its target.
#[derive(Debug, Args)]
pub struct Sim {
    /// Which: `retry`, `collapse` and so on, or `all`
    pub name: String,
    /// Print one JSON object a line instead of the table
    #[arg(long)]
    pub json: bool,
    /// What all random numbers follow from: one seed gives one result
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl Sim {
    /// Runs the command. Ends this process with the program's exit code if a target is missed: the table has said which.
    ///
    /// # Errors
    ///
    /// If cargo cannot be run.
    pub fn run(self) -> Result<()> {
        interrupt::catch()?;
        self.cargo().run_or_exit()
    }

    /// Optimised: a simulation in a debug build takes minutes.
    fn cargo(&self) -> Cargo {
        let json = self.json.then(|| "--json".to_owned());
        let seed = self.seed.map(|seed| format!("--seed={seed}"));
        Cargo::new("run --release --locked -p sim --")
            .args([self.name.as_str()])
            .args(json.into_iter().chain(seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_reaches_the_program() {
        let shown = |sim: Sim| sim.cargo().to_string();
        let plain = Sim { name: "retry".to_owned(), json: false, seed: None };
        assert_eq!(shown(plain), "cargo run --release --locked -p sim -- retry");
        let full = Sim { name: "all".to_owned(), json: true, seed: Some(7) };
        assert_eq!(shown(full), "cargo run --release --locked -p sim -- all --json --seed=7");
    }
}
