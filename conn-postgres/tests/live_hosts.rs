//! Fear: of several hosts the wrong one is used, one that is down keeps us from the others, or nobody can tell why none fits.

mod support;

use std::time::Duration;

use conn_postgres::{
    Conn, DatabaseConfig, DatabaseConfigBuilder, DatabaseManager, ReadFrom, TargetSessionAttrs,
};
use resilience_core::Deadline;
use support::throwaway::{Pair, Throwaway};
use support::{eventually, within};
use tokio::time::Instant;

fn manager(
    url: &str,
    change: impl FnOnce(DatabaseConfigBuilder) -> DatabaseConfigBuilder,
) -> DatabaseManager {
    let builder = DatabaseConfig::builder(url)
        .pool_size(2)
        .max_overflow(0)
        .max_retries(0)
        .acquire_timeout(Duration::from_millis(500))
        .application_name("hosts");
    DatabaseManager::connect(change(builder).build().unwrap()).unwrap()
}

/// The port that serves a new connection.
async fn port(db: &DatabaseManager) -> Result<i32, conn_postgres::Error> {
    let mut conn = db.acquire().await?;
    Ok(sqlx::query_scalar("SELECT inet_server_port()").fetch_one(&mut conn).await?)
}

async fn port_of_read(db: &DatabaseManager) -> u16 {
    let port: i32 = db
        .read(async |mut conn: Conn| {
            Ok(sqlx::query_scalar("SELECT inet_server_port()").fetch_one(&mut conn).await?)
        })
        .await
        .unwrap();
    port.try_into().unwrap()
}

#[tokio::test]
async fn every_word_finds_its_server_whatever_the_order_and_tells_why_none_fits() {
    let pair = Pair::start().await;
    let (primary, standby) = (i32::from(pair.primary.port), i32::from(pair.standby.port));
    for (word, expected) in [
        ("read-write", [primary; 2]),
        ("primary", [primary; 2]),
        ("read-only", [standby; 2]),
        ("standby", [standby; 2]),
        ("prefer-standby", [standby; 2]),
        ("any", [primary, standby]),
    ] {
        for (url, expected) in [pair.url(), pair.url_reversed()].iter().zip(expected) {
            let db = manager(&format!("{url}&target_session_attrs={word}"), |it| it);
            assert_eq!(port(&db).await.unwrap(), expected, "{word}");
        }
    }
    // Without a word, several hosts mean their primary, and one host itself.
    assert_eq!(port(&manager(&pair.url_reversed(), |it| it)).await.unwrap(), primary);
    assert_eq!(port(&manager(&pair.standby.url(), |it| it)).await.unwrap(), standby);

    let alone = |word: &str| format!("{}&target_session_attrs={word}", pair.primary.url());
    assert_eq!(port(&manager(&alone("prefer-standby"), |it| it)).await.unwrap(), primary);
    let error = port(&manager(&alone("standby"), |it| it)).await.unwrap_err();
    let expected = format!(
        "cannot connect to 127.0.0.1:{primary}: it is a primary, and target_session_attrs is standby"
    );
    assert_eq!(error.to_string(), expected);
    let db = manager(&format!("{}&target_session_attrs=read-write", pair.standby.url()), |it| it);
    let error = port(&db).await.unwrap_err().to_string();
    assert!(error.contains("it is a standby, and target_session_attrs is read-write"), "{error}");
}

#[tokio::test]
async fn a_host_that_is_down_keeps_nobody_from_the_others_and_every_host_is_named() {
    let down = Throwaway::new();
    let mut up = Throwaway::new();
    up.start().await;
    let url = format!(
        "postgresql://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable",
        down.port, up.port
    );
    for word in [TargetSessionAttrs::Any, TargetSessionAttrs::ReadWrite] {
        let db = manager(&url, |it| it.target_session_attrs(word));
        let served = within(Duration::from_millis(500), port(&db)).await.unwrap();
        assert_eq!(served, i32::from(up.port), "{word}");
    }
    up.sql("ALTER SYSTEM SET default_transaction_read_only = on").await;
    up.sql("SELECT pg_reload_conf()").await;
    let read_only = "SELECT current_setting('default_transaction_read_only')::bool";
    eventually("it is read-only", async || up.ask(read_only).await).await;
    for word in [TargetSessionAttrs::ReadWrite, TargetSessionAttrs::Standby] {
        let db = manager(&url, |it| it.target_session_attrs(word));
        let started = Instant::now();
        let error = port(&db).await.unwrap_err().to_string();
        assert!(started.elapsed() < Duration::from_secs(2), "it took {:?}", started.elapsed());
        for part in [
            format!("127.0.0.1:{}: Connection refused", down.port),
            format!(
                "127.0.0.1:{}: it is a primary whose default_transaction_read_only is on",
                up.port
            ),
            format!("target_session_attrs is {word}"),
        ] {
            assert!(error.contains(&part), "{part} is not in {error}");
        }
    }
    // A primary it is all the same.
    let db = manager(&url, |it| it.target_session_attrs(TargetSessionAttrs::Primary));
    assert_eq!(port(&db).await.unwrap(), i32::from(up.port));
}

