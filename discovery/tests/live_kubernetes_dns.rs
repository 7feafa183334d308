//! A Kubernetes service's name as the system resolver of this machine resolves it, moved under a running
//! registry.
//!
//! The test runs itself again in a mount namespace of its own, where a file of its own lies over
//! `/etc/hosts`: what the C library reads there is what it would be told by the cluster's DNS.
#![cfg(all(target_os = "linux", feature = "kubernetes"))]

mod support;

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use discovery::ServiceRegistry;
use resilience_core::{EndpointSet, Freshness, Outcome};
use support::until;
use tokio::time::Instant;

const NAME: &str = "redis.default.svc.cluster.local";
const HOSTS: &str = "DISCOVERY_TEST_HOSTS";

#[tokio::test]
async fn a_kubernetes_service_that_moves_is_followed_without_a_restart() {
    match std::env::var_os(HOSTS) {
        None => run_inside("a_kubernetes_service_that_moves_is_followed_without_a_restart"),
        Some(hosts) => follow(Path::new(&hosts)).await,
    }
}

/// Runs the test `name` of this very program where a file of ours is `/etc/hosts`.
fn run_inside(name: &str) {
    let hosts = std::env::temp_dir().join(format!("hosts-{}", std::process::id()));
    std::fs::write(&hosts, "").unwrap();
    let unshare = || {
        let mut unshare = Command::new("unshare");
        // Whoever may not make a mount namespace may make one in a user namespace of its own.
        let allowed = Command::new("unshare").args(["--mount", "true"]).output();
        let allowed = allowed.expect("util-linux is installed").status.success();
        if !allowed {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.arg("--mount");
        unshare
    };
    let output = unshare()
        .args([
            "sh",
            "-c",
            "mount --bind \"$DISCOVERY_TEST_HOSTS\" /etc/hosts && exec \"$0\" \"$@\"",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(HOSTS, &hosts)
        .output()
        .unwrap();
    std::fs::remove_file(&hosts).unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    let trouble = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && shown.contains("1 passed"), "{shown}\n{trouble}");
}

async fn follow(hosts: &Path) {
    let point_to = |hosts_of_the_name: &[&str]| {
        let lines = hosts_of_the_name.iter().map(|ip| format!("{ip} {NAME}\n"));
        std::fs::write(hosts, lines.collect::<String>()).unwrap();
    };
    let first = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
    let port = first.local_addr().unwrap().port();
    let _second = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 3), port)).unwrap();

    point_to(&["127.0.0.2"]);
    let seen = std::fs::read_to_string("/etc/hosts").unwrap();
    assert!(seen.contains(NAME), "the file is not /etc/hosts here: {seen:?}");

    // All defaults: the name is looked up again after 30 s, so what is faster is due to the failures.
    let registry = ServiceRegistry::new();
    let target = format!("k8s://redis.default:{port}").parse().unwrap();
    let mut watched = registry.register_kubernetes("redis", target).unwrap();
    let set = until(&mut watched, |set| !set.endpoints.is_empty()).await;
    assert_eq!(set.endpoints.len(), 1);
    let endpoint = registry.pick("redis").unwrap();
    assert_eq!(endpoint.address.to_string(), format!("127.0.0.2:{port}"));
    assert_eq!(endpoint.server_name(), NAME);
    tokio::net::TcpStream::connect((endpoint.address.host(), port)).await.unwrap();

    drop(first);
    point_to(&["127.0.0.3"]);
    let moved = Instant::now();
    registry.report("redis", &endpoint.id, Outcome::Failure).unwrap();
    until(&mut watched, |set| set.endpoints[0].address.host() == "127.0.0.3").await;
    assert!(moved.elapsed() < Duration::from_secs(3), "{:?}", moved.elapsed());
    let endpoint = registry.pick("redis").unwrap();
    tokio::net::TcpStream::connect((endpoint.address.host(), port)).await.unwrap();
    drop(registry);

    // On the interval alone, and through an outage of the name.
    let tick = Duration::from_millis(100);
    let registry = ServiceRegistry::builder().resolve_interval(tick).build().unwrap();
    let target = discovery::KubernetesService::new("redis", "default", port).unwrap();
    let mut watched = registry.register_kubernetes("redis", target).unwrap();
    until(&mut watched, |set| !set.endpoints.is_empty()).await;
    point_to(&["127.0.0.3", "127.0.0.4"]);
    until(&mut watched, |set| set.endpoints.len() == 2).await;
    point_to(&[]);
    let stale = |set: &EndpointSet| matches!(set.freshness, Freshness::Stale { .. });
    let set = until(&mut watched, stale).await;
    let Freshness::Stale { cause, .. } = &set.freshness else { panic!("{set:?} is fresh") };
    assert!(cause.contains(&format!("{NAME} does not resolve: ")), "{cause}");
    assert_eq!(set.endpoints.len(), 2, "the last good set stands");
    point_to(&["127.0.0.2"]);
    let set = until(&mut watched, |set| !stale(set)).await;
    assert_eq!(set.endpoints[0].address.host(), "127.0.0.2");
}
