//! What the demo claims, each proven from outside.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::clock::{Deadline, Stopwatch, pause};
use crate::interrupt;
use crate::progress::say;
use crate::servers::{Servers, Service};

use super::app::App;
use super::http::Reply;
use super::outside::Outside;

/// No answer of the service is later than this.
const LATEST: Duration = Duration::from_millis(2100);
/// The words that are searched for, and the same as a query of OpenSearch.
const WORDS: &str = "solar%20lantern";
const COUNT_WORDS: &str = "default_operator=AND&q=solar%20lantern";
/// The same as PostgreSQL sees them.
const SQL_WORDS: &str =
    "SELECT count(*) FROM campaigns WHERE words @@ websearch_to_tsquery('simple', 'solar lantern')";

/// Everything that a claim may ask.
#[derive(Debug)]
pub struct Stage {
    /// The example service.
    pub app: App,
    /// The servers' own clients.
    pub outside: Outside,
    /// The servers.
    pub servers: Servers,
}

/// One claim: the words of the README, and the proof.
pub struct Claim {
    /// What is claimed.
    pub text: &'static str,
    /// Shows that it is so; says what was seen.
    pub prove: fn(&mut Stage) -> Result<String>,
}

/// The claims, in the order of the README and of the story.
pub const CLAIMS: &[Claim] = &[
    Claim { text: "5,000 campaigns are in PostgreSQL and in OpenSearch", prove: both_hold_all },
    Claim {
        text: "a search is answered by OpenSearch, with what its own count says",
        prove: search_is_from_opensearch,
    },
    Claim {
        text: "a campaign that was read is in Redis, with a time to live",
        prove: a_read_campaign_is_cached,
    },
    Claim { text: "the next read comes from that cache", prove: the_next_read_is_a_cache_hit },
    Claim { text: "a donation is one row and one sum in PostgreSQL", prove: a_donation_is_booked },
    Claim {
        text: "a donation sent twice is booked once",
        prove: a_repeated_donation_is_booked_once,
    },
    Claim {
        text: "a donation sent ten times at once is booked once",
        prove: a_stampede_is_booked_once,
    },
    Claim {
        text: "a session is a key in Redis, and ends when it is told to",
        prove: a_session_begins_and_ends,
    },
    Claim { text: "a session expires by itself", prove: a_session_expires },
    Claim { text: "health: alive, ready, and every service healthy", prove: all_is_healthy },
    Claim { text: "metrics: calls by service and outcome, circuits closed", prove: metrics_tell },
    Claim {
        text: "with OpenSearch stopped, a search is answered from PostgreSQL and says so",
        prove: search_degrades,
    },
    Claim {
        text: "with OpenSearch stopped, thirty searches are answered in time, none with 5xx",
        prove: searches_are_in_time,
    },
    Claim {
        text: "the circuit of OpenSearch is open in /health/circuit-breakers",
        prove: the_circuit_is_open,
    },
    Claim {
        text: "the service stays ready, and reports itself degraded",
        prove: degraded_is_ready,
    },
    Claim { text: "the alert is in the log", prove: the_alert_is_logged },
    Claim {
        text: "with OpenSearch back, searches come from it again and the circuit closes by itself",
        prove: it_recovers,
    },
    Claim { text: "the alert is resolved, in the log too", prove: the_alert_is_resolved },
    Claim {
        text: "told to end, the service finishes what runs and ends within its grace",
        prove: it_shuts_down,
    },
];

fn both_hold_all(stage: &mut Stage) -> Result<String> {
    eventually("5,000 in both", Duration::from_secs(20), || {
        let rows = stage.outside.sql("SELECT count(*) FROM campaigns").unwrap_or_default();
        let documents = stage.outside.count("").unwrap_or_default();
        ensure!(rows == "5000" && documents == 5000, "{rows} rows and {documents} documents");
        Ok(format!("{rows} rows, {documents} documents"))
    })
}

fn search_is_from_opensearch(stage: &mut Stage) -> Result<String> {
    let found = search(stage)?;
    let counted = stage.outside.count(COUNT_WORDS)?;
    ensure!(found["source"] == "opensearch" && found["degraded"] == false, "{found}");
    let hits = hits(&found);
    ensure!(counted > 0 && hits == counted.min(20), "{hits} hits, OpenSearch counts {counted}");
    Ok(format!("{hits} hits of {counted}"))
}

fn a_read_campaign_is_cached(stage: &mut Stage) -> Result<String> {
    stage.outside.redis(&["DEL", "campaign:17"])?;
    let campaign = ok(stage.app.client().get("/campaigns/17")?)?;
    let cached: Value = serde_json::from_str(&stage.outside.redis(&["GET", "campaign:17"])?)?;
    ensure!(campaign == cached, "answered {campaign}, cached {cached}");
    let left: u64 = stage.outside.redis(&["TTL", "campaign:17"])?.parse()?;
    ensure!((1..=60).contains(&left), "{left} s to live");
    Ok(format!("campaign:17, {left} s to live"))
}

