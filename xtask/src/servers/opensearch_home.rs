//! An OpenSearch installation with its security plugin, put together from the jars that are published.
//!
//! There is no package and no archive of the distribution to be had by the tools that a developer's machine is set up
//! for, but Maven has every part. They are laid out as the distribution does: `lib/` for the server, `modules/NAME/` and
//! `plugins/NAME/` with a descriptor and jars of their own. A class that is both in `lib/` and in a module is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::clock::Stopwatch;
use crate::{checkout, progress};

use super::java::Java;
use super::packages::{program, run_logged};
use super::profile::OPENSEARCH_VERSION as VERSION;
use super::state::lock;

/// Goes up when the layout changes, so that an old one in the cache is not taken for it.
const LAYOUT: u32 = 1;

/// What Maven downloads with; pinned, as the default is as old as the Maven at hand.
const DEPENDENCY_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1";

/// The libraries, without what follows from them.
const LIBRARIES: &[(&str, &str, &str)] = &[
    ("org.opensearch", "opensearch", VERSION),
    ("org.opensearch", "opensearch-plugin-classloader", VERSION),
    ("org.opensearch", "opensearch-agent-bootstrap", VERSION),
    ("org.opensearch.plugin", "transport-netty4-client", VERSION),
    ("org.opensearch.plugin", "analysis-common", VERSION),
    ("org.opensearch.plugin", "reindex-client", VERSION),
    ("org.opensearch.plugin", "lang-painless", VERSION),
    ("org.apache.logging.log4j", "log4j-core", "2.21.0"),
    ("org.apache.commons", "commons-collections4", "4.5.0"),
];

/// The directory below `plugins/`, too.
const SECURITY: &str = "opensearch-security";

/// A module: its name, its class, and the jars that move out of `lib/`, by how their names begin.
const MODULES: &[(&str, &str, &[&str])] = &[
    (
        "transport-netty4",
        "org.opensearch.transport.Netty4ModulePlugin",
        &["transport-netty4-client-", "netty-"],
    ),
    (
        "analysis-common",
        "org.opensearch.analysis.common.CommonAnalysisModulePlugin",
        &["analysis-common-"],
    ),
    (
        "lang-painless",
        "org.opensearch.painless.PainlessModulePlugin",
        &["lang-painless-", "asm-", "antlr4-", "opensearch-scripting-painless-spi-"],
    ),
    (
        "reindex",
        "org.opensearch.index.reindex.ReindexModulePlugin",
        &[
            "reindex-client-",
            "http",
            "commons-",
            "opensearch-rest-client-",
            "opensearch-ssl-config-",
            "slf4j-",
        ],
    ),
];

/// Whether [`find_or_download`] would have to download.
#[must_use]
pub fn is_missing() -> bool {
    let cached = |all_locales| {
        checkout::cache_dir().is_ok_and(|cache| cache.join(dir_name(all_locales)).is_dir())
    };
    !cached(true) && !cached(false)
}

/// The installation in the cache, put there if need be.
///
/// # Errors
///
/// If it cannot be downloaded; the end of Maven's output is in the error.
pub fn find_or_download(java: &Java) -> Result<PathBuf> {
    let cache = checkout::cache_dir()?;
    let finished = cache.join(dir_name(java.all_locales));
    if finished.is_dir() {
        return Ok(finished);
    }
    let _guard = lock(&cache.join("opensearch.lock"))?;
    if finished.is_dir() {
        return Ok(finished);
    }
    let draft = cache.join("opensearch.new");
    if draft.exists() {
        fs::remove_dir_all(&draft)?;
    }
    fs::create_dir(&draft)?;
    download(&draft, &cache)?;
    lay_out(&draft, java.all_locales)?;
    fs::rename(&draft, &finished).context("cannot name the finished OpenSearch")?;
    Ok(finished)
}

fn dir_name(all_locales: bool) -> String {
    let variant = if all_locales { "" } else { "-built-in-analyzers" };
    format!("opensearch-{VERSION}-{LAYOUT}{variant}")
}

/// The server's jars into `lib/`, the security plugin into `plugins/`.
fn download(draft: &Path, cache: &Path) -> Result<()> {
    let mvn = program("mvn").context("maven is installed, but mvn is not in PATH")?;
    let project = draft.join("pom.xml");
    fs::write(&project, project_file())?;
    let steps = [
        ("the server and its modules", "copy-dependencies", draft.join("lib"), None),
        (
            "the security plugin",
            "unpack",
            draft.join("plugins").join(SECURITY),
            Some(format!("-Dartifact=org.opensearch.plugin:{SECURITY}:{VERSION}.0:zip")),
        ),
    ];
    for (number, (what, goal, target, artifact)) in steps.into_iter().enumerate() {
        let step = format!("downloading {}/2", number + 1);
        progress::say("opensearch", format!("{step}: {what} …"));
        let mut command = Command::new(&mvn);
        command
            .args(["--batch-mode", "--file"])
            .arg(&project)
            .arg(format!("{DEPENDENCY_PLUGIN}:{goal}"));
        command.arg(format!("-DoutputDirectory={}", target.display())).args(artifact);
        let mut said = Stopwatch::start();
        let tick = |log: &Path| {
            if said.elapsed().as_secs() >= 3 {
                said = Stopwatch::start();
                let files =
                    fs::read_to_string(log).unwrap_or_default().matches("Downloaded from").count();
                progress::say("opensearch", format!("{step}: {files} files so far …"));
            }
        };
        run_logged(command, &cache.join("maven.log"), tick)
            .context("cannot download OpenSearch")?;
    }
    fs::remove_file(&project)?;
    Ok(())
}

