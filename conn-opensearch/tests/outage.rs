//! Nodes that are down, silent or gone, and their return.

mod peer;

use std::net::SocketAddr;
use std::time::Duration;

use conn_opensearch::opensearch::{IndexParts, SearchParts};
use conn_opensearch::{Error, Node, OpenSearchManager, check, json};
use futures_util::future::join_all;
use peer::{Peer, Reply, nobody, poll_n, quick, until, urls};
use resilience_core::{
    Address, CallError, CircuitState, Deadline, Endpoint, EndpointSet, HealthCheck, HealthStatus,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

const GREEN: &str = r#"{"status":"green","discovered_cluster_manager":true}"#;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

async fn search(node: Node) -> Result<Value, Error> {
    json(node.search(SearchParts::None).send().await?).await
}

async fn index(node: Node) -> Result<(), Error> {
    check(node.index(IndexParts::Index("a")).body(json!({})).send().await?).await?;
    Ok(())
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(Address::new(address.ip().to_string(), address.port()))
}

#[tokio::test]
async fn a_cluster_that_is_down_at_start_stops_nobody_and_is_found_when_it_is_up() {
    let address = nobody();
    let config = quick(format!("http://app:hunter2@{address}"))
        .max_retries(0)
        .fail_max(2)
        .success_threshold(1)
        .reset_timeout(ms(50));
    let manager = OpenSearchManager::connect(config.build().unwrap()).unwrap();
    let started = Instant::now();
    for _ in 0..2 {
        let error = manager.read(search).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("no connection to http://{address}: ")), "{text}");
        assert!(text.contains("refused") && error.is_unavailable(), "{text}");
    }
    assert_eq!(manager.breaker().state(), CircuitState::Open);
    assert!(matches!(manager.read(search).await, Err(CallError::CircuitOpen(_))));
    let health = manager.health().await;
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reason.unwrap().contains(&address.to_string()));
    assert!(manager.warm_up(Deadline::within(ms(200))).await.is_err());
    assert!(started.elapsed() < ms(5000), "fast is {:?}", started.elapsed());

    let peer = Peer::start_at(address, |asked, _| {
        if asked.path.starts_with("/_cluster") { Reply::ok(GREEN) } else { Reply::ok(1) }
    })
    .await;
    assert_eq!(manager.health().await.status, HealthStatus::Healthy);
    let recovered = async {
        while manager.read(search).await.is_err() {
            tokio::time::sleep(ms(5)).await;
        }
    };
    tokio::time::timeout(ms(10_000), recovered).await.unwrap();
    assert_eq!(manager.breaker().state(), CircuitState::Closed);
    drop(peer);
}

#[tokio::test]
async fn a_node_that_dies_is_passed_over_and_comes_back() {
    let (one, two) =
        (Peer::start(|_, _| Reply::ok(1)).await, Peer::start(|_, _| Reply::ok(2)).await);
    let manager = OpenSearchManager::connect(quick(urls(&[&one, &two])).build().unwrap()).unwrap();
    let address = one.address;
    drop(one);
    for _ in 0..4 {
        assert_eq!(manager.read(search).await.unwrap(), json!(2));
    }
    assert_eq!(manager.breaker().snapshot().calls.failure, 1, "only the first went there");
    let _one = Peer::start_at(address, |_, _| Reply::ok(1)).await;
    let deadline = Instant::now() + ms(10_000);
    while manager.read(search).await.unwrap() != json!(1) {
        assert!(Instant::now() < deadline, "the node was forgotten");
        tokio::time::sleep(ms(20)).await;
    }
}

#[tokio::test]
async fn no_node_is_passed_over_because_this_process_stood_still() {
    let (one, two) =
        (Peer::start(|_, _| Reply::ok(GREEN)).await, Peer::start(|_, _| Reply::ok(GREEN)).await);
    let config = quick(urls(&[&one, &two])).timeout(ms(500)).max_retries(0).build().unwrap();
    let manager = OpenSearchManager::connect(config).unwrap();
    let calls = join_all((0..4).map(|_| manager.read(search)));
    let looking = manager.check(Deadline::within(ms(500)));
    let blocking = async {
        tokio::task::yield_now().await;
        let until = Instant::now() + ms(1200);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    };
    let (answers, _, ()) = tokio::join!(calls, looking, blocking);
    assert!(answers.iter().any(Result::is_err), "nothing was cut off");
    let seen = manager.breaker().snapshot();
    assert_eq!((seen.state, seen.calls.failure), (CircuitState::Closed, 0));
    let before = (one.count(), two.count());
    for _ in 0..4 {
        manager.read(search).await.unwrap();
    }
    assert_eq!((one.count() - before.0, two.count() - before.1), (2, 2));
}

