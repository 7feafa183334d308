//! `cargo xtask tidy`: the house rules that neither the compiler nor clippy can see.

mod allow;
mod rust;
mod sleep;
mod source;
mod star;
mod text;

use std::fmt;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::members;
use crate::checkout;
use source::Source;
use star::Manifest;

/// Check the house rules
///
/// First lines, lengths, clocks, sleeping tests, docs, error texts, and who depends on whom. Each breach is printed as
/// `FILE:LINE: RULE: CURE`. A file that has to break a rule is listed, with the reason, in xtask/tidy-allow.txt.
#[derive(Debug, Args)]
pub struct Tidy {}

/// A breach of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, from the top of the checkout.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// The rule's name in the allow-list.
    pub rule: &'static str,
    /// What to do about it.
    pub cure: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.cure)
    }
}

impl Tidy {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// If a rule is broken, or the checkout cannot be read.
    pub fn run(self) -> Result<()> {
        let sources = source::list(&checkout::root())?;
        let found = check(&sources)?;
        for finding in &found {
            println!("{finding}");
        }
        match found.len() {
            0 => println!("tidy: {} files keep the house rules", sources.len()),
            breaches => bail!("house rules broken: {breaches}"),
        }
        Ok(())
    }
}

/// All breaches in a checkout, by file and line, but for those that its allow-list knows.
///
/// # Errors
///
/// If `cargo metadata` fails.
fn check(sources: &[Source]) -> Result<Vec<Finding>> {
    let find = |path: &str| sources.iter().find(|source| source.path == path);
    let mut found = check_workspace(sources)?;
    let documents = text::documents(sources);
    for source in sources {
        found.extend(text::machine_path(source));
        found.extend(text::registry_host(source));
        found.extend(text::tracker(source));
        found.extend(text::missing_document(source, &documents));
        if source.is_rust() {
            let rules = [
                rust::first_line,
                rust::std_instant,
                rust::unfinished,
                rust::ignored_test,
                rust::long_file,
                rust::cancel_safety,
                rust::error_text,
                sleep::sleeping_test,
            ];
            found.extend(rules.iter().flat_map(|rule| rule(source)));
        }
    }
    let (allowances, malformed) = allow::parse(find(allow::FILE).map_or("", |file| &file.text));
    let mut left = allow::apply(&allowances, found);
    left.extend(malformed);
    left.sort();
    Ok(left)
}

fn check_workspace(sources: &[Source]) -> Result<Vec<Finding>> {
    let root = checkout::root();
    let packages = members()?;
    let names = packages.iter().map(|package| package.name.as_str()).collect();
    let text_of = |path: &str| {
        let file = sources.iter().find(|source| source.path == path);
        file.map(|source| source.text.as_str()).with_context(|| format!("git does not know {path}"))
    };
    let mut found = star::unsafe_forbidden(text_of("Cargo.toml")?);
    for package in &packages {
        let path = package.manifest_path.strip_prefix(&root).unwrap_or(&package.manifest_path);
        let path = path.to_string_lossy();
        let manifest = Manifest { path: &path, text: text_of(&path)?, package };
        found.extend(star::star(&manifest, &names));
        found.extend(star::facade_default(&manifest));
        found.extend(star::lints_inherited(&manifest));
    }
    Ok(found)
}

/// No line at all, for tests.
#[cfg(test)]
const NOWHERE: [usize; 0] = [];
