//! Settings of a database manager: parsed and validated before anything is connected.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use resilience_core::settings::{ConfigError, Held, Pem, PemBlock, Problem, Settings};
use resilience_core::{Address, Name};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgSslMode;
use tokio::runtime::Handle;

use crate::defaults;
use crate::url::{self, Target};

const SECTION: &str = "database";
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const CONNECTIONS: u32 = 10_000;
const TIMES: u32 = 1_000_000;

/// Settings of a [`DatabaseManager`](crate::DatabaseManager), all of them valid.
///
/// ```
/// use std::time::Duration;
/// use conn_postgres::DatabaseConfig;
///
/// let config = DatabaseConfig::builder("postgresql://app:secret@db.internal:5432/app")
///     .pool_size(10)
///     .acquire_timeout(Duration::from_secs(2))
///     .build()?;
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok::<(), conn_postgres::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct DatabaseConfig {
    pub(crate) name: Name,
    pub(crate) hosts: Vec<Address>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<SecretString>,
    pub(crate) database: Option<String>,
    pub(crate) ssl_mode: PgSslMode,
    pub(crate) ca: Option<Pem>,
    pub(crate) client_identity: Option<(Pem, Pem)>,
    pub(crate) application_name: Option<String>,
    pub(crate) statement_cache: Option<usize>,
    pub(crate) options: Vec<(String, String)>,
    pub(crate) pool_size: u32,
    pub(crate) max_overflow: u32,
    pub(crate) min_idle: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) deadline: Duration,
    pub(crate) max_retries: u32,
    pub(crate) base_delay: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) fail_max: u32,
    pub(crate) reset_timeout: Duration,
    pub(crate) success_threshold: u32,
    pub(crate) half_open_max_calls: u32,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) test_after: Duration,
    pub(crate) leak_threshold: Option<Duration>,
    pub(crate) runtime: Option<Handle>,
}

impl DatabaseConfig {
    /// The settings in the environment: `DATABASE_URL`, and the others of [`DatabaseConfigBuilder`]
    /// as `DATABASE_` with the setter's name in capitals. Durations are seconds, or `500ms`, `2s`, `1m`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong.
    pub fn from_env() -> Result<Self, ConfigError> {
        DatabaseConfigBuilder::from_settings(Settings::from_env(SECTION))
    }

    /// The settings in the table `database` of a TOML, YAML or JSON file, under those in the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        DatabaseConfigBuilder::from_settings(Settings::from_file_and_env(SECTION, path.as_ref()))
    }

    /// Settings made in code, for the database at `url`.
    ///
    /// The URL is `postgres://`, `postgresql://` or `postgresql+asyncpg://`; special characters in the
    /// credentials are percent-encoded. Several hosts (`one:5432,two:5432`) are tried in that order.
    /// Parameters: `host`, `port`, `user`, `password`, `dbname`, `sslmode`, `sslrootcert`, `sslcert`,
    /// `sslkey`, `application_name`, `options`, `statement-cache-capacity`.
    ///
    /// `sslmode` defaults to `verify-full` where there is a CA file, else to `prefer`; as in libpq,
    /// `require` with a CA file means `verify-ca`.
    pub fn builder(url: impl Into<String>) -> DatabaseConfigBuilder {
        DatabaseConfigBuilder { url: Some(url.into().into()), ..DatabaseConfigBuilder::empty() }
    }

    /// The manager's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }
    /// The same settings, with connections living on `runtime`: see the builder's method of that name.
    #[must_use]
    pub fn runtime(self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self }
    }
}

/// No password, and no key.
impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseConfig")
            .field("name", &self.name)
            .field("hosts", &self.hosts.iter().map(ToString::to_string).collect::<Vec<_>>())
            .field("user", &self.user)
            .field("database", &self.database)
            .field("ssl_mode", &self.ssl_mode)
            .field("ca", &self.ca)
            .field("pool_size", &self.pool_size)
            .field("max_overflow", &self.max_overflow)
            .field("min_idle", &self.min_idle)
            .field("connect_timeout", &self.connect_timeout)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("deadline", &self.deadline)
            .field("max_retries", &self.max_retries)
            .field("fail_max", &self.fail_max)
            .field("reset_timeout", &self.reset_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("max_lifetime", &self.max_lifetime)
            .field("test_after", &self.test_after)
            .field("leak_threshold", &self.leak_threshold)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`DatabaseConfig`] to be. Each default is in [`defaults`].
