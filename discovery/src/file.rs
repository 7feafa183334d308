//! Services named by a file, and the task that reads it again when it changes.

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Weak};

use config::{Config, FileFormat, Value, ValueKind};
use resilience_core::Endpoint;
use resilience_core::settings::{ConfigError, Held, Problem};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::LOG;
use crate::book::Book;
use crate::declare::{self, Declaration, Source};
use crate::defaults::{FILE_POLL, MAX_FILE_BYTES};

const KEYS: &str = "address, weight, priority, zone, host_name";
const SHARE: std::ops::RangeInclusive<u32> = 1..=65_535;
const RANK: std::ops::RangeInclusive<u32> = 0..=65_535;
/// Problems that one log line tells at the most.
const TOLD: usize = 3;
const NAME: std::ops::RangeInclusive<usize> = 1..=253;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Debug)]
pub(crate) struct Stamp(Metadata);

impl Stamp {
    /// The stamp of the file at `path`, if there is one.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(Self)
    }

    /// A file moved over another may have its size, and its time to the tick.
    #[cfg(unix)]
    fn identity(&self) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&self.0)
    }

    #[cfg(not(unix))]
    fn identity(&self) -> u64 {
        0
    }
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        self.0.modified().ok() == other.0.modified().ok()
            && self.0.len() == other.0.len()
            && self.identity() == other.identity()
    }
}

/// Reads the file at `path`. Blocks.
pub(crate) fn read(path: &Path, max_endpoints: usize) -> Result<Vec<Declaration>, ConfigError> {
    let services = services(path).map_err(|(held, allowed)| {
        let name = path.display().to_string();
        let problem = Problem { name, held: Held::Text(held), allowed: allowed.to_owned() };
        ConfigError::unless_empty(vec![problem]).expect_err("there is one")
    })?;
    let mut reader = Reader { path, max_endpoints, problems: Vec::new() };
    let declarations = reader.declarations(services);
    ConfigError::unless_empty(reader.problems).map(|()| declarations)
}

