//! Connects to each endpoint of a service now and then, and tells the service what came of it.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use resilience_core::{Address, Outcome, Standstill};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::LOG;
use crate::defaults::{JITTER, MAX_PROBES_AT_ONCE};
use crate::resolver::Resolver;
use crate::service::Service;
use crate::tracker::Sight;

/// When to probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbePolicy {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

/// Probes the endpoints of `service` for ever: at once when they change, else each interval.
pub(crate) async fn probe(service: Arc<Service>, policy: ProbePolicy, resolver: Resolver) {
    let connect = move |address| {
        let resolver = resolver.clone();
        async move { connect(&resolver, &address).await }
    };
    probe_by(service, policy, connect).await;
}

/// `period`, spread so that the clients of a service do not fall into step.
pub(crate) fn jittered(period: Duration) -> Duration {
    period.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
}

async fn probe_by<F>(
    service: Arc<Service>,
    policy: ProbePolicy,
    connect: impl Fn(Address) -> F + Clone + Send + 'static,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        tokio::select! {
            () = sleep(jittered(policy.interval)) => {}
            () = service.moved() => {}
        }
        round(&service, policy.timeout, &connect).await;
    }
}

/// Probes every endpoint once.
async fn round<F>(
    service: &Service,
    limit: Duration,
    connect: &(impl Fn(Address) -> F + Clone + Send + 'static),
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let endpoints = service.endpoints();
    let mut waiting = endpoints.iter();
    // Dropped with the round, it takes its probes along.
    let mut running = JoinSet::new();
    loop {
        while running.len() < MAX_PROBES_AT_ONCE
            && let Some(endpoint) = waiting.next()
        {
            let (id, address) = (Arc::clone(&endpoint.id), endpoint.address.clone());
            let connecting = connect(address.clone());
            running.spawn(async move {
                let standstill = Standstill::watch();
                let result = timeout(limit, connecting).await.unwrap_or_else(|_| {
                    Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {limit:?}")))
                });
                (id, address, result, standstill.excuses())
            });
        }
        let Some(ended) = running.join_next().await else { return };
        let Ok((id, address, result, stood_still)) = ended else { continue };
        let outcome = judge(&result, stood_still);
        if let Err(cause) = result {
            tracing::debug!(
                target: LOG,
                service = %service.name(), endpoint = %id, outcome = outcome.as_str(), %cause,
                "probe failed",
            );
        }
        service.settle(&id, Some(&address), Sight::Probe, outcome);
    }
}

/// What a probe says of the endpoint. Trouble of this very process says nothing.
fn judge(result: &io::Result<()>, stood_still: bool) -> Outcome {
    match result {
        Ok(()) => Outcome::Success,
        Err(error) if stood_still || is_local(error) => Outcome::Excluded,
        Err(_) => Outcome::Failure,
    }
}

/// Whether it is this machine that ran out of file descriptors, ports or memory.
fn is_local(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
        || matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory)
}

