//! Reads a connector's settings from the environment, over a file if there is one, and reports all
//! that is wrong with them at once.
//!
//! A setting `pool_size` of the section `database` is `DATABASE_POOL_SIZE` in the environment, and in
//! a TOML, YAML or JSON file `pool_size` in the table `database`. The environment wins. An empty
//! variable counts as not set.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Config, Environment, File};
use secrecy::{ExposeSecret, SecretString};

/// The longest duration a setting may hold: a day.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The settings of one section, and what was found wrong with them so far.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::settings::Settings;
///
/// let mut settings = Settings::from_pairs("redis", [("REDIS_SOCKET_TIMEOUT", "-1"), ("REDIS_MAX_CONNECTIONS", "50")]);
/// assert_eq!(settings.whole("max_connections", 1..=10_000), Some(50));
/// assert_eq!(settings.duration("socket_timeout"), None);
/// let error = settings.finish().unwrap_err();
/// assert!(error.to_string().contains("REDIS_SOCKET_TIMEOUT is \"-1\"; allowed: "));
/// ```
#[derive(Debug)]
pub struct Settings {
    section: &'static str,
    values: Config,
    problems: Vec<Problem>,
}

impl Settings {
    /// The section's variables in the environment.
    #[must_use]
    pub fn from_env(section: &'static str) -> Self {
        Self::read(section, None, None)
    }

    /// The section's table in `file` (TOML, YAML or JSON, by its extension), under the environment.
    #[must_use]
    pub fn from_file_and_env(section: &'static str, file: &Path) -> Self {
        Self::read(section, Some(file), None)
    }

    /// Variables given as pairs in place of the environment.
    #[must_use]
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        section: &'static str,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let pairs = pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self::read(section, None, Some(pairs))
    }

    fn read(
        section: &'static str,
        file: Option<&Path>,
        pairs: Option<HashMap<String, String>>,
    ) -> Self {
        let mut problems = Vec::new();
        let mut builder = Config::builder();
        match file.map(|path| (path, file_table(section, path))) {
            None => {}
            Some((_, Ok(table))) => builder = builder.add_source(table),
            Some((path, Err(cause))) => problems.push(Problem {
                name: path.display().to_string(),
                held: Held::Text(cause),
                allowed: "a readable TOML, YAML or JSON file".into(),
            }),
        }
        let environment = Environment::with_prefix(section)
            .prefix_separator("_")
            .ignore_empty(true)
            .source(pairs);
        let values = match builder.add_source(environment).build() {
            Ok(values) => values,
            Err(_) => {
                problems.push(Problem {
                    name: format!("{}_*", section.to_uppercase()),
                    held: Held::Secret,
                    allowed: "variables in UTF-8".into(),
                });
                Config::default()
            }
        };
        Self { section, values, problems }
    }

    /// The text of a setting.
    pub fn text(&mut self, key: &str) -> Option<String> {
        let value = self.values.get::<config::Value>(key).ok()?;
        match value.clone().into_string() {
            Ok(text) => Some(text),
            Err(_) => {
                self.wrong(key, Held::Secret, "one value, not a table or a list");
                None
            }
        }
    }

    /// The text of a setting that must not be shown.
    pub fn secret(&mut self, key: &str) -> Option<SecretString> {
        self.text(key).map(SecretString::from)
    }

    /// The parts of a setting: a comma-separated text, or a list in a file. Empty parts are dropped.
    pub fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let value = self.values.get::<config::Value>(key).ok()?;
        let parts: Result<Vec<String>, _> = match value.clone().into_array() {
            Ok(values) => values.into_iter().map(config::Value::into_string).collect(),
            Err(_) => value.into_string().map(|text| text.split(',').map(str::to_owned).collect()),
        };
        let Ok(parts) = parts else {
            self.wrong(key, Held::Secret, "a text, or a list of texts");
            return None;
        };
        Some(
            parts
                .into_iter()
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect(),
        )
    }

    /// A whole number within `allowed`.
    pub fn whole(&mut self, key: &str, allowed: RangeInclusive<u32>) -> Option<u32> {
        let text = self.text(key)?;
        let number = text.trim().parse().ok().filter(|number| allowed.contains(number));
        if number.is_none() {
            let (low, high) = allowed.into_inner();
            self.wrong(key, Held::Text(text), format!("a whole number from {low} to {high}"));
        }
        number
    }

    /// A duration above zero, a day at the most: seconds, or `500ms`, `2s`, `1m`, `1h`.
    pub fn duration(&mut self, key: &str) -> Option<Duration> {
        let text = self.text(key)?;
        let duration =
            parse_duration(&text).filter(|duration| !duration.is_zero() && *duration <= LONGEST);
        if duration.is_none() {
            let allowed = "a number of seconds above 0 and up to 86400, such as 30 or 0.5, or 500ms, 2s, 1m, 1h";
            self.wrong(key, Held::Text(text), allowed);
        }
        duration
    }

    /// The path and contents of a PEM file that holds a `block` (such as `CERTIFICATE`).
    pub fn pem(&mut self, key: &str, block: PemBlock) -> Option<Pem> {
        let text = self.text(key)?;
        match Pem::read(&text, block) {
            Ok(pem) => Some(pem),
            Err((held, allowed)) => {
                self.wrong(key, held, allowed);
                None
            }
        }
    }

    /// Notes that a setting must be there and is not.
    pub fn missing(&mut self, key: &str, allowed: impl Into<String>) {
        self.wrong(key, Held::Nothing, allowed);
    }

    /// Notes that a setting is wrong, what it holds and what is allowed.
    pub fn wrong(&mut self, key: &str, held: Held, allowed: impl Into<String>) {
        let name = self.variable(key);
        self.problems.push(Problem { name, held, allowed: allowed.into() });
    }

    /// The variable that holds a setting.
    #[must_use]
    pub fn variable(&self, key: &str) -> String {
        format!("{}_{}", self.section, key).to_uppercase()
    }

    /// Nothing, if nothing is wrong.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong.
    pub fn finish(self) -> Result<(), ConfigError> {
        ConfigError::unless_empty(self.problems)
    }
}

