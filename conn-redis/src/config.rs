//! The settings of a manager: from the environment, a file or code, checked as a whole before any connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use resilience_core::Name;
use resilience_core::settings::{ConfigError, Held, Pem, PemBlock, Problem, Settings};
use rustls::ClientConfig;
use secrecy::SecretString;
use tokio::runtime::Handle;

use crate::address::RedisUrl;
use crate::tuning::Tuning;
use crate::{defaults, tls};

/// The longest duration a setting may hold.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The settings of a [`RedisManager`](crate::RedisManager): complete and consistent.
///
/// | variable | default | allowed |
/// |---|---|---|
/// | `REDIS_URL` | `redis://localhost:6379/0` | `redis://`, `rediss://`, `unix://`; not yet: sentinel, cluster |
/// | `REDIS_MAX_CONNECTIONS` | 100 | 1 to 10000 sockets, the health check's included |
/// | `REDIS_SOCKET_TIMEOUT` | 5 s | above 0: one attempt |
/// | `REDIS_CONNECT_TIMEOUT` | 5 s | above 0 |
/// | `REDIS_ACQUIRE_TIMEOUT` | 5 s | above 0: the wait for a free connection |
/// | `REDIS_DEADLINE` | 10 s | above 0: a whole call |
/// | `REDIS_MAX_RETRIES` | 2 | 0 to 100 |
/// | `REDIS_BASE_DELAY`, `REDIS_MAX_DELAY` | 0.5 s, 5 s | above 0, in this order |
/// | `REDIS_FAIL_MAX` | 5 | 1 to 1000000 |
/// | `REDIS_RESET_TIMEOUT` | 60 s | above 0 |
/// | `REDIS_SUCCESS_THRESHOLD` | 3 | 1 to 1000000 |
/// | `REDIS_HALF_OPEN_MAX_CALLS` | 1 | 1 to 1000 |
/// | `REDIS_BULKHEAD` | 1024 | 1 to 1000000 calls in flight |
/// | `REDIS_HEALTH_TIMEOUT` | 5 s | above 0 |
/// | `REDIS_IDLE_TIMEOUT` | 600 s | above 0 |
/// | `REDIS_MAX_LIFETIME` | 1800 s | above 0; give or take a tenth |
/// | `REDIS_TEST_AFTER` | 30 s | above 0: unused for so long, a connection is tested before it is lent |
/// | `REDIS_CA_FILE` | this machine's store | PEM; only with `rediss://` |
/// | `REDIS_CLIENT_CERT_FILE`, `REDIS_CLIENT_KEY_FILE` | none | PEM; both or neither; only with `rediss://` |
///
/// Durations are seconds, or `500ms`, `2s`, `1m`, `1h`; a day at the most. In a file, the names
/// are those in lower case without the prefix, in a table `redis`.
///
/// ```
/// use conn_redis::RedisConfig;
///
/// let error = RedisConfig::builder("redis://localhost/0").max_connections(0).build().unwrap_err();
/// assert!(error.to_string().contains("max_connections is \"0\"; allowed: a whole number from 1 to 10000"));
/// ```
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) name: Name,
    pub(crate) url: RedisUrl,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) tuning: Tuning,
    pub(crate) runtime: Option<Handle>,
}

impl RedisConfig {
    /// The settings in the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_settings(Settings::from_env("redis"))
    }

    /// The table `redis` of a TOML, YAML or JSON file, under the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::from_settings(Settings::from_file_and_env("redis", path.as_ref()))
    }

    /// Settings made in code: the server at `url`, everything else at its default.
    pub fn builder(url: impl Into<SecretString>) -> RedisConfigBuilder {
        RedisConfigBuilder { url: url.into(), ..RedisConfigBuilder::new() }
    }

    /// The manager's name, which is also its breaker's.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    fn from_settings(mut settings: Settings) -> Result<Self, ConfigError> {
        let mut builder = RedisConfigBuilder { variables: true, ..RedisConfigBuilder::new() };
        if let Some(url) = settings.secret("url") {
            builder.url = url;
        }
        for (key, value, allowed) in builder.tuning.numbers() {
            *value = settings.whole(key, allowed).unwrap_or(*value);
        }
        for (key, value) in builder.tuning.durations() {
            *value = settings.duration(key).unwrap_or(*value);
        }
        builder.ca_file = settings.text("ca_file").map(PathBuf::from);
        builder.client_cert_file = settings.text("client_cert_file").map(PathBuf::from);
        builder.client_key_file = settings.text("client_key_file").map(PathBuf::from);
        match (settings.finish(), builder.build()) {
            (Ok(()), result) => result,
            (Err(unreadable), Ok(_)) => Err(unreadable),
            (Err(unreadable), Err(invalid)) => Err(unreadable.and(invalid)),
        }
    }
    /// The same settings, with connections living on `runtime`: see the builder's method of that name.
    #[must_use]
    pub fn runtime(self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("name", &self.name)
            .field("url", &self.url)
            .field("tuning", &self.tuning)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`RedisConfig`] to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisConfigBuilder {
    /// Whether problems call the settings by their variables, or by their fields.
    variables: bool,
    name: Name,
    url: SecretString,
    ca_file: Option<PathBuf>,
    client_cert_file: Option<PathBuf>,
    client_key_file: Option<PathBuf>,
    tuning: Tuning,
    runtime: Option<Handle>,
}