async fn connect(resolver: &Resolver, address: &Address) -> io::Result<()> {
    let port = address.port();
    if let Ok(ip) = address.host().parse::<IpAddr>() {
        return TcpStream::connect((ip, port)).await.map(drop);
    }
    let addresses = resolver.lookup(address.host(), port).await?;
    TcpStream::connect(&*addresses).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use resilience_core::Endpoint;
    use tokio::time::Instant;

    use super::*;
    use crate::tracker::Thresholds;

    const POLICY: ProbePolicy =
        ProbePolicy { interval: Duration::from_secs(5), timeout: Duration::from_secs(1) };

    fn service(endpoints: u16) -> Arc<Service> {
        let service = Service::new("redis".into(), Thresholds { fall: 2, rise: 1 }, 1024);
        let endpoint = |port| Endpoint::new(Address::new("10.0.0.1", port));
        service.feed().adopt((1..=endpoints).map(endpoint).collect(), None);
        service
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_endpoint_is_found_within_two_probes() {
        let service = service(2);
        let mut watched = service.watch();
        let silent = |address: Address| async move {
            if address.port() == 1 { std::future::pending().await } else { Ok(()) }
        };
        let began = Instant::now();
        let probing = tokio::spawn(probe_by(Arc::clone(&service), POLICY, silent));
        watched.changed().await.unwrap();
        // The first probe at once, the second an interval after the first has timed out.
        let took = began.elapsed().as_secs_f64();
        assert!((1.0 + 4.5 + 1.0..=1.0 + 5.5 + 1.0 + 0.01).contains(&took), "{took} s");
        assert_eq!(&*watched.borrow().candidates()[0].id, "10.0.0.1:2");
        assert_eq!(watched.borrow().candidates().len(), 1);
        probing.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_comes_back_is_used_again() {
        let service = service(1);
        let mut watched = service.watch();
        let up_at = Instant::now() + Duration::from_secs(60);
        let refused_at_first = move |_| async move {
            if Instant::now() < up_at {
                Err(io::ErrorKind::ConnectionRefused.into())
            } else {
                Ok(())
            }
        };
        let probing = tokio::spawn(probe_by(Arc::clone(&service), POLICY, refused_at_first));
        watched.changed().await.unwrap();
        assert!(!watched.borrow_and_update().endpoints[0].conditions.healthy);
        watched.changed().await.unwrap();
        assert!(watched.borrow().endpoints[0].conditions.healthy);
        assert!(up_at.elapsed() <= POLICY.interval.mul_f64(1.1), "{:?}", up_at.elapsed());
        probing.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_service_is_not_probed_all_at_once() {
        let service = service(1000);
        let load = Arc::new(Mutex::new((0_usize, 0_usize, BTreeMap::new())));
        let counted = {
            let load = Arc::clone(&load);
            move |address: Address| {
                let load = Arc::clone(&load);
                async move {
                    {
                        let mut load = load.lock().unwrap();
                        load.0 += 1;
                        load.1 = load.1.max(load.0);
                        *load.2.entry(address).or_insert(0) += 1;
                    }
                    sleep(Duration::from_millis(10)).await;
                    load.lock().unwrap().0 -= 1;
                    Ok(())
                }
            }
        };
        round(&service, POLICY.timeout, &counted).await;
        let load = load.lock().unwrap();
        assert_eq!((load.0, load.1), (0, MAX_PROBES_AT_ONCE));
        assert!(load.2.len() == 1000 && load.2.values().all(|probes| *probes == 1));
    }

    #[test]
    fn intervals_are_spread_by_a_tenth_and_no_more() {
        let period = Duration::from_secs(10);
        let spread: Vec<_> = (0..1000).map(|_| jittered(period).as_secs_f64()).collect();
        assert!(spread.iter().all(|seconds| (9.0..=11.0).contains(seconds)));
        assert!(spread.iter().any(|s| *s < 9.2) && spread.iter().any(|s| *s > 10.8));
    }

    #[test]
    fn our_own_trouble_is_not_blamed_on_the_endpoint() {
        let error = |kind: io::ErrorKind| Err(kind.into());
        let judged = |result: io::Result<()>, stood_still| judge(&result, stood_still);
        assert_eq!(judged(error(io::ErrorKind::ConnectionRefused), false), Outcome::Failure);
        assert_eq!(judged(error(io::ErrorKind::TimedOut), false), Outcome::Failure);
        assert_eq!(judged(error(io::ErrorKind::TimedOut), true), Outcome::Excluded);
        assert_eq!(judged(error(io::ErrorKind::AddrNotAvailable), false), Outcome::Excluded);
        for code in [23, 24] {
            assert_eq!(judged(Err(io::Error::from_raw_os_error(code)), false), Outcome::Excluded);
        }
        assert_eq!(judged(Ok(()), true), Outcome::Success);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_takes_no_endpoint_for_silent() {
        let service = service(1);
        let mut watched = service.watch();
        let silent = |_| std::future::pending();
        let probing = tokio::spawn(probe_by(Arc::clone(&service), POLICY, silent));
        for _ in 0..10 {
            // Within a probe, each time: it has a second, and the next comes after five.
            sleep(Duration::from_millis(10)).await;
            tokio::time::advance(Duration::from_secs(30)).await;
        }
        assert!(!watched.has_changed().unwrap());
        watched.changed().await.unwrap();
        assert!(!watched.borrow().endpoints[0].conditions.healthy, "with time it is found out");
        probing.abort();
    }
}
