//! While all servers are there: where what the service says and does can be found.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{COUNT_WORDS, Stage, booked, donate, eventually, hits, ok, raised, search, session};

pub(super) fn both_hold_all(stage: &mut Stage) -> Result<String> {
    eventually("5,000 in both", Duration::from_secs(20), || {
        let rows = stage.outside.sql("SELECT count(*) FROM campaigns").unwrap_or_default();
        let documents = stage.outside.count("").unwrap_or_default();
        ensure!(rows == "5000" && documents == 5000, "{rows} rows and {documents} documents");
        Ok(format!("{rows} rows, {documents} documents"))
    })
}

pub(super) fn search_is_from_opensearch(stage: &mut Stage) -> Result<String> {
    let found = search(stage)?;
    let counted = stage.outside.count(COUNT_WORDS)?;
    ensure!(found["source"] == "opensearch" && found["degraded"] == false, "{found}");
    let hits = hits(&found);
    ensure!(counted > 0 && hits == counted.min(20), "{hits} hits, OpenSearch counts {counted}");
    Ok(format!("{hits} hits of {counted}"))
}

pub(super) fn a_read_campaign_is_cached(stage: &mut Stage) -> Result<String> {
    stage.outside.redis(&["DEL", "campaign:17"])?;
    let campaign = ok(stage.app.client().get("/campaigns/17")?)?;
    let cached: Value = serde_json::from_str(&stage.outside.redis(&["GET", "campaign:17"])?)?;
    ensure!(campaign == cached, "answered {campaign}, cached {cached}");
    let left: u64 = stage.outside.redis(&["TTL", "campaign:17"])?.parse()?;
    ensure!((1..=60).contains(&left), "{left} s to live");
    Ok(format!("campaign:17, {left} s to live"))
}

pub(super) fn the_next_read_is_a_cache_hit(stage: &mut Stage) -> Result<String> {
    let mut cached: Value = serde_json::from_str(&stage.outside.redis(&["GET", "campaign:17"])?)?;
    cached["title"] = "only in the cache".into();
    stage.outside.redis(&["SET", "campaign:17", &cached.to_string(), "KEEPTTL"])?;
    let campaign = ok(stage.app.client().get("/campaigns/17")?)?;
    stage.outside.redis(&["DEL", "campaign:17"])?;
    ensure!(campaign["title"] == "only in the cache", "answered {campaign}");
    let in_the_database = stage.outside.sql("SELECT title FROM campaigns WHERE id = 17")?;
    Ok(format!("a title that PostgreSQL does not have ({in_the_database:?})"))
}

pub(super) fn a_donation_is_booked(stage: &mut Stage) -> Result<String> {
    let before = raised(stage, 21)?;
    let reply = donate(stage, 21, "first", 2_500)?;
    ensure!(reply.status == 201, "{} {}", reply.status, reply.body);
    let after = raised(stage, 21)?;
    ensure!(
        after - before == 2_500 && booked(stage, 21, "first")? == "1",
        "{before} before, {after} after"
    );
    Ok(format!("{before} → {after} cents"))
}

pub(super) fn a_repeated_donation_is_booked_once(stage: &mut Stage) -> Result<String> {
    let before = raised(stage, 21)?;
    let reply = donate(stage, 21, "first", 2_500)?;
    ensure!(
        reply.status == 200 && reply.json()?["repeated"] == true,
        "{} {}",
        reply.status,
        reply.body
    );
    ensure!(raised(stage, 21)? == before && booked(stage, 21, "first")? == "1", "booked again");
    Ok("one row, the same sum".to_owned())
}

pub(super) fn a_stampede_is_booked_once(stage: &mut Stage) -> Result<String> {
    let before = raised(stage, 22)?;
    let replies: Vec<_> = std::thread::scope(|scope| {
        let senders: Vec<_> =
            (0..10).map(|_| scope.spawn(|| donate(stage, 22, "stampede", 700))).collect();
        senders
            .into_iter()
            .map(|sender| sender.join().expect("it does not panic"))
            .collect::<Result<_>>()
    })?;
    let created = replies.iter().filter(|reply| reply.status == 201).count();
    let repeated = replies.iter().filter(|reply| reply.status == 200).count();
    ensure!((created, repeated) == (1, 9), "{created} created, {repeated} repeated");
    ensure!(
        raised(stage, 22)? - before == 700 && booked(stage, 22, "stampede")? == "1",
        "booked more than once"
    );
    Ok("one of ten".to_owned())
}

pub(super) fn a_session_begins_and_ends(stage: &mut Stage) -> Result<String> {
    let (token, bearer) = session(stage, 60)?;
    ensure!(stage.outside.redis(&["GET", &format!("session:{token}")])? == "ada", "not in Redis");
    let client = stage.app.client();
    let seen = client.send("GET", "/session", &[("Authorization", &bearer)], None)?;
    ensure!(seen.status == 200 && seen.json()?["user"] == "ada", "{} {}", seen.status, seen.body);
    let ended = client.send("DELETE", "/session", &[("Authorization", &bearer)], None)?;
    let left = stage.outside.redis(&["EXISTS", &format!("session:{token}")])?;
    ensure!(ended.status == 204 && left == "0", "{} {left}", ended.status);
    Ok("there, then gone".to_owned())
}

pub(super) fn a_session_expires(stage: &mut Stage) -> Result<String> {
    let (token, bearer) = session(stage, 1)?;
    eventually("the session is gone", Duration::from_secs(3), || {
        let reply =
            stage.app.client().send("GET", "/session", &[("Authorization", &bearer)], None)?;
        let left = stage.outside.redis(&["EXISTS", &format!("session:{token}")])?;
        ensure!(reply.status == 401 && left == "0", "{} {left}", reply.status);
        Ok("401, and no key".to_owned())
    })
}

pub(super) fn all_is_healthy(stage: &mut Stage) -> Result<String> {
    let client = stage.app.client();
    ensure!(client.get("/health")?.status == 200, "not alive");
    eventually("healthy and ready", Duration::from_secs(5), || {
        let ready = client.get("/ready")?;
        let detailed = client.get("/health/detailed")?.json()?;
        ensure!(
            ready.status == 200 && detailed["status"] == "healthy",
            "{} {detailed}",
            ready.status
        );
        for service in ["database", "redis", "opensearch"] {
            ensure!(detailed["services"][service]["status"] == "healthy", "{service}: {detailed}");
        }
        Ok("database, redis, opensearch".to_owned())
    })
}

pub(super) fn metrics_tell(stage: &mut Stage) -> Result<String> {
    let metrics = stage.app.client().get("/metrics")?;
    let calls = metrics
        .body
        .lines()
        .filter(|line| line.starts_with("db_client_operation_duration_seconds_count"))
        .count();
    ensure!(metrics.status == 200 && calls >= 3, "{} {calls}", metrics.status);
    for name in ["database", "redis", "opensearch"] {
        let closed = metrics.body.lines().any(|line| {
            let labels =
                line.contains(&format!("name=\"{name}\"")) && line.contains("state=\"closed\"");
            line.starts_with("resilience_circuit_breaker_state{") && labels && line.ends_with(" 1")
        });
        ensure!(closed, "{name} is not closed in /metrics");
    }
    for system in ["postgresql", "redis", "opensearch"] {
        ensure!(
            metrics.body.contains(&format!("db_system_name=\"{system}\"")),
            "no call to {system}"
        );
    }
    Ok(format!("{calls} kinds of calls, 3 circuits closed"))
}