fn the_next_read_is_a_cache_hit(stage: &mut Stage) -> Result<String> {
    let mut cached: Value = serde_json::from_str(&stage.outside.redis(&["GET", "campaign:17"])?)?;
    cached["title"] = "only in the cache".into();
    stage.outside.redis(&["SET", "campaign:17", &cached.to_string(), "KEEPTTL"])?;
    let campaign = ok(stage.app.client().get("/campaigns/17")?)?;
    stage.outside.redis(&["DEL", "campaign:17"])?;
    ensure!(campaign["title"] == "only in the cache", "answered {campaign}");
    let in_the_database = stage.outside.sql("SELECT title FROM campaigns WHERE id = 17")?;
    Ok(format!("a title that PostgreSQL does not have ({in_the_database:?})"))
}

fn a_donation_is_booked(stage: &mut Stage) -> Result<String> {
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

fn a_repeated_donation_is_booked_once(stage: &mut Stage) -> Result<String> {
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

fn a_stampede_is_booked_once(stage: &mut Stage) -> Result<String> {
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

fn a_session_begins_and_ends(stage: &mut Stage) -> Result<String> {
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

fn a_session_expires(stage: &mut Stage) -> Result<String> {
    let (token, bearer) = session(stage, 1)?;
    eventually("the session is gone", Duration::from_secs(3), || {
        let reply =
            stage.app.client().send("GET", "/session", &[("Authorization", &bearer)], None)?;
        let left = stage.outside.redis(&["EXISTS", &format!("session:{token}")])?;
        ensure!(reply.status == 401 && left == "0", "{} {left}", reply.status);
        Ok("401, and no key".to_owned())
    })
}

fn all_is_healthy(stage: &mut Stage) -> Result<String> {
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

fn metrics_tell(stage: &mut Stage) -> Result<String> {
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

fn search_degrades(stage: &mut Stage) -> Result<String> {
    say("demo", "stopping OpenSearch");
    stage.servers.stop(Service::Opensearch)?;
    ensure!(stage.servers.check(Service::Opensearch).is_err(), "OpenSearch still answers");
    let found = search(stage)?;
    ensure!(found["source"] == "postgres" && found["degraded"] == true, "{found}");
    let counted: u64 = stage.outside.sql(SQL_WORDS)?.parse()?;
    let hits = hits(&found);
    ensure!(counted > 0 && hits == counted.min(20), "{hits} hits, PostgreSQL counts {counted}");
    Ok(format!("{hits} hits of {counted}"))
}

fn searches_are_in_time(stage: &mut Stage) -> Result<String> {
    let mut latest = Duration::ZERO;
    for _ in 0..30 {
        let reply = stage.app.client().get(&format!("/campaigns?q={WORDS}"))?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
        latest = latest.max(reply.took);
    }
    ensure!(latest <= LATEST, "the latest took {latest:?}");
    Ok(format!("the latest took {} ms", latest.as_millis()))
}

fn the_circuit_is_open(stage: &mut Stage) -> Result<String> {
    // Between probes it may be half-open for an instant: ask until seen open.
    eventually("open", Duration::from_secs(5), || {
        search(stage)?;
        let breakers = stage.app.client().get("/health/circuit-breakers")?.json()?;
        let state = &breakers["opensearch"];
        ensure!(state["state"] == "open", "{state}");
        Ok(format!("{} failures", state["calls"]["failure"]))
    })
}

fn degraded_is_ready(stage: &mut Stage) -> Result<String> {
    eventually("degraded and ready", Duration::from_secs(5), || {
        let ready = stage.app.client().get("/ready")?;
        let detailed = stage.app.client().get("/health/detailed")?.json()?;
        ensure!(
            ready.status == 200 && detailed["status"] == "degraded",
            "{} {}",
            ready.status,
            detailed["status"]
        );
        let alerts = detailed["alerts"].as_array().map_or(0, Vec::len);
        ensure!(alerts > 0, "no alert is active");
        Ok(format!("200, degraded, {alerts} alerts active"))
    })
}

fn the_alert_is_logged(stage: &mut Stage) -> Result<String> {
    eventually("the alert", Duration::from_secs(5), || {
        let log = stage.app.log()?;
        let is_alert = |line: &&str| {
            line.contains("ERROR") && line.contains("alert") && line.contains("opensearch")
        };
        let line = log.lines().find(is_alert).context("no such line")?;
        Ok(plain(line))
    })
}

fn it_recovers(stage: &mut Stage) -> Result<String> {
    say("demo", "starting OpenSearch");
    stage.servers.start(Service::Opensearch)?;
    stage.servers.wait_ready(Service::Opensearch, Duration::from_secs(40))?;
    let watch = Stopwatch::start();
    // The reset timeout is 2 s; two more for the probes that close the circuit.
    eventually("from OpenSearch, circuit closed", Duration::from_secs(4), || {
        let found = search(stage)?;
        ensure!(
            found["source"] == "opensearch" && found["degraded"] == false,
            "{}",
            found["source"]
        );
        let breakers = stage.app.client().get("/health/circuit-breakers")?.json()?;
        let state = &breakers["opensearch"];
        ensure!(state["state"] == "closed", "{state}");
        Ok(format!("{:.1} s after its first answer", watch.elapsed().as_secs_f64()))
    })
}

fn the_alert_is_resolved(stage: &mut Stage) -> Result<String> {
    let line = eventually("resolved", Duration::from_secs(5), || {
        let log = stage.app.log()?;
        let line =
            log.lines().find(|line| line.contains("resolved") && line.contains("opensearch"));
        let line = line.context("no such line")?.to_owned();
        let detailed = stage.app.client().get("/health/detailed")?.json()?;
        // The error rate is one of the last minute, and clears when that is over.
        let alerts = detailed["alerts"].as_array().context("no alerts in the body")?;
        let left: Vec<_> = alerts.iter().filter(|alert| alert["rule"] != "error_rate").collect();
        ensure!(
            left.is_empty() && detailed["status"] == "healthy",
            "{left:?}, {}",
            detailed["status"]
        );
        Ok(line)
    })?;
    Ok(plain(&line))
}

fn it_shuts_down(stage: &mut Stage) -> Result<String> {
    let hold =
        "BEGIN; SELECT 1 FROM campaigns WHERE id = 23 FOR UPDATE; SELECT pg_sleep(1); COMMIT";
    let mut holder = stage.outside.sql_in_background(hold)?;
    eventually("holding the row", Duration::from_secs(5), || {
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        ensure!(stage.outside.sql(asleep)? == "1", "the lock is not taken");
        Ok(())
    })?;
    let (reply, watch) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| donate(stage, 23, "last", 100));
        eventually("waiting for the row", Duration::from_secs(1), || {
            let blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            ensure!(stage.outside.sql(blocked)? == "1", "the donation is not under way");
            Ok(())
        })?;
        let watch = Stopwatch::start();
        stage.app.terminate()?;
        let reply = sender.join().expect("it does not panic")?;
        Ok::<_, anyhow::Error>((reply, watch))
    })?;
    holder.wait()?;
    ensure!(
        reply.status == 201 && booked(stage, 23, "last")? == "1",
        "{} {}",
        reply.status,
        reply.body
    );
    eventually("ended", Duration::from_secs(10), || {
        ensure!(!stage.app.is_running(), "it still runs");
        Ok(())
    })?;
    ensure!(stage.app.client().get("/health").is_err(), "something still answers");
    Ok(format!(
        "the donation under way was booked; ended after {:.1} s",
        watch.elapsed().as_secs_f64()
    ))
}

fn search(stage: &Stage) -> Result<Value> {
    ok(stage.app.client().get(&format!("/campaigns?q={WORDS}"))?)
}

fn hits(found: &Value) -> u64 {
    found["campaigns"].as_array().map_or(0, |campaigns| campaigns.len() as u64)
}

fn ok(reply: Reply) -> Result<Value> {
    ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
    reply.json()
}

fn donate(stage: &Stage, campaign: u32, key: &str, amount_cents: u32) -> Result<Reply> {
    let body = json!({ "donor": "Ada", "amount_cents": amount_cents });
    let path = format!("/campaigns/{campaign}/donations");
    stage.app.client().send("POST", &path, &[("Idempotency-Key", &unique(stage, key))], Some(&body))
}

fn booked(stage: &Stage, campaign: u32, key: &str) -> Result<String> {
    let key = unique(stage, key);
    stage.outside.sql(&format!("SELECT count(*) FROM donations WHERE campaign_id = {campaign} AND idempotency_key = '{key}'"))
}

/// A key of this run of the demo: the database may remember an earlier one. The port tells them apart.
fn unique(stage: &Stage, key: &str) -> String {
    format!("{key}-{}-{}", std::process::id(), stage.app.address().port())
}

fn raised(stage: &Stage, campaign: u32) -> Result<i64> {
    Ok(stage
        .outside
        .sql(&format!("SELECT raised_cents FROM campaigns WHERE id = {campaign}"))?
        .parse()?)
}

/// A new session of `seconds`: its token, and the header that shows it.
fn session(stage: &Stage, seconds: u32) -> Result<(String, String)> {
    let body = json!({ "user": "ada", "seconds": seconds });
    let begun = stage.app.client().send("POST", "/session", &[], Some(&body))?;
    ensure!(begun.status == 201, "{} {}", begun.status, begun.body);
    let token = begun.json()?["token"].as_str().context("no token")?.to_owned();
    let bearer = format!("Bearer {token}");
    Ok((token, bearer))
}

/// A log line without its colours and its time.
fn plain(line: &str) -> String {
    line.split_once("Z ").map_or(line, |(_, rest)| rest).trim().to_owned()
}

/// Tries again until it succeeds, or says why it did not in time.
fn eventually<T>(
    what: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Deadline::after(patience);
    loop {
        let error = match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        interrupt::check()?;
        if deadline.has_passed() {
            return Err(error.context(format!("not {what} within {} s", patience.as_secs())));
        }
        pause(Duration::from_millis(100));
    }
}
