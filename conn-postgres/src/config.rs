//! Settings of a database manager: parsed and validated before anything is connected.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use resilience_core::settings::{ConfigError, Held, Problems, Settings, Tls, TlsFiles, setters};
use resilience_core::{Address, CredentialProvider, Credentials, Name};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgSslMode;
use tokio::runtime::Handle;

use crate::defaults;
use crate::role::{ReadFrom, Rules, TargetSessionAttrs};
use crate::tuning::Tuning;
use crate::url::{self, Target};

const SECTION: &str = "database";

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
    pub(crate) credentials: Arc<dyn CredentialProvider>,
    pub(crate) database: Option<String>,
    pub(crate) ssl_mode: PgSslMode,
    pub(crate) tls: Tls,
    pub(crate) application_name: Option<String>,
    pub(crate) statement_cache: Option<usize>,
    pub(crate) options: Vec<(String, String)>,
    pub(crate) rules: Rules,
    pub(crate) tuning: Tuning,
    pub(crate) runtime: Option<Handle>,
    pub(crate) pgbouncer: bool,
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
    /// `sslkey`, `application_name`, `options`, `target_session_attrs`, `statement-cache-capacity`, `pgbouncer`.
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
    /// The same settings, with credentials from `provider`: see the builder's method of that name.
    #[must_use]
    pub fn credentials(self, provider: impl CredentialProvider + 'static) -> Self {
        Self { credentials: Arc::new(provider), ..self }
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
            .field("tls", &self.tls)
            .field("pgbouncer", &self.pgbouncer)
            .field("rules", &self.rules)
            .field("tuning", &self.tuning)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`DatabaseConfig`] to be. Each default is in [`defaults`].
#[derive(Clone)]
#[must_use]
pub struct DatabaseConfigBuilder {
    name: Name,
    url: Option<SecretString>,
    files: TlsFiles,
    application_name: Option<String>,
    attrs: Option<TargetSessionAttrs>,
    read_from: ReadFrom,
    tuning: Tuning,
    credentials: Option<Arc<dyn CredentialProvider>>,
    runtime: Option<Handle>,
    pgbouncer: Option<bool>,
}

setters! { DatabaseConfigBuilder:
    /// Connections that stay open when idle. 1 to 10,000; default 20.
    pool_size: u32 => tuning.pool_size;
    /// Connections beyond the pool size, closed when they come back. 0 to 10,000; default 50.
    max_overflow: u32 => tuning.max_overflow;
    /// Connections that are kept idle, once the first was opened: the idle timeout leaves them, and those that
    /// are lost or too old are replaced while places are free. 0 to `pool_size`; default 0.
    min_idle: u32 => tuning.min_idle;
    /// Time to open a connection to one host. Above 0, up to a day; default 5 s.
    connect_timeout: Duration => tuning.connect_timeout;
    /// Time to wait for a place in the pool; opening a connection then has its own time. Above 0, up to a day; default 5 s.
    acquire_timeout: Duration => tuning.acquire_timeout;
    /// Time of one attempt, and of one statement outside a closure; then it is cancelled at the server, whose
    /// `statement_timeout` is a second more.
    /// Above 0, up to a day; default 30 s.
    attempt_timeout: Duration => tuning.resilience.attempt_timeout;
    /// Time of a call whose caller sets none. Above 0, up to a day; default 60 s.
    deadline: Duration => tuning.resilience.deadline;
    /// Attempts after the first. 0 to 100; default 3.
    max_retries: u32 => tuning.resilience.max_retries;
    /// The first wait between attempts. Above 0, up to `max_delay`; default 1 s.
    base_delay: Duration => tuning.resilience.base_delay;
    /// The longest wait between attempts. Above 0, up to a day; default 60 s.
    max_delay: Duration => tuning.resilience.max_delay;
    /// Failures in a row that open the circuit. 1 to 1,000,000; default 3.
    fail_max: u32 => tuning.resilience.fail_max;
    /// How long the circuit stays open before a probe. Above 0, up to a day; default 30 s.
    reset_timeout: Duration => tuning.resilience.reset_timeout;
    /// Probes that must succeed to close the circuit. 1 to 1,000,000; default 3.
    success_threshold: u32 => tuning.resilience.success_threshold;
    /// Probes in flight at once while half-open. 1 to 1,000; default 1.
    half_open_max_calls: u32 => tuning.resilience.half_open_max_calls;
    /// How long a connection beyond `min_idle` may lie idle. Above 0, up to a day; default 10 min.
    idle_timeout: Duration => tuning.idle_timeout;
    /// How long a connection may live, ± 10 %. Above 0, up to a day; default 30 min.
    max_lifetime: Duration => tuning.max_lifetime;
    /// How long a connection may lie idle and be lent without being asked whether it still works.
    /// Above 0, up to a day; default 30 s.
    test_after: Duration => tuning.test_after;
    /// How far a replica may lag behind for [`read_from`](Self::read_from) to use it, as far as looks at the
    /// servers, a second apart, can tell. Above 0, up to a day; default 10 s.
    max_replica_lag: Duration => tuning.max_replica_lag;
}

