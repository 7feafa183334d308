//! The settings of a manager: from the environment, a file or code, checked as a whole before any connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use resilience_core::Name;
use resilience_core::settings::{ConfigError, Held, Problems, Settings, TlsFiles, setters};
use rustls::ClientConfig;
use secrecy::SecretString;
use tokio::runtime::Handle;

use crate::address::RedisUrl;
use crate::tuning::Tuning;
use crate::{defaults, tls};

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
        let mut builder = RedisConfigBuilder::new();
        if let Some(url) = settings.secret("url") {
            builder.url = url;
        }
        settings.read_into(builder.tuning.quantities());
        builder.files = TlsFiles::from_settings(&mut settings);
        builder.validate(settings.into_problems())
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
    name: Name,
    url: SecretString,
    files: TlsFiles,
    tuning: Tuning,
    runtime: Option<Handle>,
}

setters! { RedisConfigBuilder:
    /// Sockets that may be open at once, the one of the health check included. 1 to 10,000; default 100.
    max_connections: u32 => tuning.max_connections;
    /// Time of one attempt, from borrowing a connection to the reply. Above 0; default 5 s.
    socket_timeout: Duration => tuning.resilience.attempt_timeout;
    /// Time for opening a connection: name, socket, TLS and login together. Above 0; default 5 s.
    connect_timeout: Duration => tuning.connect_timeout;
    /// Longest wait for a connection while all are lent out. Above 0; default 5 s.
    acquire_timeout: Duration => tuning.acquire_timeout;
    /// Time of a call with all its attempts, where the caller sets none. Above 0; default 10 s.
    deadline: Duration => tuning.resilience.deadline;
    /// Attempts after the first. 0 to 100; default 2.
    max_retries: u32 => tuning.resilience.max_retries;
    /// First wait between attempts. Above 0, up to `max_delay`; default 0.5 s.
    base_delay: Duration => tuning.resilience.base_delay;
    /// Longest wait between attempts. Above 0; default 5 s.
    max_delay: Duration => tuning.resilience.max_delay;
    /// Failures in a row that open the circuit. 1 to 1,000,000; default 5.
    fail_max: u32 => tuning.resilience.fail_max;
    /// How long the circuit stays open before a probe. Above 0; default 60 s.
    reset_timeout: Duration => tuning.resilience.reset_timeout;
    /// Probes that must succeed to close the circuit. 1 to 1,000,000; default 3.
    success_threshold: u32 => tuning.resilience.success_threshold;
    /// Probes in flight at once. 1 to 1,000; default 1.
    half_open_max_calls: u32 => tuning.resilience.half_open_max_calls;
    /// Calls in flight at once, those that wait for a connection included. 1 to 1,000,000; default 1,024.
    bulkhead: u32 => tuning.bulkhead;
    /// Time of one health check. Above 0; default 5 s.
    health_timeout: Duration => tuning.health_timeout;
    /// How long an unused connection stays open. Above 0; default 10 min.
    idle_timeout: Duration => tuning.idle_timeout;
    /// How long a connection is used, give or take a tenth. Above 0; default 30 min.
    max_lifetime: Duration => tuning.max_lifetime;
    /// How long a connection may lie unused before it is tested when it is next lent. Above 0; default 30 s.
    test_after: Duration => tuning.test_after;
}

impl RedisConfigBuilder {
    fn new() -> Self {
        Self {
            name: "redis".into(),
            url: defaults::URL.into(),
            files: TlsFiles::default(),
            tuning: Tuning::default(),
            runtime: None,
        }
    }

    /// The name of the manager, its breaker and its metrics. Default `redis`.
    pub fn name(self, name: impl Into<Name>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// The PEM file of the authority that signed the server's certificate, in place of this machine's
    /// store. Default none. Only with `rediss://`.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.ca_file = Some(path.into());
        self
    }