#[tokio::test]
async fn a_silent_node_costs_one_attempt_and_is_passed_over() {
    let silent = Peer::start(|_, _| Reply::Silence).await;
    let good = Peer::start(|_, _| Reply::ok(1)).await;
    let config = quick(urls(&[&silent, &good])).timeout(ms(500)).build().unwrap();
    let manager = OpenSearchManager::connect(config).unwrap();
    for _ in 0..4 {
        manager.read(search).await.unwrap();
    }
    assert_eq!((silent.count(), good.count()), (1, 4));
    // A write is not sent again by the same reasoning.
    let config = quick(silent.url()).timeout(ms(500)).build().unwrap();
    let manager = OpenSearchManager::connect(config).unwrap();
    let error = manager.write(index).await.unwrap_err();
    assert!(matches!(error, CallError::AttemptTimeout(_)), "{error}");
    assert_eq!(silent.count(), 2);
}

#[tokio::test]
async fn every_await_ends_by_its_deadline_though_the_peer_is_silent() {
    let silent = Peer::start(|_, _| Reply::Silence).await;
    let config = quick(silent.url()).deadline(ms(200)).health_timeout(ms(200)).build().unwrap();
    let manager = OpenSearchManager::connect(config).unwrap();
    let timed = |what: &'static str, started: Instant| {
        let took = started.elapsed();
        assert!(took < ms(2000), "{what} took {took:?}");
    };
    let started = Instant::now();
    assert!(matches!(manager.read(search).await, Err(CallError::DeadlineExceeded(_))));
    timed("read", started);
    let started = Instant::now();
    assert!(manager.write(index).await.is_err());
    timed("write", started);
    let started = Instant::now();
    assert!(manager.warm_up(Deadline::within(ms(200))).await.is_err());
    timed("warm_up", started);
    let started = Instant::now();
    assert_eq!(manager.health().await.status, HealthStatus::Unhealthy);
    timed("health", started);
    let started = Instant::now();
    let answer = manager
        .read_or(
            |node| async move { search(node).await.map(|_| "primary") },
            |_| async { Ok::<_, CallError<Error>>("fallback") },
        )
        .await;
    assert_eq!(answer.unwrap(), "fallback");
    timed("read_or", started);
    let running = tokio::spawn({
        let manager = manager.clone();
        async move {
            manager.call(resilience_core::Call::read().by(Deadline::within(ms(5000))), search).await
        }
    });
    until("a call is in flight", || manager.status().in_use == 1).await;
    let started = Instant::now();
    assert_eq!(manager.drain(Deadline::within(ms(200))).await.abandoned, 1);
    timed("drain", started);
    running.abort();
}

#[tokio::test]
async fn a_drained_manager_takes_no_calls_and_keeps_no_connection() {
    let peer = Peer::start(|_, _| Reply::ok(1)).await;
    let manager = OpenSearchManager::connect(quick(peer.url()).build().unwrap()).unwrap();
    manager.read(search).await.unwrap();
    assert_eq!(peer.open(), 1);
    assert_eq!(manager.drain(Deadline::within(ms(1000))).await.abandoned, 0);
    until("the idle connection is closed", || peer.open() == 0).await;
    assert!(matches!(manager.read(search).await, Err(CallError::Draining(_))));
    assert_eq!(manager.health().await.status, HealthStatus::Unhealthy);
    assert_eq!(peer.count(), 1);
}

