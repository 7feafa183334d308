//! What published crates get wrong: each mistake as a scenario, run on ours and on the crate that makes it.
//!
//! Only ours is judged. A peer whose row says `passes` has mended its mistake since it was found. Where a scenario needs
//! time to pass, a few milliseconds do, and only their lower bound matters: no scenario depends on how fast the machine is.

mod backoff;
mod budget;
mod probes;
mod window;

use crate::report::Row;

/// A mistake, and how to tell that it is made.
#[derive(Clone, Copy)]
struct Scenario {
    /// The crate that makes it, and what it is.
    name: &'static str,
    /// What is right.
    right: &'static str,
    ours: Run,
    /// The same on the peer; `None` where it is not in Rust.
    peer: Option<(&'static str, Run)>,
}

type Run = fn() -> Seen;

/// What happened.
struct Seen {
    what: String,
    passes: bool,
}

impl Seen {
    fn new(what: impl Into<String>, passes: bool) -> Self {
        Self { what: what.into(), passes }
    }
}

/// Runs every scenario.
#[must_use]
pub fn run() -> Vec<Row> {
    let scenarios = [window::SCENARIOS, probes::SCENARIOS, budget::SCENARIOS, backoff::SCENARIOS];
    scenarios.concat().iter().flat_map(rows).collect()
}

fn rows(scenario: &Scenario) -> Vec<Row> {
    let row = |subject: &str, seen: Seen| {
        let verdict = if seen.passes { "passes" } else { "fails" };
        Row {
            seen: Some(format!("{verdict}: {}", seen.what)),
            ..Row::new(
                format!("defect: {}", scenario.name),
                subject,
                f64::from(u8::from(seen.passes)),
                "passed",
            )
        }
    };
    let seen = (scenario.ours)();
    let passes = seen.passes;
    let mut rows = vec![row("ours", seen).target(scenario.right, passes)];
    if let Some((peer, run)) = scenario.peer {
        rows.push(row(peer, run()));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_makes_none_of_the_mistakes() {
        let _inside = crate::timing::RUNTIME.enter();
        let missed: Vec<_> = run().into_iter().filter(|row| !row.ok).collect();
        assert!(missed.is_empty(), "{missed:#?}");
    }
}
