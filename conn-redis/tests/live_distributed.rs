//! Fear: processes that exchange opinions through Redis hear each other late, refuse calls because of it,
//! or suffer with the Redis that they do it through.
#![cfg(feature = "distributed")]

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use conn_redis::redis::{Connection, cmd};
use conn_redis::{RedisManager, RedisOpinions};
use resilience_core::{
    CallError, CircuitBreaker, CircuitState, Deadline, Exchange, MemoryOpinions, Opinion,
    OpinionStore, ProcessId, StoreError, Tally,
};
use support::{RedisServer, executed, free_port, hasty, soon, until};
use tokio::time::{Instant, sleep, timeout};

/// The exchange's own defaults.
const PERIOD: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(3);
/// Times that a time is taken.
const ROUNDS: usize = 4;

/// The test that a peer is, if this variable tells it where the store is, and what makes a quorum.
const PEER: &str = "two_of_three_arm_the_third_within_a_period_and_it_refuses_nobody";
const STORE: &str = "LIVE_DISTRIBUTED_STORE";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_arm_the_third_within_a_period_and_it_refuses_nobody() {
    if let Ok(store) = std::env::var(STORE) {
        return peer(&store);
    }
    let server = RedisServer::start(&[]).await;
    let mut peers = Peers::start(&server, 0.5, 2).await;
    let (mut times, mut rolls) = (Vec::new(), fastrand::Rng::with_seed(1));
    for round in 0..ROUNDS {
        let [first, second, third] = [0, 1, 2].map(|peer| (peer + round) % 3);
        peers.ask(first, "fail 5");
        peers.until(first, "it is open", |report| report["open"] == 1).await;
        for other in [second, third] {
            let heard = peers.ask(other, "tell")["exchanges"];
            peers.until(other, "it has heard", |report| report["exchanges"] > heard + 1).await;
            assert_eq!(peers.ask(other, "tell")["armed"], 0, "one of three is no quorum");
        }
        peers.some_time_later(third, &mut rolls).await;
        let started = Instant::now();
        peers.ask(second, "fail 5");
        peers.until(third, "it is armed", |report| report["armed"] == 1).await;
        times.push(started.elapsed());

        let before = peers.ask(third, "tell");
        peers.until(third, "it has made calls", |report| report["ok"] > before["ok"] + 200).await;
        let after = peers.ask(third, "tell");
        assert_eq!((after["refused"], after["armed"]), (before["refused"], 1), "round {round}");
        peers.ask(third, "fail 1");
        peers.until(third, "one failure opens it", |report| report["open"] == 1).await;
        peers.all_well().await;
    }
    report("two of three open, until the third was armed", &times);
    assert!(times.iter().all(|time| *time < PERIOD + Duration::from_millis(500)), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_one_is_a_quorum_both_others_are_armed_within_a_period() {
    let server = RedisServer::start(&[]).await;
    let mut peers = Peers::start(&server, 0.3, 1).await;
    let (mut times, mut rolls) = (Vec::new(), fastrand::Rng::with_seed(1));
    for round in 0..ROUNDS {
        let [first, second, third] = [0, 1, 2].map(|peer| (peer + round) % 3);
        let refused = [second, third].map(|other| peers.ask(other, "tell")["refused"]);
        peers.some_time_later(second, &mut rolls).await;
        let started = Instant::now();
        peers.ask(first, "fail 5");
        for other in [second, third] {
            peers.until(other, "it is armed", |report| report["armed"] == 1).await;
        }
        times.push(started.elapsed());
        assert_eq!([second, third].map(|other| peers.ask(other, "tell")["refused"]), refused);
        peers.all_well().await;
    }
    report("one of three open, until both others were armed", &times);
    assert!(times.iter().all(|time| *time < PERIOD + Duration::from_millis(500)), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_or_dies_in_mid_run_fails_no_call_and_changes_no_rule() {
    let mut server = RedisServer::start(&[]).await;
    let mut peers = Peers::start(&server, 0.5, 2).await;
    for open in [0, 1] {
        peers.ask(open, "fail 5");
    }
    peers.until(2, "it is armed", |report| report["armed"] == 1).await;
    let before = peers.ask(2, "tell");
    server.signal("-STOP");
    peers.until(2, "its hint ran out", |report| report["armed"] == 0).await;
    server.signal("-CONT");
    peers.until(2, "it is armed again", |report| report["armed"] == 1).await;
    server.kill();
    let started = Instant::now();
    peers.until(2, "its hint ran out", |report| report["armed"] == 0).await;
    let ran_out = started.elapsed();
    assert!(ran_out < TTL + Duration::from_millis(500), "{ran_out:?}");
    let lost = peers.ask(2, "tell");
    assert!(lost["lost"] > before["lost"], "the outage is counted");
    peers.until(2, "it has made calls", |report| report["ok"] > lost["ok"] + 1_000).await;
    let after = peers.ask(2, "tell");
    assert_eq!((after["refused"], after["failed"]), (before["refused"], before["failed"]));

    // Alone, it goes by what it would have gone by without any store.
    peers.ask(2, "fail 4");
    let failed = after["failed"] + 4;
    peers.until(2, "four calls have failed", |report| report["failed"] == failed).await;
    assert_eq!(peers.ask(2, "tell")["open"], 0);
    peers.ask(2, "fail 5");
    peers.until(2, "five in a row open it", |report| report["open"] == 1).await;
    assert_eq!(peers.ask(2, "tell")["failed"], failed + 5);

    server.start_again().await;
    let started = Instant::now();
    for peer in 0..3 {
        let heard = peers.ask(peer, "tell")["exchanges"];
        peers.until(peer, "it is heard again", |report| report["exchanges"] > heard).await;
    }
    let found = started.elapsed();
    let calls = after["ok"] - before["ok"];
    println!(
        "store killed: hints ran out after {ran_out:?}; {calls} calls, none failed or refused"
    );
    println!("store back: all three exchange opinions after {found:?}");
    assert!(found < Duration::from_secs(5), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_is_soon_no_longer_heard() {
    let server = RedisServer::start(&[]).await;
    let mut peers = Peers::start(&server, 0.5, 2).await;
    for open in [0, 1] {
        peers.ask(open, "fail 5");
    }
    peers.until(2, "it is armed", |report| report["armed"] == 1).await;
    peers.0[0].child.kill().unwrap();
    let started = Instant::now();
    peers.until(2, "its hint ran out", |report| report["armed"] == 0).await;
    let took = started.elapsed();
    println!("a peer killed: its opinion and the hint ran out after {took:?}");
    assert!(took < 2 * TTL + Duration::from_millis(500), "{took:?}");
    assert_eq!(peers.ask(2, "tell")["refused"], 0);
}

fn opinions(circuits: &[(&str, bool)]) -> Vec<Opinion> {
    let opinion = |(circuit, is_open): &(&str, bool)| Opinion {
        circuit: (*circuit).to_owned().into(),
        is_open: *is_open,
    };
    circuits.iter().map(opinion).collect()
}

fn process() -> ProcessId {
    Exchange::builder(MemoryOpinions::default()).build().unwrap().process()
}

fn keys(connection: &mut Connection) -> usize {
    cmd("DBSIZE").query(connection).unwrap()
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn redis_counts_as_memory_does() {
    let server = RedisServer::start(&[]).await;
    let redis = RedisOpinions::new(server.manager(), "shop");
    let memory = MemoryOpinions::default();
    let processes: Vec<_> = (0..7).map(|_| process()).collect();
    let mut rolls = fastrand::Rng::with_seed(5);
    let names = ["a", "b c", "{}", "}{", "é:open", ""];
    for _ in 0..300 {
        let process = processes[rolls.usize(0..processes.len())];
        let said: Vec<_> = names.iter().map(|name| (*name, rolls.bool())).collect();
        let said = opinions(&said[..rolls.usize(1..=names.len())]);
        let [ours, theirs] = [
            redis.exchange(process, &said, LONG).await.unwrap(),
            memory.exchange(process, &said, LONG).await.unwrap(),
        ];
        assert_eq!(ours, theirs, "{said:?}");
    }
    let other = RedisOpinions::new(server.manager(), "other");
    let alone = other.exchange(process(), &opinions(&[("a", true)]), LONG).await.unwrap();
    assert_eq!(alone, [Tally { processes: 1, open: 1 }], "groups do not hear each other");
}

#[tokio::test]
async fn what_is_not_said_again_lapses_and_leaves_no_key_behind() {
    let server = RedisServer::start(&[]).await;
    let redis = RedisOpinions::new(server.manager(), "shop");
    let said = opinions(&[("a", true), ("b", false)]);
    redis.exchange(process(), &said, Duration::from_millis(300)).await.unwrap();
    let (here, started) = (process(), Instant::now());
    until("the first has lapsed", async || {
        let tallies = redis.exchange(here, &said[..1], LONG).await.unwrap();
        tallies == [Tally { processes: 1, open: 1 }]
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(1));
    redis.exchange(here, &said[..1], Duration::from_millis(300)).await.unwrap();
    let mut admin = server.admin();
    until("nothing is left", async || keys(&mut admin) == 0).await;
}

#[tokio::test]
async fn a_server_that_has_lost_the_script_is_given_it_again() {
    let server = RedisServer::start(&[]).await;
    let redis = RedisOpinions::new(server.manager(), "shop");
    let said = opinions(&[("a", true), ("b", false), ("c", false)]);
    let mut admin = server.admin();
    for _ in 0..3 {
        cmd("SCRIPT").arg("FLUSH").exec(&mut admin).unwrap();
        let tallies = redis.exchange(process(), &said, LONG).await.unwrap();
        assert_eq!(tallies.len(), 3);
    }
    let (before, here) = (executed(&mut admin, "evalsha"), process());
    for _ in 0..10 {
        redis.exchange(here, &said, LONG).await.unwrap();
    }
    assert_eq!(executed(&mut admin, "evalsha") - before, 30, "and no more often than needed");
}

#[tokio::test]
async fn a_cluster_can_hold_the_circuits_anywhere() {
    let server = RedisServer::start(&["--cluster-enabled", "yes"]).await;
    let mut admin = server.admin();
    cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(0).arg(16_383).exec(&mut admin).unwrap();
    until("the cluster is up", async || {
        let info: String = cmd("CLUSTER").arg("INFO").query(&mut server.admin()).unwrap();
        info.contains("cluster_state:ok")
    })
    .await;
    let redis = RedisOpinions::new(server.manager(), "sh}op");
    let said: Vec<_> = ["a", "b", "{c}", "}"].map(|name| (name, true)).into();
    let tallies = redis.exchange(process(), &opinions(&said), LONG).await.unwrap();
    assert_eq!(tallies, [Tally { processes: 1, open: 1 }; 4]);
}

#[tokio::test]
async fn a_store_that_is_away_costs_an_exchange_its_deadline_and_no_more() {
    let mut server = RedisServer::stopped(free_port(), &[]);
    let redis = RedisManager::connect(hasty(&server.url()).build().unwrap()).unwrap();
    let breaker = CircuitBreaker::new("payments");
    let exchange = Exchange::builder(RedisOpinions::new(redis, "shop")).breakers([breaker]);
    let exchange = exchange.build().unwrap();
    let error = exchange.exchange_once(soon()).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot connect to redis at 127.0.0.1:"), "{error}");
    server.start_again().await;
    exchange.exchange_once(soon()).await.unwrap();
    server.signal("-STOP");
    let started = Instant::now();
    let brief = Deadline::within(Duration::from_millis(100));
    exchange.exchange_once(brief).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(300));
    let cut_off = timeout(Duration::from_millis(50), exchange.exchange_once(soon())).await;
    assert!(cut_off.is_err());
    server.signal("-CONT");
    until("it is heard again", async || exchange.exchange_once(soon()).await.is_ok()).await;
    assert!(!matches!(exchange.exchange_once(soon()).await, Err(StoreError::Mismatched { .. })));
}

/// Three processes that call a service each, and exchange opinions of it.
struct Peers([Peer; 3]);

struct Peer {
    child: Child,
    commands: ChildStdin,
    reports: mpsc::Receiver<String>,
}

/// What a peer has counted.
type Report = HashMap<String, u64>;

impl Peers {
    async fn start(server: &RedisServer, share: f64, at_least: u64) -> Self {
        let store = format!("{} {share} {at_least}", server.url());
        let mut peers = Self([(); 3].map(|()| Peer::start(&store)));
        for peer in 0..3 {
            peers.until(peer, "it has joined", |report| report["exchanges"] > 0).await;
        }
        peers
    }

    fn ask(&mut self, peer: usize, command: &str) -> Report {
        let Peer { commands, reports, .. } = &mut self.0[peer];
        writeln!(commands, "{command}").unwrap();
        let line = reports.recv_timeout(Duration::from_secs(10)).expect("the peer answers");
        let pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }

    async fn until(&mut self, peer: usize, what: &str, mut holds: impl FnMut(&Report) -> bool) {
        until(what, async || holds(&self.ask(peer, "tell"))).await;
    }

    /// Waits for up to a period: a while of its calls.
    async fn some_time_later(&mut self, peer: usize, rolls: &mut fastrand::Rng) {
        let calls = |report: &Report| report["ok"] + report["refused"];
        let due = calls(&self.ask(peer, "tell")) + rolls.u64(0..500);
        self.until(peer, "it has made calls", |report| calls(report) >= due).await;
    }

    /// Closes every circuit, and waits until nobody is armed.
    async fn all_well(&mut self) {
        for peer in 0..3 {
            self.ask(peer, "well");
        }
        for peer in 0..3 {
            self.until(peer, "its hint ran out", |report| report["armed"] == 0).await;
        }
    }
}

impl Peer {
    fn start(store: &str) -> Self {
        let mut this = Command::new(std::env::current_exe().unwrap());
        this.args([PEER, "--exact", "--nocapture"]).env(STORE, store);
        let mut child = this.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (commands, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, reports) = mpsc::channel();
        std::thread::spawn(move || {
            // The test program says things of its own.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(report) = line.strip_prefix("report ") {
                    let _ = sender.send(report.to_owned());
                }
            }
        });
        Self { child, commands, reports }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of the processes: it calls its service all the time, and obeys until its standard input ends.
///
/// | command | what it does |
/// |---|---|
/// | `fail N` | its next N calls fail |
/// | `well` | calls succeed again; closes the circuit |
/// | `tell` | nothing |
fn peer(store: &str) {
    let [url, share, at_least] = *store.split(' ').collect::<Vec<_>>() else { panic!("{store}") };
    let redis = hasty(url).name("opinions").max_connections(2).reset_timeout(PERIOD / 2);
    let redis = RedisManager::connect(redis.build().unwrap()).unwrap();
    let breaker = CircuitBreaker::builder("payments").fail_max(5).build().unwrap();
    let exchange = Exchange::builder(RedisOpinions::new(redis, "shop"))
        .breakers([breaker.clone()])
        .quorum(share.parse().unwrap(), at_least.parse().unwrap())
        .build()
        .unwrap();
    let (running, caller) = (exchange.clone(), breaker.clone());
    tokio::spawn(async move { running.run().await });
    let to_fail: Arc<AtomicU64> = Arc::default();
    let counts: Arc<[AtomicU64; 3]> = Arc::default();
    let (failing, counting) = (Arc::clone(&to_fail), Arc::clone(&counts));
    tokio::spawn(async move {
        loop {
            let less = |left: u64| left.checked_sub(1);
            let fails = || failing.try_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
            let place = match caller.call(async || if fails() { Err(()) } else { Ok(()) }).await {
                Ok(()) => 0,
                Err(CallError::CircuitOpen(_)) => 2,
                Err(_) => 1,
            };
            counting[place].fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(1)).await;
        }
    });
    for command in std::io::stdin().lines().map_while(Result::ok) {
        match command.split_once(' ') {
            Some(("fail", times)) => to_fail.store(times.parse().unwrap(), Ordering::Relaxed),
            _ if command == "well" => {
                to_fail.store(0, Ordering::Relaxed);
                breaker.reset();
            }
            _ => {}
        }
        let [ok, failed, refused] =
            [0, 1, 2].map(|place: usize| counts[place].load(Ordering::Relaxed));
        let (armed, open) = (breaker.snapshot().armed, breaker.state() == CircuitState::Open);
        let told = exchange.counts();
        println!(
            "\nreport ok={ok} failed={failed} refused={refused} armed={} open={} exchanges={} lost={}",
            u8::from(armed),
            u8::from(open),
            told.exchanges,
            told.failures
        );
    }
}

fn report(what: &str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort();
    println!(
        "{what}: median {:?}, worst {:?} of {} rounds; a period is {PERIOD:?}",
        sorted[sorted.len() / 2],
        sorted[sorted.len() - 1],
        sorted.len()
    );
}