#[derive(Clone)]
#[must_use]
pub struct DatabaseConfigBuilder {
    name: Name,
    url: Option<SecretString>,
    ca_file: Option<PathBuf>,
    client_cert_file: Option<PathBuf>,
    client_key_file: Option<PathBuf>,
    application_name: Option<String>,
    pool_size: u32,
    max_overflow: u32,
    min_idle: u32,
    connect_timeout: Duration,
    acquire_timeout: Duration,
    attempt_timeout: Duration,
    deadline: Duration,
    max_retries: u32,
    base_delay: Duration,
    max_delay: Duration,
    fail_max: u32,
    reset_timeout: Duration,
    success_threshold: u32,
    half_open_max_calls: u32,
    idle_timeout: Duration,
    max_lifetime: Duration,
    test_after: Duration,
    leak_threshold: Option<Duration>,
    runtime: Option<Handle>,
}

/// Setters of one type each, and the reading of the same settings from variables of the same names.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $kind:ident $(($range:expr))?),* $(,)?) => {
        impl DatabaseConfigBuilder {
            $($(#[$doc])*
            pub fn $name(self, value: settings!(@type $kind)) -> Self {
                Self { $name: settings!(@store $kind, value), ..self }
            })*

            fn read(&mut self, settings: &mut Settings) {
                $(if let Some(value) = settings!(@read settings, stringify!($name), $kind $(($range))?) {
                    self.$name = settings!(@store $kind, value);
                })*
            }

            fn check(&self, problems: &mut Problems<'_>) {
                $(settings!(@check problems, self, $name, $kind $(($range))?);)*
            }
        }
    };
    (@type count) => { u32 };
    (@type time) => { Duration };
    (@type limit) => { Duration };
    (@type path) => { impl Into<PathBuf> };
    (@type text) => { impl Into<String> };
    (@store count, $value:ident) => { $value };
    (@store time, $value:ident) => { $value };
    (@store limit, $value:ident) => { Some($value) };
    (@store path, $value:ident) => { Some($value.into()) };
    (@store text, $value:ident) => { Some($value.into()) };
    (@read $settings:ident, $key:expr, count($range:expr)) => { $settings.whole($key, $range) };
    (@read $settings:ident, $key:expr, time) => { $settings.duration($key) };
    (@read $settings:ident, $key:expr, limit) => { $settings.duration($key) };
    (@read $settings:ident, $key:expr, path) => { $settings.text($key) };
    (@read $settings:ident, $key:expr, text) => { $settings.text($key) };
    (@check $problems:ident, $self:ident, $name:ident, count($range:expr)) => {
        $problems.count(stringify!($name), $self.$name, $range)
    };
    (@check $problems:ident, $self:ident, $name:ident, time) => {
        $problems.time(stringify!($name), $self.$name)
    };
    (@check $problems:ident, $self:ident, $name:ident, limit) => {
        if let Some(limit) = $self.$name {
            $problems.time(stringify!($name), limit);
        }
    };
    (@check $problems:ident, $self:ident, $name:ident, $other:ident) => {};
}