fn project_file() -> String {
    let dependencies: String = LIBRARIES
        .iter()
        .map(|(group, artifact, version)| {
            format!(
                "    <dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version></dependency>\n"
            )
        })
        .collect();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  <modelVersion>4.0.0</modelVersion>\n  \
         <groupId>local</groupId><artifactId>opensearch-home</artifactId><version>{LAYOUT}</version>\
         <packaging>pom</packaging>\n  <dependencies>\n{dependencies}  </dependencies>\n</project>\n"
    )
}

fn lay_out(home: &Path, all_locales: bool) -> Result<()> {
    let lib = home.join("lib");
    let plugin = home.join("plugins").join(SECURITY);
    for (name, class, jars) in MODULES {
        let module = home.join("modules").join(name);
        fs::create_dir_all(&module)?;
        let moved = move_jars(&lib, &module, jars, &plugin)?;
        if moved == 0 {
            bail!("no jar for the module {name}");
        }
        fs::write(module.join("plugin-descriptor.properties"), descriptor(name, class))?;
    }
    if !all_locales {
        // It segments Thai, and does not start where Java cannot.
        fs::remove_dir_all(home.join("modules/analysis-common"))?;
    }
    // The server makes these where they are missing, but may not write here.
    for dir in ["bin", "config", "logs"] {
        fs::create_dir_all(home.join(dir))?;
    }
    fs::rename(plugin.join("config").join(SECURITY), home.join("security-config"))
        .or_else(|_| fs::rename(plugin.join("config"), home.join("security-config")))
        .context("the security plugin has no config")?;
    // It would extend a module that is not published.
    let path = plugin.join("plugin-descriptor.properties");
    let shipped = fs::read_to_string(&path)?;
    let kept: Vec<_> =
        shipped.lines().filter(|line| !line.starts_with("extended.plugins=")).collect();
    fs::write(&path, format!("{}\nextended.plugins=\n", kept.join("\n")))?;
    Ok(())
}

/// Moves the jars of a module out of `lib`; one that the security plugin needs and does not bring goes there.
fn move_jars(lib: &Path, module: &Path, beginnings: &[&str], plugin: &Path) -> Result<usize> {
    let mut moved = 0;
    for entry in fs::read_dir(lib)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("commons-collections4-") {
            fs::rename(entry.path(), plugin.join(name))?;
        } else if beginnings.iter().any(|beginning| name.starts_with(beginning)) {
            fs::rename(entry.path(), module.join(name))?;
            moved += 1;
        }
    }
    Ok(moved)
}

fn descriptor(name: &str, class: &str) -> String {
    format!(
        "description={name}\nversion={VERSION}\nname={name}\nclassname={class}\njava.version=21\n\
         opensearch.version={VERSION}\nextended.plugins=\nhas.native.controller=false\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files that Maven brings, in small.
    fn downloaded(name: &str) -> PathBuf {
        let home = std::env::temp_dir().join(format!("xtask-home-{name}-{}", std::process::id()));
        let (lib, plugin) = (home.join("lib"), home.join("plugins").join(SECURITY));
        fs::create_dir_all(&lib).unwrap();
        fs::create_dir_all(plugin.join("config")).unwrap();
        let jars =
            ["lucene-core-10", "netty-buffer-4", "transport-netty4-client-3", "analysis-common-3"];
        let more = [
            "lang-painless-3",
            "asm-9",
            "reindex-client-3",
            "httpcore5-5",
            "commons-codec-1",
            "commons-collections4-4",
        ];
        for jar in jars.into_iter().chain(more) {
            fs::write(lib.join(format!("{jar}.jar")), "").unwrap();
        }
        fs::write(plugin.join("config/roles.yml"), "").unwrap();
        fs::write(plugin.join("plugin-descriptor.properties"), "a=b\nextended.plugins=x,y\nc=d\n")
            .unwrap();
        home
    }

    #[test]
    fn no_jar_is_both_in_lib_and_in_a_module() {
        let home = downloaded("hell");
        lay_out(&home, true).unwrap();
        let left: Vec<_> = fs::read_dir(home.join("lib"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["lucene-core-10.jar"]);
        assert!(home.join("modules/reindex/commons-codec-1.jar").exists());
        assert!(home.join("plugins/opensearch-security/commons-collections4-4.jar").exists());
        assert!(home.join("security-config/roles.yml").exists());
        let descriptor = fs::read_to_string(
            home.join("plugins/opensearch-security/plugin-descriptor.properties"),
        )
        .unwrap();
        assert_eq!(descriptor, "a=b\nc=d\nextended.plugins=\n");
        fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn a_java_without_locales_gets_no_module_that_needs_them() {
        let home = downloaded("locales");
        lay_out(&home, false).unwrap();
        assert!(!home.join("modules/analysis-common").exists());
        assert!(home.join("modules/transport-netty4").exists());
        fs::remove_dir_all(home).unwrap();
    }
}
