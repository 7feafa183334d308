//! The rule against tests that sleep: on a paused clock they may, else only between two looks at a condition, or as a
//! slow peer that the test plays.

use super::Finding;
use super::source::Source;

/// A braced part of the code: what stands before its brace, and what is in it.
struct Block<'a> {
    header: &'a str,
    body: &'a str,
}

/// No thread sleeps; a test's task only on a paused clock, or in a loop that ends once a condition holds.
pub(super) fn sleeping_test(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (at, _) in source.code.match_indices("thread::sleep") {
        found.push(source.finding(
            "sleeping-test",
            at,
            "it blocks the runtime: wait on tokio's clock",
        ));
    }
    let tests_at = source.tests_at();
    let all_paused = all_paused(&source.code[tests_at..]);
    for at in ["sleep", "sleep_until"].iter().flat_map(|name| source.words(name)) {
        let before = source.code[..at].trim_end();
        let after = source.code[at..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        let call =
            after.starts_with('(') && !before.ends_with("fn") && !before.ends_with("thread::");
        if at < tests_at || all_paused || !call {
            continue;
        }
        let blocks = enclosing(&source.code, at);
        if !blocks.iter().any(|block| is_paused(block) || polls(block) || is_peer(block)) {
            let cure = "pause the clock (`start_paused = true`), or wait in a loop until a condition holds";
            found.push(source.finding("sleeping-test", at, cure));
        }
    }
    found
}

/// Whether every async test of a file pauses the clock: then its helpers sleep on it too.
fn all_paused(code: &str) -> bool {
    let tests = code.matches("#[tokio::test").count();
    tests > 0 && tests == code.matches("start_paused = true").count()
}

fn is_paused(block: &Block<'_>) -> bool {
    block.header.contains("start_paused = true") || block.body.contains("start_paused(true)")
}

/// Whether it is a loop that looks at a condition.
fn polls(block: &Block<'_>) -> bool {
    let words = || block.header.split(|c: char| !c.is_alphanumeric() && c != '_');
    let is_loop = words().any(|word| word == "loop" || word == "for")
        && !words().any(|word| word == "fn" || word == "impl");
    let ends = ["break", "return"].iter().any(|end| block.body.contains(end));
    words().any(|word| word == "while") || (is_loop && ends)
}

/// Whether it is an async block or closure beside the test's own flow: a peer that the test plays, and its slowness; or
/// the condition that a helper looks at in a loop.
fn is_peer(block: &Block<'_>) -> bool {
    let header = block.header.trim_end();
    let header = header.strip_suffix("move").unwrap_or(header).trim_end();
    let closure = header.strip_suffix('|').and_then(|rest| rest.rsplit_once('|'));
    let header = closure.map_or(header, |(before, _)| before).trim_end();
    let header = header.strip_suffix("move").unwrap_or(header).trim_end();
    header.ends_with("async") && !header.contains("block_on")
}

/// The blocks around `at`, outermost first.
fn enclosing(code: &str, at: usize) -> Vec<Block<'_>> {
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut start = 0;
    for (place, byte) in code.bytes().enumerate().take(at) {
        match byte {
            b'{' => open.push((std::mem::replace(&mut start, place + 1), place)),
            b'}' => {
                open.pop();
                start = place + 1;
            }
            b';' => start = place + 1,
            _ => {}
        }
    }
    open.into_iter()
        .map(|(start, brace)| Block { header: &code[start..brace], body: body(&code[brace + 1..]) })
        .collect()
}

/// What stands before the brace that closes a block.
fn body(rest: &str) -> &str {
    let mut depth = 1;
    for (place, byte) in rest.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &rest[..place];
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::NOWHERE;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let found = sleeping_test(&Source::new(path, text));
        let mut lines: Vec<_> = found.into_iter().map(|finding| finding.line).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn a_bare_sleep_in_a_test_is_found() {
        let text = "\
#[tokio::test(start_paused = true)]
async fn paused() { tokio::time::sleep(LONG).await; }
#[tokio::test]
async fn bare() {
    tokio::time::sleep(LONG).await;
    sleep_until(LATER).await;
}
async fn helper() { sleep(LONG).await }
";
        assert_eq!(lines("a/tests/live_a.rs", text), [5, 6, 8]);
    }

    #[test]
    fn a_poll_may_wait_between_two_looks() {
        let text = "\
#[tokio::test]
async fn polls() {
    while !ready() { sleep(SHORT).await; }
    loop {
        if ready() { break; }
        sleep(SHORT).await;
    }
}
async fn eventually() {
    for _ in 0..100 {
        if ready() { return; }
        sleep(SHORT).await;
    }
}
#[tokio::test]
async fn by_a_helper() {
    until(READY, async || { sleep(SHORT).await; ready() }).await;
}
async fn endless() { loop { sleep(SHORT).await; } }
impl Drop for Held { fn drop(&mut self) { if done() { return; } block_on(sleep(SHORT)) } }
async fn counted() { for _ in 0..3 { sleep(SHORT).await; } }
";
        assert_eq!(lines("a/tests/live_a.rs", text), [19, 20, 21]);
    }

    #[test]
    fn a_peer_that_a_test_plays_may_be_slow() {
        let text = "\
#[tokio::test]
async fn peers() {
    tokio::spawn(async move { sleep(SHORT).await; answer().await });
    let later = async { sleep(SHORT).await; drop(lent) };
    get(async |request| { sleep(SHORT).await; reply() });
    get(|request| async move { sleep(SHORT).await; reply() });
}
#[test]
fn all_in_one() { runtime().block_on(async { sleep(LONG).await; }) }
";
        assert_eq!(lines("a/tests/live_a.rs", text), [9]);
    }

    #[test]
    fn helpers_of_paused_tests_sleep_on_their_clock() {
        let paused = "#[tokio::test(start_paused = true)]\nasync fn a() { f().await }\nasync fn f() { sleep(LONG).await }\n";
        assert_eq!(lines("a/tests/a.rs", paused), NOWHERE);
        assert_eq!(
            lines(
                "a/tests/a.rs",
                &format!("{paused}#[tokio::test]\nasync fn b() {{ f().await }}\n")
            ),
            [3]
        );
        let own = "#[test]\nfn a() { builder.start_paused(true); rt.block_on(async { sleep(LONG).await }) }";
        assert_eq!(lines("a/tests/a.rs", own), NOWHERE);
    }

    #[test]
    fn production_code_waits_as_it_must_but_blocks_no_thread() {
        let text = "async fn retry() { tokio::time::sleep(delay).await }\nfn block() { std::thread::sleep(delay) }\n\
                    #[cfg(test)]\nmod tests {\n    async fn f() { sleep(delay).await }\n}\n";
        assert_eq!(lines("a/src/a.rs", text), [2, 5]);
    }
}
