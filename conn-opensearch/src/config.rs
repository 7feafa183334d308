//! Settings of a manager: from the environment, from a file under it, or from code.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use opensearch::http::Url;
use resilience_core::settings::{
    ConfigError, Held, Pem, Problems, Settings, Tls, TlsFiles, setters,
};
use resilience_core::{Name, RetryBudget};
use secrecy::SecretString;
use tokio::runtime::Handle;

use crate::defaults;
use crate::transport::{self, Access, Identity, Login, Unusable};
use crate::tuning::Tuning;
use crate::urls;

/// The section in files, and the prefix of the variables.
const SECTION: &str = "opensearch";

/// Validated settings of an [`OpenSearchManager`](crate::OpenSearchManager). Its `Debug` shows no secret.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use conn_opensearch::OpenSearchConfig;
///
/// let config = OpenSearchConfig::builder("http://node-1:9200,http://node-2:9200")
///     .login("app", "a long password")
///     .timeout(Duration::from_secs(5))
///     .max_retries(1)
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct OpenSearchConfig {
    pub(crate) name: Name,
    pub(crate) nodes: Vec<Url>,
    pub(crate) access: Access,
    pub(crate) tuning: Tuning,
    pub(crate) budget: RetryBudget,
    pub(crate) runtime: Option<Handle>,
}

impl OpenSearchConfig {
    /// The variables `OPENSEARCH_*` of the environment; what is not set there is at its default.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong, each by its variable.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_settings(Settings::from_env(SECTION))
    }

    /// The table `opensearch` of a TOML, YAML or JSON file (by its extension), under the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong, each by its variable; also if the file cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::from_settings(Settings::from_file_and_env(SECTION, path.as_ref()))
    }

    /// Settings given in code; `url` is one URL or several, separated by commas.
    ///
    /// `http` or `https`, the same for all: a cluster half in clear text would send its password in
    /// clear text too. Without a port they mean 80 and 443. A path is put before that of each request.
    /// `user:password@` may stand in the URLs, the same in all, in place of a
    /// [`login`](OpenSearchConfigBuilder::login).
    pub fn builder(url: impl Into<String>) -> OpenSearchConfigBuilder {
        let url: String = url.into();
        OpenSearchConfigBuilder::new(url.split(',').map(str::to_owned).collect())
    }

    /// The name of breaker and bulkhead, in logs and metrics.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The same settings on that runtime; see [`OpenSearchConfigBuilder::runtime`].
    #[must_use]
    pub fn runtime(self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self }
    }

    fn from_settings(mut settings: Settings) -> Result<Self, ConfigError> {
        let urls = settings.list("url").unwrap_or_else(|| vec![defaults::URL.to_owned()]);
        let mut builder = OpenSearchConfigBuilder::new(urls);
        builder.username = settings.text("username");
        builder.password = settings.secret("password");
        builder.files = TlsFiles::from_settings(&mut settings);
        settings.read_into(builder.tuning.quantities());
        builder.validate(settings.into_problems())
    }
}

/// Settings in the making. Defaults are those of [`defaults`].
#[derive(Clone, Debug)]
#[must_use]
pub struct OpenSearchConfigBuilder {
    name: Name,
    urls: Vec<String>,
    username: Option<String>,
    password: Option<SecretString>,
    files: TlsFiles,
    tuning: Tuning,
    budget: RetryBudget,
    runtime: Option<Handle>,
}

setters! { OpenSearchConfigBuilder:
    /// The time of one attempt. Default [`defaults::TIMEOUT`].
    timeout: Duration => tuning.resilience.attempt_timeout;
    /// The time of a call whose caller sets none. Default [`defaults::DEADLINE`].
    deadline: Duration => tuning.resilience.deadline;
    /// Attempts after the first, 0 to 100. Default [`defaults::MAX_RETRIES`].
    max_retries: u32 => tuning.resilience.max_retries;
    /// The wait before the first retry, up to the longest. Default [`defaults::BASE_DELAY`].
    base_delay: Duration => tuning.resilience.base_delay;
    /// The longest wait before a retry. Default [`defaults::MAX_DELAY`].
    max_delay: Duration => tuning.resilience.max_delay;
    /// Failures in a row that open the circuit, 1 to 1,000,000. Default [`defaults::FAIL_MAX`].
    fail_max: u32 => tuning.resilience.fail_max;
    /// How long the circuit stays open before a probe. Default [`defaults::RESET_TIMEOUT`].
    reset_timeout: Duration => tuning.resilience.reset_timeout;
    /// Probes that must succeed to close the circuit, 1 to 1,000,000. Default [`defaults::SUCCESS_THRESHOLD`].
    success_threshold: u32 => tuning.resilience.success_threshold;
    /// Probes in flight at once, 1 to 1,000. Default [`defaults::HALF_OPEN_MAX_CALLS`].
    half_open_max_calls: u32 => tuning.resilience.half_open_max_calls;
    /// Attempts in flight at once over all nodes, 1 to 65,536. Default [`defaults::BULKHEAD`].
    bulkhead: u32 => tuning.bulkhead;
    /// How long an attempt waits for a place among them. Default [`defaults::ACQUIRE_TIMEOUT`].
    acquire_timeout: Duration => tuning.acquire_timeout;
    /// The time of one health check. Default [`defaults::HEALTH_TIMEOUT`].
    health_timeout: Duration => tuning.health_timeout;
}

