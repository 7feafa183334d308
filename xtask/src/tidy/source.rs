//! One text file, and its code without comments and literals, so that rules see code only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Finding;

/// A text file of the checkout.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Its path from the top.
    pub(super) path: String,
    /// What is in it.
    pub(super) text: String,
    /// For Rust: [`mask`] of the text. Empty for other files.
    pub(super) code: String,
}

impl Source {
    /// A file with this content.
    #[must_use]
    pub(super) fn new(path: &str, text: &str) -> Self {
        let mut source = Self { path: path.to_owned(), text: text.to_owned(), code: String::new() };
        if source.is_rust() {
            source.code = mask(text);
        }
        source
    }

    /// Whether it is Rust.
    #[must_use]
    pub(super) fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "rs")
    }

    /// A breach of `rule` at an offset into the text.
    #[must_use]
    pub(super) fn finding(
        &self,
        rule: &'static str,
        offset: usize,
        cure: impl Into<String>,
    ) -> Finding {
        let line = self.text[..offset].matches('\n').count() + 1;
        Finding { rule, path: self.path.clone(), line, cure: cure.into() }
    }

    /// Where tests begin: at 0 in a file of tests, else at the module of unit tests, else at the end.
    #[must_use]
    pub(super) fn tests_at(&self) -> usize {
        let file = Path::new(&self.path);
        if file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs") {
            return 0;
        }
        let starts = ["#[cfg(test)]", "#[cfg(all(test,"];
        let mut found = starts.iter().flat_map(|start| self.code.match_indices(start));
        let module = found.find(|(at, _)| {
            let line = self.code[*at..].lines().nth(1).unwrap_or_default().trim_start();
            line.starts_with("mod ") || line.starts_with("pub mod ")
        });
        module.map_or(self.code.len(), |(at, _)| at)
    }

    /// Where `word` stands in the code by itself, not as a part of another name.
    pub(super) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let part = |byte: Option<&u8>| byte.is_some_and(|byte| is_word(*byte));
        self.code.match_indices(word).map(|(at, _)| at).filter(move |at| {
            let bytes = self.code.as_bytes();
            !part(at.checked_sub(1).and_then(|before| bytes.get(before)))
                && !part(bytes.get(at + word.len()))
        })
    }
}

/// All text files of the checkout at `root` that git tracks or would add; all but build output where git does not know it.
///
/// # Errors
///
/// If one cannot be read.
pub(super) fn list(root: &Path) -> Result<Vec<Source>> {
    let mut paths = tracked(root).map_or_else(|| walk(root), Ok)?;
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        // A deleted file is tracked until the deletion is committed; a link points at another of our files.
        let Ok(found) = fs::symlink_metadata(root.join(&path)) else { continue };
        if !found.is_file() {
            continue;
        }
        let bytes = fs::read(root.join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source::new(&path.to_string_lossy(), &text));
        }
    }
    Ok(sources)
}

/// `text` with each comment blanked out and each byte of a literal replaced by `"`. Every offset and line stays as it is.
#[must_use]
pub(super) fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut masked = Vec::with_capacity(bytes.len());
    while masked.len() < bytes.len() {
        let at = masked.len();
        let in_word = at > 0 && is_word(bytes[at - 1]);
        match token(&bytes[at..], in_word) {
            Some((length, filler)) => {
                let hidden = bytes[at..].iter().take(length);
                masked.extend(hidden.map(|byte| if *byte == b'\n' { b'\n' } else { filler }));
            }
            None => masked.push(bytes[at]),
        }
    }
    String::from_utf8(masked).expect("comments and literals end where characters end")
}

fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

/// The comment or literal at the start of `rest`: its length, and what stands for its bytes.
fn token(rest: &[u8], in_word: bool) -> Option<(usize, u8)> {
    match rest {
        [b'/', b'/', ..] => {
            Some((rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()), b' '))
        }
        [b'/', b'*', ..] => Some((block_comment(rest), b' ')),
        [b'"', ..] => Some((quoted(rest, b'"'), b'"')),
        [b'r', ..] if !in_word => raw(rest, 1),
        [b'b' | b'c', b'r', ..] if !in_word => raw(rest, 2),
        [b'\'', b'\\', ..] => Some((quoted(rest, b'\''), b'"')),
        [b'\'', ..] => {
            // One character and a quote; else it is a lifetime.
            let width = std::str::from_utf8(&rest[1..rest.len().min(5)])
                .or_else(|error| std::str::from_utf8(&rest[1..=error.valid_up_to()]));
            let width = width.ok()?.chars().next()?.len_utf8();
            (rest.get(1 + width) == Some(&b'\'')).then_some((width + 2, b'"'))
        }
        _ => None,
    }
}

