//! Toxiproxy as a process of this machine: built by Go where it is missing, its proxies, its command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::process::{Launch, User};
use crate::{checkout, progress};

use super::certs::write;
use super::packages::{install, is_program, program, run_logged};
use super::profile::{API, PGBOUNCER, PRIMARY, STANDBY, TOXIPROXY_VERSION};
use super::state::{Record, lock};

/// The package of the server in its module.
const PACKAGE: &str = "github.com/Shopify/toxiproxy/v2/cmd/server";

/// Whether [`find_or_build`] would have to build.
#[must_use]
pub fn is_missing() -> bool {
    !finished().is_ok_and(|file| is_program(&file))
}

/// The pinned version from the cache; built into it where it is missing.
///
/// # Errors
///
/// If there is no Go and none may be installed, or it cannot build it.
pub fn find_or_build() -> Result<PathBuf> {
    let finished = finished()?;
    let cache = checkout::cache_dir()?;
    let _guard = lock(&cache.join("toxiproxy.lock"))?;
    if is_program(&finished) {
        return Ok(finished);
    }
    let go = match go() {
        Some(go) => go,
        None => {
            install(&["golang-go"]).context("there is no Go to build toxiproxy with")?;
            go().context("golang-go is installed, but not in PATH")?
        }
    };
    progress::say("toxiproxy", format!("building {TOXIPROXY_VERSION} by `go install` …"));
    let draft = cache.join("toxiproxy.new");
    let mut command = Command::new(go);
    command.args(["install", &format!("{PACKAGE}@v{TOXIPROXY_VERSION}")]).current_dir(&cache);
    command.env("GOBIN", &draft).env("CGO_ENABLED", "0");
    run_logged(command, &cache.join("toxiproxy.log"), |_| {})
        .context("cannot build toxiproxy: a proxy of Go's modules is set by GOPROXY")?;
    fs::rename(draft.join("server"), &finished).context("cannot name the finished toxiproxy")?;
    let _ = fs::remove_dir(draft);
    Ok(finished)
}

/// The `go` program; where its own archive puts it, it is not in everybody's `PATH`.
#[must_use]
pub fn go() -> Option<PathBuf> {
    let unpacked = PathBuf::from("/usr/local/go/bin/go");
    program("go").or_else(|| is_program(&unpacked).then_some(unpacked))
}

/// Writes `home/proxies.json`; says how to start it. `behind` are the ports of primary, standby and PgBouncer.
///
/// # Errors
///
/// If the file cannot be written.
pub fn prepare(
    home: &Path,
    record: &Record,
    program: &Path,
    user: Option<User>,
    behind: [u16; 3],
) -> Result<Launch> {
    let upstreams = behind.map(|port| format!("localhost:{port}"));
    let listen =
        [PRIMARY, STANDBY, PGBOUNCER].map(|name| format!("127.0.0.1:{}", record.port(name)));
    write(&home.join("proxies.json"), &proxies(&listen, &upstreams), 0o600, user.as_ref())?;
    let port = record.port(API).to_string();
    let args = ["-host", "127.0.0.1", "-port", &port, "-config", "proxies.json"];
    Ok(Launch {
        program: program.to_path_buf(),
        args: args.map(ToOwned::to_owned).to_vec(),
        // Below that, each request to the interface is a line in the log.
        env: vec![("LOG_LEVEL".to_owned(), "info".to_owned())],
        dir: home.to_path_buf(),
        user,
    })
}

/// The content of `proxies.json`: the addresses that primary, standby and PgBouncer are reached at, and their own.
#[must_use]
pub fn proxies(listen: &[String; 3], upstreams: &[String; 3]) -> String {
    let names = [PRIMARY, STANDBY, PGBOUNCER].iter();
    let proxies: Vec<_> = names
        .zip(listen)
        .zip(upstreams)
        .map(|((name, listen), upstream)| {
            json!({ "name": name, "listen": listen, "upstream": upstream, "enabled": true })
        })
        .collect();
    json!(proxies).to_string()
}

fn finished() -> Result<PathBuf> {
    Ok(checkout::cache_dir()?.join(format!("toxiproxy-{TOXIPROXY_VERSION}")))
}
