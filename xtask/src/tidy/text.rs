//! Rules for every text file, Rust or not: it speaks of this repository and of nothing that only its author has.

use std::collections::BTreeSet;

use super::Finding;
use super::source::Source;

/// Directories at the top of one machine, where a checkout or a home may lie.
const MACHINE: [&str; 4] = ["work", "root", "home", "Users"];

/// No path that exists on one machine only.
pub(super) fn machine_path(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for dir in MACHINE {
        for (at, _) in source.text.match_indices(&format!("/{dir}/")) {
            let inside = |c: char| c.is_alphanumeric() || "_-.~*}])".contains(c);
            if !source.text[..at].chars().next_back().is_some_and(inside) {
                let cure =
                    format!("a path below /{dir} exists on one machine only: make it relative");
                found.push(source.finding("machine-path", at, cure));
            }
        }
    }
    found
}

/// Hosts of package registries, in two parts so that this file passes its own rule.
const REGISTRIES: [(&str, &str); 9] = [
    ("crates", ".io"),
    ("static.rust-lang", ".org"),
    ("pypi", ".org"),
    ("pythonhosted", ".org"),
    ("npmjs", ".org"),
    ("proxy.golang", ".org"),
    ("maven", ".org"),
    ("repo.maven.apache", ".org"),
    ("deb.debian", ".org"),
];

/// Mirrors differ from place to place: package managers know theirs. cargo's own lock file names cargo's.
pub(super) fn registry_host(source: &Source) -> Vec<Finding> {
    if source.path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let hosts = REGISTRIES.map(|(name, end)| format!("{name}{end}"));
    let found = hosts.iter().flat_map(|host| source.text.match_indices(host.as_str()));
    let cure = "name no registry's host: call its package manager, which knows its mirror";
    found.map(|(at, _)| source.finding("registry-host", at, cure)).collect()
}

/// A document that is named must be here.
pub(super) fn missing_document(source: &Source, documents: &BTreeSet<String>) -> Vec<Finding> {
    let upper = |c: char| c.is_ascii_uppercase() || c == '_';
    let mut found = Vec::new();
    for mark in [".md", " §"] {
        for (at, _) in source.text.match_indices(mark) {
            let before = &source.text[..at];
            let name = &before[before.trim_end_matches(upper).len()..];
            // Shorter ones are standards: RFC §, TLS §.
            if name.len() > 3 && !documents.contains(name) {
                let cure = format!("there is no {name}.md here: say it in place");
                found.push(source.finding("missing-document", at, cure));
            }
        }
    }
    found
}

/// What was once to do is told by git; a reader elsewhere cannot look it up.
pub(super) fn tracker(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (at, mark) in ["issue ", "Issue "].iter().flat_map(|mark| source.text.match_indices(mark)) {
        let mut next = source.text[at + mark.len()..].chars();
        let number = match (next.next(), next.next()) {
            (Some('#' | '0'..='9'), _) => true,
            (Some('A'..='Z'), after) => !after.is_some_and(char::is_alphanumeric),
            _ => false,
        };
        if number {
            found.push(source.finding(
                "tracker",
                at,
                "say why in place: a number in a tracker is no reason",
            ));
        }
    }
    found
}

/// The names, without `.md`, of the documents among `sources`.
pub(super) fn documents(sources: &[Source]) -> BTreeSet<String> {
    let file_name = |source: &Source| source.path.rsplit('/').next().map(ToOwned::to_owned);
    let names = sources.iter().filter_map(file_name);
    names.filter_map(|name| name.strip_suffix(".md").map(ToOwned::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::NOWHERE;

    fn lines(found: &[Finding]) -> Vec<usize> {
        found.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        for dir in MACHINE {
            for text in [
                format!("/{dir}/a"),
                format!("see `/{dir}/a`"),
                format!("A=/{dir}/a"),
                format!("x:/{dir}/"),
            ] {
                assert_eq!(lines(&machine_path(&Source::new("README.md", &text))), [1], "{text}");
            }
            for text in [
                format!("net/{dir}/a"),
                format!("~/{dir}/a"),
                format!("./{dir}/a"),
                format!("${{A}}/{dir}/"),
            ] {
                assert_eq!(
                    lines(&machine_path(&Source::new("README.md", &text))),
                    NOWHERE,
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_registrys_host_is_found_outside_the_lock_file() {
        for (name, end) in REGISTRIES {
            let text = format!("\n// https://{name}{end}/x\n");
            assert_eq!(lines(&registry_host(&Source::new("a.rs", &text))), [2]);
            assert_eq!(
                lines(&registry_host(&Source::new("xtask/bench/Cargo.lock", &text))),
                NOWHERE
            );
        }
    }

    #[test]
    fn a_number_in_a_tracker_is_no_reason() {
        let found = |text: &str| lines(&tracker(&Source::new("a.rs", text)));
        let word = "issue";
        for end in ["3", "#3", "B", "B, later"] {
            assert_eq!(found(&format!("\n// see {word} {end}")), [2], "{end}");
        }
        for end in ["is", "", "Bodies"] {
            assert_eq!(found(&format!("// an {word} {end}")), NOWHERE, "{end}");
        }
    }

    #[test]
    fn a_document_that_is_elsewhere_is_found() {
        let here = Source::new("docs/README.md", "");
        let documents = documents(&[here, Source::new("a.rs", "")]);
        let found = |text: &str| lines(&missing_document(&Source::new("a.rs", text), &documents));
        assert_eq!(
            found("// see README.md, README § 2, RFC 9110 § 10, RFC § 1, notes.md"),
            NOWHERE
        );
        assert_eq!(found(&format!("\n// see {0}.md and {0} § 4\n", "PLAN")), [2, 2]);
    }
}
