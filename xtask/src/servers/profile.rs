//! What the servers are, whichever backend runs them: versions, credentials, default ports.
//!
//! Everything listens on loopback only and is thrown away with `cargo xtask down`, so the passwords are fixed and
//! public: one that is made up on each `up` would hide nothing. `compose.yaml` states the same; a test compares.

use std::fmt;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A server that `up` starts.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// PostgreSQL with TLS; the primary, where there is a standby.
    Postgres,
    /// PostgreSQL that follows the primary, which waits for it with each commit.
    Standby,
    /// PgBouncer in transaction mode before the primary.
    Pgbouncer,
    /// Toxiproxy before the primary, the standby and PgBouncer.
    Toxiproxy,
    /// Redis, with TLS on one port and without on another.
    Redis,
    /// OpenSearch with its security plugin.
    Opensearch,
}

impl Service {
    /// All of them; one that is made from another comes right after it.
    pub const ALL: [Self; 6] = [
        Self::Postgres,
        Self::Standby,
        Self::Pgbouncer,
        Self::Toxiproxy,
        Self::Redis,
        Self::Opensearch,
    ];

    /// The name on the command line, in compose.yaml and in the state file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Standby => "standby",
            Self::Pgbouncer => "pgbouncer",
            Self::Toxiproxy => "toxiproxy",
            Self::Redis => "redis",
            Self::Opensearch => "opensearch",
        }
    }

    /// The version that this workspace is tested against, as far as it is pinned.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::Postgres | Self::Standby => POSTGRES_VERSION,
            Self::Pgbouncer => PGBOUNCER_VERSION,
            Self::Toxiproxy => TOXIPROXY_VERSION,
            Self::Redis => REDIS_VERSION,
            Self::Opensearch => OPENSEARCH_VERSION,
        }
    }

    /// The ports it listens on: what for, and which one where that is free.
    #[must_use]
    pub const fn ports(self) -> &'static [(&'static str, u16)] {
        match self {
            Self::Postgres => &[(TLS, 25432)],
            Self::Standby => &[(TLS, 25433)],
            Self::Pgbouncer => &[(TLS, 26432)],
            Self::Toxiproxy => {
                &[(API, 28474), (PRIMARY, 28432), (STANDBY, 28433), (PGBOUNCER, 28434)]
            }
            Self::Redis => &[(PLAIN, 26379), (TLS, 26380)],
            Self::Opensearch => &[(TLS, 29200), (TRANSPORT, 29300)],
        }
    }

    /// The port at which it is asked how it is.
    #[must_use]
    pub const fn asked_at(self) -> &'static str {
        match self {
            Self::Toxiproxy => API,
            _ => TLS,
        }
    }

    /// The backend that it is, or that it belongs to: whoever asks for one gets what belongs to it too.
    #[must_use]
    pub const fn backend(self) -> Self {
        match self {
            Self::Postgres | Self::Standby | Self::Pgbouncer | Self::Toxiproxy => Self::Postgres,
            Self::Redis => Self::Redis,
            Self::Opensearch => Self::Opensearch,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which set of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// One PostgreSQL, one Redis, one OpenSearch node; TLS on all.
    #[default]
    Single,
    /// What `single` has, and for PostgreSQL a synchronous standby, PgBouncer, and toxiproxy before all three.
    Ha,
}

impl Profile {
    /// Its servers.
    #[must_use]
    pub const fn services(self) -> &'static [Service] {
        match self {
            Self::Single => &[Service::Postgres, Service::Redis, Service::Opensearch],
            Self::Ha => &Service::ALL,
        }
    }

    /// Those of its servers that belong to the backends of `names`; all if none is named.
    ///
    /// # Errors
    ///
    /// If a name is of no server of this profile.
    pub fn select(self, names: &[Service]) -> Result<Vec<Service>> {
        if let Some(name) = names.iter().find(|name| !self.services().contains(name)) {
            bail!("{name} is not in this profile: choose another by --profile");
        }
        let is_wanted = |service: &Service| {
            names.is_empty() || names.iter().any(|name| name.backend() == service.backend())
        };
        Ok(self.services().iter().copied().filter(is_wanted).collect())
    }
}

