//! What Redis itself says when it is provoked, and what that means.

mod support;

use std::thread;

use conn_redis::redis::{self, AsyncCommands, Cmd, cmd, pipe};
use conn_redis::{CallError, Error, RedisManager};
use resilience_core::{Blame, Failed, Replay};
use support::{RedisServer, clients, failed, free_port, hasty, soon, until};

async fn refusal(redis: &RedisManager, command: &Cmd) -> Failed<Error> {
    failed(redis.write(|mut conn| async move { Ok(command.exec_async(&mut conn).await?) }).await)
}

fn check(refusal: &Failed<Error>, code: &str, blame: Blame, replay: Replay, waits: bool) {
    let Error::Redis(error) = &refusal.error else { panic!("not an answer: {refusal}") };
    assert_eq!(error.code(), Some(code), "{refusal}");
    assert_eq!((refusal.verdict.blame, refusal.verdict.replay), (blame, replay), "{refusal}");
    assert_eq!(refusal.verdict.retry_after.is_some(), waits, "{refusal}");
}

fn set() -> Cmd {
    cmd("SET").arg("k").arg("v").take()
}

fn config_set(server: &RedisServer, key: &str, value: &str) {
    cmd("CONFIG").arg("SET").arg(key).arg(value).exec(&mut server.admin()).unwrap();
}

#[tokio::test]
async fn what_the_caller_did_wrong_is_the_callers() {
    let server = RedisServer::start(&[]).await;
    let redis = server.manager();
    refusal_of_the_caller(&redis, cmd("FOO").arg(1), "ERR").await;
    cmd("SET").arg("text").arg("x").exec(&mut server.admin()).unwrap();
    refusal_of_the_caller(&redis, cmd("LPUSH").arg("text").arg(1), "WRONGTYPE").await;
    cmd("ACL").arg("SETUSER").arg("default").arg("-del").exec(&mut server.admin()).unwrap();
    refusal_of_the_caller(&redis, cmd("DEL").arg("text"), "NOPERM").await;
    refusal_of_the_caller(&redis, cmd("AUTH").arg("nobody").arg("x"), "WRONGPASS").await;
    let script = refusal(&redis, cmd("EVALSHA").arg("0".repeat(40)).arg(0)).await;
    check(&script, "NOSCRIPT", Blame::Caller, Replay::Safe, false);
    let aborted = redis
        .write(|mut conn| async move {
            cmd("MULTI").exec_async(&mut conn).await?;
            // Refused, and with it the whole transaction.
            cmd("FOO").exec_async(&mut conn).await.unwrap_err();
            Ok(cmd("EXEC").exec_async(&mut conn).await?)
        })
        .await;
    check(&failed(aborted), "EXECABORT", Blame::Caller, Replay::Never, false);
    assert_eq!(redis.breaker().snapshot().calls.failure, 0);
}

async fn refusal_of_the_caller(redis: &RedisManager, command: &Cmd, code: &str) {
    check(&refusal(redis, command).await, code, Blame::Caller, Replay::Never, false);
}

#[tokio::test]
async fn a_login_that_is_missing_or_taken_away_is_the_callers() {
    let server = RedisServer::start(&["--requirepass", "secret"]).await;
    let error = failed(
        server.manager().read(|mut conn| async move { Ok(conn.get::<_, i64>("k").await?) }).await,
    );
    assert!(error.to_string().contains("NOAUTH Authentication required."), "{error}");
    assert_eq!((error.verdict.blame, error.verdict.replay), (Blame::Caller, Replay::Never));
}

