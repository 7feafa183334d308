//! Opens connections to the primary, and waits for one where there is none: what was asked for is held, not failed.

use std::sync::Arc;
use std::time::Duration;

use resilience_core::{Blame, Classify, Deadline};
use sqlx::Connection;

use crate::classify::{Context, PgClassifier, is_going_away};
use crate::connector::{Connector, Opened};
use crate::error::Error;
use crate::topology::Topology;

/// How often one attempt may begin again on another connection. One failover takes one; and what fails at each
/// primary anew, such as a write in a transaction that was made read-only, fails before long.
const MOST_REPEATS: u32 = 3;

/// Whether an attempt may begin again because a host was lost, and not its own work at fault: at once, within
/// the same attempt and its time, and without the retry budget, for it waits until there is a primary. With one
/// host there is none other to go to.
pub(crate) struct Repeats<'a> {
    topology: Option<&'a Topology>,
    alarms: u64,
    idempotent: bool,
    left: u32,
}

impl<'a> Repeats<'a> {
    /// Of an attempt that begins now.
    pub(crate) fn new(topology: &'a Topology, idempotent: bool) -> Self {
        let topology = Some(topology).filter(|topology| topology.is_watched());
        let alarms = topology.map_or(0, Topology::alarms);
        Self { topology, alarms, idempotent, left: MOST_REPEATS }
    }

    /// Whether there may be any.
    pub(crate) fn are_possible(&self) -> bool {
        self.topology.is_some()
    }

    /// Whether one may follow on `error`: a host was lost since the attempt began, and what it ran is proven not
    /// to have been executed, or may be executed twice. Where none may, the error counts against that host, and
    /// not against the service: that is had if another host takes over in time.
    pub(crate) fn may_follow(&mut self, error: &mut Error) -> bool {
        let Some(topology) = self.topology else { return false };
        // A connect has waited for a primary already.
        let Error::Sql(sql) = error else { return false };
        let alarms = topology.alarms();
        if std::mem::replace(&mut self.alarms, alarms) == alarms {
            return false;
        }
        sql.context.get_or_insert(Context::UNKNOWN).one_host = true;
        let verdict = PgClassifier.verdict(error);
        let left = self.left;
        self.left = left.saturating_sub(1);
        left > 0
            && verdict.blame != Blame::Caller
            && verdict.retry_after.is_none()
            && verdict.may_repeat(self.idempotent)
    }
}

impl Connector {
    /// A connection to the primary, by `deadline`; the wait for there to be one is limited as that for a
    /// place in the pool is.
    pub(crate) async fn open_to_primary(
        &self,
        deadline: Deadline,
        statement_timeout: Option<Duration>,
    ) -> Result<Opened, Error> {
        let patience = Deadline::within(self.patience).min(deadline);
        let topology = self.topology();
        topology.first_look(patience).await;
        let mut failures = 0;
        loop {
            let primary = topology.primary();
            let opened = match &primary {
                Some(primary) => {
                    let host = [Arc::clone(primary)];
                    self.open_to_one_of(&host, deadline, statement_timeout).await
                }
                // Nobody could be looked at: as good as not to look.
                None if topology.is_new() => {
                    let hosts = self.endpoints.candidates();
                    self.open_to_one_of(&hosts, deadline, statement_timeout).await
                }
                None => Err(topology.why().into()),
            };
            match opened {
                Ok(opened) => {
                    let is_it = match (topology.primary(), &primary) {
                        (Some(now), _) => Arc::ptr_eq(&now, &opened.origin),
                        (None, None) => true,
                        (None, Some(_)) => false,
                    };
                    if is_it {
                        return Ok(opened);
                    }
                    // It ceased to be the primary while the connection was opened.
                    drop(opened.raw.close().await);
                }
                Err(error) if !is_going_away(&error) || failures == MOST_REPEATS => {
                    return Err(error);
                }
                Err(error) => {
                    if let Some(primary) = &primary {
                        // Looks may go on showing it, from where they get through.
                        failures += 1;
                        topology.alarm(primary);
                    }
                    tracing::debug!(target: "shared_external::postgres", %error, "no primary; waiting for one");
                }
            }
            if !topology.primary_by(patience).await {
                return Err(topology.why().into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use resilience_core::{Address, Endpoint};

    use super::*;
    use crate::classify::Phase;
    use crate::endpoints::{Endpoints, Origin};
    use crate::role::{ReadFrom, Rules};

    /// A connection that broke under an autocommitted statement.
    fn cut() -> Error {
        let broken = sqlx::Error::from(io::Error::from(io::ErrorKind::ConnectionReset));
        let context = Context { phase: Phase::Autocommit, effect: false, ..Context::UNKNOWN };
        Error::from(broken).at(context)
    }

    fn hosts(count: u16) -> (Arc<Topology>, Vec<Arc<Origin>>) {
        let host = |port| Endpoint::new(Address::new("db", port));
        let max_replica_lag = Duration::from_secs(10);
        let rules = Rules { attrs: None, read_from: ReadFrom::Primary, max_replica_lag };
        let endpoints = Endpoints::fixed((1..=count).map(host).collect(), rules, None);
        (Arc::clone(&endpoints.topology), endpoints.all())
    }

    fn blame(error: &Error) -> Blame {
        PgClassifier.verdict(error).blame
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_was_cut_off_is_not_made_again_and_blames_one_host_and_not_the_service() {
        let (topology, hosts) = hosts(2);
        let mut repeats = Repeats::new(&topology, false);
        let mut error = cut();
        assert!(!repeats.may_follow(&mut error));
        assert_eq!(blame(&error), Blame::Service, "no host was lost");
        topology.alarm(&hosts[0]);
        assert!(!repeats.may_follow(&mut error), "it may have taken effect");
        assert_eq!(blame(&error), Blame::Local);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_be_made_again_is_so_often_and_no_more() {
        let (topology, hosts) = hosts(2);
        let mut repeats = Repeats::new(&topology, true);
        for _ in 0..MOST_REPEATS {
            topology.alarm(&hosts[0]);
            assert!(repeats.may_follow(&mut cut()));
            assert!(!repeats.may_follow(&mut cut()), "the same alarm served twice");
        }
        topology.alarm(&hosts[0]);
        assert!(!repeats.may_follow(&mut cut()));
    }

    #[tokio::test(start_paused = true)]
    async fn with_one_host_nothing_is_begun_again_within_an_attempt() {
        let (topology, hosts) = hosts(1);
        let mut repeats = Repeats::new(&topology, true);
        topology.alarm(&hosts[0]);
        let mut error = cut();
        assert!(!repeats.may_follow(&mut error));
        assert_eq!(blame(&error), Blame::Service);
    }
}