impl RedisConfigBuilder {
    fn new() -> Self {
        Self {
            variables: false,
            name: "redis".into(),
            url: defaults::URL.into(),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            tuning: Tuning::default(),
            runtime: None,
        }
    }

    /// The name of the manager, its breaker and its metrics. Default `redis`.
    pub fn name(self, name: impl Into<Name>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Sockets that may be open at once, the one of the health check included. 1 to 10,000; default 100.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.tuning.max_connections = connections;
        self
    }

    /// Time of one attempt, from borrowing a connection to the reply. Above 0; default 5 s.
    pub fn socket_timeout(mut self, timeout: Duration) -> Self {
        self.tuning.socket_timeout = timeout;
        self
    }

    /// Time for opening a connection: name, socket, TLS and login together. Above 0; default 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.tuning.connect_timeout = timeout;
        self
    }

    /// Longest wait for a connection while all are lent out. Above 0; default 5 s.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.tuning.acquire_timeout = timeout;
        self
    }

    /// Time of a call with all its attempts, where the caller sets none. Above 0; default 10 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.tuning.deadline = deadline;
        self
    }

    /// Attempts after the first. 0 to 100; default 2.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.tuning.max_retries = retries;
        self
    }

    /// First wait between attempts. Above 0, up to `max_delay`; default 0.5 s.
    pub fn base_delay(mut self, delay: Duration) -> Self {
        self.tuning.base_delay = delay;
        self
    }

    /// Longest wait between attempts. Above 0; default 5 s.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.tuning.max_delay = delay;
        self
    }

    /// Failures in a row that open the circuit. 1 or more; default 5.
    pub fn fail_max(mut self, failures: u32) -> Self {
        self.tuning.fail_max = failures;
        self
    }

    /// How long the circuit stays open before a probe. Above 0; default 60 s.
    pub fn reset_timeout(mut self, timeout: Duration) -> Self {
        self.tuning.reset_timeout = timeout;
        self
    }

    /// Probes that must succeed to close the circuit. 1 or more; default 3.
    pub fn success_threshold(mut self, successes: u32) -> Self {
        self.tuning.success_threshold = successes;
        self
    }

    /// Probes in flight at once. 1 to 1,000; default 1.
    pub fn half_open_max_calls(mut self, probes: u32) -> Self {
        self.tuning.half_open_max_calls = probes;
        self
    }

    /// Calls in flight at once, those that wait for a connection included. 1 or more; default 1,024.
    pub fn bulkhead(mut self, calls: u32) -> Self {
        self.tuning.bulkhead = calls;
        self
    }

    /// Time of one health check. Above 0; default 5 s.
    pub fn health_timeout(mut self, timeout: Duration) -> Self {
        self.tuning.health_timeout = timeout;
        self
    }

    /// How long an unused connection stays open. Above 0; default 10 min.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.tuning.idle_timeout = timeout;
        self
    }

    /// How long a connection is used, give or take a tenth. Above 0; default 30 min.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.tuning.max_lifetime = lifetime;
        self
    }

    /// How long a connection may lie unused before it is tested when it is next lent. Above 0; default 30 s.
    pub fn test_after(mut self, idle: Duration) -> Self {
        self.tuning.test_after = idle;
        self
    }

    /// The PEM file of the authority that signed the server's certificate, in place of this machine's
    /// store. Default none. Only with `rediss://`.
    pub fn ca_file(self, path: impl Into<PathBuf>) -> Self {
        Self { ca_file: Some(path.into()), ..self }
    }

    /// The PEM file of the certificate that we show. Default none. Only with its key and `rediss://`.
    pub fn client_cert_file(self, path: impl Into<PathBuf>) -> Self {
        Self { client_cert_file: Some(path.into()), ..self }
    }

    /// The PEM file of that certificate's key. Default none.
    pub fn client_key_file(self, path: impl Into<PathBuf>) -> Self {
        Self { client_key_file: Some(path.into()), ..self }
    }

    /// The runtime on which connections live, so that they outlast the one that first used them.
    /// Default: the runtime of whoever makes the call.
    pub fn runtime(self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self }
    }

    /// The settings. Reads the PEM files; opens no connection.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong.
    pub fn build(mut self) -> Result<RedisConfig, ConfigError> {
        let mut problems = Vec::new();
        for (key, value, allowed) in self.tuning.numbers() {
            if !allowed.contains(value) {
                let (low, high) = allowed.into_inner();
                let allowed = format!("a whole number from {low} to {high}");
                problems.push((key, Held::Text(value.to_string()), allowed));
            }
        }
        for (key, value) in self.tuning.durations() {
            if value.is_zero() || *value > LONGEST {
                let held = Held::Text(format!("{value:?}"));
                problems.push((key, held, "above 0, a day at the most".into()));
            }
        }
        let Tuning { base_delay, max_delay, .. } = self.tuning;
        if base_delay > max_delay {
            let held = Held::Text(format!("{base_delay:?}"));
            problems.push(("base_delay", held, format!("up to max_delay, which is {max_delay:?}")));
        }
        let url = RedisUrl::parse(&self.url)
            .map_err(|(held, allowed)| problems.push(("url", held, allowed)))
            .ok();
        // A URL that is wrong says nothing about TLS: the files are checked on their own then.
        let wanted = url.as_ref().is_none_or(|url| url.tls);
        let tls = self.tls(wanted, &mut problems).filter(|_| wanted);
        let name = |key: &str| match self.variables {
            true => format!("redis_{key}").to_uppercase(),
            false => key.to_owned(),
        };
        let told = problems.into_iter().map(|(key, held, allowed)| Problem {
            name: name(key),
            held,
            allowed,
        });
        ConfigError::unless_empty(told.collect())?;
        Ok(RedisConfig {
            name: self.name,
            url: url.expect("no problem was found"),
            tls,
            tuning: self.tuning,
            runtime: self.runtime,
        })
    }

    fn tls(&self, wanted: bool, problems: &mut Vec<Fault>) -> Option<Arc<ClientConfig>> {
        let before = problems.len();
        let mut read = |key, file: &Option<PathBuf>, block| {
            let path = file.as_ref()?;
            if !wanted {
                let held = Held::Text(path.display().to_string());
                problems.push((key, held, "nothing, unless the URL begins with rediss://".into()));
            }
            match Pem::read(path, block) {
                Ok(pem) => Some(pem),
                Err((held, allowed)) => {
                    problems.push((key, held, allowed));
                    None
                }
            }
        };
        let ca = read("ca_file", &self.ca_file, PemBlock::Certificate);
        let certificate = read("client_cert_file", &self.client_cert_file, PemBlock::Certificate);
        let key = read("client_key_file", &self.client_key_file, PemBlock::PrivateKey);
        match (&self.client_cert_file, &self.client_key_file) {
            (Some(_), None) => {
                problems.push((
                    "client_key_file",
                    Held::Nothing,
                    "the key of the certificate in client_cert_file".into(),
                ));
            }
            (None, Some(_)) => {
                problems.push((
                    "client_cert_file",
                    Held::Nothing,
                    "the certificate of the key in client_key_file".into(),
                ));
            }
            _ => {}
        }
        if problems.len() > before || !wanted {
            return None;
        }
        match tls::client_config(ca.as_ref(), certificate.as_ref().zip(key.as_ref())) {
            Ok(config) => Some(config),
            Err((key, allowed)) => {
                let file = match key {
                    "ca_file" => &self.ca_file,
                    "client_cert_file" => &self.client_cert_file,
                    _ => &self.client_key_file,
                };
                let held = file.as_ref().map(|path| Held::Text(path.display().to_string()));
                problems.push((key, held.unwrap_or(Held::Nothing), allowed.into()));
                None
            }
        }
    }
}

