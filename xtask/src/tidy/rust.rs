//! Rules for a Rust file by itself: its first line, its length, its clock, its docs, its error texts.

use super::Finding;
use super::source::Source;

/// Line 1 says what the file is for.
pub(super) fn first_line(source: &Source) -> Vec<Finding> {
    if source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![source.finding("first-line", 0, "say on line 1, by `//!`, what the file is for")]
}

/// Tests pause tokio's clock; std's goes on.
pub(super) fn std_instant(source: &Source) -> Vec<Finding> {
    let standard = |at: &usize| {
        let before = &source.code[..*at];
        if before.ends_with("std::time::") {
            return true;
        }
        // Within the braces of `use std::time::{…}` or `use std::{time::…}`.
        let statement = &before[before.rfind(';').map_or(0, |end| end + 1)..];
        let mut names = statement.split_whitespace().collect::<String>();
        names.truncate(
            names.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |end| end + 1),
        );
        names.contains("usestd::time::{")
            || (names.contains("usestd::{") && names.contains("time::"))
    };
    let found = source.words("Instant").filter(standard);
    let cure = "read tokio::time::Instant, which tests can pause";
    found.map(|at| source.finding("std-instant", at, cure)).collect()
}

/// Nothing is left for later. Comments and literals count: a search finds them too.
pub(super) fn unfinished(source: &Source) -> Vec<Finding> {
    let marks = [concat!("todo", "!"), concat!("unimplemented", "!")];
    let found = marks.iter().flat_map(|mark| source.text.match_indices(mark));
    found
        .map(|(at, mark)| {
            source.finding("unfinished", at, format!("write what `{mark}` stands for"))
        })
        .collect()
}

/// A test that does not run proves nothing.
pub(super) fn ignored_test(source: &Source) -> Vec<Finding> {
    let found = source.text.match_indices(concat!("#[", "ignore"));
    let cure = "let it run, or remove it";
    found.map(|(at, _)| source.finding("ignored-test", at, cure)).collect()
}

/// The most lines of code in a file, unit tests, comments and blank lines aside.
const MOST_LINES: usize = 400;

/// Long files are split where a reader would.
pub(super) fn long_file(source: &Source) -> Vec<Finding> {
    let end = match source.tests_at() {
        0 => source.code.len(),
        unit_tests => unit_tests,
    };
    let lines = source.code[..end].lines().filter(|line| !line.trim().is_empty()).count();
    if lines <= MOST_LINES {
        return Vec::new();
    }
    let cure =
        format!("{lines} lines of code, {MOST_LINES} at most: split it where a reader would");
    vec![source.finding("long-file", 0, cure)]
}

/// A caller of an async function has to know what a drop does.
pub(super) fn cancel_safety(source: &Source) -> Vec<Finding> {
    if !source.path.contains("/src/")
        || ["xtask/", "shared-external/examples/"].iter().any(|dir| source.path.starts_with(dir))
    {
        return Vec::new();
    }
    let production = &source.code[..source.tests_at()];
    let mut found = Vec::new();
    for (mark, public) in [("async fn ", "pub async fn "), ("-> impl Future", "pub fn ")] {
        for (at, _) in production.match_indices(mark) {
            let start = production[..at].rfind([';', '{', '}']).map_or(0, |end| end + 1);
            let is_public = production[start..at + mark.len()].contains(public);
            if is_public && !source.text[start..at].contains("# Cancel safety") {
                let cure =
                    "add `# Cancel safety` to its doc: what a caller finds who drops the future";
                found.push(source.finding("cancel-safety", at, cure));
            }
        }
    }
    found
}

/// Names that an error text may begin with; those with a capital inside need no entry.
const NAMES: [&str; 3] = ["Redis", "Kubernetes", "Sentinel"];