#[tokio::test]
async fn reads_go_to_a_replica_that_keeps_up_and_writes_never_do() {
    let pair = Pair::start().await;
    let lag = Duration::from_secs(2);
    let db = manager(&pair.url(), |it| {
        it.read_from(ReadFrom::PreferReplica).max_replica_lag(lag).pool_size(4)
    });
    pair.primary.sql("CREATE TABLE notes (id int)").await;
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();
    let (primary, standby) = (pair.primary.port, pair.standby.port);
    eventually("reads go to the replica", async || port_of_read(&db).await == standby).await;
    // Idle connections of both kinds lie side by side, and each call finds its own.
    for id in 0..20 {
        sqlx::query("INSERT INTO notes VALUES ($1)").bind(id).execute(&db).await.unwrap();
        assert_eq!(port_of_read(&db).await, standby);
    }
    let status = db.status();
    assert!(status.idle + status.in_use <= status.max, "{status:?}");

    // What was written is read, though the replica stands still: by the primary.
    pair.standby.sql("SELECT pg_wal_replay_pause()").await;
    sqlx::query("INSERT INTO notes VALUES (100)").execute(&db).await.unwrap();
    let written = db.wal_position().await.unwrap();
    let look = async |mut conn: Conn| {
        let sql = "SELECT inet_server_port(), count(*) FROM notes WHERE id = 100";
        Ok(sqlx::query_as::<_, (i32, i64)>(sql).fetch_one(&mut conn).await?)
    };
    let started = Instant::now();
    assert_eq!(db.read_after(written, look).await.unwrap(), (i32::from(primary), 1));
    assert!(started.elapsed() < Duration::from_millis(500), "it waited {:?}", started.elapsed());
    assert_eq!(db.read(look).await.unwrap(), (i32::from(standby), 0), "the lag is allowed");

    // As long as nothing is written, nothing is missing; then the lag grows until it is too much.
    sqlx::query("INSERT INTO notes VALUES (101)").execute(&db).await.unwrap();
    let behind = Instant::now();
    eventually("the lag is too much", async || port_of_read(&db).await == primary).await;
    assert!(behind.elapsed() < lag + Duration::from_secs(3), "after {:?}", behind.elapsed());

    pair.standby.sql("SELECT pg_wal_replay_resume()").await;
    eventually("it has caught up", async || port_of_read(&db).await == standby).await;
    // Most often the replica has it within the wait.
    let mut served = 0;
    for id in 200..220 {
        sqlx::query("INSERT INTO notes VALUES ($1)").bind(id).execute(&db).await.unwrap();
        let written = db.wal_position().await.unwrap();
        let sql = "SELECT inet_server_port(), count(*) FROM notes WHERE id = $1";
        let (port, seen): (i32, i64) = db
            .read_after(written, async |mut conn: Conn| {
                Ok(sqlx::query_as(sql).bind(id).fetch_one(&mut conn).await?)
            })
            .await
            .unwrap();
        assert_eq!(seen, 1, "a write was not read, at {port}");
        served += u32::from(port == i32::from(standby));
    }
    println!("{served} of 20 reads after a write were served by the replica");
    assert!(served >= 10, "only {served} of 20 were served by the replica");
}

#[tokio::test]
async fn several_replicas_share_the_reads_within_the_limit_of_the_pool() {
    let pair = Pair::start().await;
    let mut second = Throwaway::standby_of(&pair.primary);
    second.start().await;
    let url = pair.url().replace("/postgres?", &format!(",127.0.0.1:{}/postgres?", second.port));
    let db = manager(&url, |it| it.read_from(ReadFrom::PreferReplica).pool_size(2));
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();
    let replicas = [pair.standby.port, second.port];
    eventually("both are known", async || {
        let ports = [port_of_read(&db).await, port_of_read(&db).await];
        replicas.iter().all(|replica| ports.contains(replica))
    })
    .await;
    let mut counts = [0; 2];
    for _ in 0..40 {
        let port: i32 = db
            .read(async |mut conn: Conn| {
                let status = db.status();
                assert!(status.idle + status.in_use <= 2, "{status:?}");
                Ok(sqlx::query_scalar("SELECT inet_server_port()").fetch_one(&mut conn).await?)
            })
            .await
            .unwrap();
        counts[replicas.iter().position(|it| i32::from(*it) == port).unwrap()] += 1;
        assert_eq!(port_of_write(&db).await, pair.primary.port);
    }
    assert_eq!(counts, [20, 20]);
}

#[tokio::test]
async fn a_server_that_tells_neither_timeline_nor_position_is_used_all_the_same() {
    let mut pair = Pair::start().await;
    pair.primary
        .sql(
            "CREATE ROLE app LOGIN; \
             REVOKE EXECUTE ON FUNCTION pg_current_wal_lsn(), pg_walfile_name(pg_lsn), \
                 pg_control_checkpoint(), pg_last_wal_replay_lsn() FROM PUBLIC",
        )
        .await;
    pair.caught_up().await;
    let url = pair.url_reversed().replace("postgres@", "app@");
    let db = manager(&url, |it| it.read_from(ReadFrom::PreferReplica));
    for _ in 0..5 {
        assert_eq!(port_of_write(&db).await, pair.primary.port);
        assert_eq!(port_of_read(&db).await, pair.primary.port, "nobody knows how far it lags");
    }
    pair.primary.kill();
    pair.promote().await;
    eventually("it is followed", async || {
        port(&db).await.is_ok_and(|port| port == i32::from(pair.standby.port))
    })
    .await;
}

async fn port_of_write(db: &DatabaseManager) -> u16 {
    port(db).await.unwrap().try_into().unwrap()
}