/// A setting that is wrong: its key, what it holds, what is allowed.
type Fault = (&'static str, Held, String);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RedisManager;

    fn from(pairs: &[(&str, &str)]) -> Result<RedisConfig, ConfigError> {
        RedisConfig::from_settings(Settings::from_pairs("redis", pairs.iter().copied()))
    }

    fn refusal(pairs: &[(&str, &str)]) -> String {
        from(pairs).unwrap_err().to_string()
    }

    #[test]
    fn nothing_set_is_the_default() {
        let config = from(&[]).unwrap();
        assert_eq!(config.url.target.to_string(), "localhost:6379");
        assert_eq!(config.name(), "redis");
        assert_eq!(format!("{:?}", config.tuning), format!("{:?}", Tuning::default()));
    }

    #[test]
    fn every_number_and_duration_can_be_set_by_variable() {
        let mut expected = Tuning::default();
        let mut pairs = Vec::new();
        for (index, (key, value, _)) in expected.numbers().into_iter().enumerate() {
            *value = 2 + u32::try_from(index).unwrap();
            pairs.push((format!("redis_{key}").to_uppercase(), value.to_string()));
        }
        for (index, (key, value)) in expected.durations().into_iter().enumerate() {
            *value = Duration::from_millis(1500 + u64::try_from(index).unwrap());
            pairs.push((format!("redis_{key}").to_uppercase(), value.as_secs_f64().to_string()));
        }
        let config = RedisConfig::from_settings(Settings::from_pairs("redis", pairs)).unwrap();
        assert_eq!(format!("{:?}", config.tuning), format!("{expected:?}"));
    }

    #[tokio::test]
    async fn the_largest_numbers_that_are_allowed_make_a_manager() {
        let mut config = from(&[]).unwrap();
        for (_, value, allowed) in config.tuning.numbers() {
            *value = *allowed.end();
        }
        RedisManager::connect(config).unwrap();
    }

    #[test]
    fn all_bad_values_are_told_at_once_and_by_name() {
        let text = refusal(&[
            ("REDIS_URL", "http://:hunter2@localhost"),
            ("REDIS_MAX_CONNECTIONS", "0"),
            ("REDIS_SOCKET_TIMEOUT", "-1"),
            ("REDIS_MAX_RETRIES", "99999999999"),
            ("REDIS_BASE_DELAY", "7"),
            ("REDIS_CA_FILE", "/none.pem"),
            ("REDIS_CLIENT_KEY_FILE", "/none.key"),
        ]);
        for line in [
            "8 settings are wrong",
            "REDIS_URL is \"http://***@localhost\"; allowed: redis://",
            "REDIS_MAX_CONNECTIONS is \"0\"; allowed: a whole number from 1 to 10000",
            "REDIS_SOCKET_TIMEOUT is \"-1\"; allowed: a number of seconds above 0",
            "REDIS_MAX_RETRIES is \"99999999999\"; allowed: a whole number from 0 to 100",
            "REDIS_BASE_DELAY is \"7s\"; allowed: up to max_delay, which is 5s",
            "REDIS_CA_FILE is \"/none.pem, which cannot be read",
            "REDIS_CLIENT_KEY_FILE is \"/none.key, which cannot be read",
            "REDIS_CLIENT_CERT_FILE is not set",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn the_builder_and_the_environment_check_alike() {
        let built = RedisConfig::builder("redis://localhost/x")
            .max_connections(0)
            .socket_timeout(Duration::ZERO)
            .build()
            .unwrap_err();
        let names: Vec<_> = built.problems().iter().map(|problem| problem.name.as_str()).collect();
        assert_eq!(names, ["max_connections", "socket_timeout", "url"]);
        let read = from(&[("REDIS_URL", "redis://localhost/x"), ("REDIS_MAX_CONNECTIONS", "0")])
            .unwrap_err();
        let names: Vec<_> = read.problems().iter().map(|problem| problem.name.as_str()).collect();
        assert_eq!(names, ["REDIS_MAX_CONNECTIONS", "REDIS_URL"]);
    }

    #[test]
    fn a_file_holds_the_same_names_in_a_table() {
        let file = std::env::temp_dir().join(format!("redis-{}.yaml", std::process::id()));
        std::fs::write(&file, "redis:\n  max_connections: 7\n  socket_timeout: 250ms\n").unwrap();
        let config = RedisConfig::from_file(&file);
        std::fs::remove_file(&file).unwrap();
        let Tuning { max_connections, socket_timeout, .. } = config.unwrap().tuning;
        assert_eq!((max_connections, socket_timeout), (7, Duration::from_millis(250)));
    }

    #[test]
    fn certificates_without_tls_are_a_mistake() {
        let file = std::env::temp_dir().join(format!("no-pem-{}", std::process::id()));
        std::fs::write(&file, "not a certificate").unwrap();
        let path = file.to_str().unwrap();
        let plain = refusal(&[("REDIS_CA_FILE", path)]);
        let text = refusal(&[("REDIS_URL", "rediss://localhost"), ("REDIS_CA_FILE", path)]);
        std::fs::remove_file(&file).unwrap();
        assert!(plain.contains("nothing, unless the URL begins with rediss://"), "{plain}");
        assert!(text.contains("allowed: a PEM file with a block \"BEGIN CERTIFICATE\""), "{text}");
    }

    #[test]
    fn no_secret_shows_in_debug() {
        let builder = RedisConfig::builder("redis://:hunter2@localhost/0");
        assert!(!format!("{builder:?}").contains("hunter2"));
        assert!(!format!("{:?}", builder.build().unwrap()).contains("hunter2"));
    }
}
