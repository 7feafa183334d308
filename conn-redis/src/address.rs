//! `REDIS_URL`: where Redis is, and who we are there.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use deadpool_redis::redis::{ConnectionAddr, IntoConnectionInfo, ProtocolVersion};
use resilience_core::settings::{Held, redact_url};
use resilience_core::{Backend, Endpoint};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// The forms that a URL may have.
const FORMS: &str = "redis://[[user]:password@]host[:port][/database], rediss:// for TLS, \
                     or unix:///path?db=database&user=user&pass=password";

/// Where to connect.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    /// A host and port.
    Tcp {
        host: Arc<str>,
        port: u16,
        /// The name that the certificate must carry.
        server_name: Arc<str>,
    },
    /// A socket of this machine.
    Unix(PathBuf),
}

impl Target {
    pub(crate) fn endpoint(endpoint: &Endpoint) -> Self {
        Self::Tcp {
            host: endpoint.address.host().into(),
            port: endpoint.address.port(),
            server_name: endpoint.server_name().into(),
        }
    }

    /// As metrics name it.
    pub(crate) fn backend(&self) -> Backend {
        let (address, port) = match self {
            Self::Tcp { host, port, .. } => (host.to_string(), Some(*port)),
            Self::Unix(path) => (path.display().to_string(), None),
        };
        Backend { system: "redis", address: Some(address.into()), port }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Who logs in, to which database, in which protocol.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) username: Option<String>,
    pub(crate) password: Option<SecretString>,
    pub(crate) database: i64,
    pub(crate) protocol: ProtocolVersion,
}

/// A parsed `REDIS_URL`.
#[derive(Clone, Debug)]
pub(crate) struct RedisUrl {
    pub(crate) target: Target,
    pub(crate) login: Login,
    pub(crate) tls: bool,
}

impl RedisUrl {
    /// Parses `text`; otherwise, what it holds and what is allowed.
    pub(crate) fn parse(text: &SecretString) -> Result<Self, (Held, String)> {
        let text = text.expose_secret().trim();
        let url = Url::parse(text).map_err(|_| (Held::Secret, FORMS.to_owned()))?;
        let wrong = |allowed: &str| (Held::Text(redact_url(text)), allowed.to_owned());
        let tls = match url.scheme() {
            "redis" | "unix" | "redis+unix" => false,
            "rediss" => true,
            scheme if scheme.contains("sentinel") || scheme.contains("cluster") => {
                let allowed = format!(
                    "one server; sentinel and cluster are not supported yet by this version: {FORMS}"
                );
                return Err(wrong(&allowed));
            }
            _ => return Err(wrong(FORMS)),
        };
        let unix = url.scheme().contains("unix");
        if url.host_str().is_some_and(|host| host.contains(',')) {
            return Err(wrong(
                "one host; sentinel and cluster are not supported yet by this version",
            ));
        }
        if url.fragment().is_some() {
            return Err(wrong("no fragment; the check of certificates cannot be turned off"));
        }
        let keys: &[&str] = if unix { &["db", "user", "pass", "protocol"] } else { &["protocol"] };
        if url.query_pairs().any(|(key, _)| !keys.contains(&key.as_ref())) {
            return Err(wrong(&format!("no parameters but {}", keys.join(", "))));
        }
        if unix && (!url.username().is_empty() || url.password().is_some()) {
            return Err(wrong("user and password as ?user=user&pass=password"));
        }
        // redis-rs says what is wrong in fixed words; a detail could quote the URL.
        let info = url.into_connection_info().map_err(|_| wrong(FORMS))?;
        let target = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }
                if *port > 0 =>
            {
                let host: Arc<str> = host.as_str().into();
                Target::Tcp { server_name: Arc::clone(&host), host, port: *port }
            }
            ConnectionAddr::Unix(path) => Target::Unix(path.clone()),
            _ => return Err(wrong("a port from 1 to 65535")),
        };
        let settings = info.redis_settings();
        let login = Login {
            username: settings.username().map(str::to_owned),
            password: settings.password().map(SecretString::from),
            database: settings.db(),
            protocol: settings.protocol(),
        };
        if !(0..=i64::from(i32::MAX)).contains(&login.database) {
            return Err(wrong("a database from 0 to 2147483647"));
        }
        if login.username.is_some() && login.password.is_none() {
            return Err(wrong("a password for the user, or neither"));
        }
        Ok(Self { target, login, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedisUrl, (Held, String)> {
        RedisUrl::parse(&text.into())
    }

    fn refusal(text: &str) -> (String, String) {
        match parse(text).unwrap_err() {
            (Held::Text(held), allowed) => (held, allowed),
            (_, allowed) => (String::new(), allowed),
        }
    }

    #[test]
    fn a_url_says_where_and_who() {
        let url = parse("rediss://app:p%40ss@cache.internal/7?protocol=resp3").unwrap();
        assert_eq!(url.target.to_string(), "cache.internal:6379");
        assert!(url.tls);
        let Login { username, password, database, protocol } = url.login;
        assert_eq!((username.as_deref(), database), (Some("app"), 7));
        assert_eq!(password.unwrap().expose_secret(), "p@ss");
        assert_eq!(protocol, ProtocolVersion::RESP3);
    }

    #[test]
    fn each_scheme_leads_to_its_own_place() {
        for (text, target, tls) in [
            ("redis://localhost:6379/0", "localhost:6379", false),
            ("redis://:secret@[::1]:7000", "[::1]:7000", false),
            ("rediss://localhost", "localhost:6379", true),
            ("unix:///run/redis.sock?db=2", "/run/redis.sock", false),
            ("redis+unix:///run/redis.sock", "/run/redis.sock", false),
        ] {
            let url = parse(text).unwrap();
            assert_eq!((url.target.to_string().as_str(), url.tls), (target, tls), "{text}");
        }
        assert_eq!(parse("unix:///run/redis.sock?db=2").unwrap().login.database, 2);
    }

    #[test]
    fn sentinel_and_cluster_are_refused_for_what_they_are() {
        for text in [
            "redis+sentinel://a:26379/mymaster",
            "rediss+sentinel://a:26379",
            "redis-sentinel://a",
            "redis+cluster://a:7000",
            "redis-cluster://a:7000",
            "redis://a,b/0",
        ] {
            assert!(refusal(text).1.contains("not supported yet"), "{text}");
        }
    }

    #[test]
    fn a_malformed_url_is_never_shown_with_its_password() {
        for text in [
            "hunter2",
            "http://:hunter2@localhost",
            "redis://:hunter2@localhost/one",
            "redis://:hunter2@localhost/-1",
            "redis://:hunter2@localhost/99999999999",
            "redis://:hunter2@localhost:0/0",
            "redis://:hunter2@localhost:99999",
            "redis://:hunter2@/0",
            "rediss://:hunter2@localhost/#insecure",
            "redis://localhost?password=hunter2",
            "redis://hunter2@localhost",
            "unix://:hunter2@localhost/run/redis.sock",
            "unix:///run/redis.sock?password=hunter2",
            "redis://:hunter2@localhost?protocol=resp9",
        ] {
            let (held, allowed) = refusal(text);
            assert!(!format!("{held}{allowed}").contains("hunter2"), "{held}: {allowed}");
            assert!(!allowed.is_empty(), "{text}");
        }
        let url = parse("redis://:hunter2@localhost").unwrap();
        assert!(!format!("{url:?}").contains("hunter2"));
    }
}
