//! `cargo xtask ci`: everything that must hold before a change is taken, cheapest first.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{Cargo, members};
use crate::clock::Stopwatch;
use crate::interrupt;
use crate::progress::{say, seconds};

/// Check formatting, lints, features, house rules and docs, then run all tests
///
/// Stops at the first failure, and says how to repeat that step alone.
#[derive(Debug, Args)]
pub struct Ci {}

/// The crate whose features are checked one by one.
const FACADE: &str = "shared-external";

impl Ci {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If a step fails: which, and how to repeat it.
    pub fn run(self) -> Result<()> {
        interrupt::catch()?;
        let members = members()?;
        let facade = members.iter().find(|package| package.name == FACADE);
        let facade = facade.with_context(|| format!("there is no {FACADE} here"))?;
        let features: Vec<_> = facade.features.keys().map(String::as_str).collect();

        let steps = steps(&features);
        let mut done = Vec::new();
        let mut failed = None;
        for (index, step) in steps.iter().enumerate() {
            say("ci", format!("{}/{} {}: {}", index + 1, steps.len(), step.name, step.cargo));
            let clock = Stopwatch::start();
            let passed = step.cargo.run(&[])?.success();
            done.push((step, clock.elapsed()));
            if !passed {
                failed = Some(step);
                break;
            }
        }
        summarise(&done);
        match failed {
            Some(step) => bail!("{} failed; to repeat it: {}", step.name, step.cargo),
            None => Ok(()),
        }
    }
}

/// A part of the check.
struct Step {
    name: String,
    cargo: Cargo,
}

/// All steps, in order. `--locked`, so that what is tested is what is committed.
fn steps(features: &[&str]) -> Vec<Step> {
    let step = |name: &str, cargo| Step { name: name.to_owned(), cargo };
    let deny = ["--", "-D", "warnings"];
    let clippy = |args: &str| Cargo::new("clippy --locked").args(args.split_whitespace());

    let mut steps = vec![
        step("fmt", Cargo::new("fmt --all --check")),
        step("tidy", Cargo::new("xtask tidy")),
        step("clippy", clippy("--workspace --all-features --all-targets").args(deny)),
    ];
    // Without tests: their own dependencies would lend the library features that it did not ask for.
    let alone = format!("-p {FACADE} --no-default-features");
    steps.push(step("clippy, no feature", clippy(&alone).args(deny)));
    for feature in features.iter().filter(|feature| **feature != "default") {
        let cargo = clippy(&alone).args(["--features", feature]).args(deny);
        steps.push(step(&format!("clippy, {feature} alone"), cargo));
    }
    let doc = Cargo::new("doc --locked --workspace --no-deps --all-features");
    steps.push(step("docs", doc.env("RUSTDOCFLAGS", "-Dwarnings")));
    steps.push(step("models", Cargo::new("xtask models")));
    steps.push(step("test", Cargo::new("xtask test")));
    steps
}

fn summarise(done: &[(&Step, Duration)]) {
    for (step, time) in done {
        say("ci", format!("{:>9} {}", seconds(*time), step.name));
    }
    let total = done.iter().map(|(_, time)| *time).sum();
    say("ci", format!("{:>9} in all", seconds(total)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_is_checked_alone_and_a_cheap_step_first() {
        let steps = steps(&["default", "redis", "full"]);
        let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
        let alone = ["clippy, no feature", "clippy, redis alone", "clippy, full alone"];
        assert_eq!(names[..3], ["fmt", "tidy", "clippy"]);
        assert_eq!(names[3..6], alone);
        assert_eq!(names[6..], ["docs", "models", "test"]);
    }

    #[test]
    fn a_step_can_be_repeated_as_it_is_printed() {
        let steps = steps(&["redis"]);
        let shown: Vec<_> = steps.iter().map(|step| step.cargo.to_string()).collect();
        assert_eq!(
            shown[4],
            "cargo clippy --locked -p shared-external --no-default-features --features redis -- -D warnings"
        );
        assert_eq!(
            shown[5],
            "RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps --all-features"
        );
        assert_eq!(shown[6], "cargo xtask models");
        assert_eq!(shown[7], "cargo xtask test");
    }

    #[test]
    fn every_step_treats_a_warning_as_a_failure() {
        for step in steps(&["redis"]) {
            let shown = step.cargo.to_string();
            let denies =
                shown.ends_with("-- -D warnings") || shown.starts_with("RUSTDOCFLAGS=-Dwarnings ");
            let has_none = ["fmt", "tidy", "models", "test"].contains(&step.name.as_str());
            assert!(denies || has_none, "{shown}");
        }
    }
}
