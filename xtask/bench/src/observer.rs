//! What an installed observer adds to a call. Once installed it stays, so this comes last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use resilience_core::{Event, Observe, add_observer};

use crate::case::{Case, Subject};
use crate::report::Row;
use crate::subjects::ours;
use crate::timing::time;

/// Counts what it sees.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Events so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Observe for Counter {
    fn on_event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Installs an observer for the rest of the process.
pub fn install() -> Arc<Counter> {
    let counter = Arc::<Counter>::default();
    add_observer(Arc::clone(&counter) as Arc<dyn Observe>);
    counter
}

/// What it is measured on.
#[must_use]
pub fn subjects() -> Vec<(&'static str, Subject)> {
    vec![
        ("observer: what it adds to a breaker's call", ours::closed()),
        ("observer: what it adds to a pipeline's call", ours::pipeline_ready()),
    ]
}

/// Times before and after its installation.
#[must_use]
pub fn times() -> Vec<Row> {
    let cases: Vec<_> =
        subjects().into_iter().map(|(name, subject)| Case::new(name, vec![subject])).collect();
    let medians = || cases.iter().map(|case| time(case)[0].median()).collect::<Vec<_>>();
    let before = medians();
    let counter = install();
    let after = medians();
    assert!(counter.seen() > 0, "a call through a pipeline is an event");
    let rows = cases.iter().zip(before.into_iter().zip(after)).map(|(case, (before, after))| {
        let added = after - before;
        Row::new(&case.name, "ours", added, "ns").target("≤ 100 ns", added <= 100.0)
    });
    rows.collect()
}