impl DatabaseConfigBuilder {
    fn empty() -> Self {
        Self {
            name: defaults::NAME.into(),
            url: None,
            files: TlsFiles::default(),
            application_name: None,
            attrs: None,
            read_from: ReadFrom::default(),
            tuning: Tuning::default(),
            credentials: None,
            runtime: None,
            pgbouncer: None,
        }
    }

    /// The name of the manager, of its breaker and of its pool, as logs and metrics show it. Default `database`.
    pub fn name(self, name: impl Into<Name>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// How long a connection may be held before a warning names who took it, and where. It is told once for
    /// each, up to a second late, or a quarter of the threshold where that is less; nothing is taken away.
    /// Above 0, up to a day; default: none is too long, for only the application knows which may be long.
    pub fn leak_threshold(mut self, threshold: Duration) -> Self {
        self.tuning.leak_threshold = Some(threshold);
        self
    }

    /// A PEM file with the certificates of the authorities to trust, beside the public ones; read again when
    /// it changes. Default: none.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.ca_file = Some(path.into());
        self
    }

    /// A PEM file with the client's certificate; needs the key too. Read again when it changes. Default: none.
    pub fn client_cert_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.client_cert_file = Some(path.into());
        self
    }

    /// A PEM file with the key of the client's certificate; read again when it changes. Default: none.
    pub fn client_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.client_key_file = Some(path.into());
        self
    }

    /// How the server lists our connections. Default: the name of the running program.
    pub fn application_name(self, name: impl Into<String>) -> Self {
        Self { application_name: Some(name.into()), ..self }
    }

    /// Whether the server is behind PgBouncer in transaction mode (`pool_mode = transaction`). Default: what the
    /// URL says, else no. See [the crate's page](crate#behind-pgbouncer).
    pub fn pgbouncer(self, pgbouncer: bool) -> Self {
        Self { pgbouncer: Some(pgbouncer), ..self }
    }

    /// Which servers take connections, in libpq's words; over that of the URL. Default `any` for one host,
    /// `read-write` for several: who lists a cluster's members means its primary.
    pub fn target_session_attrs(self, attrs: TargetSessionAttrs) -> Self {
        Self { attrs: Some(attrs), ..self }
    }

    /// Where reads go, where there are several hosts. Default [`ReadFrom::Primary`]: what was written is read
    /// at once, and a second copy of every idle connection is not needed.
    pub fn read_from(self, read_from: ReadFrom) -> Self {
        Self { read_from, ..self }
    }

    /// The runtime on which connections are opened and background tasks run, so that they outlive the
    /// runtime of whoever uses the manager first. Default: the current one at each use.
    pub fn runtime(self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self }
    }

    /// Where user and password come from, in place of those in the URL, which still names the user where
    /// `provider` names none. Default: the URL's, for ever.
    ///
    /// New ones are used once the server has let them in, and without a restart: they are looked for as often
    /// as the provider says, and when the server refuses those in use. Connections opened under the old ones
    /// close as they come back. While the provider fails, the last good ones stay in use.
    pub fn credentials(self, provider: impl CredentialProvider + 'static) -> Self {
        Self { credentials: Some(Arc::new(provider)), ..self }
    }

    /// The settings, if they are valid.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong, by the setters' names.
    pub fn build(self) -> Result<DatabaseConfig, ConfigError> {
        self.validate(Problems::by_field())
    }

    fn from_settings(mut settings: Settings) -> Result<DatabaseConfig, ConfigError> {
        let mut builder = Self { url: settings.secret("url"), ..Self::empty() };
        builder.files = TlsFiles::from_settings(&mut settings);
        builder.application_name = settings.text("application_name");
        if let Some(text) = settings.text("pgbouncer") {
            match text.parse() {
                Ok(pgbouncer) => builder.pgbouncer = Some(pgbouncer),
                Err(_) => settings.wrong("pgbouncer", Held::Text(text), "true or false"),
            }
        }
        builder.attrs = word(&mut settings, "target_session_attrs", TargetSessionAttrs::WORDS);
        builder.read_from = word(&mut settings, "read_from", ReadFrom::WORDS).unwrap_or_default();
        settings.read_into(builder.tuning.quantities());
        builder.validate(settings.into_problems())
    }

    fn validate(mut self, mut problems: Problems) -> Result<DatabaseConfig, ConfigError> {
        let target = target(self.url.as_ref(), &mut problems);
        problems.check(self.tuning.quantities());
        self.tuning.check(&mut problems);
        let files = TlsFiles {
            ca_file: self.files.ca_file.or(target.ca_file),
            client_cert_file: self.files.client_cert_file.or(target.client_cert_file),
            client_key_file: self.files.client_key_file.or(target.client_key_file),
        };
        let tls = files.load(&mut problems).unwrap_or_default();
        let pgbouncer = self.pgbouncer.or(target.pgbouncer).unwrap_or(false);
        if pgbouncer && !target.options.is_empty() {
            let allowed = "false, or a URL without options: PgBouncer passes none on; ALTER ROLE … SET … sets them";
            problems.wrong("pgbouncer", Held::Text("true".to_owned()), allowed);
        }
        problems.finish()?;
        Ok(DatabaseConfig {
            name: self.name,
            hosts: target.hosts,
            credentials: self.credentials.unwrap_or_else(|| {
                Arc::new(stated(target.user.as_deref(), target.password.as_ref()))
            }),
            user: target.user,
            database: target.database,
            ssl_mode: ssl_mode(target.ssl_mode, tls.ca.is_some()),
            tls,
            application_name: self.application_name.or(target.application_name),
            statement_cache: target.statement_cache,
            options: target.options,
            rules: Rules {
                attrs: self.attrs.or(target.attrs),
                read_from: self.read_from,
                max_replica_lag: self.tuning.max_replica_lag,
            },
            tuning: self.tuning,
            runtime: self.runtime,
            pgbouncer,
        })
    }
}

