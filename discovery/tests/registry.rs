//! The registry as its users meet it: on the loopback interface, with sockets of the test's own.

mod support;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use discovery::ServiceRegistry;
use resilience_core::{Address, Endpoint, EndpointSet, Freshness, Outcome, Standstill};
use support::{SOON, until};
use tokio::runtime::{Handle, Runtime};
use tokio::time::{Instant, timeout};

/// A file of the test's own, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("registry-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }

    /// As an editor or a ConfigMap does it: another file takes the place.
    fn replace(&self, text: &str) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &self.0).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn redis_at(ports: &[u16]) -> String {
    let ports: Vec<_> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    format!("[services.redis]\nendpoints = [{}]\n", ports.join(", "))
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn is_stale(set: &EndpointSet) -> bool {
    matches!(set.freshness, Freshness::Stale { .. })
}

fn cause(set: &EndpointSet) -> &str {
    match &set.freshness {
        Freshness::Stale { cause, .. } => cause,
        Freshness::Fresh { .. } => panic!("{set:?} is fresh"),
    }
}

#[tokio::test]
async fn a_service_that_moves_in_its_file_is_followed_without_a_restart() {
    let ((_old, old), (_new, new)) = (listen(), listen());
    let file = Scratch::new("moves.toml", &redis_at(&[old]));
    let registry = ServiceRegistry::from_file(file.path()).unwrap();
    assert_eq!(registry.pick("redis").unwrap().address.port(), old);
    let mut watched = registry.endpoints("redis").unwrap();
    file.write(&redis_at(&[new]));
    let moved = Instant::now();
    until(&mut watched, |set| set.endpoints[0].address.port() == new).await;
    assert!(moved.elapsed() < Duration::from_secs(3), "{:?}", moved.elapsed());
    assert_eq!(registry.pick("redis").unwrap().address.port(), new);
}

#[tokio::test]
async fn an_endpoint_that_dies_is_passed_over_until_it_is_back() {
    let ((first, first_port), (_second, second_port)) = (listen(), listen());
    let tick = Duration::from_millis(50);
    let registry =
        ServiceRegistry::builder().probe_interval(tick).probe_timeout(tick).build().unwrap();
    let addresses = [first_port, second_port].map(|port| format!("localhost:{port}"));
    let mut watched = registry.register_static("redis", addresses).unwrap();
    assert_eq!(registry.pick("redis").unwrap().address.port(), first_port);

    drop(first);
    until(&mut watched, |set| !set.endpoints[0].conditions.healthy).await;
    assert_eq!(registry.pick("redis").unwrap().address.port(), second_port);

    let _first = TcpListener::bind((Ipv4Addr::LOCALHOST, first_port)).unwrap();
    until(&mut watched, |set| set.endpoints[0].conditions.healthy).await;
    assert_eq!(registry.pick("redis").unwrap().address.port(), first_port);
}

#[tokio::test(start_paused = true)]
async fn failed_calls_take_an_endpoint_out_though_its_port_accepts() {
    let ((_hung, hung), (_good, good)) = (listen(), listen());
    let registry = ServiceRegistry::new();
    let addresses = [hung, good].map(|port| format!("127.0.0.1:{port}"));
    registry.register_static("search", addresses).unwrap();
    let chosen = registry.pick("search").unwrap();
    for _ in 0..2 {
        assert_eq!(registry.pick("search").unwrap().id, chosen.id);
        registry.report("search", &chosen.id, Outcome::Failure).unwrap();
    }
    assert_eq!(registry.pick("search").unwrap().address.port(), good);
    registry.report("search", &chosen.id, Outcome::Success).unwrap();
    assert_eq!(registry.pick("search").unwrap().address.port(), hung);
    registry.report("search", "gone:1", Outcome::Failure).unwrap();
    assert!(registry.report("serach", &chosen.id, Outcome::Failure).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_broken_file_leaves_the_last_good_set() {
    let file = Scratch::new("breaks.toml", &redis_at(&[1]));
    let registry = ServiceRegistry::from_file(file.path()).unwrap();
    let mut watched = registry.endpoints("redis").unwrap();
    file.write("[services.redis]\nendpoints = [\"127.0.0.1:2\"");
    let set = until(&mut watched, is_stale).await;
    assert!(cause(&set).contains("does not parse (line 2)"), "{}", cause(&set));
    assert_eq!(set.endpoints[0].address.port(), 1);

    std::fs::remove_file(file.path()).unwrap();
    let set =
        until(&mut watched, |set| is_stale(set) && cause(set).contains("cannot be read")).await;
    assert_eq!(set.endpoints[0].address.port(), 1);

    file.write(&redis_at(&[3]));
    let set = until(&mut watched, |set| !is_stale(set)).await;
    assert_eq!(set.endpoints[0].address.port(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_file_replaced_by_one_of_the_same_size_is_noticed() {
    let file = Scratch::new("swapped.toml", &redis_at(&[7001]));
    let registry = ServiceRegistry::from_file(file.path()).unwrap();
    let mut watched = registry.endpoints("redis").unwrap();
    for port in 7002..7010 {
        if port % 2 == 0 {
            file.replace(&redis_at(&[port]));
        } else {
            file.write(&redis_at(&[port]));
        }
        until(&mut watched, |set| set.endpoints[0].address.port() == port).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_within_the_tick_of_the_file_s_clock_is_not_lost() {
    let file = Scratch::new("tick.toml", &redis_at(&[7001]));
    let registry = ServiceRegistry::from_file(file.path()).unwrap();
    let mut watched = registry.endpoints("redis").unwrap();
    file.write(&redis_at(&[7002]));
    until(&mut watched, |set| set.endpoints[0].address.port() == 7002).await;
    let time = std::fs::metadata(file.path()).unwrap().modified().unwrap();
    file.write(&redis_at(&[7003]));
    std::fs::File::options().write(true).open(file.path()).unwrap().set_modified(time).unwrap();
    until(&mut watched, |set| set.endpoints[0].address.port() == 7003).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_moved_over_another_of_its_size_and_time_is_noticed() {
    let file = Scratch::new("moved-over.toml", &redis_at(&[7001]));
    let registry = ServiceRegistry::from_file(file.path()).unwrap();
    let mut watched = registry.endpoints("redis").unwrap();
    // Long enough for the second reading of the first state to be over.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let time = std::fs::metadata(file.path()).unwrap().modified().unwrap();
    let over = Scratch::new("over.toml", &redis_at(&[7002]));
    std::fs::File::options().write(true).open(over.path()).unwrap().set_modified(time).unwrap();
    std::fs::rename(over.path(), file.path()).unwrap();
    until(&mut watched, |set| set.endpoints[0].address.port() == 7002).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_may_gain_and_lose_services() {
    let file = Scratch::new("gains.yaml", "services: {redis: {endpoints: [\"127.0.0.1:1\"]}}");
    let registry = ServiceRegistry::builder().max_services(2).build().unwrap();
    registry.register_file(file.path()).unwrap();
    let mut redis = registry.endpoints("redis").unwrap();

    file.write("services: {a: {endpoints: [\"127.0.0.1:2\"]}, b: {endpoints: [\"127.0.0.1:3\"]}}");
    let set = until(&mut redis, is_stale).await;
    assert!(cause(&set).ends_with("gains.yaml no longer names it"), "{}", cause(&set));
    assert_eq!(registry.pick("redis").unwrap().address.port(), 1);
    assert_eq!(registry.services().iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "redis"]);
    assert!(registry.dropped().services >= 1, "b does not fit, and that is counted");

    file.write("services: {redis: {endpoints: [\"127.0.0.1:1\"]}}");
    until(&mut redis, |set| !is_stale(set)).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_does_not_take_what_the_code_has_given() {
    let file = Scratch::new("under.toml", &redis_at(&[1]));
    let registry = ServiceRegistry::new();
    registry.register_static("REDIS", ["127.0.0.1:9"]).unwrap();
    registry.register_file(file.path()).unwrap();
    assert_eq!(registry.pick("redis").unwrap().address.port(), 9);
    // A marker tells that the change was read.
    file.write(&format!("{}[services.marker]\nendpoints = [\"127.0.0.1:3\"]\n", redis_at(&[2])));
    let deadline = Instant::now() + SOON;
    while registry.endpoints("marker").is_err() {
        assert!(Instant::now() < deadline, "the file is not read again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(registry.pick("redis").unwrap().address.port(), 9);
}

#[tokio::test(start_paused = true)]
async fn what_is_registered_anew_is_followed_by_those_who_watch() {
    let registry = ServiceRegistry::new();
    let mut watched = registry.register_static("redis", ["127.0.0.1:1"]).unwrap();
    let mut moved = Endpoint::new(Address::new("127.0.0.1", 2)).with_priority(1);
    moved.conditions.healthy = false;
    registry.clone().register_endpoints("redis", [moved]).unwrap();
    let set = until(&mut watched, |set| set.endpoints[0].address.port() == 2).await;
    assert_eq!((set.endpoints.len(), set.endpoints[0].priority), (1, 1));
    assert!(set.endpoints[0].conditions.healthy, "its health is the registry's to find out");
}

#[tokio::test(start_paused = true)]
async fn nothing_wrong_is_registered_and_all_that_is_wrong_is_told() {
    let registry = ServiceRegistry::builder().max_services(1).max_endpoints(2).build().unwrap();
    let error = registry.register_static("a b", ["x", "127.0.0.1:1", "y"]).unwrap_err();
    assert_eq!(error.problems().len(), 3, "{error}");
    let error = registry.register_static("redis", ["a:1", "a:2", "a:3"]).unwrap_err().to_string();
    assert!(
        error.contains("services.redis.endpoints is \"a list of 3\"; allowed: 1 to 2"),
        "{error}"
    );
    assert!(registry.register_static("redis", [""; 0]).is_err());
    assert!(registry.services().is_empty());

    registry.register_static("redis", ["127.0.0.1:1"]).unwrap();
    registry.register_static("redis", ["127.0.0.1:2"]).unwrap();
    let error = registry.register_static("search", ["127.0.0.1:1"]).unwrap_err().to_string();
    assert!(
        error.contains("services is \"a list of 2\"; allowed: 1 services at the most"),
        "{error}"
    );

    let file = Scratch::new("full.toml", "[services.search]\nendpoints = \"127.0.0.1:1\"\n");
    assert!(registry.register_file(file.path()).is_err());
    assert_eq!(registry.services().len(), 1);
}

#[test]
fn the_tasks_end_when_the_registry_is_dropped() {
    let runtime = Runtime::new().unwrap();
    let file = Scratch::new("tasks.toml", &redis_at(&[1]));
    let alive = || runtime.metrics().num_alive_tasks();
    runtime.block_on(async {
        // Whoever watches for standstills has a task of its own, which lasts as long as the runtime.
        let _watched = Standstill::watch();
        let before = alive();
        let registry = ServiceRegistry::from_file(file.path()).unwrap();
        let mut watched = registry.register_static("search", ["127.0.0.1:1"]).unwrap();
        let clone = registry.clone();
        drop(registry);
        assert!(alive() >= before + 3, "a clone keeps them: {}", alive());
        assert!(watched.has_changed().is_ok());
        drop(clone);
        timeout(SOON, async { while watched.changed().await.is_ok() {} }).await.unwrap();
        assert_eq!(watched.borrow().endpoints.len(), 1, "what was known stays readable");
        let deadline = Instant::now() + SOON;
        while alive() > before {
            assert!(Instant::now() < deadline, "{} tasks are left", alive() - before);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn with_a_runtime_of_its_own_the_registry_outlives_the_one_that_used_it_first() {
    let long = Runtime::new().unwrap();
    let (_old, old) = listen();
    let (_new, new) = listen();
    let file = Scratch::new("outlives.toml", &redis_at(&[old]));
    let build = |handle: &Handle| ServiceRegistry::builder().runtime(handle.clone()).build();
    let registry = build(long.handle()).unwrap();
    Runtime::new().unwrap().block_on(async {
        registry.register_file(file.path()).unwrap();
    });
    file.write(&redis_at(&[new]));
    Runtime::new().unwrap().block_on(async {
        let mut watched = registry.endpoints("redis").unwrap();
        until(&mut watched, |set| set.endpoints[0].address.port() == new).await;
    });
    // Nor does it need one to register.
    registry.register_static("search", ["127.0.0.1:1"]).unwrap();
}

#[test]
fn without_any_runtime_the_error_names_the_cure() {
    let error = ServiceRegistry::new().register_static("redis", ["127.0.0.1:1"]).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("runtime is not set; allowed: ServiceRegistry::builder().runtime"),
        "{error}"
    );
}

#[tokio::test]
async fn the_environment_names_services_over_those_of_its_file() {
    const INSIDE: &str = "REGISTRY_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        // An environment cannot be changed from within while other threads read it.
        let file = Scratch::new(
            "env.toml",
            &format!("{}[services.search]\nendpoints = \"127.0.0.1:2\"\n", redis_at(&[1])),
        );
        let inside = |redis: &str| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "the_environment_names_services_over_those_of_its_file"])
                .env(INSIDE, redis)
                .env("DISCOVERY_REDIS", redis)
                .env("DISCOVERY_FILE", file.path())
                .env("DISCOVERY_ORDER_SERVICE", "127.0.0.1:4,127.0.0.1:5")
                .output()
                .unwrap()
        };
        for redis in ["127.0.0.1:3", "http://user:hunter2@host"] {
            let output = inside(redis);
            let shown = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && shown.contains("1 passed"), "{shown}");
        }
    } else if std::env::var(INSIDE).unwrap().starts_with("http") {
        let error = ServiceRegistry::from_env().unwrap_err().to_string();
        assert!(
            error.contains("DISCOVERY_REDIS is \"http://***@host\"; allowed: host:port"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    } else {
        let registry = ServiceRegistry::from_env().unwrap();
        let names = registry.services();
        assert_eq!(
            names.iter().map(|name| &**name).collect::<Vec<_>>(),
            ["order_service", "redis", "search"]
        );
        assert_eq!(registry.pick("redis").unwrap().address.port(), 3);
        assert_eq!(registry.pick("search").unwrap().address.port(), 2);
        assert_eq!(registry.endpoints("Order-Service").unwrap().borrow().endpoints.len(), 2);
    }
}