impl OpenSearchConfigBuilder {
    fn new(urls: Vec<String>) -> Self {
        Self {
            name: defaults::NAME.into(),
            urls,
            username: None,
            password: None,
            files: TlsFiles::default(),
            tuning: Tuning::default(),
            budget: RetryBudget::new(defaults::RETRY_BUDGET_RATIO, defaults::RETRY_BUDGET_BURST)
                .expect("both are in range"),
            runtime: None,
        }
    }

    /// The name of breaker and bulkhead, in logs and metrics. Default [`defaults::NAME`].
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.name = name.into();
        self
    }

    /// The user and the password (basic auth), sent with every request; default: none. It goes
    /// together with a client certificate.
    pub fn login(mut self, username: impl Into<String>, password: impl Into<SecretString>) -> Self {
        self.username = Some(username.into());
        self.password = Some(password.into());
        self
    }

    /// A PEM file with the authorities that may sign the nodes' certificates, besides those of the
    /// system; default: none. Needs `https`.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.ca_file = Some(path.into());
        self
    }

    /// A PEM file with the client's certificate, and those between it and its authority; default:
    /// none. Needs `https`, and its key.
    pub fn client_cert_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.client_cert_file = Some(path.into());
        self
    }

    /// A PEM file with the private key of the client's certificate; default: none.
    pub fn client_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.client_key_file = Some(path.into());
        self
    }

    /// What the retries of all calls may add to them. Default 10 % of the calls and a burst of 10.
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.budget = budget;
        self
    }

    /// The runtime that connections live on; default: that of whoever uses the manager. For a
    /// manager that outlives the runtime it was first used on. Closures run within it too.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// The settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong, each by the name of its field.
    pub fn build(self) -> Result<OpenSearchConfig, ConfigError> {
        self.validate(Problems::by_field())
    }

    fn validate(mut self, mut problems: Problems) -> Result<OpenSearchConfig, ConfigError> {
        problems.check(self.tuning.quantities());
        self.tuning.resilience.check(&mut problems);
        let urls =
            urls::parse(&self.urls).map_err(|(held, allowed)| problems.wrong("url", held, allowed));
        let (nodes, in_url) = urls.unwrap_or_default();
        let login = match (self.username, self.password) {
            (Some(username), Some(password)) => Some(Login { username, password }),
            (None, None) => in_url.clone(),
            (Some(_), None) => {
                problems.wrong("password", Held::Nothing, "a password, as there is a username");
                None
            }
            (None, Some(_)) => {
                problems.wrong("username", Held::Nothing, "a username, as there is a password");
                None
            }
        };
        match &login {
            Some(login) if in_url.as_ref().is_some_and(|other| !other.is(login)) => {
                problems.wrong("url", Held::Secret, "no login, as username and password are set");
            }
            Some(login) if login.username.is_empty() || login.username.contains(':') => {
                problems.wrong("username", Held::Secret, "text that is not empty, without a colon");
            }
            Some(_) | None => {}
        }
        let clear = nodes.first().is_some_and(|node| node.scheme() == "http");
        if clear {
            self.files.refuse_unless("https://", &mut problems);
        }
        let tls = self.files.load(&mut problems);
        let whole = tls.is_some();
        let Tls { ca, identity } = tls.unwrap_or_default();
        let identity = identity.map(|(certificate, key)| Identity { certificate, key });
        let access = Access { login, ca, identity };
        if whole
            && let Some(node) = nodes.first()
            && let Err(unusable) = transport::client(node, &access, Arc::default())
        {
            let (key, path, allowed) = match unusable {
                Unusable::Identity => (
                    "client_key_file",
                    access.identity.as_ref().map(|identity| identity.key.path()),
                    "the key of the client certificate",
                ),
                Unusable::Authority => {
                    let path = access.ca.as_ref().map(Pem::path);
                    let allowed = match path {
                        Some(_) => "a PEM file whose certificates parse",
                        None => "a PEM file, for this system has no certificates of its own",
                    };
                    ("ca_file", path, allowed)
                }
            };
            let held = path.map(|path| Held::Text(path.display().to_string()));
            problems.wrong(key, held.unwrap_or(Held::Nothing), allowed);
        }
        problems.finish()?;
        let Self { name, tuning, budget, runtime, .. } = self;
        Ok(OpenSearchConfig { name, nodes, access, tuning, budget, runtime })
    }
}