/// No URL, which may hold a password.
impl fmt::Debug for DatabaseConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseConfigBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A setting that is one of a few words.
fn word<T: FromStr>(settings: &mut Settings, key: &str, allowed: &str) -> Option<T> {
    let text = settings.text(key)?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        settings.wrong(key, Held::Text(text), allowed);
    }
    parsed
}

/// What the URL says.
fn stated(user: Option<&str>, password: Option<&SecretString>) -> Credentials {
    let password = password
        .map_or_else(Credentials::default, |password| Credentials::token(password.expose_secret()));
    user.map_or(password.clone(), |user| password.with_username(user))
}

fn ssl_mode(stated: Option<PgSslMode>, has_ca: bool) -> PgSslMode {
    match stated {
        None if has_ca => PgSslMode::VerifyFull,
        None => PgSslMode::Prefer,
        Some(PgSslMode::Require) if has_ca => PgSslMode::VerifyCa,
        Some(mode) => mode,
    }
}

fn target(url: Option<&SecretString>, problems: &mut Problems) -> Target {
    let parsed = match url {
        None => Err(vec![(Held::Nothing, url::FORM.to_owned())]),
        Some(url) => url::parse(url.expose_secret()),
    };
    parsed.unwrap_or_else(|wrong| {
        for (held, allowed) in wrong {
            problems.wrong("url", held, allowed);
        }
        Target::default()
    })
}