/// The length of a literal that ends with `quote` and knows `\`.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// A raw string, whose `#` or `"` is at `start`.
fn raw(rest: &[u8], start: usize) -> Option<(usize, u8)> {
    let hashes = rest[start..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(start + hashes) != Some(&b'"') {
        return None;
    }
    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let content = start + hashes + 1;
    let length = rest[content..].windows(end.len()).position(|window| window == end);
    Some((length.map_or(rest.len(), |length| content + length + end.len()), b'"'))
}

/// The length of a block comment, with those inside it.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// What git tracks or would add; `None` if there is no git here, or this is no clone.
fn tracked(root: &Path) -> Option<Vec<PathBuf>> {
    let mut git = Command::new("git");
    // A clone of another user is as good: nothing in it is run.
    git.args([
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let output = git.current_dir(root).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(text.split_terminator('\0').map(PathBuf::from).collect())
}

/// All files but those of git and of cargo's build directories.
fn walk(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(root.join(&dir));
        for entry in entries.with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if !entry.file_type()?.is_dir() {
                files.push(path);
            } else if entry.file_name() != ".git" && entry.file_name() != "target" {
                dirs.push(path);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_a_comment_or_a_literal_is_no_code() {
        let hidden = [
            "// word",
            "/// word",
            "/* a /* word */ word */",
            r#""word""#,
            r#""a \" word""#,
            r##"r"word""##,
            "r#\"a \" word\"#",
            "b\"word\"",
            "br#\"word\"#",
            "\"two\nlines, word\"",
        ];
        for text in hidden {
            let masked = mask(&format!("before {text}\n after"));
            assert!(!masked.contains("word"), "{text} became {masked}");
            assert!(masked.starts_with("before ") && masked.ends_with("\n after"), "{masked}");
        }
    }

    #[test]
    fn code_between_literals_stays() {
        let kept = [
            "fn f<'a>(word: &'a str) {}",
            "['x', word, '\\'', '\"', 'é', '→']",
            "'\\u{1f600}' word",
            "for r in word {}",
            "r#type + word",
            "\"\\\\\" word",
            "/* */ word /* */",
            "'outer: loop { word }",
        ];
        for text in kept {
            let masked = mask(text);
            assert!(masked.contains("word"), "{text} became {masked}");
            assert_eq!(masked.len(), text.len());
        }
        assert_eq!(mask("x = '{';"), "x = \"\"\";");
    }

    #[test]
    fn text_that_ends_within_a_literal_is_masked_to_its_end() {
        for text in ["\"open", "\"open\\", "r#\"open\"", "/* open", "'\\", "'"] {
            assert_eq!(mask(text).len(), text.len(), "{text}");
        }
    }

    #[test]
    fn tests_begin_at_their_module_and_not_at_a_helper() {
        let text = "#[cfg(test)]\nfn helper() {}\nfn f() {}\n#[cfg(test)]\nmod tests {}\n";
        let source = Source::new("a/src/lib.rs", text);
        assert_eq!(&source.text[source.tests_at()..], "#[cfg(test)]\nmod tests {}\n");
        assert_eq!(Source::new("a/src/lib.rs", "fn f() {}").tests_at(), 9);
        assert_eq!(Source::new("a/tests/live_it.rs", "fn f() {}").tests_at(), 0);
        assert_eq!(Source::new("a/src/pool/tests.rs", "fn f() {}").tests_at(), 0);
        assert_eq!(Source::new("a/src/latests.rs", "fn f() {}").tests_at(), 9);
    }

    #[test]
    fn a_word_is_not_found_inside_another() {
        let source = Source::new("a.rs", "sleep sleeper asleep time::sleep(x) sleep_until");
        assert_eq!(source.words("sleep").collect::<Vec<_>>(), [0, 27]);
    }

    #[test]
    fn a_file_that_git_does_not_know_yet_is_seen_and_build_output_is_not() {
        let root = crate::checkout::root();
        let listed = list(&root).unwrap();
        assert!(listed.iter().any(|source| source.path == "xtask/src/tidy/source.rs"));
        assert!(!listed.iter().any(|source| source.path.starts_with("target/")));
    }

    #[test]
    fn a_copy_without_git_is_checked_too() {
        let root = std::env::temp_dir().join(format!("xtask-walk-{}", std::process::id()));
        fs::create_dir_all(root.join("a/src")).unwrap();
        fs::create_dir_all(root.join("target/debug")).unwrap();
        fs::write(root.join("a/src/lib.rs"), "//! A.\n").unwrap();
        fs::write(root.join("target/debug/out.rs"), "").unwrap();
        let listed: Vec<_> = list(&root).unwrap().into_iter().map(|source| source.path).collect();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(listed, ["a/src/lib.rs"]);
    }
}