settings! {
    /// Connections that stay open when idle. 1 to 10,000; default 20.
    pool_size: count(1..=CONNECTIONS),
    /// Connections beyond the pool size, closed when they come back. 0 to 10,000; default 50.
    max_overflow: count(0..=CONNECTIONS),
    /// Connections that are kept idle, once the first was opened: the idle timeout leaves them, and those that
    /// are lost or too old are replaced while places are free. 0 to `pool_size`; default 0.
    min_idle: count(0..=CONNECTIONS),
    /// Time to open a connection to one host. Above 0, up to a day; default 5 s.
    connect_timeout: time,
    /// Time to wait for a place in the pool; opening a connection then has its own time. Above 0, up to a day; default 5 s.
    acquire_timeout: time,
    /// Time of one attempt, and of one statement outside a closure; a second later the server's
    /// `statement_timeout` ends what is left of it.
    /// Above 0, up to a day; default 30 s.
    attempt_timeout: time,
    /// Time of a call whose caller sets none. Above 0, up to a day; default 60 s.
    deadline: time,
    /// Attempts after the first. 0 to 100; default 3.
    max_retries: count(0..=100),
    /// The first wait between attempts. Above 0, up to `max_delay`; default 1 s.
    base_delay: time,
    /// The longest wait between attempts. Above 0, up to a day; default 60 s.
    max_delay: time,
    /// Failures in a row that open the circuit. 1 to 1,000,000; default 3.
    fail_max: count(1..=TIMES),
    /// How long the circuit stays open before a probe. Above 0, up to a day; default 30 s.
    reset_timeout: time,
    /// Probes that must succeed to close the circuit. 1 to 1,000,000; default 3.
    success_threshold: count(1..=TIMES),
    /// Probes in flight at once while half-open. 1 to 1,000; default 1.
    half_open_max_calls: count(1..=1000),
    /// How long a connection beyond `min_idle` may lie idle. Above 0, up to a day; default 10 min.
    idle_timeout: time,
    /// How long a connection may live, ± 10 %. Above 0, up to a day; default 30 min.
    max_lifetime: time,
    /// How long a connection may lie idle and be lent without being asked whether it still works.
    /// Above 0, up to a day; default 30 s.
    test_after: time,
    /// How long a connection may be held before a warning names who took it, and where. It is told once for
    /// each, up to a second late, or a quarter of the threshold where that is less; nothing is taken away.
    /// Above 0, up to a day; default: none is too long, for only the application knows which may be long.
    leak_threshold: limit,
    /// A PEM file with the certificates of the authorities to trust, beside the public ones. Default: none.
    ca_file: path,
    /// A PEM file with the client's certificate; needs the key too. Default: none.
    client_cert_file: path,
    /// A PEM file with the key of the client's certificate. Default: none.
    client_key_file: path,
    /// How the server lists our connections. Default: the name of the running program.
    application_name: text,
}

impl DatabaseConfigBuilder {
    fn empty() -> Self {
        Self {
            name: defaults::NAME.into(),
            url: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            application_name: None,
            pool_size: defaults::POOL_SIZE,
            max_overflow: defaults::MAX_OVERFLOW,
            min_idle: defaults::MIN_IDLE,
            connect_timeout: defaults::CONNECT_TIMEOUT,
            acquire_timeout: defaults::ACQUIRE_TIMEOUT,
            attempt_timeout: defaults::ATTEMPT_TIMEOUT,
            deadline: defaults::DEADLINE,
            max_retries: defaults::MAX_RETRIES,
            base_delay: defaults::BASE_DELAY,
            max_delay: defaults::MAX_DELAY,
            fail_max: defaults::FAIL_MAX,
            reset_timeout: defaults::RESET_TIMEOUT,
            success_threshold: defaults::SUCCESS_THRESHOLD,
            half_open_max_calls: defaults::HALF_OPEN_MAX_CALLS,
            idle_timeout: defaults::IDLE_TIMEOUT,
            max_lifetime: defaults::MAX_LIFETIME,
            test_after: defaults::TEST_AFTER,
            leak_threshold: defaults::LEAK_THRESHOLD,
            runtime: None,
        }
    }

    /// The name of the manager, of its breaker and of its pool, as logs and metrics show it. Default `database`.
    pub fn name(self, name: impl Into<Name>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// The runtime on which connections are opened and background tasks run, so that they outlive the
    /// runtime of whoever uses the manager first. Default: the current one at each use.
    pub fn runtime(self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self }
    }

    /// The settings, if they are valid.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong, by the setters' names.
    pub fn build(self) -> Result<DatabaseConfig, ConfigError> {
        self.validate(str::to_owned)
    }

