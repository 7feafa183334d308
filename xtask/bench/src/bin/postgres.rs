//! `postgres [--json]`: `conn-postgres` beside the driver and other pools, and under mishaps, on servers that it starts.

use std::process::ExitCode;

use bench::postgres::{Server, checkout, crowd, failover, roundtrip, silence, switchover};
use bench::report::{Report, rows};
use bench::timing;

fn main() -> ExitCode {
    let mut report = Report::new(std::env::args().any(|arg| arg == "--json"));
    let server = Server::start();
    report.add(&checkout::round_trips(&server));
    report.add(&roundtrip::round_trips(&server));
    report.add(&crowd::pings(&server));
    roundtrip::times(&server).iter().for_each(|row| report.add(row));
    crowd::times(&server).iter().for_each(|row| report.add(row));
    failover::rows().iter().for_each(|row| report.add(row));
    switchover::rows().iter().for_each(|row| report.add(row));
    silence::rows().iter().for_each(|row| report.add(row));
    let _inside = timing::RUNTIME.enter();
    // Once installed they stay, so this comes last.
    monitoring::install_metrics();
    let case = checkout::case(&server);
    rows(&case, &timing::time(&case)).iter().for_each(|row| report.add(row));
    report.end()
}
