//! `cargo xtask bench`: what calls cost beside peers, and what published crates get wrong.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::cargo::{Cargo, target_dir};
use crate::interrupt;
use crate::servers::Service;
use crate::servers::packages::install_for;

/// Measure resilience-core beside its peers, and run published crates' mistakes on both
///
/// Builds xtask/bench in release mode, with the peers, which takes minutes the first time. Fails if a target is missed.
/// For good figures leave the machine alone meanwhile; threads keep to processors of their own.
#[derive(Debug, Args)]
pub struct Bench {
    /// What to run
    pub what: What,
    /// Print one JSON object a line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// One breaker: its states, its windows, 1, 2 and 4 threads, an installed observer; allocations
    Breaker,
    /// All layers around one call; allocations
    Pipeline,
    /// Pool and manager of conn-postgres beside the driver, `PgPool` and deadpool, on a server of its own; allocations
    Postgres,
    /// What published crates get wrong, on each of them and on ours
    Defects,
}

impl Bench {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If it cannot be built, or a target is missed.
    pub fn run(self) -> Result<()> {
        interrupt::catch()?;
        if self.what == What::Postgres {
            install_for(&[Service::Postgres])?;
        }
        let target = target_dir()?.join("bench");
        let mut missed = Vec::new();
        // Each program to its end: what misses its time may still keep its allocations.
        for cargo in programs(self.what, self.json, &target.to_string_lossy()) {
            if !cargo.run(&[])?.success() {
                missed.push(cargo.to_string());
            }
        }
        match missed.is_empty() {
            true => Ok(()),
            false => bail!("not as claimed; to repeat it: {}", missed.join("; ")),
        }
    }
}

/// The programs of xtask/bench that measure it: allocations are counted by one of their own.
fn programs(what: What, json: bool, target: &str) -> Vec<Cargo> {
    let (name, allocates) = match what {
        What::Breaker => ("breaker", true),
        What::Pipeline => ("pipeline", true),
        What::Postgres => ("postgres", true),
        What::Defects => ("defects", false),
    };
    // The database's peers are compiled for it alone.
    let (main, features) = match what {
        What::Postgres => ("postgres", &["--features", "postgres"][..]),
        _ => ("bench", &[][..]),
    };
    let programs: &[&str] = if allocates { &[main, "allocations"] } else { &[main] };
    let cargo = |program: &&str| {
        Cargo::new("run --quiet --locked --release --manifest-path xtask/bench/Cargo.toml")
            .args(features.iter().copied())
            .args(["--target-dir", target, "--bin", program, "--", name])
            .args(json.then_some("--json"))
    };
    programs.iter().map(cargo).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_counted_wherever_times_are_taken() {
        let shown = |what, json| {
            let all = programs(what, json, "target/bench");
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let start = "cargo run --quiet --locked --release --manifest-path xtask/bench/Cargo.toml \
                     --target-dir target/bench --bin";
        assert_eq!(
            shown(What::Breaker, true),
            [
                format!("{start} bench -- breaker --json"),
                format!("{start} allocations -- breaker --json")
            ]
        );
        assert_eq!(
            shown(What::Postgres, false),
            ["postgres", "allocations"].map(|program| {
                let start = start.replace("--target-dir", "--features postgres --target-dir");
                format!("{start} {program} -- postgres")
            })
        );
        assert_eq!(shown(What::Defects, false), [format!("{start} bench -- defects")]);
    }
}
