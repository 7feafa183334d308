//! The variables by which tests, examples and shells find the servers that `up` started.

use super::certs::ClientFiles;
use super::profile::{
    API, DATABASE_ADMIN_PASSWORD, DATABASE_ADMIN_USER, DATABASE_PASSWORD, DATABASE_USER,
    OPENSEARCH_PASSWORD, OPENSEARCH_USERNAME, PGBOUNCER, PLAIN, PRIMARY, REDIS_PASSWORD, STANDBY,
    Service, TLS,
};
use super::state::State;

/// The variables of the servers in `state`, with their values.
#[must_use]
pub(super) fn env(state: &State, files: &ClientFiles) -> Vec<(String, String)> {
    let ca = || files.ca.display().to_string();
    let port = |service, purpose| {
        state.find(service).and_then(|record| record.ports.get(purpose).copied())
    };
    let mut env = Vec::new();
    let mut set = |name: &str, value: String| env.push((name.to_owned(), value));

    if let Some(port) = port(Service::Postgres, TLS) {
        let application = application(port);
        set("DATABASE_URL", application.replace("postgresql:", "postgresql+asyncpg:"));
        set("DATABASE_CA_FILE", ca());
        set("TEST_DATABASE_ADMIN_URL", admin(port));
    }
    if let Some((plain, tls)) = port(Service::Redis, PLAIN).zip(port(Service::Redis, TLS)) {
        set("REDIS_URL", format!("rediss://:{REDIS_PASSWORD}@localhost:{tls}/0"));
        set("REDIS_CA_FILE", ca());
        set("TEST_REDIS_PLAIN_URL", format!("redis://:{REDIS_PASSWORD}@127.0.0.1:{plain}/0"));
    }
    if let Some(port) = port(Service::Opensearch, TLS) {
        set("OPENSEARCH_URL", format!("https://localhost:{port}"));
        set("OPENSEARCH_USERNAME", OPENSEARCH_USERNAME.to_owned());
        set("OPENSEARCH_PASSWORD", OPENSEARCH_PASSWORD.to_owned());
        set("OPENSEARCH_CA_FILE", ca());
    }
    set("TEST_CLIENT_CERT_FILE", files.cert.display().to_string());
    set("TEST_CLIENT_KEY_FILE", files.key.display().to_string());
    if let Some((primary, standby)) = port(Service::Postgres, TLS).zip(port(Service::Standby, TLS))
    {
        set("HA_PRIMARY_URL", application(primary));
        set("HA_STANDBY_URL", application(standby));
        set("HA_STANDBY_ADMIN_URL", admin(standby));
    }
    if let Some(port) = port(Service::Pgbouncer, TLS) {
        set("HA_PGBOUNCER_URL", application(port));
    }
    if let Some(port) = port(Service::Toxiproxy, API) {
        set("HA_TOXIPROXY_URL", format!("http://127.0.0.1:{port}"));
    }
    for (name, purpose) in [
        ("HA_PROXIED_PRIMARY_URL", PRIMARY),
        ("HA_PROXIED_STANDBY_URL", STANDBY),
        ("HA_PROXIED_PGBOUNCER_URL", PGBOUNCER),
    ] {
        if let Some(port) = port(Service::Toxiproxy, purpose) {
            set(name, application(port));
        }
    }
    env
}

/// The application's URL of the database behind a port.
fn application(port: u16) -> String {
    format!("postgresql://{DATABASE_USER}:{DATABASE_PASSWORD}@localhost:{port}/{DATABASE_USER}")
}

/// The superuser's URL of the same database.
fn admin(port: u16) -> String {
    format!(
        "postgresql://{DATABASE_ADMIN_USER}:{DATABASE_ADMIN_PASSWORD}@localhost:{port}/{DATABASE_USER}"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::servers::profile::Profile;
    use crate::servers::state::Record;
    use crate::servers::{BackendKind, external};

    fn names(profile: Profile, only: &[Service]) -> BTreeSet<String> {
        let record = |service: Service| Record {
            service,
            ports: service.ports().iter().map(|(name, port)| ((*name).to_owned(), *port)).collect(),
            log: "/log".into(),
            launch: None,
            process: None,
        };
        let servers = profile.select(only).unwrap().into_iter().map(record).collect();
        let state = State { checkout: "/".into(), backend: BackendKind::Native, profile, servers };
        let env = env(&state, &ClientFiles::in_dir(Path::new("/certs")));
        env.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn no_variable_is_set_that_external_servers_could_not_set_and_none_is_forgotten() {
        let known: BTreeSet<_> = external::VARIABLES.map(ToString::to_string).into();
        assert_eq!(names(Profile::Ha, &[]), known);
    }

    #[test]
    fn a_server_that_does_not_run_has_no_variable() {
        let single = names(Profile::Single, &[]);
        assert!(!single.iter().any(|name| name.starts_with("HA_")), "{single:?}");
        let alone = names(Profile::Ha, &[Service::Postgres]);
        let other = |name: &&String| name.contains("REDIS") || name.contains("OPENSEARCH");
        assert_eq!(alone.iter().find(other), None);
        assert!(alone.contains("HA_PROXIED_PGBOUNCER_URL"));
    }
}
