//! Runs the behaviours one after the other, each with a wire and a manager of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use crate::behaviours;
use crate::report::lacking;
use crate::stage::{Checked, Stage};
use crate::{Capability, Entry, Harness, Outcome, Report};

/// The longest that a behaviour may take before it counts as hanging.
const LONGEST: Duration = Duration::from_secs(20);

/// The same for one that nobody promised.
const LONGEST_UNPROMISED: Duration = Duration::from_secs(2);

type Running<'a> = Pin<Box<dyn Future<Output = Checked> + 'a>>;

/// Something that holds of every connector, or of those that have what it needs.
#[derive(Clone, Copy)]
pub(crate) struct Behaviour {
    pub(crate) room: &'static str,
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [Capability],
    pub(crate) check: fn(&Stage) -> Running<'_>,
}

/// The behaviours of a room: the functions of that name, and what each needs.
macro_rules! room {
    ($room:literal: $($name:ident $([$($need:ident),+])?,)+) => {
        pub(super) fn all() -> Vec<$crate::suite::Behaviour> {
            vec![$($crate::suite::Behaviour {
                room: $room,
                name: stringify!($name),
                needs: &[$($($crate::Capability::$need),+)?],
                check: |stage| Box::pin($name(stage)),
            }),+]
        }
    };
}
pub(crate) use room;

/// Runs every behaviour on a connector. Needs a tokio runtime of several threads.
///
/// Those that need what the connector lacks are run too: once they hold, [`Report::assert_conforms`] says so.
///
/// # Cancel safety
///
/// Dropping the future ends the behaviour that runs; there is no report then.
pub async fn run(harness: impl Harness) -> Report {
    let harness: Arc<dyn Harness> = Arc::new(harness);
    let mut report = Report::default();
    for behaviour in behaviours::all() {
        report.entries.push(entry(behaviour, &harness).await);
    }
    report
}

/// Runs the behaviours of these names alone: what one does while a connector is being written.
///
/// # Panics
///
/// If there is none of such a name.
///
/// # Cancel safety
///
/// Dropping the future ends the behaviour that runs; there is no report then.
pub async fn run_only(harness: impl Harness, names: &[&str]) -> Report {
    let harness: Arc<dyn Harness> = Arc::new(harness);
    let all = behaviours::all();
    let mut report = Report::default();
    for name in names {
        let found = all.iter().find(|behaviour| behaviour.name == *name);
        let behaviour = found.unwrap_or_else(|| panic!("there is no behaviour {name:?}"));
        report.entries.push(entry(*behaviour, &harness).await);
    }
    report
}

/// The names of all behaviours, by their rooms.
#[must_use]
pub fn names() -> Vec<(&'static str, &'static str)> {
    behaviours::all().iter().map(|behaviour| (behaviour.room, behaviour.name)).collect()
}

async fn entry(behaviour: Behaviour, harness: &Arc<dyn Harness>) -> Entry {
    let Behaviour { room, name, needs, check } = behaviour;
    let started = Instant::now();
    let lacks = lacking(needs, |capability| harness.support(capability));
    let limit = if lacks.is_some() { LONGEST_UNPROMISED } else { LONGEST };
    let (running, here) = (Arc::clone(harness), Handle::current());
    // On a thread of its own: a panic of the connector's is a finding, and no end of the suite.
    let thread = tokio::task::spawn_blocking(move || {
        here.block_on(async {
            let stage = Stage::new(running).await;
            timeout(limit, check(&stage)).await
        })
    });
    let found = match thread.await {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(breach))) => Some(breach.0),
        Ok(Err(_)) => Some(format!("it hangs for more than {limit:?}")),
        Err(panic) => Some(format!("it panics: {panic}")),
    };
    let outcome = match (found, lacks) {
        (found, Some((lacks, reason))) => {
            Outcome::NotGiven { lacks, reason, holds: found.is_none() }
        }
        (None, None) => Outcome::Passed,
        (Some(why), None) => Outcome::Failed(why),
    };
    Entry { room, name, outcome, took: started.elapsed() }
}