    fn from_settings(mut settings: Settings) -> Result<DatabaseConfig, ConfigError> {
        let mut builder = Self { url: settings.secret("url"), ..Self::empty() };
        builder.read(&mut settings);
        let validated = builder.validate(|field| format!("{SECTION}_{field}").to_uppercase());
        match (settings.finish(), validated) {
            (Ok(()), validated) => validated,
            (Err(unreadable), Ok(_)) => Err(unreadable),
            (Err(unreadable), Err(invalid)) => Err(unreadable.and(invalid)),
        }
    }

    fn validate(self, name: impl Fn(&str) -> String) -> Result<DatabaseConfig, ConfigError> {
        let mut problems = Problems { name: &name, list: Vec::new() };
        let target = problems.target(self.url.as_ref());
        self.check(&mut problems);
        if self.base_delay > self.max_delay {
            let allowed = format!("up to max_delay, which is {:?}", self.max_delay);
            problems.push("base_delay", Held::Text(format!("{:?}", self.base_delay)), allowed);
        }
        if self.min_idle > self.pool_size {
            let allowed = format!("up to pool_size, which is {}", self.pool_size);
            problems.push("min_idle", Held::Text(self.min_idle.to_string()), allowed);
        }
        let ca = problems.pem("ca_file", self.ca_file.or(target.ca_file), PemBlock::Certificate);
        let cert_file = self.client_cert_file.or(target.client_cert_file);
        let key_file = self.client_key_file.or(target.client_key_file);
        for (field, missing, other) in [
            ("client_cert_file", &cert_file, &key_file),
            ("client_key_file", &key_file, &cert_file),
        ] {
            if missing.is_none() && other.is_some() {
                let allowed = "a certificate and its key: both files, or neither";
                problems.push(field, Held::Nothing, allowed.to_owned());
            }
        }
        let cert = problems.pem("client_cert_file", cert_file, PemBlock::Certificate);
        let key = problems.pem("client_key_file", key_file, PemBlock::PrivateKey);
        ConfigError::unless_empty(problems.list)?;
        Ok(DatabaseConfig {
            name: self.name,
            hosts: target.hosts,
            user: target.user,
            password: target.password,
            database: target.database,
            ssl_mode: ssl_mode(target.ssl_mode, ca.is_some()),
            ca,
            client_identity: cert.zip(key),
            application_name: self.application_name.or(target.application_name),
            statement_cache: target.statement_cache,
            options: target.options,
            pool_size: self.pool_size,
            max_overflow: self.max_overflow,
            min_idle: self.min_idle,
            connect_timeout: self.connect_timeout,
            acquire_timeout: self.acquire_timeout,
            attempt_timeout: self.attempt_timeout,
            deadline: self.deadline,
            max_retries: self.max_retries,
            base_delay: self.base_delay,
            max_delay: self.max_delay,
            fail_max: self.fail_max,
            reset_timeout: self.reset_timeout,
            success_threshold: self.success_threshold,
            half_open_max_calls: self.half_open_max_calls,
            idle_timeout: self.idle_timeout,
            max_lifetime: self.max_lifetime,
            test_after: self.test_after,
            leak_threshold: self.leak_threshold,
            runtime: self.runtime,
        })
    }
}

/// No URL, which may hold a password.
impl fmt::Debug for DatabaseConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseConfigBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

fn ssl_mode(stated: Option<PgSslMode>, has_ca: bool) -> PgSslMode {
    match stated {
        None if has_ca => PgSslMode::VerifyFull,
        None => PgSslMode::Prefer,
        Some(PgSslMode::Require) if has_ca => PgSslMode::VerifyCa,
        Some(mode) => mode,
    }
}

/// What is wrong, by the names under which whoever set it knows it.
struct Problems<'a> {
    name: &'a dyn Fn(&str) -> String,
    list: Vec<Problem>,
}

