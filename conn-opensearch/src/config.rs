//! Settings of a manager: from the environment, from a file under it, or from code.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use opensearch::http::Url;
use resilience_core::settings::{ConfigError, Held, Pem, PemBlock, Problem, Settings};
use resilience_core::{Name, RetryBudget};
use secrecy::SecretString;
use tokio::runtime::Handle;

use crate::defaults;
use crate::transport::{self, Access, Identity, Login, Unusable};
use crate::urls;

/// The section in files, and the prefix of the variables.
const SECTION: &str = "opensearch";

/// The longest duration a setting may hold: a day.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

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
    pub(crate) limits: Limits,
    pub(crate) budget: RetryBudget,
    pub(crate) runtime: Option<Handle>,
}

/// All that is a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) timeout: Duration,
    pub(crate) deadline: Duration,
    pub(crate) max_retries: u32,
    pub(crate) base_delay: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) fail_max: u32,
    pub(crate) reset_timeout: Duration,
    pub(crate) success_threshold: u32,
    pub(crate) half_open_max_calls: u32,
    pub(crate) bulkhead: u32,
    pub(crate) acquire_timeout: Duration,
    pub(crate) health_timeout: Duration,
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
        builder.ca_file = settings.text("ca_file").map(PathBuf::from);
        builder.client_cert_file = settings.text("client_cert_file").map(PathBuf::from);
        builder.client_key_file = settings.text("client_key_file").map(PathBuf::from);
        for (key, setting) in builder.limits.durations() {
            *setting = settings.duration(key).unwrap_or(*setting);
        }
        for (key, setting, least, most) in builder.limits.counts() {
            *setting = settings.whole(key, least..=most).unwrap_or(*setting);
        }
        let config = builder.validated(&mut |key, held, allowed| {
            settings.wrong(key, held, allowed);
        });
        settings.finish()?;
        Ok(config.expect("what is not valid was reported"))
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
    ca_file: Option<PathBuf>,
    client_cert_file: Option<PathBuf>,
    client_key_file: Option<PathBuf>,
    limits: Limits,
    budget: RetryBudget,
    runtime: Option<Handle>,
}

impl OpenSearchConfigBuilder {
    fn new(urls: Vec<String>) -> Self {
        Self {
            name: defaults::NAME.into(),
            urls,
            username: None,
            password: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            limits: Limits::default(),
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
        self.ca_file = Some(path.into());
        self
    }

    /// A PEM file with the client's certificate, and those between it and its authority; default:
    /// none. Needs `https`, and its key.
    pub fn client_cert_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.client_cert_file = Some(path.into());
        self
    }

