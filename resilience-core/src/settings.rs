//! Reads a connector's settings from the environment, over a file if there is one, and reports all
//! that is wrong with them at once.
//!
//! A setting `pool_size` of the section `database` is `DATABASE_POOL_SIZE` in the environment, and in
//! a TOML, YAML or JSON file `pool_size` in the table `database`. The environment wins. An empty
//! variable counts as not set.

mod pem;
mod problems;
mod quantity;
mod reread;
mod resilience;
mod text;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use config::{Config, Environment, File};
use secrecy::SecretString;

pub use crate::setters;
pub use pem::{Pem, PemBlock, Tls, TlsFiles};
pub use problems::{ConfigError, Held, Problem, Problems};
pub use quantity::Quantity;
pub use resilience::Resilience;
pub use text::{parse_duration, redact_url};

use quantity::{LONGEST, whole_number};

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
    values: Config,
    problems: Problems,
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
        let mut problems = Problems::by_variable(section);
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
        Self { values, problems }
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
            self.wrong(key, Held::Text(text), whole_number(&allowed));
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

    /// Each of `quantities` that is set, by its key; the others stay as they are.
    pub fn read_into<'a>(
        &mut self,
        quantities: impl IntoIterator<Item = (&'static str, Quantity<'a>)>,
    ) {
        for (key, quantity) in quantities {
            match quantity {
                Quantity::Count(count, allowed) => {
                    *count = self.whole(key, allowed).unwrap_or(*count);
                }
                Quantity::Duration(duration) => {
                    *duration = self.duration(key).unwrap_or(*duration);
                }
                Quantity::Limit(limit) => *limit = self.duration(key).or(*limit),
            }
        }
    }

    /// Notes that a setting is wrong, what it holds and what is allowed.
    pub fn wrong(&mut self, key: &str, held: Held, allowed: impl Into<String>) {
        self.problems.wrong(key, held, allowed);
    }

    /// What was wrong so far, for the checks that follow: they name variables too.
    #[must_use]
    pub fn into_problems(self) -> Problems {
        self.problems
    }

    /// Nothing, if nothing is wrong.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong.
    pub fn finish(self) -> Result<(), ConfigError> {
        self.problems.finish()
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
        let files = TlsFiles::from_settings(&mut settings);
        let mut problems = settings.into_problems();
        assert!(files.load(&mut problems).is_none());
        problems.wrong("url", Held::Nothing, "postgresql://user:password@host:5432/database");
        let text = problems.finish().unwrap_err().to_string();
        assert_eq!(
            text,
            "3 settings are wrong:\
             \n  DATABASE_POOL_SIZE is \"-3\"; allowed: a whole number from 1 to 1000\
             \n  DATABASE_CA_FILE is \"/none.pem, which cannot be read (entity not found)\"; allowed: a readable PEM file\
             \n  DATABASE_URL is not set; allowed: postgresql://user:password@host:5432/database"
        );
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
    fn an_empty_variable_counts_as_not_set() {
        let mut settings = Settings::from_pairs("redis", [("REDIS_URL", "")]);
        assert_eq!(settings.text("url"), None);
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