/// Error texts are put together: lower-case, no full stop.
pub(super) fn error_text(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (at, mark) in source.code.match_indices("#[error(\"") {
        let start = at + mark.len();
        // The literal's bytes are all `"`, its end is where something else stands.
        let end = source.code[start..]
            .find(|c| c != '"')
            .map_or(source.code.len(), |length| start + length);
        let text = &source.text[start..end - 1];
        let first = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let mut letters = first.chars();
        let capital = letters.next().is_some_and(char::is_uppercase)
            && letters.as_str().chars().all(char::is_lowercase)
            && !NAMES.contains(&first);
        let stop = text.ends_with('.') && !text.ends_with("...");
        if capital || stop {
            found.push(source.finding(
                "error-text",
                at,
                "begin in lower case, end without a full stop",
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::NOWHERE;

    fn lines(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
        rule(&Source::new(path, text)).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        assert_eq!(lines(first_line, "a.rs", "//! A.\n"), NOWHERE);
        for text in ["", "use a;\n//! A.\n", "// A.\n", "//!\n//! A.\n", "\n//! A.\n"] {
            assert_eq!(lines(first_line, "a.rs", text), [1], "{text}");
        }
    }

    #[test]
    fn no_way_to_name_stds_clock_is_missed() {
        let banned = [
            "let now = std::time::Instant::now();",
            "use std::time::Instant;",
            "use std::time::{Duration, Instant};",
            "use std::time::{\n    Duration, Instant as Clock};",
            "use std::{fmt, time::{Duration, Instant}};",
            "use std::{fmt, time::Instant};",
        ];
        for text in banned {
            assert_eq!(lines(std_instant, "a.rs", text).len(), 1, "{text}");
        }
    }

    #[test]
    fn tokios_clock_is_welcome() {
        let text = "use std::time::Duration;\nuse tokio::time::{Duration, Instant};\n\
                    // not std::time::Instant\nfn f(now: Instant) -> tokio::time::Instant { now }";
        assert_eq!(lines(std_instant, "a.rs", text), NOWHERE);
    }

    #[test]
    fn nothing_is_left_for_later_and_no_test_is_skipped() {
        let text = format!("fn f() {{\n    {}!()\n}}\n// {}!(x)\n", "todo", "unimplemented");
        assert_eq!(lines(unfinished, "a.rs", &text), [2, 4]);
        let text = format!("#[test]\n#[{0}]\n#[{0} = \"later\"]\n", "ignore");
        assert_eq!(lines(ignored_test, "a.rs", &text), [2, 3]);
    }

    #[test]
    fn comments_blank_lines_and_unit_tests_do_not_make_a_file_long() {
        let code = "let a = 1;\n".repeat(MOST_LINES);
        let padded = format!("//! A.\n\n// b\n{code}#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert_eq!(lines(long_file, "a/src/a.rs", &padded), NOWHERE);
        assert_eq!(lines(long_file, "a/src/a.rs", &format!("fn f() {{}}\n{padded}")), [1]);
        assert_eq!(lines(long_file, "a/tests/live_a.rs", &format!("{code}{code}")), [1]);
    }

    #[test]
    fn lines_of_a_long_literal_are_code() {
        let text = format!("const A: &str = \"\n{}\";\n", "line // of it\n".repeat(MOST_LINES));
        assert_eq!(lines(long_file, "a/src/a.rs", &text), [1]);
    }

    #[test]
    fn a_public_async_function_says_what_a_drop_does() {
        let text = "\
impl A {
    /// Does.
    ///
    /// # Cancel safety
    ///
    /// Safe; it says {so}.
    #[must_use]
    #[tracing::instrument(skip_all)]
    pub async fn documented(&self) {}

    /// Does not.
    pub async fn undocumented(&self) {}
    pub(crate) async fn internal(&self) {}
    /// Does not.
    pub fn by_hand<F: Fn() -> Fut, Fut: Future>(&self) -> impl Future<Output = ()> + Send {}
    fn internal_by_hand(&self) -> impl Future<Output = ()> {}
}
#[cfg(test)]
mod tests { pub async fn helper() {} }
";
        assert_eq!(lines(cancel_safety, "conn-redis/src/manager.rs", text), [12, 15]);
        assert_eq!(lines(cancel_safety, "resilience-core/macros/src/lib.rs", text), [12, 15]);
        for path in [
            "xtask/src/up.rs",
            "shared-external/examples/campaigns/src/main.rs",
            "conn-redis/tests/a.rs",
        ] {
            assert_eq!(lines(cancel_safety, path, text), NOWHERE, "{path}");
        }
    }

    #[test]
    fn error_texts_can_be_put_together() {
        let fine = [
            "no route",
            "OpenSearch said {0}",
            "PGHOST is empty",
            "Redis is loading",
            "{0}",
            "wait...",
            "{name}: a {0}",
        ];
        let bad = ["No route", "no route.", "Cannot \\\"open\\\" it"];
        for text in fine {
            assert_eq!(
                lines(error_text, "a.rs", &format!("#[error(\"{text}\")]")),
                NOWHERE,
                "{text}"
            );
        }
        for text in bad {
            assert_eq!(
                lines(error_text, "a.rs", &format!("#[error(\"{text}\", 1)]")),
                [1],
                "{text}"
            );
        }
    }
}
