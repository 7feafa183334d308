//! What the demo claims, each proven from outside.

mod calm;
mod outage;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::clock::{Deadline, Stopwatch, pause};
use crate::interrupt;
use crate::servers::Servers;

use super::app::App;
use super::http::Reply;
use super::outside::Outside;

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
    Claim {
        text: "5,000 campaigns are in PostgreSQL and in OpenSearch",
        prove: calm::both_hold_all,
    },
    Claim {
        text: "a search is answered by OpenSearch, with what its own count says",
        prove: calm::search_is_from_opensearch,
    },
    Claim {
        text: "a campaign that was read is in Redis, with a time to live",
        prove: calm::a_read_campaign_is_cached,
    },
    Claim {
        text: "the next read comes from that cache",
        prove: calm::the_next_read_is_a_cache_hit,
    },
    Claim {
        text: "a donation is one row and one sum in PostgreSQL",
        prove: calm::a_donation_is_booked,
    },
    Claim {
        text: "a donation sent twice is booked once",
        prove: calm::a_repeated_donation_is_booked_once,
    },
    Claim {
        text: "a donation sent ten times at once is booked once",
        prove: calm::a_stampede_is_booked_once,
    },
    Claim {
        text: "a session is a key in Redis, and ends when it is told to",
        prove: calm::a_session_begins_and_ends,
    },
    Claim { text: "a session expires by itself", prove: calm::a_session_expires },
    Claim { text: "health: alive, ready, and every service healthy", prove: calm::all_is_healthy },
    Claim {
        text: "metrics: calls by service and outcome, circuits closed",
        prove: calm::metrics_tell,
    },
    Claim {
        text: "with OpenSearch stopped, a search is answered from PostgreSQL and says so",
        prove: outage::search_degrades,
    },
    Claim {
        text: "with OpenSearch stopped, thirty searches are answered in time, none with 5xx",
        prove: outage::searches_are_in_time,
    },
    Claim {
        text: "the circuit of OpenSearch is open in /health/circuit-breakers",
        prove: outage::the_circuit_is_open,
    },
    Claim {
        text: "the service stays ready, and reports itself degraded",
        prove: outage::degraded_is_ready,
    },
    Claim { text: "the alert is in the log", prove: outage::the_alert_is_logged },
    Claim {
        text: "with OpenSearch back, searches come from it again and the circuit closes by itself",
        prove: outage::it_recovers,
    },
    Claim { text: "the alert is resolved, in the log too", prove: outage::the_alert_is_resolved },
    Claim {
        text: "told to end, the service finishes what runs and ends within its grace",
        prove: it_shuts_down,
    },
];

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
