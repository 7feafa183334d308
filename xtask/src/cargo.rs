//! Runs cargo: its output passed through, and ended with all that it started when we are asked to end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::checkout;
use crate::clock::pause;
use crate::interrupt;
use crate::process::{Process, Signal};

/// One run of cargo, from the top of the checkout. Displayed as one would type it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cargo {
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Cargo {
    /// `cargo` with these arguments, which are separated by blanks.
    #[must_use]
    pub fn new(args: &str) -> Self {
        Self { args: args.split_whitespace().map(ToOwned::to_owned).collect(), env: Vec::new() }
    }

    /// Adds arguments as they are.
    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable; it is displayed, so no secret belongs here.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it to its end, and ends this process with its exit code if it fails: it has said why.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_or_exit(&self) -> Result<()> {
        let status = self.run(&[])?;
        if status.success() {
            return Ok(());
        }
        // Ended by a signal, it has no code: cargo's own for a failure.
        std::process::exit(status.code().unwrap_or(101))
    }

    /// Runs it to its end, with `more` variables that are not displayed.
    ///
    /// # Errors
    ///
    /// If it cannot be started, or after [`interrupt::catch`] the wait is interrupted; it is ended then.
    pub fn run(&self, more: &[(String, String)]) -> Result<ExitStatus> {
        let mut command = self.command();
        command.envs(more.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().with_context(|| format!("cannot start `{self}`"))?;
        loop {
            if let Some(status) = child.try_wait()? {
                // Ctrl-C reaches cargo too; what it says of that is no test result.
                interrupt::check()?;
                return Ok(status);
            }
            if let Err(interrupted) = interrupt::check() {
                if let Some(process) = Process::with_pid(child.id()) {
                    // A test program too; and another xtask, which needs time to end its servers.
                    process.signal_tree(Signal::TERM)?;
                    process.end(Signal::TERM, Duration::from_secs(30))?;
                }
                child.wait()?;
                return Err(interrupted);
            }
            pause(Duration::from_millis(20));
        }
    }

    /// Runs it to its end and returns what it printed to standard output.
    ///
    /// # Errors
    ///
    /// If it fails: what it printed to standard error.
    pub fn output(&self) -> Result<String> {
        let output = self.command().output().with_context(|| format!("cannot start `{self}`"))?;
        if !output.status.success() {
            bail!("`{self}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("`{self}` printed no UTF-8"))
    }

    fn command(&self) -> Command {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(program);
        command.args(&self.args).current_dir(checkout::root());
        // What `cargo run` tells us of our own package would make some build scripts run again.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(name.as_ref());
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl fmt::Display for Cargo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            match value.contains(' ') {
                true => write!(f, "{name}='{value}' ")?,
                false => write!(f, "{name}={value} ")?,
            }
        }
        write!(f, "cargo {}", self.args.join(" "))
    }
}

/// A member of the workspace.
#[derive(Clone, Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its `Cargo.toml`, by the full path.
    pub manifest_path: PathBuf,
    /// Its features, and what each enables.
    pub features: BTreeMap<String, Vec<String>>,
    /// What it depends on.
    pub dependencies: Vec<Dependency>,
    /// What it is built into.
    pub targets: Vec<Target>,
}

/// What a package depends on.
#[derive(Clone, Debug, Deserialize)]
pub struct Dependency {
    /// The package's name.
    pub name: String,
    /// `None` (a normal one), `dev` or `build`.
    pub kind: Option<String>,
    /// Where it is, if it is not from a registry.
    pub path: Option<PathBuf>,
}

/// What a package is built into.
#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test` and so on.
    pub kind: Vec<String>,
}

/// The members of this workspace.
///
/// # Errors
///
/// If cargo cannot read the workspace.
pub fn members() -> Result<Vec<Package>> {
    Ok(metadata()?.packages)
}

/// Where this workspace builds.
///
/// # Errors
///
/// If cargo cannot read the workspace.
pub fn target_dir() -> Result<PathBuf> {
    Ok(metadata()?.target_directory)
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

fn metadata() -> Result<Metadata> {
    let text = Cargo::new("metadata --format-version 1 --no-deps").output()?;
    serde_json::from_str(&text).context("`cargo metadata` printed something else")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let cargo =
            Cargo::new("doc --no-deps").args(["-p", "xtask"]).env("RUSTDOCFLAGS", "-Dwarnings");
        assert_eq!(cargo.to_string(), "RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps -p xtask");
        let cargo = Cargo::new("doc").env("RUSTDOCFLAGS", "-Dwarnings --document-private-items");
        assert_eq!(
            cargo.to_string(),
            "RUSTDOCFLAGS='-Dwarnings --document-private-items' cargo doc"
        );
    }

    #[test]
    fn a_failure_shows_what_cargo_said() {
        let error = Cargo::new("no-such-command").output().unwrap_err().to_string();
        assert!(error.starts_with("`cargo no-such-command` failed: "), "{error}");
        assert!(error.contains("no such command"), "{error}");
    }

    #[test]
    fn the_members_are_those_of_this_workspace() {
        let members = members().unwrap();
        let xtask = members.iter().find(|package| package.name == "xtask").unwrap();
        assert_eq!(xtask.manifest_path, checkout::root().join("xtask/Cargo.toml"));
        assert!(xtask.targets.iter().any(|target| target.kind == ["bin"]));
        assert!(
            xtask.dependencies.iter().any(|one| one.name == "serde_json" && one.kind.is_none())
        );
    }
}