/// The port that speaks TLS.
pub const TLS: &str = "tls";
/// The port that does not.
pub const PLAIN: &str = "plain";
/// The port for other nodes of the cluster; TLS too.
pub const TRANSPORT: &str = "transport";
/// The port where toxiproxy takes orders, by HTTP in the clear.
pub const API: &str = "api";
/// Toxiproxy's port before the primary, and the name of that proxy.
pub const PRIMARY: &str = "primary";
/// Toxiproxy's port before the standby, and the name of that proxy.
pub const STANDBY: &str = "standby";
/// Toxiproxy's port before PgBouncer, and the name of that proxy.
pub const PGBOUNCER: &str = "pgbouncer";

/// The major version; Debian 12 and the image follow its minor releases.
pub const POSTGRES_VERSION: &str = "15";
/// The version in Debian 12, without its patch level.
pub const PGBOUNCER_VERSION: &str = "1.18";
/// The version that is built; the Go of Debian 12 can.
pub const TOXIPROXY_VERSION: &str = "2.5.0";
/// The version in Debian 12.
pub const REDIS_VERSION: &str = "7.0.15";
/// The version on Maven Central with a security plugin.
pub const OPENSEARCH_VERSION: &str = "3.4.0";

/// The role and the database of the application.
pub const DATABASE_USER: &str = "app";
/// Its password.
pub const DATABASE_PASSWORD: &str = "app-secret";
/// The superuser.
pub const DATABASE_ADMIN_USER: &str = "postgres";
/// Its password.
pub const DATABASE_ADMIN_PASSWORD: &str = "postgres-secret";
/// The role without a password: it logs in by a client certificate for [`DATABASE_USER`] alone.
pub const DATABASE_CERT_USER: &str = "cert_app";
/// The role that the standby follows the primary as.
pub const REPLICATION_USER: &str = "replicator";
/// Its password.
pub const REPLICATION_PASSWORD: &str = "replicator-secret";
/// What the standby calls itself, and its slot on the primary.
pub const STANDBY_NAME: &str = "standby";
/// The password of Redis' default user.
pub const REDIS_PASSWORD: &str = "redis-secret";
/// The administrator of OpenSearch.
pub const OPENSEARCH_USERNAME: &str = "admin";
/// Its password.
pub const OPENSEARCH_PASSWORD: &str = "admin";

/// Settings of PostgreSQL beside TLS and the port.
pub const POSTGRES_SETTINGS: &[(&str, &str)] =
    &[("max_connections", "100"), ("fsync", "off"), ("full_page_writes", "off")];
/// Settings of the standby beside those: how soon it comes back to a primary that was away.
pub const STANDBY_SETTINGS: &[(&str, &str)] = &[("wal_retrieve_retry_interval", "200ms")];
/// Settings of PgBouncer beside TLS, addresses and who may come in. `extra_float_digits` is what drivers set at their start.
pub const PGBOUNCER_SETTINGS: &[(&str, &str)] = &[
    ("pool_mode", "transaction"),
    ("auth_type", "scram-sha-256"),
    ("default_pool_size", "20"),
    ("max_client_conn", "500"),
    // Soon after the primary is back: the default waits for 15 s.
    ("server_login_retry", "1"),
    ("ignore_startup_parameters", "extra_float_digits"),
];
/// Options of `initdb`, so that both ways sort and search alike.
pub const POSTGRES_INITDB: &[&str] =
    &["--encoding=UTF8", "--locale=C.UTF-8", "--text-search-config=english"];
/// The heap of OpenSearch.
pub const OPENSEARCH_HEAP: &[&str] = &["-Xms512m", "-Xmx512m"];

