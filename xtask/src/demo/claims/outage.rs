//! While OpenSearch is away, and when it is back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{SQL_WORDS, Stage, WORDS, eventually, hits, plain, search};
use crate::clock::Stopwatch;
use crate::progress::say;
use crate::servers::Service;

/// No answer of the service is later than this.
const LATEST: Duration = Duration::from_millis(2100);

pub(super) fn search_degrades(stage: &mut Stage) -> Result<String> {
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

pub(super) fn searches_are_in_time(stage: &mut Stage) -> Result<String> {
    let mut latest = Duration::ZERO;
    for _ in 0..30 {
        let reply = stage.app.client().get(&format!("/campaigns?q={WORDS}"))?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
        latest = latest.max(reply.took);
    }
    ensure!(latest <= LATEST, "the latest took {latest:?}");
    Ok(format!("the latest took {} ms", latest.as_millis()))
}

pub(super) fn the_circuit_is_open(stage: &mut Stage) -> Result<String> {
    // Between probes it may be half-open for an instant: ask until seen open.
    eventually("open", Duration::from_secs(5), || {
        search(stage)?;
        let breakers = stage.app.client().get("/health/circuit-breakers")?.json()?;
        let state = &breakers["opensearch"];
        ensure!(state["state"] == "open", "{state}");
        Ok(format!("{} failures", state["calls"]["failure"]))
    })
}

pub(super) fn degraded_is_ready(stage: &mut Stage) -> Result<String> {
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

pub(super) fn the_alert_is_logged(stage: &mut Stage) -> Result<String> {
    eventually("the alert", Duration::from_secs(5), || {
        let log = stage.app.log()?;
        let is_alert = |line: &&str| {
            line.contains("ERROR") && line.contains("alert") && line.contains("opensearch")
        };
        let line = log.lines().find(is_alert).context("no such line")?;
        Ok(plain(line))
    })
}

pub(super) fn it_recovers(stage: &mut Stage) -> Result<String> {
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

pub(super) fn the_alert_is_resolved(stage: &mut Stage) -> Result<String> {
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
