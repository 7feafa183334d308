//! Programs from the system: looked up first, installed by `apt-get` only where they are missing.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock::pause;
use crate::{checkout, interrupt, progress};

use super::profile::{POSTGRES_VERSION, Service};
use super::{opensearch_home, toxiproxy};

/// Installs what of Debian's packages the native `services` are made of and is missing here, all in one go.
///
/// # Errors
///
/// If something is missing and may not be installed: the one command that would.
pub fn install_for(services: &[Service]) -> Result<()> {
    let missing: Vec<_> = services.iter().filter_map(|service| missing_package(*service)).collect();
    install(&missing)
}

/// Programs that the tests use beside the servers, and their packages: they pull cables and stop processes.
const TOOLS: [(&str, &str); 2] = [("ip", "iproute2"), ("pgrep", "procps")];

/// Installs what of Debian's packages the tests themselves use and is missing here.
///
/// # Errors
///
/// If something is missing and may not be installed: the one command that would.
pub fn install_for_tests() -> Result<()> {
    let missing = TOOLS.iter().filter(|(name, _)| program(name).is_none());
    install(&missing.map(|(_, package)| *package).collect::<Vec<_>>())
}

/// What [`install`] has to bring before the server can be had. A standby is of its primary's package.
fn missing_package(service: Service) -> Option<&'static str> {
    let lacks = |name: &str| program(name).is_none();
    match service {
        Service::Postgres => postgres_dir().is_none().then_some("postgresql"),
        Service::Standby => None,
        Service::Pgbouncer => lacks("pgbouncer").then_some("pgbouncer"),
        Service::Toxiproxy => {
            (toxiproxy::is_missing() && toxiproxy::go().is_none()).then_some("golang-go")
        }
        Service::Redis => lacks("redis-server").then_some("redis-server"),
        Service::Opensearch => (opensearch_home::is_missing() && lacks("mvn")).then_some("maven"),
    }
}

/// The directory of `postgres`, `initdb` and `pg_basebackup`.
///
/// # Errors
///
/// If there is none, though the package is installed.
pub fn postgres_programs() -> Result<PathBuf> {
    postgres_dir().context("postgresql is installed, but has no initdb")
}

/// The full path of a program of a package that [`install_for`] saw to.
///
/// # Errors
///
/// If it is nowhere to be found.
pub fn installed(name: &str) -> Result<PathBuf> {
    program(name).with_context(|| format!("{name} is installed, but not in PATH"))
}

/// The full path of a program, from `PATH` and the usual directories.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join(name))
        .find(|file| is_program(file))
}

/// Whether `file` can be run.
#[must_use]
pub fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Installs Debian packages, without starting the services in them.
///
/// # Errors
///
/// If this process may not (the command that would is in the error), or `apt-get` fails.
pub fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let Some(apt) = program("apt-get") else {
        bail!("missing: {list}; install them, or a container engine for --backend compose");
    };
    if !checkout::is_root() {
        bail!("missing: {list}; run: sudo apt-get install -y --no-install-recommends {list}");
    }
    let log = checkout::cache_dir()?.join("apt.log");
    progress::say("packages", "apt-get update …");
    let apt_get = |args: &[&str]| {
        let mut command = Command::new(&apt);
        command
            .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive");
        // The packages' own services stay down: without systemd, and with it.
        command.env("RUNLEVEL", "1").env("SYSTEMD_OFFLINE", "1");
        command
    };
    // Old lists may still do: the installation has the last word.
    let _ = run_logged(apt_get(&["update"]), &log, |_| {});
    progress::say("packages", format!("apt-get install {list} …"));
    let args: Vec<_> = ["install", "-y", "--no-install-recommends"]
        .into_iter()
        .chain(packages.iter().copied())
        .collect();
    run_logged(apt_get(&args), &log, |_| {}).with_context(|| format!("cannot install {list}"))
}

/// Runs a command to its end with its output in `log`; `tick` sees the log's path now and then.
///
/// # Errors
///
/// If it fails (the end of its log is in the error), or we are interrupted: then it is ended first.
pub fn run_logged(mut command: Command, log: &Path, mut tick: impl FnMut(&Path)) -> Result<()> {
    let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if interrupt::requested() {
            child.kill()?;
            child.wait()?;
            interrupt::check()?;
        }
        tick(log);
        pause(Duration::from_millis(100));
    };
    if !status.success() {
        bail!("{name} failed ({status}); the end of {}:\n{}", log.display(), tail(log, 20));
    }
    Ok(())
}

/// The last `lines` lines of a file; nothing if there is none.
#[must_use]
pub fn tail(file: &Path, lines: usize) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Appends `text` to a log.
pub fn append(log: &Path, text: &[u8]) {
    use std::io::Write;

    // A log that cannot be written is no reason to fail what it reports.
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(log) {
        let _ = file.write_all(text);
    }
}

/// The programs of the pinned major version, else those of the newest.
fn postgres_dir() -> Option<PathBuf> {
    let complete =
        |dir: &PathBuf| is_program(&dir.join("initdb")) && is_program(&dir.join("postgres"));
    let debian = Path::new("/usr/lib/postgresql");
    let pinned = debian.join(POSTGRES_VERSION).join("bin");
    if complete(&pinned) {
        return Some(pinned);
    }
    let mut versions: Vec<u32> = fs::read_dir(debian)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    versions.sort_unstable();
    let newest =
        versions.into_iter().rev().map(|version| debian.join(version.to_string()).join("bin"));
    let in_path = program("initdb").and_then(|file| file.parent().map(Path::to_path_buf));
    newest.chain(in_path).find(complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_the_end_of_the_log() {
        let log = std::env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1 50; echo the reason >&2; exit 3"]);
        let error = run_logged(command, &log, |_| {}).unwrap_err().to_string();
        assert!(
            error.contains("the reason") && error.contains("\n50\n") && !error.contains("\n10\n"),
            "{error}"
        );
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(program("sh").is_some());
        assert!(program("no-such-program-here").is_none());
    }
}