/// Tells `book` what the file at `path` says whenever that changes, from `stamp` on, until the book is gone.
pub(crate) async fn follow(
    book: Weak<Book>,
    path: Arc<Path>,
    mut stamp: Option<Stamp>,
    max_endpoints: usize,
) {
    // Each change is read twice: at first sight, and once more a poll later, since a write within the
    // same tick of the file's clock leaves the stamp as it is.
    let mut again = true;
    let mut trouble: Option<Arc<str>> = None;
    loop {
        sleep(FILE_POLL).await;
        let seen = blocking(&path, Stamp::of).await;
        let changed = seen != stamp;
        if !changed && !again {
            continue;
        }
        (stamp, again) = (seen, changed);
        let told = blocking(&path, move |path| read(path, max_endpoints)).await;
        let Some(book) = book.upgrade() else { return };
        match told {
            Ok(declarations) => {
                if trouble.take().is_some() {
                    tracing::info!(target: LOG, file = %path.display(), "the file is good again");
                }
                book.file_told(&path, declarations);
            }
            Err(error) => {
                let cause: Arc<str> = one_line(&error).into();
                if trouble.as_ref() != Some(&cause) {
                    tracing::warn!(target: LOG, file = %path.display(), %cause, "the file is broken; the last good endpoints stand");
                }
                book.file_broke(&path, &cause);
                trouble = Some(cause);
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    path: &Arc<Path>,
    look: impl FnOnce(&Path) -> T + Send + 'static,
) -> T {
    let path = Arc::clone(path);
    match spawn_blocking(move || look(&path)).await {
        Ok(seen) => seen,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: this very task will not be polled again.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The first of what is wrong, fit for a log line.
fn one_line(error: &ConfigError) -> String {
    let problems = error.problems();
    let told: Vec<_> = problems.iter().take(TOLD).map(ToString::to_string).collect();
    match problems.len().saturating_sub(TOLD) {
        0 => told.join("; "),
        more => format!("{}; and {more} more", told.join("; ")),
    }
}

/// The table `services` of a file, or what the file holds and what is allowed. It is not quoted: other
/// tables of it may hold secrets.
fn services(path: &Path) -> Result<Vec<(String, Value)>, (String, &'static str)> {
    const READABLE: &str = "a readable TOML, YAML or JSON file of 1 MiB at the most";
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => FileFormat::Toml,
        Some("yaml" | "yml") => FileFormat::Yaml,
        Some("json") => FileFormat::Json,
        _ => {
            return Err(("a file of another kind".into(), "a path in .toml, .yaml, .yml or .json"));
        }
    };
    let unreadable = |error: std::io::Error| {
        (format!("a file that cannot be read ({})", error.kind()), READABLE)
    };
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(("a larger file".into(), READABLE));
    }
    let parsed = Config::builder().add_source(config::File::from_str(&text, format)).build();
    let parsed = parsed.map_err(|error| {
        let place = line(&error.to_string()).map(|line| format!(" (line {line})"));
        (format!("a file that does not parse{}", place.unwrap_or_default()), READABLE)
    })?;
    let services = parsed.get_table("services").map_err(|_| {
        ("a file without a table \"services\"".into(), "a table \"services\" of services by name")
    })?;
    let mut services: Vec<_> = services.into_iter().collect();
    services.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(services)
}

/// The line that a parser's message names, without the rest of it, which quotes the file.
fn line(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once(" line ")?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    rest[..digits].parse().ok()
}

/// Turns what a file holds into declarations, and notes all that is wrong with it.
struct Reader<'a> {
    path: &'a Path,
    max_endpoints: usize,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn declarations(&mut self, services: Vec<(String, Value)>) -> Vec<Declaration> {
        let mut declarations: Vec<Declaration> = Vec::new();
        for (name, value) in services {
            let field = self.field(&format!("services.{name}"));
            let named = declare::service_name(&field, &name);
            let source = self.source(&field, value);
            match named {
                Err(problem) => self.problems.push(problem),
                Ok(name) if declarations.iter().any(|other| other.name == name) => {
                    let held = Held::Text(format!("{name} twice"));
                    self.wrong(field, held, "each service once (- and _ are the same)");
                }
                Ok(name) => declarations.extend(source.map(|source| Declaration { name, source })),
            }
        }
        declarations
    }

    fn source(&mut self, field: &str, value: Value) -> Option<Source> {
        let ValueKind::Table(mut table) = value.kind else {
            self.wrong(field, Held::Secret, "a table with the key \"endpoints\"");
            return None;
        };
        let endpoints = table.remove("endpoints");
        self.unknown(field, table.into_keys(), "endpoints");
        let field = format!("{field}.endpoints");
        match endpoints.map(|value| value.kind) {
            None => {
                self.wrong(field, Held::Nothing, "a list of endpoints");
                None
            }
            Some(ValueKind::String(text)) => declare::source(&field, &text, self.max_endpoints)
                .map_err(|problems| self.problems.extend(problems))
                .ok(),
            Some(ValueKind::Array(values)) => self.endpoints(&field, values),
            Some(_) => {
                self.wrong(field, Held::Secret, "a list of endpoints");
                None
            }
        }
    }

    fn endpoints(&mut self, field: &str, values: Vec<Value>) -> Option<Source> {
        let before = self.problems.len();
        let values = values.into_iter().enumerate();
        let endpoints: Vec<_> = values
            .filter_map(|(at, value)| self.endpoint(&format!("{field}[{at}]"), value))
            .collect();
        if self.problems.len() == before {
            self.problems.extend(declare::list_problems(field, &endpoints, self.max_endpoints));
        }
        (self.problems.len() == before).then_some(Source::Static(endpoints))
    }

    fn endpoint(&mut self, field: &str, value: Value) -> Option<Endpoint> {
        let mut table = match value.kind {
            ValueKind::String(text) => return self.address(field, &text),
            ValueKind::Table(table) => table,
            _ => {
                self.wrong(field, Held::Secret, format!("\"host:port\" or a table of {KEYS}"));
                return None;
            }
        };
        let mut key = |key: &str| (format!("{field}.{key}"), table.remove(key));
        let (address, weight, priority) = (key("address"), key("weight"), key("priority"));
        let (zone, host_name) = (key("zone"), key("host_name"));
        self.unknown(field, table.into_keys(), KEYS);
        let endpoint = match address {
            (field, None) => {
                self.wrong(field, Held::Nothing, declare::ADDRESS);
                None
            }
            (field, Some(value)) => {
                let text = self.text(&field, value);
                text.and_then(|text| self.address(&field, &text))
            }
        };
        let weight = self.whole(weight, SHARE);
        let priority = self.whole(priority, RANK);
        let zone = self.word(zone);
        let host_name = self.word(host_name);
        let mut endpoint = endpoint?;
        endpoint.weight = weight.unwrap_or(endpoint.weight);
        endpoint.priority = priority.unwrap_or(endpoint.priority);
        endpoint.zone = zone.map(Into::into);
        endpoint.host_name = host_name.map(Into::into);
        Some(endpoint)
    }

    fn address(&mut self, field: &str, text: &str) -> Option<Endpoint> {
        declare::endpoint(field, text, declare::ADDRESS).map_err(|p| self.problems.push(p)).ok()
    }

    fn whole(
        &mut self,
        (field, value): (String, Option<Value>),
        allowed: std::ops::RangeInclusive<u32>,
    ) -> Option<u32> {
        let text = self.text(&field, value?)?;
        let number = text.trim().parse().ok().filter(|number| allowed.contains(number));
        if number.is_none() {
            let (low, high) = allowed.into_inner();
            self.wrong(
                field,
                declare::shown(&text),
                format!("a whole number from {low} to {high}"),
            );
        }
        number
    }

    fn word(&mut self, (field, value): (String, Option<Value>)) -> Option<String> {
        let text = self.text(&field, value?)?;
        if NAME.contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic()) {
            return Some(text);
        }
        let (low, high) = NAME.into_inner();
        let allowed = format!("{low} to {high} letters, digits and signs, without spaces");
        self.wrong(field, declare::shown(&text), allowed);
        None
    }

    fn text(&mut self, field: &str, value: Value) -> Option<String> {
        let text = value.into_string().ok();
        if text.is_none() {
            self.wrong(field, Held::Secret, "one value, not a table or a list");
        }
        text
    }

    fn unknown(&mut self, field: &str, keys: impl Iterator<Item = String>, known: &str) {
        for key in keys {
            let held = Held::Text("a key that is not known".to_owned());
            self.wrong(format!("{field}.{key}"), held, known);
        }
    }

    fn wrong(&mut self, name: impl Into<String>, held: Held, allowed: impl Into<String>) {
        self.problems.push(Problem { name: name.into(), held, allowed: allowed.into() });
    }

    fn field(&self, key: &str) -> String {
        format!("{}: {key}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, text: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("discovery-{}-{name}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Self(path)
        }

        fn read(&self) -> Result<Vec<Declaration>, String> {
            read(&self.0, 3).map_err(|error| error.to_string())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn told(name: &str, text: &str) -> Result<Vec<Declaration>, String> {
        Scratch::new(name, text).read()
    }

    #[test]
    fn the_three_formats_tell_the_same() {
        let toml = "password = \"x\"\n[services.redis]\nendpoints = [\"a:1\", { address = \"b:2\", weight = 2, priority = 1, zone = \"z\", host_name = \"b.example\" }]\n[services.Order-Service]\nendpoints = \"c:3, d:4\"\n";
        let yaml = "services:\n  redis:\n    endpoints:\n      - a:1\n      - {address: \"b:2\", weight: 2, priority: 1, zone: z, host_name: b.example}\n  Order-Service:\n    endpoints: c:3, d:4\n";
        let json = r#"{"services": {"redis": {"endpoints": ["a:1", {"address": "b:2", "weight": 2, "priority": 1, "zone": "z", "host_name": "b.example"}]}, "Order-Service": {"endpoints": "c:3, d:4"}}}"#;
        let toml = told("same.toml", toml).unwrap();
        assert_eq!(Ok(&toml), told("same.yaml", yaml).as_ref());
        assert_eq!(Ok(&toml), told("same.json", json).as_ref());
        let names: Vec<_> = toml.iter().map(|declaration| &*declaration.name).collect();
        assert_eq!(names, ["order_service", "redis"]);
        let redis = toml[1].source.endpoints();
        let second = &redis[1];
        assert_eq!((&*second.id, second.weight, second.priority), ("b:2", 2, 1));
        assert_eq!((second.zone.as_deref(), second.server_name()), (Some("z"), "b.example"));
        assert_eq!((redis[0].weight, redis[0].priority, redis[0].server_name()), (1, 0, "a"));
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_with_its_place() {
        let text = r#"
            [services.a]
            endpoints = ["x", { adress = "b:2", weight = 0, zone = "" }, 7]
            [services.b]
            nodes = ["a:1"]
            [services.c]
            endpoints = ["a:1", "a:1"]
            [services.d]
            endpoints = []
            [services.e-f]
            endpoints = "a:1"
            [services.e_f]
            endpoints = "a:1"
            [services."g h"]
            endpoints = "a:1"
        "#;
        let file = Scratch::new("wrong.toml", text);
        let error = file.read().unwrap_err();
        for (key, rest) in [
            ("a.endpoints[0]", "is \"x\"; allowed: host:port"),
            ("a.endpoints[1].address", "is not set; allowed: host:port"),
            ("a.endpoints[1].adress", "is \"a key that is not known\"; allowed: address, weight"),
            ("a.endpoints[1].weight", "is \"0\"; allowed: a whole number from 1 to 65535"),
            ("a.endpoints[1].zone", "is \"\"; allowed: 1 to 253"),
            (
                "a.endpoints[2]",
                "holds a value that is not shown; allowed: \"host:port\" or a table",
            ),
            ("b.nodes", "is \"a key that is not known\"; allowed: endpoints"),
            ("b.endpoints", "is not set; allowed: a list of endpoints"),
            ("c.endpoints", "is \"a:1 twice\"; allowed: each endpoint once"),
            ("d.endpoints", "is \"a list of 0\"; allowed: 1 to 3 endpoints"),
            ("e_f", "is \"e_f twice\"; allowed: each service once"),
            ("g h", "is \"g h\"; allowed: a service's name"),
        ] {
            let line = format!("{}: services.{key} {rest}", file.0.display());
            assert!(error.contains(&line), "{line} is not in {error}");
        }
        assert!(error.starts_with("12 settings are wrong"), "{error}");
    }

    #[test]
    fn a_file_that_does_not_parse_is_told_by_its_line_and_not_quoted() {
        for (name, text) in [
            ("broken.toml", "a = 1\npassword = \"hunter2\n"),
            ("broken.json", "{\"a\": 1,\n\"password\": \"hunter2\n}"),
            ("broken.yaml", "a: 1\npassword: \"hunter2\n"),
        ] {
            let error = told(name, text).unwrap_err();
            assert!(error.contains("does not parse (line "), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn files_of_another_kind_size_or_content_are_refused() {
        for (name, text, part) in [
            ("kind.ini", "", "a file of another kind"),
            ("empty.toml", "", "a file without a table \\\"services\\\""),
            ("list.json", "{\"services\": []}", "a file without a table \\\"services\\\""),
            ("large.toml", &"#".repeat(1024 * 1024 + 1), "a larger file"),
        ] {
            let error = told(name, text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let missing = read(Path::new("/nowhere/services.toml"), 3).unwrap_err().to_string();
        assert!(missing.contains("cannot be read (entity not found)"), "{missing}");
        assert_eq!(told("none.json", "{\"services\": {}}"), Ok(vec![]));
    }
}