#[tokio::test]
async fn a_server_without_memory_or_disk_is_retried_slowly() {
    let mut server = RedisServer::stopped(free_port(), &[]);
    server.args(["--save", "900 1"]);
    server.start_again().await;
    let redis = server.manager();
    config_set(&server, "maxmemory", "1");
    check(&refusal(&redis, &set()).await, "OOM", Blame::Service, Replay::Safe, true);
    config_set(&server, "maxmemory", "0");
    refusal_free(&redis).await;

    // Without a directory to write to, saving fails, and Redis takes no more writes.
    std::fs::remove_dir_all(&server.dir).unwrap();
    cmd("BGSAVE").exec(&mut server.admin()).unwrap();
    until("the save has failed", async || {
        let info: String = cmd("INFO").arg("persistence").query(&mut server.admin()).unwrap();
        info.contains("rdb_last_bgsave_status:err")
    })
    .await;
    check(&refusal(&redis, &set()).await, "MISCONF", Blame::Service, Replay::Safe, true);
    let health = redis.health().await;
    assert_eq!(health.status, resilience_core::HealthStatus::Degraded, "{health:?}");
}

async fn refusal_free(redis: &RedisManager) {
    redis.write(|mut conn| async move { Ok(set().exec_async(&mut conn).await?) }).await.unwrap();
}

#[tokio::test]
async fn a_script_that_does_not_end_keeps_others_waiting_and_no_more() {
    let server = RedisServer::start(&["--lua-time-limit", "20"]).await;
    let redis = server.manager();
    redis.warm_up(soon()).await.unwrap();
    let mut runner = server.admin();
    let mut killer = server.admin();
    let script =
        thread::spawn(move || cmd("EVAL").arg("while true do end").arg(0).exec(&mut runner));
    until("the server is busy", async || {
        let refused = redis
            .read(|mut conn| async move { Ok(cmd("GET").arg("k").exec_async(&mut conn).await?) })
            .await;
        matches!(&refused, Err(CallError::Inner(error)) if error.to_string().contains("BUSY"))
    })
    .await;
    check(&refusal(&redis, &set()).await, "BUSY", Blame::Service, Replay::Safe, true);
    cmd("SCRIPT").arg("KILL").exec(&mut killer).unwrap();
    script.join().unwrap().unwrap_err();
    refusal_free(&redis).await;
}

#[tokio::test]
async fn a_script_that_had_written_is_not_run_again() {
    let server = RedisServer::start(&[]).await;
    let config = hasty(&server.url()).max_retries(3).build().unwrap();
    let redis = RedisManager::connect(config).unwrap();
    let partly = "redis.call('INCR', 'count'); return redis.call('LPUSH', 'count', 1)";
    let error = refusal(&redis, cmd("EVAL").arg(partly).arg(0)).await;
    assert_eq!((error.attempts, error.verdict.replay), (1, Replay::Never), "{error}");
    assert_eq!(cmd("GET").arg("count").query::<i64>(&mut server.admin()).unwrap(), 1);
}

#[tokio::test]
async fn a_replica_takes_no_writes_and_one_that_lost_its_primary_no_reads() {
    let primary = RedisServer::start(&[]).await;
    let port = primary.port.to_string();
    let mut replica = RedisServer::start(&[
        "--replicaof",
        "127.0.0.1",
        &port,
        "--replica-serve-stale-data",
        "no",
    ])
    .await;
    until("the replica follows", async || {
        let role: redis::Value = cmd("ROLE").query(&mut replica.admin()).unwrap();
        format!("{role:?}").contains("connected")
    })
    .await;
    let redis = replica.manager();
    check(&refusal(&redis, &set()).await, "READONLY", Blame::Service, Replay::Safe, false);
    // Looked at anew: a name may lead to another server by now.
    assert_eq!(redis.status().idle, 0);
    drop(primary);
    until("the link is down", async || {
        let info: String = cmd("INFO").arg("replication").query(&mut replica.admin()).unwrap();
        info.contains("master_link_status:down")
    })
    .await;
    check(
        &refusal(&redis, cmd("GET").arg("k")).await,
        "MASTERDOWN",
        Blame::Service,
        Replay::Safe,
        true,
    );
    replica.kill();
}

