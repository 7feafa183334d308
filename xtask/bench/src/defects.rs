//! What published crates get wrong: each mistake as a scenario, run on ours and on the peer.

use crate::report::Row;

/// Runs every scenario.
#[must_use]
pub fn run() -> Vec<Row> {
    Vec::new()
}