    /// A PEM file with the private key of the client's certificate; default: none.
    pub fn client_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.client_key_file = Some(path.into());
        self
    }

    /// The time of one attempt. Default [`defaults::TIMEOUT`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.limits.timeout = timeout;
        self
    }

    /// The time of a call whose caller sets none. Default [`defaults::DEADLINE`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.limits.deadline = deadline;
        self
    }

    /// Attempts after the first, 0 to 100. Default [`defaults::MAX_RETRIES`].
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.limits.max_retries = retries;
        self
    }

    /// The wait before the first retry, up to the longest. Default [`defaults::BASE_DELAY`].
    pub fn base_delay(mut self, delay: Duration) -> Self {
        self.limits.base_delay = delay;
        self
    }

    /// The longest wait before a retry. Default [`defaults::MAX_DELAY`].
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.limits.max_delay = delay;
        self
    }

    /// What the retries of all calls may add to them. Default 10 % of the calls and a burst of 10.
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.budget = budget;
        self
    }

    /// Failures in a row that open the circuit, 1 or more. Default [`defaults::FAIL_MAX`].
    pub fn fail_max(mut self, failures: u32) -> Self {
        self.limits.fail_max = failures;
        self
    }

    /// How long the circuit stays open before a probe. Default [`defaults::RESET_TIMEOUT`].
    pub fn reset_timeout(mut self, timeout: Duration) -> Self {
        self.limits.reset_timeout = timeout;
        self
    }

    /// Probes that must succeed to close the circuit, 1 or more. Default [`defaults::SUCCESS_THRESHOLD`].
    pub fn success_threshold(mut self, successes: u32) -> Self {
        self.limits.success_threshold = successes;
        self
    }

    /// Probes in flight at once, 1 to 1,000. Default [`defaults::HALF_OPEN_MAX_CALLS`].
    pub fn half_open_max_calls(mut self, probes: u32) -> Self {
        self.limits.half_open_max_calls = probes;
        self
    }

    /// Attempts in flight at once over all nodes, 1 to 65,536. Default [`defaults::BULKHEAD`].
    pub fn bulkhead(mut self, places: u32) -> Self {
        self.limits.bulkhead = places;
        self
    }

    /// How long an attempt waits for a place among them. Default [`defaults::ACQUIRE_TIMEOUT`].
    pub fn acquire_timeout(mut self, wait: Duration) -> Self {
        self.limits.acquire_timeout = wait;
        self
    }

    /// The time of one health check. Default [`defaults::HEALTH_TIMEOUT`].
    pub fn health_timeout(mut self, timeout: Duration) -> Self {
        self.limits.health_timeout = timeout;
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
        let mut problems = Vec::new();
        let config = self.validated(&mut |key, held, allowed| {
            problems.push(Problem { name: key.to_owned(), held, allowed });
        });
        ConfigError::unless_empty(problems)?;
        Ok(config.expect("what is not valid was reported"))
    }

    /// The settings, if all are valid; otherwise `report` is told of each that is not.
    fn validated(
        mut self,
        report: &mut dyn FnMut(&'static str, Held, String),
    ) -> Option<OpenSearchConfig> {
        self.limits.check(report);
        let urls = urls::parse(&self.urls).map_err(|(held, allowed)| report("url", held, allowed));
        let (nodes, in_url) = urls.unwrap_or_default();
        let login = match (self.username, self.password) {
            (Some(username), Some(password)) => Some(Login { username, password }),
            (None, None) => in_url.clone(),
            (Some(_), None) => {
                report("password", Held::Nothing, "a password, as there is a username".into());
                None
            }
            (None, Some(_)) => {
                report("username", Held::Nothing, "a username, as there is a password".into());
                None
            }
        };
        match &login {
            Some(login) if in_url.as_ref().is_some_and(|other| !other.is(login)) => {
                report("url", Held::Secret, "no login, as username and password are set".into());
            }
            Some(login) if login.username.is_empty() || login.username.contains(':') => {
                report("username", Held::Secret, "text that is not empty, without a colon".into());
            }
            Some(_) | None => {}
        }
        let mut pem = |key, path: Option<PathBuf>, block| {
            let pem = path.map(|path| Pem::read(path, block));
            pem.and_then(|pem| pem.map_err(|(held, allowed)| report(key, held, allowed)).ok())
        };
        let given =
            [&self.ca_file, &self.client_cert_file, &self.client_key_file].map(Option::is_some);
        let ca = pem("ca_file", self.ca_file, PemBlock::Certificate);
        let certificate = pem("client_cert_file", self.client_cert_file, PemBlock::Certificate);
        let key = pem("client_key_file", self.client_key_file, PemBlock::PrivateKey);
        let [_, cert_given, key_given] = given;
        if cert_given && !key_given {
            report("client_key_file", Held::Nothing, "the key of the client certificate".into());
        }
        if key_given && !cert_given {
            report("client_cert_file", Held::Nothing, "the certificate of the client key".into());
        }
        let identity = certificate.zip(key).map(|(certificate, key)| Identity { certificate, key });
        let access = Access { login, ca, identity };
        let in_clear = nodes.first()?.scheme() == "http";
        if in_clear && given.contains(&true) {
            let held = Held::Text("http, with a certificate file set".into());
            report("url", held, "https, or no certificate files".into());
        }
        match transport::client(&nodes[0], &access, Arc::default()) {
            Ok(_) => {}
            Err(Unusable::Identity) => {
                let path = access.identity.as_ref().map(|identity| identity.key.path());
                report("client_key_file", shown(path), "the key of the client certificate".into());
            }
            Err(Unusable::Authority) => {
                let path = access.ca.as_ref().map(Pem::path);
                let allowed = match path {
                    Some(_) => "a PEM file whose certificates parse",
                    None => "a PEM file, for this system has no certificates of its own",
                };
                report("ca_file", shown(path), allowed.into());
            }
        }
        let Self { name, limits, budget, runtime, .. } = self;
        Some(OpenSearchConfig { name, nodes, access, limits, budget, runtime })
    }
}

fn shown(path: Option<&Path>) -> Held {
    path.map_or(Held::Nothing, |path| Held::Text(path.display().to_string()))
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: defaults::TIMEOUT,
            deadline: defaults::DEADLINE,
            max_retries: defaults::MAX_RETRIES,
            base_delay: defaults::BASE_DELAY,
            max_delay: defaults::MAX_DELAY,
            fail_max: defaults::FAIL_MAX,
            reset_timeout: defaults::RESET_TIMEOUT,
            success_threshold: defaults::SUCCESS_THRESHOLD,
            half_open_max_calls: defaults::HALF_OPEN_MAX_CALLS,
            bulkhead: defaults::BULKHEAD,
            acquire_timeout: defaults::ACQUIRE_TIMEOUT,
            health_timeout: defaults::HEALTH_TIMEOUT,
        }
    }
}