/// A section's table in a file, as a source of its own.
fn file_table(section: &str, path: &Path) -> Result<Config, String> {
    let whole =
        Config::builder().add_source(File::from(path)).build().map_err(|_| unreadable(path))?;
    match whole.get_table(section) {
        Ok(table) => {
            let mut builder = Config::builder();
            for (key, value) in table {
                builder = builder.set_override(key, value).map_err(|_| unreadable(path))?;
            }
            builder.build().map_err(|_| unreadable(path))
        }
        Err(config::ConfigError::NotFound(_)) => Ok(Config::default()),
        Err(_) => Err(format!("a file whose {section:?} is no table")),
    }
}

/// Why a file gives no settings, without quoting it: it may hold secrets.
fn unreadable(path: &Path) -> String {
    match std::fs::read(path) {
        Err(error) => format!("a file that cannot be read ({})", error.kind()),
        Ok(_) => "a file that does not parse".to_owned(),
    }
}

/// Parses seconds (`30`, `0.5`) or a number with a unit (`500ms`, `2s`, `1m`, `1h`).
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let plain = digits.trim_end();
    let number = plain
        .chars()
        .all(|c| c.is_ascii_digit() || c == '.')
        .then(|| plain.parse::<f64>().ok())??;
    Duration::try_from_secs_f64(number * unit).ok()
}

/// Hides the user and password of a URL: `redis://***@host:6379/0`. Text that is no URL is hidden whole,
/// and so is a host whose port is no number: that may be a password whose host was left out.
#[must_use]
pub fn redact_url(url: &str) -> String {
    let is_scheme =
        |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return "***".to_owned();
    };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if tail.contains('@') {
        // A password with a bare '/', '?' or '#' ends the authority too early.
        return format!("{scheme}://***");
    }
    let tail = tail.split(['?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}{tail}"),
        None if authority.split(',').all(is_host) => format!("{scheme}://{authority}{tail}"),
        None => format!("{scheme}://***"),
    }
}

/// Whether `text` looks like a host, with a port or without.
fn is_host(text: &str) -> bool {
    text.ends_with(']')
        || text.rsplit_once(':').is_none_or(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
}

/// What a PEM file must hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PemBlock {
    /// One or more certificates.
    Certificate,
    /// A private key of any kind.
    PrivateKey,
}

