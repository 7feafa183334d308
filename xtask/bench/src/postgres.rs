//! What `conn-postgres` costs beside the driver alone and beside other pools, and what its users feel of a failover, a
//! switchover and a silent network: on servers of its own.
//!
//! The servers are throw-away ones, in the clear: what a pool adds shows best where the rest is cheapest.

pub mod checkout;
pub mod crowd;
pub mod failover;
mod load;
pub mod roundtrip;
mod server;
pub mod silence;
mod subjects;
pub mod switchover;
mod wire;

use std::time::Duration;

use tokio::time::{Instant, sleep};

pub use server::{CONNECTIONS, Server};

#[path = "../../../conn-postgres/tests/support/network.rs"]
#[allow(missing_docs, unreachable_pub, dead_code, reason = "the tests' own, as below")]
mod network;

#[path = "../../../conn-postgres/tests/support/throwaway.rs"]
#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "the tests' own, and they use all of it"
)]
mod throwaway;

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