impl Limits {
    /// Every duration by its key.
    fn durations(&mut self) -> [(&'static str, &mut Duration); 7] {
        [
            ("timeout", &mut self.timeout),
            ("deadline", &mut self.deadline),
            ("base_delay", &mut self.base_delay),
            ("max_delay", &mut self.max_delay),
            ("reset_timeout", &mut self.reset_timeout),
            ("acquire_timeout", &mut self.acquire_timeout),
            ("health_timeout", &mut self.health_timeout),
        ]
    }

    /// Every count by its key, with the least and the most that it may be.
    fn counts(&mut self) -> [(&'static str, &mut u32, u32, u32); 5] {
        [
            ("max_retries", &mut self.max_retries, 0, 100),
            ("fail_max", &mut self.fail_max, 1, 1_000_000),
            ("success_threshold", &mut self.success_threshold, 1, 1_000_000),
            ("half_open_max_calls", &mut self.half_open_max_calls, 1, 1_000),
            ("bulkhead", &mut self.bulkhead, 1, 65_536),
        ]
    }

    fn check(&mut self, report: &mut dyn FnMut(&'static str, Held, String)) {
        for (key, value) in self.durations() {
            if value.is_zero() || *value > LONGEST {
                let allowed = "a duration above 0 and up to a day";
                report(key, Held::Text(format!("{value:?}")), allowed.into());
            }
        }
        for (key, value, least, most) in self.counts() {
            if !(least..=most).contains(value) {
                let allowed = format!("a whole number from {least} to {most}");
                report(key, Held::Text(value.to_string()), allowed);
            }
        }
        let Self { base_delay, max_delay, .. } = *self;
        if base_delay > max_delay {
            let allowed = format!("up to the max_delay, which is {max_delay:?}");
            report("base_delay", Held::Text(format!("{base_delay:?}")), allowed);
        }
    }
}

#[cfg(test)]
mod tests {
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
        let expected = Limits::default();
        assert_eq!(format!("{:?}", config.limits), format!("{expected:?}"));
    }

    #[tokio::test]
    async fn the_largest_counts_that_are_allowed_make_a_manager() {
        let mut config = from(&[]).unwrap();
        for (_, value, _, most) in config.limits.counts() {
            *value = most;
        }
        OpenSearchManager::connect(config).unwrap();
    }

    #[test]
    fn every_variable_has_its_effect() {
        let config = from(&[
            ("OPENSEARCH_URL", "http://a:9200, http://b:9200/"),
            ("OPENSEARCH_USERNAME", "app"),
            ("OPENSEARCH_PASSWORD", "hunter2"),
            ("OPENSEARCH_TIMEOUT", "1.5"),
            ("OPENSEARCH_DEADLINE", "500ms"),
            ("OPENSEARCH_MAX_RETRIES", "0"),
            ("OPENSEARCH_BASE_DELAY", "2"),
            ("OPENSEARCH_MAX_DELAY", "4s"),
            ("OPENSEARCH_FAIL_MAX", "7"),
            ("OPENSEARCH_RESET_TIMEOUT", "1m"),
            ("OPENSEARCH_SUCCESS_THRESHOLD", "8"),
            ("OPENSEARCH_HALF_OPEN_MAX_CALLS", "9"),
            ("OPENSEARCH_BULKHEAD", "10"),
            ("OPENSEARCH_ACQUIRE_TIMEOUT", "11"),
            ("OPENSEARCH_HEALTH_TIMEOUT", "12"),
        ])
        .unwrap();
        assert_eq!(config.nodes.len(), 2);
        let login = config.access.login.as_ref().unwrap();
        assert!(login.is(&Login { username: "app".into(), password: "hunter2".into() }));
        let mut limits = config.limits;
        let durations = limits.durations().map(|(_, value)| value.as_millis());
        assert_eq!(durations, [1500, 500, 2000, 4000, 60_000, 11_000, 12_000]);
        assert_eq!(limits.counts().map(|(_, value, ..)| *value), [0, 7, 8, 9, 10]);
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
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
        assert_eq!(config.unwrap().limits.fail_max, 77);
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
        assert!(
            clear.contains("OPENSEARCH_URL is \"http, with a certificate file set\""),
            "{clear}"
        );
        assert!(garbage.contains("a PEM file whose certificates parse"), "{garbage}");
    }
}
