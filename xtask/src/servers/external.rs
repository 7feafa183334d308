//! Servers that somebody else runs: their URLs are in the environment, and their state is not ours to change.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::profile::Service;
use super::state::Dir;

/// The URLs that make servers external, if all of them are set.
pub(super) const URLS: [&str; 3] = ["DATABASE_URL", "REDIS_URL", "OPENSEARCH_URL"];

/// All variables that a live test may look at.
pub(super) const VARIABLES: [&str; 20] = [
    "DATABASE_URL",
    "DATABASE_CA_FILE",
    "REDIS_URL",
    "REDIS_CA_FILE",
    "OPENSEARCH_URL",
    "OPENSEARCH_USERNAME",
    "OPENSEARCH_PASSWORD",
    "OPENSEARCH_CA_FILE",
    "TEST_CLIENT_CERT_FILE",
    "TEST_CLIENT_KEY_FILE",
    "TEST_REDIS_PLAIN_URL",
    "TEST_DATABASE_ADMIN_URL",
    "HA_PRIMARY_URL",
    "HA_STANDBY_URL",
    "HA_STANDBY_ADMIN_URL",
    "HA_PGBOUNCER_URL",
    "HA_TOXIPROXY_URL",
    "HA_PROXIED_PRIMARY_URL",
    "HA_PROXIED_STANDBY_URL",
    "HA_PROXIED_PGBOUNCER_URL",
];

/// What of [`VARIABLES`] is set.
#[must_use]
pub(super) fn env() -> Vec<(String, String)> {
    let set = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), set(name)?))).collect()
}

/// Whether all URLs are set, and by somebody else: what `cargo xtask env` printed leads back into `dir`.
#[must_use]
pub(super) fn is_available(dir: &Dir) -> bool {
    is_external(&env(), dir)
}

fn is_external(env: &[(String, String)], dir: &Dir) -> bool {
    let ours = |(name, value): &(String, String)| {
        name.ends_with("_CA_FILE") && Path::new(value).starts_with(dir.path())
    };
    URLS.iter().all(|url| env.iter().any(|(name, _)| name == url)) && !env.iter().any(ours)
}

/// Fails if an address of these services is not in the environment.
///
/// # Errors
///
/// The variables that would have to be set.
pub(super) fn require(services: &[Service]) -> Result<()> {
    let missing: Vec<_> =
        services.iter().map(|service| variable(*service)).filter(|name| !is_set(name)).collect();
    if !missing.is_empty() {
        bail!("for external servers of this profile, set {}", missing.join(", "));
    }
    Ok(())
}

/// The services whose addresses are in the environment.
#[must_use]
pub(super) fn services() -> Vec<Service> {
    Service::ALL.into_iter().filter(|service| is_set(variable(*service))).collect()
}

/// Whether something listens at the service's URL.
///
/// # Errors
///
/// If nothing does.
pub(super) fn check(service: Service) -> Result<()> {
    let variable = variable(service);
    let url = std::env::var(variable).with_context(|| format!("{variable} is not set"))?;
    let (host, port) = address(&url).with_context(|| format!("{variable} holds no address"))?;
    let found = (host.as_str(), port)
        .to_socket_addrs()
        .with_context(|| format!("{variable}: no such host"))?;
    for address in found {
        if TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok() {
            return Ok(());
        }
    }
    bail!("nothing listens at the address in {variable}");
}

/// The variable that holds the service's URL.
const fn variable(service: Service) -> &'static str {
    match service {
        Service::Postgres => "DATABASE_URL",
        Service::Standby => "HA_STANDBY_URL",
        Service::Pgbouncer => "HA_PGBOUNCER_URL",
        Service::Toxiproxy => "HA_TOXIPROXY_URL",
        Service::Redis => "REDIS_URL",
        Service::Opensearch => "OPENSEARCH_URL",
    }
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// The first host of a URL and its port.
fn address(url: &str) -> Option<(String, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    let first = hosts.split(',').next()?;
    let usual = match scheme {
        "http" => 80,
        "https" => 443,
        "redis" | "rediss" => 6379,
        _ => 5432,
    };
    let (host, port) = match first.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (first, usual),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_ended_servers_is_not_taken_for_external_ones() {
        let dir = Dir::at("/tmp/shared-external-x".into());
        let mut env: Vec<_> =
            URLS.iter().map(|url| ((*url).to_owned(), "x://y".to_owned())).collect();
        assert!(is_external(&env, &dir));
        env.push(("DATABASE_CA_FILE".to_owned(), "/tmp/shared-external-x/certs/ca.pem".to_owned()));
        assert!(!is_external(&env, &dir));
        env.pop();
        env.pop();
        assert!(!is_external(&env, &dir), "one URL is missing");
    }

    #[test]
    fn an_address_is_found_behind_credentials() {
        let known = [
            ("postgresql+asyncpg://app:p@ss@db.example:5433/app", ("db.example", 5433)),
            ("postgres://db/app?sslmode=require", ("db", 5432)),
            ("rediss://:secret@[::1]:6380/0", ("::1", 6380)),
            ("redis://[::1]", ("::1", 6379)),
            ("https://a.example,https://b.example:9200", ("a.example", 443)),
            ("http://one:1,two:2", ("one", 1)),
        ];
        for (url, (host, port)) in known {
            assert_eq!(address(url), Some((host.to_owned(), port)), "{url}");
        }
        assert_eq!(address("nonsense"), None);
    }
}
