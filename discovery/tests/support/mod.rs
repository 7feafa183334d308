//! A wait for what a registry is to find out.

use std::time::Duration;

use resilience_core::{EndpointSet, WatchedEndpoints};
use tokio::time::timeout;

/// The longest a test waits for anything to come true.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Waits until `watched` is as `expected`, and gives it.
pub(crate) async fn until(
    watched: &mut WatchedEndpoints,
    expected: impl FnMut(&EndpointSet) -> bool,
) -> EndpointSet {
    let waiting = timeout(SOON, watched.wait_for(expected));
    waiting.await.expect("it comes soon").expect("the registry is there").clone()
}