    /// The PEM file of the certificate that we show. Default none. Only with its key and `rediss://`.
    pub fn client_cert_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.client_cert_file = Some(path.into());
        self
    }

    /// The PEM file of that certificate's key. Default none.
    pub fn client_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.client_key_file = Some(path.into());
        self
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
    pub fn build(self) -> Result<RedisConfig, ConfigError> {
        self.validate(Problems::by_field())
    }

    fn validate(mut self, mut problems: Problems) -> Result<RedisConfig, ConfigError> {
        problems.check(self.tuning.quantities());
        self.tuning.resilience.check(&mut problems);
        let url = RedisUrl::parse(&self.url)
            .map_err(|(held, allowed)| problems.wrong("url", held, allowed))
            .ok();
        // A URL that is wrong says nothing about TLS: the files are checked on their own then.
        let wanted = url.as_ref().is_none_or(|url| url.tls);
        let tls = self.tls(wanted, &mut problems);
        problems.finish()?;
        Ok(RedisConfig {
            name: self.name,
            url: url.expect("no problem was found"),
            tls,
            tuning: self.tuning,
            runtime: self.runtime,
        })
    }

    fn tls(&self, wanted: bool, problems: &mut Problems) -> Option<Arc<ClientConfig>> {
        if !wanted {
            self.files.refuse_unless("rediss://", problems);
        }
        let tls = self.files.load(problems).filter(|_| wanted)?;
        match tls::client_config(&tls) {
            Ok(config) => Some(config),
            Err((key, allowed)) => {
                let file = match key {
                    "ca_file" => &self.files.ca_file,
                    "client_cert_file" => &self.files.client_cert_file,
                    _ => &self.files.client_key_file,
                };
                let held = file.as_ref().map(|path| Held::Text(path.display().to_string()));
                problems.wrong(key, held.unwrap_or(Held::Nothing), allowed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use resilience_core::settings::Quantity;

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
        for (index, (key, quantity)) in (2_u32..).zip(expected.quantities()) {
            match quantity {
                Quantity::Count(count, _) => *count = index,
                Quantity::Duration(duration) => *duration = index * Duration::from_secs(1),
                Quantity::Limit(limit) => *limit = Some(index * Duration::from_secs(1)),
            }
            pairs.push((format!("redis_{key}").to_uppercase(), index.to_string()));
        }
        let config = RedisConfig::from_settings(Settings::from_pairs("redis", pairs)).unwrap();
        assert_eq!(format!("{:?}", config.tuning), format!("{expected:?}"));
    }

    #[test]
    fn every_setter_sets_what_its_variable_does() {
        let seconds = Duration::from_secs;
        let mut built = RedisConfig::builder("redis://localhost")
            .max_connections(2)
            .connect_timeout(seconds(3))
            .acquire_timeout(seconds(4))
            .bulkhead(5)
            .health_timeout(seconds(6))
            .idle_timeout(seconds(7))
            .max_lifetime(seconds(8))
            .test_after(seconds(9))
            .deadline(seconds(10))
            .socket_timeout(seconds(11))
            .max_retries(12)
            .base_delay(seconds(13))
            .max_delay(seconds(14))
            .fail_max(15)
            .reset_timeout(seconds(16))
            .success_threshold(17)
            .half_open_max_calls(18);
        for (index, (key, quantity)) in (2_u32..).zip(built.tuning.quantities()) {
            let held = match quantity {
                Quantity::Count(count, _) => u64::from(*count),
                Quantity::Duration(duration) => duration.as_secs(),
                Quantity::Limit(limit) => limit.map_or(0, |it| it.as_secs()),
            };
            assert_eq!(held, u64::from(index), "{key}");
        }
    }

    #[tokio::test]
    async fn the_largest_values_that_are_allowed_make_a_manager() {
        let mut builder = RedisConfig::builder("redis://localhost");
        for (_, quantity) in builder.tuning.quantities() {
            match quantity {
                Quantity::Count(count, allowed) => *count = *allowed.end(),
                Quantity::Duration(duration) => *duration = Duration::from_secs(24 * 3600),
                Quantity::Limit(limit) => *limit = Some(Duration::from_secs(24 * 3600)),
            }
        }
        RedisManager::connect(builder.build().unwrap()).unwrap();
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
        let Tuning { max_connections, resilience, .. } = config.unwrap().tuning;
        let expected = (7, Duration::from_millis(250));
        assert_eq!((max_connections, resilience.attempt_timeout), expected);
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
