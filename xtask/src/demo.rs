//! `cargo xtask demo`: the main job, end to end, on real servers, each claim proven from outside.

mod app;
mod claims;
mod http;
mod outside;

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::clock::{Stopwatch, pause};
use crate::interrupt;
use crate::progress::{say, seconds};
use crate::servers::profile::TLS;
use crate::servers::{Backend, BackendKind, Profile, Servers, Service};

pub use app::App;
pub use claims::{CLAIMS, Claim, Stage};
pub use http::{Client, Reply};
pub use outside::Outside;

/// Show the main job on real servers: search, cache, donations, an outage and the recovery from it
///
/// Brings the servers up if need be, starts the example service, and proves each claim of the README from outside, with
/// psql, redis-cli and OpenSearch's own count. It really stops OpenSearch. The servers stay up: `cargo xtask down`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Afterwards, start the example service once more and serve until Ctrl-C
    #[arg(long)]
    pub serve: bool,
}

impl Demo {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If the servers or the example service cannot be had, or a claim fails.
    pub fn run(self) -> Result<()> {
        interrupt::catch()?;
        let servers = Servers::up(Profile::Single, Backend::Auto)?;
        if servers.backend() == BackendKind::External {
            bail!(
                "the demo stops OpenSearch, and those that DATABASE_URL, REDIS_URL and OPENSEARCH_URL name are not ours \
                 to stop: unset them, and it brings up its own"
            );
        }
        let outside = Outside::of(&servers)?;
        say("demo", "building the example service");
        let app = start(&servers)?;
        let watch = Stopwatch::start();
        let mut stage = Stage { app, outside, servers };
        let failed = prove_all(&mut stage)?;
        say("demo", format_args!("took {}", seconds(watch.elapsed())));
        println!("demo: {} passed, {failed} failed", CLAIMS.len() - failed);
        if failed > 0 {
            bail!("the log of the example service is {}", log(&stage.servers).display());
        }
        if self.serve {
            drop(stage.app);
            serve(&stage.servers)?;
        }
        Ok(())
    }
}

/// The example service, with short times so that an outage can be watched. It finds Redis through discovery.
///
/// # Errors
///
/// If it does not build or start.
pub fn start(servers: &Servers) -> Result<App> {
    let mut env = servers.env();
    let short = [
        ("DATABASE_RESET_TIMEOUT", "2"),
        ("REDIS_RESET_TIMEOUT", "2"),
        ("OPENSEARCH_RESET_TIMEOUT", "2"),
        ("MONITORING_INTERVAL", "1"),
        ("RUST_LOG", "info"),
        ("NO_COLOR", "1"),
    ];
    env.extend(short.map(|(name, value)| (name.to_owned(), value.to_owned())));
    if let Some(port) = servers.port(Service::Redis, TLS) {
        env.push(("DISCOVERY_REDIS".to_owned(), format!("localhost:{port}")));
    }
    App::start(env, log(servers))
}

fn log(servers: &Servers) -> std::path::PathBuf {
    servers.dir().unwrap_or_else(std::env::temp_dir).join("campaigns.log")
}

/// Proves the claims in order and counts those that fail.
fn prove_all(stage: &mut Stage) -> Result<usize> {
    let mut failed = 0;
    for (number, claim) in (1..).zip(CLAIMS) {
        match (claim.prove)(stage) {
            Ok(seen) => println!("{number:2}. ok      {}: {seen}", claim.text),
            Err(error) => {
                interrupt::check()?;
                failed += 1;
                println!("{number:2}. FAILED  {}: {error:#}", claim.text);
            }
        }
    }
    Ok(failed)
}

fn serve(servers: &Servers) -> Result<()> {
    let app = start(servers)?;
    println!(
        "campaigns serves at http://{} until Ctrl-C; try /campaigns?q=solar, /health/detailed, /metrics",
        app.address()
    );
    while app.is_running() && !interrupt::requested() {
        pause(Duration::from_millis(100));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkout;

    #[test]
    fn the_readme_numbers_the_claims_that_are_proven() {
        let readme = std::fs::read_to_string(checkout::root().join("README.md")).unwrap();
        for (number, claim) in (1..).zip(CLAIMS) {
            let line = format!("{number}. {}", claim.text);
            assert!(readme.lines().any(|read| read == line), "not in the README: {line}");
        }
        assert!(CLAIMS.len() >= 12);
    }
}