/// A PEM file that was read. Its contents may be a key: they are not shown.
#[derive(Clone)]
pub struct Pem {
    path: PathBuf,
    contents: SecretString,
}

impl Pem {
    /// Reads the file at `path`, which must hold a `block`.
    ///
    /// # Errors
    ///
    /// What the setting holds, and what is allowed.
    pub fn read(path: impl Into<PathBuf>, block: PemBlock) -> Result<Self, (Held, String)> {
        let path = path.into();
        if path.to_string_lossy().contains("-----BEGIN") {
            return Err((Held::Secret, "the path of a PEM file, not what it holds".to_owned()));
        }
        let shown = path.display();
        let contents = std::fs::read_to_string(&path).map_err(|error| {
            (
                Held::Text(format!("{shown}, which cannot be read ({})", error.kind())),
                "a readable PEM file".to_owned(),
            )
        })?;
        let (there, wanted) = match block {
            PemBlock::Certificate => {
                (contents.contains("-----BEGIN CERTIFICATE-----"), "BEGIN CERTIFICATE")
            }
            PemBlock::PrivateKey => (contents.contains("PRIVATE KEY-----"), "BEGIN PRIVATE KEY"),
        };
        match there {
            true => Ok(Self { path, contents: contents.into() }),
            false => Err((
                Held::Text(format!("{shown}, which is not such a file")),
                format!("a PEM file with a block \"{wanted}\""),
            )),
        }
    }

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of the file.
    #[must_use]
    pub fn contents(&self) -> &str {
        self.contents.expose_secret()
    }
}

/// Of the same file, with the same contents.
impl PartialEq for Pem {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path && self.contents() == other.contents()
    }
}

impl Eq for Pem {}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pem").field(&self.path).finish()
    }
}

/// All that is wrong with a connector's settings, a line each.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{} wrong:{}", count(.problems.len()), list(.problems))]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// Nothing, if there are no problems.
    ///
    /// # Errors
    ///
    /// All the problems.
    pub fn unless_empty(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    /// The problems, in the order they were found; 1 or more.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The problems of several sections as one.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.problems.extend(other.problems);
        self
    }
}

/// One setting that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The variable or field.
    pub name: String,
    /// What it holds.
    pub held: Held,
    /// What it may hold.
    pub allowed: String,
}

/// What a wrong setting holds, as far as it may be shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// This text, which is no secret.
    Text(String),
    /// Something that may be a secret.
    Secret,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, held, allowed } = self;
        match held {
            Held::Nothing => write!(f, "{name} is not set; allowed: {allowed}"),
            Held::Text(text) => write!(f, "{name} is {text:?}; allowed: {allowed}"),
            Held::Secret => write!(f, "{name} holds a value that is not shown; allowed: {allowed}"),
        }
    }
}

