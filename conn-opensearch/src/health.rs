//! Asks every node how the cluster is, and makes one answer of theirs.
//!
//! | seen | health |
//! |---|---|
//! | green or yellow, by every node | healthy: a cluster of one node is yellow as soon as an index wants a replica |
//! | some nodes do not answer, or have lost the cluster manager | degraded |
//! | red | unhealthy: data is missing |
//! | no node answers, 401, 503 "OpenSearch Security not initialized" | unhealthy |
//! | 403 | degraded: it answers, but the user lacks the right `cluster:monitor/health` |

use std::sync::Arc;

use futures_util::future::join_all;
use opensearch::cluster::ClusterHealthParts;
use resilience_core::{Deadline, Health, Standstill};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind};
use crate::node::Peer;
use crate::response::json;
use crate::sent::counted;

/// What one node says of the cluster.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Seen {
    status: Colour,
    /// Under its name of today, then under that of OpenSearch 1.
    discovered_cluster_manager: Option<bool>,
    discovered_master: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "lowercase")]
enum Colour {
    Green,
    Yellow,
    Red,
}

/// Asks all `nodes` at once, each until `deadline`. What they answer is also remembered of them.
pub(crate) async fn check(nodes: &[Arc<Peer>], deadline: Deadline) -> Health {
    let started = Instant::now();
    let looks = nodes.iter().map(|peer| look(peer, deadline));
    let seen = join_all(looks).await;
    judge(seen, started)
}

/// Asks one node. It answers for itself, without asking the cluster manager, which may be gone.
pub(crate) async fn look(peer: &Peer, deadline: Deadline) -> Result<Seen, Error> {
    let (started, standstill) = (Instant::now(), Standstill::watch());
    // As an attempt, so that the requests of a check are not taken for somebody's stray ones.
    let asked = counted(async {
        match ask(peer).await {
            // Its connection had been lying idle since before it was lost; that is not how the node is now.
            Err(error) if matches!(error.kind(), ErrorKind::Lost { .. }) => ask(peer).await,
            answer => answer,
        }
    });
    let answer = match timeout_at(deadline.instant(), asked).await {
        Ok((answer, _)) => answer,
        Err(_) => Err(Error::new(ErrorKind::Timeout)),
    };
    let answer = answer.map_err(|error| error.at(&peer.name));
    match &answer {
        Err(error) if error.speaks_against_the_node() => {
            if !standstill.excuses() {
                peer.failed(started, Instant::now());
            }
        }
        Err(_) | Ok(_) => peer.succeeded(started),
    }
    answer
}

async fn ask(peer: &Peer) -> Result<Seen, Error> {
    let cluster = peer.client.cluster();
    json(cluster.health(ClusterHealthParts::None).local(true).send().await?).await
}

fn judge(seen: Vec<Result<Seen, Error>>, started: Instant) -> Health {
    let latency = started.elapsed();
    let count = seen.len();
    let mut colours = Vec::new();
    let mut troubles = Vec::new();
    for answer in seen {
        match answer {
            Ok(seen) if seen.has_manager() => colours.push(seen.status),
            Ok(_) => troubles.push((false, "a node has lost the cluster manager".to_owned())),
            Err(error) if error.status() == Some(403) => {
                troubles.push((true, format!("{error} (wants the right cluster:monitor/health)")));
            }
            Err(error) => troubles.push((false, error.to_string())),
        }
    }
    let only_forbidden = troubles.iter().all(|(forbidden, _)| *forbidden);
    let first = troubles.first().map(|(_, reason)| reason.as_str()).unwrap_or_default();
    match colours.iter().max() {
        Some(Colour::Red) => Health::unhealthy(latency, "the cluster is red: data is missing"),
        Some(Colour::Green | Colour::Yellow) if troubles.is_empty() => Health::healthy(latency),
        Some(Colour::Green | Colour::Yellow) => {
            Health::degraded(latency, format!("{} of {count} nodes: {first}", troubles.len()))
        }
        None if count == 0 => Health::unhealthy(latency, "no node is known"),
        None if only_forbidden => Health::degraded(latency, first.to_owned()),
        None if count == 1 => Health::unhealthy(latency, first.to_owned()),
        None => Health::unhealthy(latency, format!("all {count} nodes: {first}")),
    }
}

impl Seen {
    fn has_manager(&self) -> bool {
        self.discovered_cluster_manager.or(self.discovered_master).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use resilience_core::HealthStatus;

    use super::*;
    use crate::error::Status;

    fn sees(status: Colour) -> Result<Seen, Error> {
        Ok(Seen { status, discovered_cluster_manager: Some(true), discovered_master: None })
    }

    fn answers(code: u16, reason: &str) -> Result<Seen, Error> {
        let status = Status { code, reason: Some(reason.to_owned()), ..Status::default() };
        Err(Error::new(ErrorKind::Status(status)).at(&"https://a:9200".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn every_row_of_the_table_holds() {
        use Colour::{Green, Red, Yellow};
        use HealthStatus::{Degraded, Healthy, Unhealthy};
        let lonely = || {
            Ok(Seen {
                status: Green,
                discovered_cluster_manager: Some(false),
                discovered_master: Some(true),
            })
        };
        let down = || Err(Error::new(ErrorKind::Connect { cause: "refused".into() }));
        let rows = [
            (vec![sees(Green)], Healthy, ""),
            (vec![sees(Yellow), sees(Green)], Healthy, ""),
            (
                vec![sees(Green), down()],
                Degraded,
                "1 of 2 nodes: no connection to the node: refused",
            ),
            (
                vec![lonely(), sees(Green)],
                Degraded,
                "1 of 2 nodes: a node has lost the cluster manager",
            ),
            (vec![sees(Red), down()], Unhealthy, "the cluster is red: data is missing"),
            (vec![lonely()], Unhealthy, "a node has lost the cluster manager"),
            (vec![down(), down()], Unhealthy, "all 2 nodes: no connection to the node: refused"),
            (vec![], Unhealthy, "no node is known"),
            (
                vec![answers(401, "Unauthorized")],
                Unhealthy,
                "https://a:9200 answered 401: Unauthorized",
            ),
            (
                vec![answers(503, "OpenSearch Security not initialized.")],
                Unhealthy,
                "https://a:9200 answered 503: OpenSearch Security not initialized.",
            ),
            (
                vec![answers(403, "no permissions")],
                Degraded,
                "https://a:9200 answered 403: no permissions (wants the right cluster:monitor/health)",
            ),
        ];
        for (seen, status, reason) in rows {
            let health = judge(seen, Instant::now());
            assert_eq!(
                (health.status, health.reason.as_deref().unwrap_or_default()),
                (status, reason)
            );
        }
    }
}
