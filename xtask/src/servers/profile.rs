//! What the servers are, whichever backend runs them: versions, credentials, default ports.
//!
//! Everything listens on loopback only and is thrown away with `cargo xtask down`, so the passwords are fixed and
//! public: one that is made up on each `up` would hide nothing. `compose.yaml` states the same; a test compares.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A server that `up` starts.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// PostgreSQL with TLS.
    Postgres,
    /// Redis, with TLS on one port and without on another.
    Redis,
    /// OpenSearch with its security plugin.
    Opensearch,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Redis, Self::Opensearch];

    /// The name on the command line, in compose.yaml and in the state file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Opensearch => "opensearch",
        }
    }

    /// The version that this workspace is tested against, as far as it is pinned.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::Postgres => POSTGRES_VERSION,
            Self::Redis => REDIS_VERSION,
            Self::Opensearch => OPENSEARCH_VERSION,
        }
    }

    /// The ports it listens on: what for, and which one where that is free.
    #[must_use]
    pub const fn ports(self) -> &'static [(&'static str, u16)] {
        match self {
            Self::Postgres => &[(TLS, 25432)],
            Self::Redis => &[(PLAIN, 26379), (TLS, 26380)],
            Self::Opensearch => &[(TLS, 29200), (TRANSPORT, 29300)],
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
}

impl Profile {
    /// Its servers.
    #[must_use]
    pub const fn services(self) -> &'static [Service] {
        match self {
            Self::Single => &Service::ALL,
        }
    }
}

/// The port that speaks TLS.
pub const TLS: &str = "tls";
/// The port that does not.
pub const PLAIN: &str = "plain";
/// The port for other nodes of the cluster; TLS too.
pub const TRANSPORT: &str = "transport";

/// The major version; Debian 12 and the image follow its minor releases.
pub const POSTGRES_VERSION: &str = "15";
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
/// The password of Redis' default user.
pub const REDIS_PASSWORD: &str = "redis-secret";
/// The administrator of OpenSearch.
pub const OPENSEARCH_USERNAME: &str = "admin";
/// Its password.
pub const OPENSEARCH_PASSWORD: &str = "admin";

/// Settings of PostgreSQL beside TLS and the port.
pub const POSTGRES_SETTINGS: &[(&str, &str)] =
    &[("max_connections", "100"), ("fsync", "off"), ("full_page_writes", "off")];
/// Options of `initdb`, so that both ways sort and search alike.
pub const POSTGRES_INITDB: &[&str] =
    &["--encoding=UTF8", "--locale=C.UTF-8", "--text-search-config=english"];
/// The heap of OpenSearch.
pub const OPENSEARCH_HEAP: &[&str] = &["-Xms512m", "-Xmx512m"];

/// Who may come in to PostgreSQL: over TLS only, by password; `cert_app` by the client certificate of `app`.
pub const POSTGRES_HBA: &str = "\
hostssl all cert_app all cert map=client
hostssl all all all scram-sha-256
";
/// Which role a client certificate may take: `map`, its common name, the role.
pub const POSTGRES_IDENT: &str = "\
client app app
client app cert_app
";

/// Makes the roles and the database. Each statement ends in an empty line, as single-user mode wants it.
#[must_use]
pub fn postgres_init_sql() -> String {
    format!(
        "CREATE ROLE {DATABASE_USER} LOGIN PASSWORD '{DATABASE_PASSWORD}';\n\n\
         CREATE ROLE {DATABASE_CERT_USER} LOGIN IN ROLE {DATABASE_USER};\n\n\
         CREATE DATABASE {DATABASE_USER} OWNER {DATABASE_USER};\n\n"
    )
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
