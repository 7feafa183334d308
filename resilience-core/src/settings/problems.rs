//! What is wrong with settings, by the names under which whoever set them knows them.

use std::fmt;
use std::time::Duration;

use super::Quantity;
use super::quantity::{LONGEST, whole_number};

/// What was found wrong with settings so far.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::settings::{Problems, Quantity};
///
/// let mut problems = Problems::by_field();
/// problems.check([
///     ("max_connections", Quantity::Count(&mut 0, 1..=10_000)),
///     ("connect_timeout", Quantity::Duration(&mut Duration::from_secs(5))),
/// ]);
/// let error = problems.finish().unwrap_err();
/// assert!(error.to_string().contains("max_connections is \"0\"; allowed: a whole number from 1 to 10000"));
/// ```
#[derive(Debug)]
pub struct Problems {
    /// Where settings are called by their variables, what those begin with.
    section: Option<&'static str>,
    list: Vec<Problem>,
}

impl Problems {
    /// None yet, of settings made in code: they are called by their fields.
    #[must_use]
    pub fn by_field() -> Self {
        Self { section: None, list: Vec::new() }
    }

    /// None yet, of settings that are called by their variables.
    pub(super) fn by_variable(section: &'static str) -> Self {
        Self { section: Some(section), list: Vec::new() }
    }

    /// Notes that a setting is wrong, what it holds and what is allowed.
    pub fn wrong(&mut self, key: &str, held: Held, allowed: impl Into<String>) {
        let name = match self.section {
            Some(section) => format!("{section}_{key}").to_uppercase(),
            None => key.to_owned(),
        };
        self.push(Problem { name, held, allowed: allowed.into() });
    }

    /// Notes what is wrong with something that is no setting.
    pub(super) fn push(&mut self, problem: Problem) {
        self.list.push(problem);
    }

    /// Notes each of `quantities` that is out of its range.
    pub fn check<'a>(
        &mut self,
        quantities: impl IntoIterator<Item = (&'static str, Quantity<'a>)>,
    ) {
        for (key, quantity) in quantities {
            match quantity {
                Quantity::Count(count, allowed) if !allowed.contains(count) => {
                    self.wrong(key, Held::Text(count.to_string()), whole_number(&allowed));
                }
                Quantity::Duration(duration) => self.check_duration(key, *duration),
                Quantity::Limit(Some(limit)) => self.check_duration(key, *limit),
                Quantity::Count(..) | Quantity::Limit(None) => {}
            }
        }
    }

    fn check_duration(&mut self, key: &str, duration: Duration) {
        if duration.is_zero() || duration > LONGEST {
            self.wrong(key, Held::Text(format!("{duration:?}")), "above 0, a day at the most");
        }
    }

    /// Notes a first delay that is longer than the longest.
    pub fn check_delays(&mut self, base_delay: Duration, max_delay: Duration) {
        if base_delay > max_delay {
            let held = Held::Text(format!("{base_delay:?}"));
            self.wrong("base_delay", held, format!("up to max_delay, which is {max_delay:?}"));
        }
    }

    /// Nothing, if there are none.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all of them.
    pub fn finish(self) -> Result<(), ConfigError> {
        ConfigError::unless_empty(self.list)
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
