//! `cargo xtask fuzz`: looks for inputs that break a target, guided by what they reach of the code.
//!
//! libFuzzer needs the compiler to count edges and to show it the operands of comparisons. rustc's own
//! switch for that is unstable; LLVM's pass is the same and is not. The sanitizers stay out: they
//! need a nightly compiler, and look for what safe Rust cannot do.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::cargo::{Cargo, target_dir};
use crate::checkout;
use crate::interrupt;

/// Look for inputs that break the breaker's state machine, or the parser of durations
///
/// Builds xtask/fuzz with libFuzzer, which needs a C++ compiler. What is found stays in the target directory and is where
/// the next run begins, beside the inputs in resilience-core/tests/corpus that every `test` replays.
#[derive(Clone, Debug, Args)]
pub struct Fuzz {
    /// What to feed
    pub target: Target,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
}

/// What can be fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Histories of a breaker with clock jumps, beside a plain model
    Breaker,
    /// Durations as settings hold them, beside exact arithmetic
    Duration,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 2] = [Self::Breaker, Self::Duration];

    fn name(self) -> &'static str {
        match self {
            Self::Breaker => "breaker",
            Self::Duration => "duration",
        }
    }

    /// The longest input that is worth its time, in bytes.
    fn longest(self) -> usize {
        match self {
            Self::Breaker => 256,
            Self::Duration => 64,
        }
    }
}

impl Fuzz {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If it cannot be built, or an input breaks the target: which, and how to feed it again.
    pub fn run(self) -> Result<()> {
        interrupt::catch()?;
        let target = target_dir()?.join("fuzz");
        let found = target.join("corpus").join(self.target.name());
        let broke = target.join("broke").join(self.target.name());
        for dir in [&found, &broke] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let before = newest(&broke)?;
        let cargo = self.program(&target);
        if cargo.run(&[])?.success() {
            return Ok(());
        }
        match newest(&broke)?.filter(|input| Some(input) != before.as_ref()) {
            Some(input) => bail!(
                "{input} breaks {}; mend it, and keep the input in resilience-core/tests/corpus/{}",
                self.target.name(),
                self.target.name()
            ),
            None => bail!("to repeat it: {cargo}"),
        }
    }

    fn program(&self, target: &Path) -> Cargo {
        let name = self.target.name();
        let corpus = checkout::root().join("resilience-core/tests/corpus").join(name);
        let path = |parts: &[&str]| {
            parts
                .iter()
                .fold(target.to_path_buf(), |path, part| path.join(part))
                .display()
                .to_string()
        };
        // For a target, even if it is this host: what builds the packages is not to be instrumented.
        Cargo::new("run --quiet --locked --release --manifest-path xtask/fuzz/Cargo.toml")
            .args(["--target-dir", &path(&[]), "--target", "host-tuple", "--bin", name, "--"])
            .args([format!("-max_total_time={}", self.seconds)])
            .args([format!("-max_len={}", self.target.longest()), "-timeout=10".to_owned()])
            .args([format!("-artifact_prefix={}/", path(&["broke", name]))])
            .args(["-print_final_stats=1", "-verbosity=0"])
            .args([path(&["corpus", name]), corpus.display().to_string()])
            .env("RUSTFLAGS", &flags())
    }
}

/// What makes rustc instrument its code for libFuzzer.
fn flags() -> String {
    let coverage = ["level=4", "inline-8bit-counters", "pc-table", "trace-compares"];
    let coverage = coverage.map(|option| format!("-Cllvm-args=-sanitizer-coverage-{option}"));
    format!("-Cpasses=sancov-module {}", coverage.join(" "))
}

/// The path of the input that broke a target last.
fn newest(dir: &Path) -> Result<Option<String>> {
    let mut found = Vec::new();
    for file in fs::read_dir(dir)? {
        let file = file?;
        found.push((file.metadata()?.modified()?, file.path().display().to_string()));
    }
    Ok(found.into_iter().max().map(|(_, path)| path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_program_and_inputs_that_every_test_replays() {
        for target in Target::ALL {
            let root = checkout::root();
            let program = format!("xtask/fuzz/src/bin/{}.rs", target.name());
            assert!(root.join(&program).is_file(), "{program}");
            let corpus = root.join("resilience-core/tests/corpus").join(target.name());
            assert!(fs::read_dir(corpus).unwrap().count() >= 20, "{}", target.name());
        }
    }

    #[test]
    fn a_run_can_be_repeated_as_it_is_printed() {
        let fuzz = Fuzz { target: Target::Duration, seconds: 7 };
        let shown = fuzz.program(Path::new("target/fuzz")).to_string();
        assert!(shown.starts_with("RUSTFLAGS='-Cpasses=sancov-module -Cllvm-args="), "{shown}");
        assert!(shown.contains("--target host-tuple --bin duration -- -max_total_time=7 "));
    }
}