fn count(problems: usize) -> String {
    if problems == 1 { "1 setting is".to_owned() } else { format!("{problems} settings are") }
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let mut settings = Settings::from_pairs(
            "database",
            [("DATABASE_POOL_SIZE", "-3"), ("DATABASE_CA_FILE", "/none.pem")],
        );
        assert_eq!(settings.whole("pool_size", 1..=1000), None);
        assert!(settings.pem("ca_file", PemBlock::Certificate).is_none());
        settings.missing("url", "postgresql://user:password@host:5432/database");
        let text = settings.finish().unwrap_err().to_string();
        assert_eq!(
            text,
            "3 settings are wrong:\
             \n  DATABASE_POOL_SIZE is \"-3\"; allowed: a whole number from 1 to 1000\
             \n  DATABASE_CA_FILE is \"/none.pem, which cannot be read (entity not found)\"; allowed: a readable PEM file\
             \n  DATABASE_URL is not set; allowed: postgresql://user:password@host:5432/database"
        );
    }

    #[test]
    fn durations_are_seconds_as_in_python_or_have_a_unit() {
        for (text, millis) in [
            ("30", 30_000),
            ("0.5", 500),
            (" 2s ", 2000),
            ("500ms", 500),
            ("1m", 60_000),
            ("1.5 m", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text:?}");
        }
        for text in [
            "",
            "-1",
            "+1",
            "1d",
            "ms",
            "1e9",
            "inf",
            "NaN",
            "1 2",
            "0x10",
            "99999999999999999999999999",
        ] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let file = std::env::temp_dir().join(format!("settings-{}.toml", std::process::id()));
        std::fs::write(
            &file,
            "[database]\npool_size = 7\nmax_overflow = 9\nhosts = [\"a\", \"b\"]\n",
        )
        .unwrap();
        let pairs = HashMap::from([("DATABASE_POOL_SIZE".to_owned(), "8".to_owned())]);
        let mut settings = Settings::read("database", Some(&file), Some(pairs));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(settings.whole("pool_size", 1..=10), Some(8));
        assert_eq!(settings.whole("max_overflow", 1..=10), Some(9));
        assert_eq!(settings.list("hosts"), Some(vec!["a".to_owned(), "b".to_owned()]));
        settings.finish().unwrap();
    }

    #[test]
    fn a_file_that_does_not_parse_is_named_and_not_quoted() {
        let file = std::env::temp_dir().join(format!("broken-{}.toml", std::process::id()));
        std::fs::write(&file, "password = \"hunter2\n").unwrap();
        let settings = Settings::from_file_and_env("database", &file);
        std::fs::remove_file(&file).unwrap();
        let text = settings.finish().unwrap_err().to_string();
        assert!(text.contains("does not parse") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_url_keeps_its_host_and_loses_its_password() {
        assert_eq!(redact_url("redis://user:p@ss@host:6379/0?x=secret"), "redis://***@host:6379/0");
        assert_eq!(redact_url("https://host:9200"), "https://host:9200");
        for url in
            ["redis://user:pa/ss@host", "redis://user:pa#ss@host/0", "redis://user:p@a?s@host"]
        {
            assert_eq!(redact_url(url), "redis://***", "{url}");
        }
        assert_eq!(redact_url("hunter2"), "***");
    }

    #[test]
    fn an_empty_variable_counts_as_not_set() {
        let mut settings = Settings::from_pairs("redis", [("REDIS_URL", "")]);
        assert_eq!(settings.text("url"), None);
    }

    #[test]
    fn a_key_put_where_its_path_belongs_is_not_shown() {
        for key in ["-----BEGIN PRIVATE KEY-----\nhunter2\n", "-----BEGIN PRIVATE KEY----- hunter2"]
        {
            let pairs = [("REDIS_CLIENT_KEY_FILE", key)];
            let mut settings = Settings::from_pairs("redis", pairs);
            assert!(settings.pem("client_key_file", PemBlock::PrivateKey).is_none());
            let text = settings.finish().unwrap_err().to_string();
            assert!(!text.contains("hunter2") && text.contains("REDIS_CLIENT_KEY_FILE"), "{text}");
        }
    }

    #[test]
    fn a_password_in_a_malformed_url_is_not_shown() {
        for url in [
            "user:hunter2@host://db",
            "redis://:hunter2",
            "redis://user:hunter2/0",
            "postgres://a:1,user:hunter2/db",
        ] {
            let shown = redact_url(url);
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        for url in ["redis://[::1]:6379/0", "redis://[::1]", "postgres://a:1,b:2/db", "k8s://a.b"] {
            assert_eq!(redact_url(url), url);
        }
    }

    #[test]
    fn a_table_where_a_list_belongs_is_told() {
        let file = std::env::temp_dir().join(format!("table-{}.toml", std::process::id()));
        std::fs::write(&file, "[search]\nurl = { host = \"a\" }\nnodes = [\"a\", { b = 1 }]\n")
            .unwrap();
        let mut settings = Settings::read("search", Some(&file), Some(HashMap::new()));
        std::fs::remove_file(&file).unwrap();
        assert_eq!((settings.list("url"), settings.list("nodes")), (None, None));
        let text = settings.finish().unwrap_err().to_string();
        assert!(text.contains("SEARCH_URL") && text.contains("SEARCH_NODES"), "{text}");
    }
}
