//! What a run of the suite found: a line a behaviour, and what the connector does not give.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::{Capability, Support};

/// What became of one behaviour.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not, for this reason.
    Failed(String),
    /// The connector does not say that it does.
    NotGiven {
        /// What it would take, and the connector lacks.
        lacks: Capability,
        /// Why it does.
        reason: &'static str,
        /// Whether the behaviour holds all the same.
        holds: bool,
    },
}

/// A behaviour, and what became of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// What it is about, such as `cancellation`.
    pub room: &'static str,
    /// Its name: what one need not fear.
    pub name: &'static str,
    /// What became of it.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// What a run of the suite found. `{}` is a table for people.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub(crate) entries: Vec<Entry>,
}

impl Report {
    /// Every behaviour that was run, in the suite's order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many hold that the connector says it gives.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.entries.iter().filter(|entry| entry.outcome == Outcome::Passed).count()
    }

    /// Those that do not hold although the connector says that they do.
    pub fn failed(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| matches!(entry.outcome, Outcome::Failed(_)))
    }

    /// What the connector does not give, each with its reason and its behaviours.
    #[must_use]
    pub fn not_given(&self) -> BTreeMap<Capability, (&'static str, Vec<&Entry>)> {
        let mut lacking = BTreeMap::new();
        for entry in &self.entries {
            if let Outcome::NotGiven { lacks, reason, .. } = &entry.outcome {
                lacking.entry(*lacks).or_insert((*reason, Vec::new())).1.push(entry);
            }
        }
        lacking
    }

    /// What the connector says it lacks, and yet every behaviour that needs it holds: time to say that it gives it.
    #[must_use]
    pub fn stale(&self) -> Vec<Capability> {
        let holds = |entry: &&Entry| matches!(entry.outcome, Outcome::NotGiven { holds: true, .. });
        let lacking = self.not_given();
        let all_hold = lacking.iter().filter(|(_, (_, entries))| entries.iter().all(holds));
        all_hold.map(|(capability, _)| *capability).collect()
    }

    /// # Panics
    ///
    /// If a behaviour failed, or what the connector says of itself is out of date. The message says which, and why.
    pub fn assert_conforms(&self) {
        let mut wrong: Vec<_> = self.failed().map(|entry| format!("  {entry}")).collect();
        for capability in self.stale() {
            wrong.push(format!("  {capability}: said to be lacking, but all that needs it holds"));
        }
        assert!(wrong.is_empty(), "the connector does not conform:\n{}", wrong.join("\n"));
    }

    /// # Panics
    ///
    /// If the connector does not give all that the suite knows of.
    pub fn assert_complete(&self) {
        let lacking = self.not_given();
        assert!(lacking.is_empty(), "not given: {:?}", lacking.keys().collect::<Vec<_>>());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            writeln!(f, "{entry}")?;
        }
        let lacking = self.not_given();
        if !lacking.is_empty() {
            writeln!(f, "\nnot given:")?;
        }
        for (capability, (reason, entries)) in &lacking {
            writeln!(f, "  {capability} ({} behaviours): {reason}", entries.len())?;
        }
        let took: Duration = self.entries.iter().map(|entry| entry.took).sum();
        write!(
            f,
            "\n{} behaviours: {} passed, {} failed, {} not given; {:.1} s",
            self.entries.len(),
            self.passed(),
            self.failed().count(),
            self.entries.len() - self.passed() - self.failed().count(),
            took.as_secs_f64(),
        )
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match &self.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed(_) => "FAILED",
            Outcome::NotGiven { .. } => "-",
        };
        let took = self.took.as_secs_f64();
        write!(f, "{word:<6} {took:>5.2} s  {:<12} {}", self.room, self.name.replace('_', " "))?;
        match &self.outcome {
            Outcome::Passed => Ok(()),
            Outcome::Failed(why) => write!(f, ": {why}"),
            Outcome::NotGiven { lacks, .. } => write!(f, " (needs {lacks})"),
        }
    }
}

/// The first of `needs` that the connector lacks, and why.
pub(crate) fn lacking(
    needs: &[Capability],
    support: impl Fn(Capability) -> Support,
) -> Option<(Capability, &'static str)> {
    needs.iter().find_map(|need| match support(*need) {
        Support::Gives => None,
        Support::Lacks(reason) => Some((*need, reason)),
    })
}