#[tokio::test]
async fn the_next_call_follows_the_endpoints_and_the_old_connections_close() {
    let (one, two) =
        (Peer::start(|_, _| Reply::ok(1)).await, Peer::start(|_, _| Reply::ok(2)).await);
    let (sender, endpoints) = watch::channel(EndpointSet::fixed([]));
    let config = quick("http://app:hunter2@placeholder:1/prefix").max_retries(0).build().unwrap();
    let manager = OpenSearchManager::connect_to(config, endpoints).unwrap();
    let error = manager.read(search).await.unwrap_err();
    assert_eq!(error.to_string(), "no node is known");

    sender.send_replace(EndpointSet::fixed([endpoint(one.address)]));
    assert_eq!(manager.read(search).await.unwrap(), json!(1));
    assert_eq!(one.asked()[0].path, "/prefix/_search");
    assert!(one.asked()[0].authorization.is_some());

    sender.send_replace(EndpointSet::fixed([endpoint(two.address)]));
    assert_eq!(manager.read(search).await.unwrap(), json!(2));
    until("the connection to the removed node is closed", || one.open() == 0).await;
    assert_eq!(one.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_flight_ends_where_it_began_though_its_node_is_removed() {
    let (one, two) =
        (Peer::start(|_, _| Reply::Silence).await, Peer::start(|_, _| Reply::ok(2)).await);
    let (sender, endpoints) = watch::channel(EndpointSet::fixed([endpoint(one.address)]));
    let config = quick("http://placeholder").timeout(ms(500)).build().unwrap();
    let manager = OpenSearchManager::connect_to(config, endpoints).unwrap();
    let call = tokio::spawn({
        let manager = manager.clone();
        async move { manager.read(search).await }
    });
    until("the call is at the first node", || one.count() == 1).await;
    sender.send_replace(EndpointSet::fixed([endpoint(two.address)]));
    assert_eq!(manager.read(search).await.unwrap(), json!(2));
    assert_eq!(call.await.unwrap().unwrap(), json!(2), "repeated at the new one");
}

#[tokio::test]
async fn a_cancelled_call_leaves_nothing_behind_at_whatever_point() {
    let peer = Peer::start(|asked, _| Reply::ok(json!({"path": asked.path}))).await;
    let config = quick(peer.url()).bulkhead(2).fail_max(1).build().unwrap();
    let manager = OpenSearchManager::connect(config).unwrap();
    let ask = async |index: &str| {
        let find = |node: Node| {
            let index = index.to_owned();
            async move { json::<Value>(node.search(SearchParts::Index(&[&index])).send().await?).await }
        };
        manager.read(find).await.unwrap()["path"].as_str().unwrap().to_owned()
    };
    let mut finished = 0;
    for polls in 0..200 {
        let name = format!("cancelled-{polls}");
        finished += usize::from(poll_n(ask(&name), polls % 20).await.is_some());
        let name = format!("kept-{polls}");
        assert_eq!(ask(&name).await, format!("/{name}/_search"), "a foreign answer");
        assert_eq!(manager.status().in_use, 0);
        assert_eq!(manager.bulkhead().unwrap().available(), 2);
    }
    assert!((1..200).contains(&finished), "{finished} of 200 were not cancelled");
    assert_eq!(manager.breaker().snapshot().calls.failure, 0);
}

#[tokio::test]
async fn the_bulkhead_bounds_requests_in_flight_and_status_tells_of_them() {
    let peer = Peer::start(|_, _| Reply::ok(1)).await;
    let config = quick(peer.url()).bulkhead(4).build().unwrap();
    let manager = OpenSearchManager::connect(config).unwrap();
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let manager = manager.clone();
            tokio::spawn(async move { manager.read(search).await.map(|_| ()) })
        })
        .collect();
    until("calls are in flight", || manager.status().in_use > 0).await;
    let status = manager.status();
    assert!(status.in_use <= 4 && status.max == 4 && status.waiting > 0, "{status:?}");
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert!(peer.busiest() <= 4, "{} at once", peer.busiest());
    assert_eq!((peer.count(), manager.status().in_use, manager.status().waiting), (100, 0, 0));
}

#[test]
fn a_manager_outlives_the_runtime_that_first_used_it() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (server, own) = (runtime().unwrap(), runtime().unwrap());
    let peer = server.block_on(Peer::start(|_, _| Reply::ok(1)));
    let config = quick(peer.url()).build().unwrap().runtime(own.handle().clone());
    let manager = OpenSearchManager::connect(config).unwrap();
    for _ in 0..3 {
        let passing = runtime().unwrap();
        passing.block_on(async { manager.read(search).await.unwrap() });
        drop(passing);
    }
    assert_eq!((peer.count(), peer.accepted()), (3, 1), "one connection served all runtimes");

    let homeless = OpenSearchManager::connect(quick(peer.url()).build().unwrap()).unwrap();
    for _ in 0..3 {
        runtime().unwrap().block_on(async { homeless.read(search).await.unwrap() });
    }
    assert_eq!(peer.count(), 6, "without a runtime of its own it reconnects, and works");
}

#[tokio::test]
async fn one_node_of_two_that_is_down_degrades_the_cluster() {
    let peer = Peer::start(|_, _| Reply::ok(GREEN)).await;
    let manager = OpenSearchManager::connect(
        quick(format!("{},http://{}", peer.url(), nobody())).build().unwrap(),
    )
    .unwrap();
    let health = manager.check(Deadline::within(ms(5000))).await;
    assert_eq!(health.status, HealthStatus::Degraded, "{health:?}");
    assert!(health.reason.unwrap().starts_with("1 of 2 nodes: no connection to http://"));
    assert_eq!(peer.asked()[0].path, "/_cluster/health?local=true");
    assert_eq!(manager.breaker().snapshot().calls.success, 0, "a check settles no permit");
    manager.warm_up(Deadline::within(ms(5000))).await.unwrap();
}