#[cfg(test)]
mod tests {
    use resilience_core::settings::Quantity;

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
            ("DATABASE_DEADLINE", "2m"),
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
            ("DATABASE_PGBOUNCER", "true"),
            ("DATABASE_TARGET_SESSION_ATTRS", "primary"),
            ("DATABASE_READ_FROM", "prefer-replica"),
            ("DATABASE_MAX_REPLICA_LAG", "3"),
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
            .deadline(seconds(120))
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
            .pgbouncer(true)
            .target_session_attrs(TargetSessionAttrs::Primary)
            .read_from(ReadFrom::PreferReplica)
            .max_replica_lag(seconds(3))
            .build()
            .unwrap();
        assert_eq!(format!("{by_env:?}"), format!("{by_builder:?}"));
        assert_eq!(by_env.application_name, by_builder.application_name);
        let (mut tuning, mut default) = (by_env.tuning, Tuning::default());
        for ((key, set), (_, unset)) in tuning.quantities().zip(default.quantities()) {
            assert_ne!(format!("{set:?}"), format!("{unset:?}"), "{key} was not set");
        }
    }

    #[tokio::test]
    async fn the_largest_values_that_are_allowed_make_a_manager() {
        let mut builder = DatabaseConfig::builder(URL);
        for (_, quantity) in builder.tuning.quantities() {
            match quantity {
                Quantity::Count(count, allowed) => *count = *allowed.end(),
                Quantity::Duration(duration) => *duration = Duration::from_secs(24 * 3600),
                Quantity::Limit(limit) => *limit = Some(Duration::from_secs(24 * 3600)),
            }
        }
        DatabaseManager::connect(builder.build().unwrap()).unwrap();
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
             \n  deadline is \"0ns\"; allowed: above 0, a day at the most"
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
    fn pgbouncer_is_said_in_the_url_or_beside_it_and_takes_no_options() {
        let through = |url: &str| DatabaseConfig::builder(url.to_owned());
        let url = "postgres://db/app?pgbouncer=true";
        assert!(through(url).build().unwrap().pgbouncer);
        assert!(!through(url).pgbouncer(false).build().unwrap().pgbouncer);
        assert!(!through("postgres://db/app").build().unwrap().pgbouncer);
        let error = through("postgres://db/app?options=-c%20a%3D1").pgbouncer(true).build();
        assert_eq!(
            error.unwrap_err().to_string(),
            "1 setting is wrong:\n  pgbouncer is \"true\"; allowed: false, or a URL without options: \
             PgBouncer passes none on; ALTER ROLE … SET … sets them"
        );
        let error = from_pairs(&[("DATABASE_URL", URL), ("DATABASE_PGBOUNCER", "1")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1 setting is wrong:\n  DATABASE_PGBOUNCER is \"1\"; allowed: true or false"
        );
        let error = through("postgres://db/app?pgbouncer=maybe").build().unwrap_err().to_string();
        assert!(error.contains("pgbouncer as true or false"), "{error}");
    }

    #[test]
    fn a_threshold_of_nothing_is_refused_and_does_not_mean_that_there_is_none() {
        let built = DatabaseConfig::builder(URL).leak_threshold(Duration::ZERO).build();
        let error = built.unwrap_err().to_string();
        assert!(error.contains("leak_threshold is \"0ns\"; allowed: above 0"), "{error}");
        assert_eq!(DatabaseConfig::builder(URL).build().unwrap().tuning.leak_threshold, None);
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
        assert_eq!(config.unwrap().tuning.pool_size, 3);
    }
}