/// Who may come in to PostgreSQL: over TLS only, by password; `cert_app` by the client certificate of `app`. No other
/// role than [`REPLICATION_USER`] may follow.
pub const POSTGRES_HBA: &str = "\
hostssl all cert_app all cert map=client
hostssl all all all scram-sha-256
hostssl replication replicator all scram-sha-256
";
/// Which role a client certificate may take: `map`, its common name, the role.
pub const POSTGRES_IDENT: &str = "\
client app app
client app cert_app
";

/// Makes the roles and the database. Each statement ends in an empty line, as single-user mode wants it.
///
/// A primary waits for its standby from its next start on: until then, nothing would end for want of one.
#[must_use]
pub fn postgres_init_sql(has_standby: bool) -> String {
    let mut sql = format!(
        "CREATE ROLE {DATABASE_USER} LOGIN PASSWORD '{DATABASE_PASSWORD}';\n\n\
         CREATE ROLE {DATABASE_CERT_USER} LOGIN IN ROLE {DATABASE_USER};\n\n\
         CREATE DATABASE {DATABASE_USER} OWNER {DATABASE_USER};\n\n"
    );
    if has_standby {
        sql.push_str(&format!(
            "CREATE ROLE {REPLICATION_USER} LOGIN REPLICATION PASSWORD '{REPLICATION_PASSWORD}';\n\n\
             SELECT pg_create_physical_replication_slot('{STANDBY_NAME}');\n\n\
             ALTER SYSTEM SET synchronous_standby_names = '{STANDBY_NAME}';\n\n"
        ));
    }
    sql
}

/// `config.yml` of the security plugin: basic authentication, and the common name of a client certificate.
pub const OPENSEARCH_SECURITY_CONFIG: &str = "\
_meta:
  type: config
  config_version: 2
config:
  dynamic:
    http:
      anonymous_auth_enabled: false
    authc:
      basic_internal_auth_domain:
        http_enabled: true
        transport_enabled: true
        order: 1
        http_authenticator:
          type: basic
          challenge: true
        authentication_backend:
          type: internal
      clientcert_auth_domain:
        http_enabled: true
        transport_enabled: false
        order: 0
        http_authenticator:
          type: clientcert
          challenge: false
          config:
            username_attribute: cn
        authentication_backend:
          type: noop
";
/// `roles_mapping.yml` of the security plugin: the administrator, and the client certificate of `app`.
pub const OPENSEARCH_ROLES_MAPPING: &str = "\
_meta:
  type: rolesmapping
  config_version: 2
all_access:
  reserved: false
  backend_roles: [admin]
  users: [app]
own_index:
  reserved: false
  users: ['*']
";
/// Settings of OpenSearch that are the same everywhere, as lines of `opensearch.yml`.
pub const OPENSEARCH_SETTINGS: &str = "\
plugins.security.ssl.transport.enforce_hostname_verification: false
plugins.security.ssl.http.enabled: true
plugins.security.ssl.http.clientauth_mode: OPTIONAL
plugins.security.allow_default_init_securityindex: true
plugins.security.nodes_dn: CN=opensearch
plugins.security.restapi.roles_enabled: all_access
cluster.routing.allocation.disk.threshold_enabled: false
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_backend_by_name_comes_with_what_belongs_to_it_and_with_nothing_else() {
        let single = Profile::Single.select(&[Service::Postgres]).unwrap();
        assert_eq!(single, [Service::Postgres]);
        let whole = [Service::Postgres, Service::Standby, Service::Pgbouncer, Service::Toxiproxy];
        for name in whole {
            assert_eq!(Profile::Ha.select(&[name]).unwrap(), whole, "{name}");
        }
        assert_eq!(Profile::Ha.select(&[]).unwrap(), Service::ALL);
        let error = Profile::Single.select(&[Service::Standby]).unwrap_err().to_string();
        assert!(error.contains("standby") && error.contains("--profile"), "{error}");
    }

    #[test]
    fn no_two_servers_prefer_one_port() {
        let mut ports: Vec<_> = Service::ALL
            .iter()
            .flat_map(|service| service.ports())
            .map(|(_, port)| *port)
            .collect();
        let all = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), all);
    }
}