impl Problems<'_> {
    fn push(&mut self, field: &str, held: Held, allowed: String) {
        self.list.push(Problem { name: (self.name)(field), held, allowed });
    }

    fn count(&mut self, field: &str, value: u32, allowed: RangeInclusive<u32>) {
        if !allowed.contains(&value) {
            let (low, high) = allowed.into_inner();
            let allowed = format!("a whole number from {low} to {high}");
            self.push(field, Held::Text(value.to_string()), allowed);
        }
    }

    fn time(&mut self, field: &str, value: Duration) {
        if value.is_zero() || value > LONGEST {
            let allowed = "above 0 and up to a day".to_owned();
            self.push(field, Held::Text(format!("{value:?}")), allowed);
        }
    }

    fn pem(&mut self, field: &str, path: Option<PathBuf>, block: PemBlock) -> Option<Pem> {
        match Pem::read(path?, block) {
            Ok(pem) => Some(pem),
            Err((held, allowed)) => {
                self.push(field, held, allowed);
                None
            }
        }
    }

    fn target(&mut self, url: Option<&SecretString>) -> Target {
        let parsed = match url {
            None => Err(vec![(Held::Nothing, url::FORM.to_owned())]),
            Some(url) => url::parse(url.expose_secret()),
        };
        parsed.unwrap_or_else(|wrong| {
            for (held, allowed) in wrong {
                self.push("url", held, allowed);
            }
            Target::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DatabaseManager;

    const URL: &str = "postgresql+asyncpg://user:hunter2@db:5433/app";

    fn from_pairs(pairs: &[(&str, &str)]) -> Result<DatabaseConfig, ConfigError> {
        let pairs = pairs.iter().copied();
        DatabaseConfigBuilder::from_settings(Settings::from_pairs(SECTION, pairs))
    }

    #[test]
    fn variables_and_setters_build_the_same() {
        let by_env = from_pairs(&[
            ("DATABASE_URL", URL),
            ("DATABASE_POOL_SIZE", "7"),
            ("DATABASE_MAX_OVERFLOW", "0"),
            ("DATABASE_MIN_IDLE", "3"),
            ("DATABASE_CONNECT_TIMEOUT", "500ms"),
            ("DATABASE_ACQUIRE_TIMEOUT", "2"),
            ("DATABASE_ATTEMPT_TIMEOUT", "3"),
            ("DATABASE_DEADLINE", "1m"),
            ("DATABASE_MAX_RETRIES", "1"),
            ("DATABASE_BASE_DELAY", "0.5"),
            ("DATABASE_MAX_DELAY", "4s"),
            ("DATABASE_FAIL_MAX", "9"),
            ("DATABASE_RESET_TIMEOUT", "2"),
            ("DATABASE_SUCCESS_THRESHOLD", "1"),
            ("DATABASE_HALF_OPEN_MAX_CALLS", "2"),
            ("DATABASE_IDLE_TIMEOUT", "60"),
            ("DATABASE_MAX_LIFETIME", "120"),
            ("DATABASE_TEST_AFTER", "20"),
            ("DATABASE_LEAK_THRESHOLD", "1.5"),
            ("DATABASE_APPLICATION_NAME", "shop"),
        ])
        .unwrap();
        let seconds = Duration::from_secs;
        let by_builder = DatabaseConfig::builder(URL)
            .pool_size(7)
            .max_overflow(0)
            .min_idle(3)
            .connect_timeout(Duration::from_millis(500))
            .acquire_timeout(seconds(2))
            .attempt_timeout(seconds(3))
            .deadline(seconds(60))
            .max_retries(1)
            .base_delay(Duration::from_millis(500))
            .max_delay(seconds(4))
            .fail_max(9)
            .reset_timeout(seconds(2))
            .success_threshold(1)
            .half_open_max_calls(2)
            .idle_timeout(seconds(60))
            .max_lifetime(seconds(120))
            .test_after(seconds(20))
            .leak_threshold(Duration::from_millis(1500))
            .application_name("shop")
            .build()
            .unwrap();
        assert_eq!(format!("{by_env:?}"), format!("{by_builder:?}"));
        assert_eq!(by_env.application_name, by_builder.application_name);
        assert_eq!(
            [by_env.success_threshold, by_env.half_open_max_calls],
            [by_builder.success_threshold, by_builder.half_open_max_calls]
        );
        assert_eq!(
            [by_env.base_delay, by_env.max_delay],
            [by_builder.base_delay, by_builder.max_delay]
        );
    }

    #[tokio::test]
    async fn the_largest_values_that_are_allowed_make_a_manager() {
        let largest = DatabaseConfig::builder(URL)
            .pool_size(CONNECTIONS)
            .max_overflow(CONNECTIONS)
            .max_retries(100)
            .fail_max(TIMES)
            .success_threshold(TIMES)
            .half_open_max_calls(1000)
            .build()
            .unwrap();
        DatabaseManager::connect(largest).unwrap();
    }

    #[test]
    fn a_missing_url_is_named_with_its_form() {
        let error = from_pairs(&[]).unwrap_err().to_string();
        assert!(
            error.contains("DATABASE_URL is not set; allowed: postgresql://user:password@"),
            "{error}"
        );
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_and_without_the_password() {
        let error = from_pairs(&[
            ("DATABASE_URL", "postgresql://user:hunter2@db:0/app"),
            ("DATABASE_POOL_SIZE", "0"),
            ("DATABASE_MAX_OVERFLOW", "99999999999"),
            ("DATABASE_DEADLINE", "-1"),
            ("DATABASE_BASE_DELAY", "2m"),
            ("DATABASE_CA_FILE", "/no/such.pem"),
            ("DATABASE_CLIENT_CERT_FILE", "/no/such.crt"),
        ])
        .unwrap_err();
        let names: Vec<_> = error.problems().iter().map(|problem| &*problem.name).collect();
        for name in [
            "DATABASE_URL",
            "DATABASE_POOL_SIZE",
            "DATABASE_MAX_OVERFLOW",
            "DATABASE_DEADLINE",
            "DATABASE_BASE_DELAY",
            "DATABASE_CA_FILE",
            "DATABASE_CLIENT_CERT_FILE",
            "DATABASE_CLIENT_KEY_FILE",
        ] {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn the_builder_names_its_own_fields() {
        let error = DatabaseConfig::builder("postgres://db/app")
            .pool_size(0)
            .deadline(Duration::ZERO)
            .build()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "2 settings are wrong:\
             \n  pool_size is \"0\"; allowed: a whole number from 1 to 10000\
             \n  deadline is \"0ns\"; allowed: above 0 and up to a day"
        );
    }

    #[test]
    fn more_idle_connections_than_may_stay_idle_are_refused() {
        let error = from_pairs(&[("DATABASE_URL", URL), ("DATABASE_MIN_IDLE", "21")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1 setting is wrong:\n  DATABASE_MIN_IDLE is \"21\"; allowed: up to pool_size, which is 20"
        );
        DatabaseConfig::builder(URL).pool_size(21).min_idle(21).build().unwrap();
    }

    #[test]
    fn a_threshold_of_nothing_is_refused_and_does_not_mean_that_there_is_none() {
        let built = DatabaseConfig::builder(URL).leak_threshold(Duration::ZERO).build();
        let error = built.unwrap_err().to_string();
        assert!(error.contains("leak_threshold is \"0ns\"; allowed: above 0"), "{error}");
        assert_eq!(DatabaseConfig::builder(URL).build().unwrap().leak_threshold, None);
    }

    #[test]
    fn a_ca_file_means_that_the_server_is_verified() {
        assert!(matches!(ssl_mode(None, true), PgSslMode::VerifyFull));
        assert!(matches!(ssl_mode(None, false), PgSslMode::Prefer));
        assert!(matches!(ssl_mode(Some(PgSslMode::Require), true), PgSslMode::VerifyCa));
        assert!(matches!(ssl_mode(Some(PgSslMode::Require), false), PgSslMode::Require));
        assert!(matches!(ssl_mode(Some(PgSslMode::Disable), true), PgSslMode::Disable));
    }

    #[test]
    fn no_debug_output_shows_the_password() {
        let builder = DatabaseConfig::builder(URL);
        let shown = format!("{builder:?} {:?}", builder.clone().build().unwrap());
        assert!(shown.contains("db:5433") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_file_lies_under_the_environment() {
        let file = std::env::temp_dir().join(format!("conn-postgres-{}.toml", std::process::id()));
        std::fs::write(&file, format!("[database]\nurl = \"{URL}\"\npool_size = 3\n")).unwrap();
        let config =
            DatabaseConfigBuilder::from_settings(Settings::from_file_and_env("database", &file));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(config.unwrap().pool_size, 3);
    }
}