#[cfg(test)]
mod tests {
    use resilience_core::settings::Quantity;

    use super::*;
    use crate::OpenSearchManager;

    fn from(pairs: &[(&'static str, &str)]) -> Result<OpenSearchConfig, ConfigError> {
        OpenSearchConfig::from_settings(Settings::from_pairs(SECTION, pairs.iter().copied()))
    }

    fn refusal(pairs: &[(&'static str, &str)]) -> String {
        from(pairs).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_environment_gives_the_defaults() {
        let config = from(&[]).unwrap();
        assert_eq!(config.nodes, ["https://localhost:9200/".parse().unwrap()]);
        assert!(config.access.login.is_none());
        let expected = Tuning::default();
        assert_eq!(format!("{:?}", config.tuning), format!("{expected:?}"));
    }

    #[tokio::test]
    async fn the_largest_values_that_are_allowed_make_a_manager() {
        let mut builder = OpenSearchConfig::builder("https://localhost:9200");
        for (_, quantity) in builder.tuning.quantities() {
            match quantity {
                Quantity::Count(count, allowed) => *count = *allowed.end(),
                Quantity::Duration(duration) => *duration = Duration::from_secs(24 * 3600),
                Quantity::Limit(limit) => *limit = Some(Duration::from_secs(24 * 3600)),
            }
        }
        OpenSearchManager::connect(builder.build().unwrap()).unwrap();
    }

    #[test]
    fn every_variable_has_its_effect() {
        let config = from(&[
            ("OPENSEARCH_URL", "http://a:9200, http://b:9200/"),
            ("OPENSEARCH_USERNAME", "app"),
            ("OPENSEARCH_PASSWORD", "hunter2"),
            ("OPENSEARCH_BULKHEAD", "2"),
            ("OPENSEARCH_ACQUIRE_TIMEOUT", "3"),
            ("OPENSEARCH_HEALTH_TIMEOUT", "4s"),
            ("OPENSEARCH_DEADLINE", "5"),
            ("OPENSEARCH_TIMEOUT", "6"),
            ("OPENSEARCH_MAX_RETRIES", "7"),
            ("OPENSEARCH_BASE_DELAY", "8000ms"),
            ("OPENSEARCH_MAX_DELAY", "9"),
            ("OPENSEARCH_FAIL_MAX", "10"),
            ("OPENSEARCH_RESET_TIMEOUT", "11"),
            ("OPENSEARCH_SUCCESS_THRESHOLD", "12"),
            ("OPENSEARCH_HALF_OPEN_MAX_CALLS", "13"),
        ])
        .unwrap();
        assert_eq!(config.nodes.len(), 2);
        let login = config.access.login.as_ref().unwrap();
        assert!(login.is(&Login { username: "app".into(), password: "hunter2".into() }));
        assert_eq!(held(config.tuning), (2..=13).collect::<Vec<_>>());
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    }

    #[test]
    fn every_setter_has_its_effect() {
        let seconds = Duration::from_secs;
        let builder = OpenSearchConfig::builder("https://localhost:9200")
            .bulkhead(2)
            .acquire_timeout(seconds(3))
            .health_timeout(seconds(4))
            .deadline(seconds(5))
            .timeout(seconds(6))
            .max_retries(7)
            .base_delay(seconds(8))
            .max_delay(seconds(9))
            .fail_max(10)
            .reset_timeout(seconds(11))
            .success_threshold(12)
            .half_open_max_calls(13);
        assert_eq!(held(builder.tuning), (2..=13).collect::<Vec<_>>());
    }

    /// Counts, and durations in seconds, in the order of [`Tuning::quantities`].
    fn held(mut tuning: Tuning) -> Vec<u64> {
        let held = |(_, quantity)| match quantity {
            Quantity::Count(count, _) => u64::from(*count),
            Quantity::Duration(duration) => duration.as_secs(),
            Quantity::Limit(limit) => limit.map_or(0, |it| it.as_secs()),
        };
        tuning.quantities().map(held).collect()
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_and_no_secret_with_it() {
        let text = refusal(&[
            ("OPENSEARCH_URL", "https://app:hunter2@a:9200,ftp://app:hunter2@b"),
            ("OPENSEARCH_PASSWORD", "hunter2"),
            ("OPENSEARCH_TIMEOUT", "-1"),
            ("OPENSEARCH_MAX_RETRIES", "99999999999"),
            ("OPENSEARCH_CA_FILE", "/none.pem"),
            ("OPENSEARCH_CLIENT_CERT_FILE", "/none.crt"),
        ]);
        assert!(!text.contains("hunter2"), "{text}");
        for line in [
            "OPENSEARCH_URL is \"ftp://***@b\"; allowed: ",
            "OPENSEARCH_USERNAME is not set; allowed: a username, as there is a password",
            "OPENSEARCH_TIMEOUT is \"-1\"; allowed: ",
            "OPENSEARCH_MAX_RETRIES is \"99999999999\"; allowed: a whole number from 0 to 100",
            "OPENSEARCH_CA_FILE is \"/none.pem, which cannot be read",
            "OPENSEARCH_CLIENT_CERT_FILE is \"/none.crt, which cannot be read",
            "OPENSEARCH_CLIENT_KEY_FILE is not set; allowed: ",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_login_may_stand_in_the_url_or_beside_it_but_not_two_of_them() {
        let url = ("OPENSEARCH_URL", "https://app:p%40ss@a:9200");
        let config = from(&[url]).unwrap();
        let expected = Login { username: "app".into(), password: "p@ss".into() };
        assert!(config.access.login.unwrap().is(&expected));
        assert_eq!(config.nodes[0].as_str(), "https://a:9200/");
        let same = [url, ("OPENSEARCH_USERNAME", "app"), ("OPENSEARCH_PASSWORD", "p@ss")];
        from(&same).unwrap();
        let other = [url, ("OPENSEARCH_USERNAME", "app"), ("OPENSEARCH_PASSWORD", "other")];
        let text = refusal(&other);
        assert!(
            text.contains("OPENSEARCH_URL holds a value that is not shown; allowed: no login"),
            "{text}"
        );
    }

    #[test]
    fn a_file_lies_under_the_environment() {
        let file = std::env::temp_dir().join(format!("opensearch-{}.yaml", std::process::id()));
        std::fs::write(&file, "opensearch:\n  url: [http://a, http://b]\n  fail_max: 77\n")
            .unwrap();
        let config = OpenSearchConfig::from_file(&file);
        let broken = std::fs::write(&file, "opensearch: 7").and_then(|()| {
            let error = OpenSearchConfig::from_file(&file).unwrap_err().to_string();
            std::fs::remove_file(&file).map(|()| error)
        });
        assert_eq!(config.unwrap().tuning.resilience.fail_max, 77);
        assert!(broken.unwrap().contains(&*file.to_string_lossy()));
    }

    #[test]
    fn the_builder_names_fields() {
        let error = OpenSearchConfig::builder("localhost:9200")
            .timeout(Duration::ZERO)
            .fail_max(0)
            .base_delay(Duration::from_secs(40))
            .build()
            .unwrap_err();
        let names: Vec<_> = error.problems().iter().map(|problem| &*problem.name).collect();
        assert_eq!(names, ["timeout", "fail_max", "base_delay", "url"]);
    }

    #[test]
    fn a_certificate_that_would_be_ignored_is_refused() {
        let file = std::env::temp_dir().join(format!("opensearch-ca-{}.pem", std::process::id()));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
            .unwrap();
        let path = file.to_str().unwrap();
        let clear = refusal(&[("OPENSEARCH_URL", "http://a"), ("OPENSEARCH_CA_FILE", path)]);
        let garbage = refusal(&[("OPENSEARCH_URL", "https://a"), ("OPENSEARCH_CA_FILE", path)]);
        std::fs::remove_file(&file).unwrap();
        assert!(clear.contains("allowed: nothing, unless the URL begins with https://"), "{clear}");
        assert!(garbage.contains("a PEM file whose certificates parse"), "{garbage}");
    }
}