#[tokio::test]
async fn a_primary_that_misses_its_replicas_takes_no_writes() {
    let server = RedisServer::start(&["--min-replicas-to-write", "1"]).await;
    let redis = server.manager();
    check(&refusal(&redis, &set()).await, "NOREPLICAS", Blame::Service, Replay::Safe, true);
    // Refused as a whole, so it could be sent again; refused in part, it could not.
    let error =
        redis
            .write(|mut conn| async move {
                Ok(pipe().set("a", 1).set("b", 2).exec_async(&mut conn).await?)
            })
            .await;
    assert_eq!(failed(error).verdict.replay, Replay::Safe);
    let error = redis
        .write(
            |mut conn| async move { Ok(pipe().atomic().set("a", 1).exec_async(&mut conn).await?) },
        )
        .await;
    let error = failed(error);
    assert_eq!(
        (error.verdict.blame, error.verdict.replay),
        (Blame::Service, Replay::Safe),
        "{error}"
    );
}

#[tokio::test]
async fn a_client_that_was_unblocked_may_try_again() {
    let server = RedisServer::start(&[]).await;
    let redis = server.manager();
    let blocked = tokio::spawn({
        let redis = redis.clone();
        async move { refusal(&redis, cmd("BLPOP").arg("queue").arg(0)).await }
    });
    let mut admin = server.admin();
    until("it blocks", async || {
        clients(&mut admin).iter().any(|client| client.contains("cmd=blpop"))
    })
    .await;
    let client =
        clients(&mut admin).into_iter().find(|client| client.contains("cmd=blpop")).unwrap();
    let id: u64 = client.split(' ').next().unwrap().strip_prefix("id=").unwrap().parse().unwrap();
    cmd("CLIENT").arg("UNBLOCK").arg(id).arg("ERROR").exec(&mut admin).unwrap();
    check(&blocked.await.unwrap(), "UNBLOCKED", Blame::Service, Replay::Safe, true);
}

#[tokio::test]
async fn a_server_with_too_many_clients_is_come_back_to() {
    let server = RedisServer::start(&["--requirepass", "secret"]).await;
    let url = server.url().replace("redis://", "redis://:secret@");
    let mut admin = redis::Client::open(url.as_str()).unwrap().get_connection().unwrap();
    cmd("CONFIG").arg("SET").arg("maxclients").arg(1).exec(&mut admin).unwrap();
    let redis = RedisManager::connect(hasty(&url).build().unwrap()).unwrap();
    let error = failed(
        redis.read(|mut conn| async move { Ok(conn.get::<_, Option<i64>>("k").await?) }).await,
    );
    assert!(error.to_string().contains("ERR max number of clients reached"), "{error}");
    assert_eq!((error.verdict.blame, error.verdict.replay), (Blame::Service, Replay::Safe));
    assert!(error.verdict.retry_after.is_some());
    cmd("CONFIG").arg("SET").arg("maxclients").arg(10).exec(&mut admin).unwrap();
    redis.read(|mut conn| async move { Ok(conn.get::<_, Option<i64>>("k").await?) }).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_loading_is_waited_for() {
    let mut server = RedisServer::start(&["--enable-debug-command", "local"]).await;
    cmd("DEBUG").arg("POPULATE").arg(20_000).exec(&mut server.admin()).unwrap();
    cmd("SAVE").exec(&mut server.admin()).unwrap();
    server.kill();
    // Microseconds for each key, so that there is time to see it.
    server.args(["--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024"]);
    server.start_again().await;
    let redis = server.manager();
    check(&refusal(&redis, &set()).await, "LOADING", Blame::Service, Replay::Safe, true);
    assert_eq!(redis.health().await.status, resilience_core::HealthStatus::Unhealthy);
}

#[tokio::test]
async fn a_cluster_that_is_down_is_waited_for_and_one_that_is_up_keeps_its_rules() {
    let server = RedisServer::start(&["--cluster-enabled", "yes"]).await;
    let redis = server.manager();
    check(&refusal(&redis, &set()).await, "CLUSTERDOWN", Blame::Service, Replay::Safe, true);
    cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(0).arg(16383).exec(&mut server.admin()).unwrap();
    until("the cluster is up", async || {
        let info: String = cmd("CLUSTER").arg("INFO").query(&mut server.admin()).unwrap();
        info.contains("cluster_state:ok")
    })
    .await;
    refusal_of_the_caller(&redis, cmd("MSET").arg("a").arg(1).arg("b").arg(2), "CROSSSLOT").await;
}
