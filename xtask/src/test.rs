//! `cargo xtask test`: unit, doc and live tests, the last against real servers.

use std::collections::BTreeSet;
use std::process::ExitStatus;

use anyhow::Result;
use clap::Args;

use crate::cargo::{Cargo, Package, members};
use crate::interrupt;
use crate::progress::say;
use crate::servers::packages::{install_for, install_for_tests};
use crate::servers::{Backend, BackendKind, Profile, Servers, Service};

/// Run all tests, against real servers that are started if need be
///
/// Servers that this starts stay up, so that the next run is quick: `cargo xtask down` ends them, and so does
/// Ctrl-C.
#[derive(Debug, Args)]
pub struct Test {
    /// Run only those tests that need no server
    #[arg(long)]
    pub offline: bool,
    /// For the test programs: parts of test names, `--nocapture`, `--test-threads`
    #[arg(last = true, value_name = "FILTER")]
    pub filters: Vec<String>,
}

/// Integration tests of this name prefix talk to the servers that `up` starts.
const LIVE: &str = "live_";
/// Integration tests of this name prefix stop servers: each runs after all others, and alone.
const DRILL: &str = "drill";

impl Test {
    /// Runs the command. Ends this process with cargo's exit code if a test fails: cargo has said which, and a line of
    /// ours would only hide that.
    ///
    /// # Errors
    ///
    /// If the servers cannot be had or cargo cannot be run.
    pub fn run(self) -> Result<()> {
        interrupt::catch()?;
        let plan = plan(&members()?, self.offline, &self.filters);
        let (mut env, ours) = if self.offline { (Vec::new(), false) } else { servers()? };
        env.push(("RUST_BACKTRACE".to_owned(), "1".to_owned()));
        let code = first_failure(plan.iter().map(|cargo| cargo.run(&env)));
        if ours && interrupt::requested() {
            Servers::down()?;
        }
        match code? {
            0 => Ok(()),
            code => std::process::exit(code),
        }
    }
}

/// The servers' addresses, and whether it was us who started them.
fn servers() -> Result<(Vec<(String, String)>, bool)> {
    install_for_tests()?;
    let had = Servers::find()?.is_some();
    let servers = Servers::up(Profile::Single, Backend::Auto)?;
    // A connector's tests start one of their own.
    install_for(&[Service::Pgbouncer])?;
    let ours = !had && servers.backend() != BackendKind::External;
    if ours {
        say("xtask", "the servers stay up after the tests: `cargo xtask down` ends them");
    }
    Ok((servers.env(), ours))
}

/// The exit code of the first run that fails, or 0. No run after it is started.
fn first_failure(runs: impl Iterator<Item = Result<ExitStatus>>) -> Result<i32> {
    for status in runs {
        let status = status?;
        if !status.success() {
            // Ended by a signal, it has no code: cargo's own for a failed test.
            return Ok(status.code().unwrap_or(101));
        }
    }
    Ok(0)
}

/// What to run, in order. Every command asks for the same packages and features, so that nothing is built twice, and
/// none stops at the first program that fails: one failure hides no other.
fn plan(packages: &[Package], offline: bool, filters: &[String]) -> Vec<Cargo> {
    let targets = packages.iter().flat_map(|package| &package.targets);
    let tests = targets.filter(|target| target.kind.iter().any(|kind| kind == "test"));
    let names: BTreeSet<_> = tests.map(|target| target.name.as_str()).collect();
    let (drills, others): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| name.starts_with(DRILL));
    let others = others.into_iter().filter(|name| !(offline && name.starts_with(LIVE)));

    let cargo = || Cargo::new("test --workspace --all-features --no-fail-fast");
    let others = others.flat_map(|name| ["--test", name]);
    let mut plan = vec![cargo().args(["--lib", "--bins"]).args(others), cargo().args(["--doc"])];
    if !offline {
        plan.extend(drills.iter().map(|name| cargo().args(["--test", name])));
    }
    if !filters.is_empty() {
        plan = plan.into_iter().map(|cargo| cargo.args(["--"]).args(filters)).collect();
    }
    plan
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::cargo::Target;

    fn package(tests: &[&str]) -> Package {
        let target =
            |kind: &str, name: &str| Target { name: name.to_owned(), kind: vec![kind.to_owned()] };
        let mut targets =
            vec![target("lib", "lib"), target("bin", "tool"), target("example", "live_example")];
        targets.extend(tests.iter().map(|name| target("test", name)));
        Package {
            name: "sample".to_owned(),
            manifest_path: "Cargo.toml".into(),
            features: [].into(),
            dependencies: Vec::new(),
            targets,
        }
    }

    fn planned(offline: bool, filters: &[&str]) -> Vec<String> {
        let packages =
            [package(&["drill", "live_cache", "macros"]), package(&["live_cache", "live_pool"])];
        let filters: Vec<_> = filters.iter().map(ToString::to_string).collect();
        let plan = plan(&packages, offline, &filters);
        plan.iter()
            .map(|cargo| {
                cargo
                    .to_string()
                    .replace("cargo test --workspace --all-features --no-fail-fast ", "")
            })
            .collect()
    }

    #[test]
    fn a_drill_comes_after_all_others_and_alone() {
        let all = "--lib --bins --test live_cache --test live_pool --test macros";
        assert_eq!(planned(false, &[]), [all, "--doc", "--test drill"]);
    }

    #[test]
    fn offline_runs_no_test_that_needs_a_server() {
        assert_eq!(planned(true, &[]), ["--lib --bins --test macros", "--doc"]);
    }

    #[test]
    fn a_filter_reaches_every_test_program() {
        assert_eq!(
            planned(false, &["breaker", "--nocapture"]),
            [
                "--lib --bins --test live_cache --test live_pool --test macros -- breaker --nocapture",
                "--doc -- breaker --nocapture",
                "--test drill -- breaker --nocapture",
            ]
        );
    }

    #[test]
    fn the_code_of_the_first_failure_is_ours_and_nothing_runs_after_it() {
        let status = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(first_failure([0, 0].map(|code| Ok(status(code))).into_iter()).unwrap(), 0);
        let mut runs = [0, 101, 0].into_iter();
        assert_eq!(first_failure(runs.by_ref().map(|code| Ok(status(code)))).unwrap(), 101);
        assert_eq!(runs.next(), Some(0), "a run was started after the failure");
        let killed = ExitStatus::from_raw(9);
        assert_eq!(first_failure([Ok(killed)].into_iter()).unwrap(), 101);
    }
}
