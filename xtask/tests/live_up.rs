//! `up`, `down` and what happens between them, on servers of their own: as if this were another checkout.

mod support;

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

use xtask::clock::{Deadline, pause};
use xtask::process::{Process, Signal};
use xtask::servers::profile::TLS;
use xtask::servers::state::State;
use xtask::servers::{BackendKind, Service};

use support::{Checkout, all_gone, interrupt, succeeded};

/// `up` by the way that runs the other servers: all that it needs is there already.
fn up(checkout: &Checkout) -> Command {
    checkout.command(&["up", "--backend", &checkout.backend.to_string()])
}

#[test]
fn an_interrupted_up_leaves_no_process_behind() {
    let checkout = Checkout::new("interrupted");
    let child = up(&checkout).spawn().unwrap();
    let deadline = Deadline::after(Duration::from_secs(120));
    let is_early = || match checkout.backend {
        BackendKind::Native => checkout.processes().len() < 3,
        BackendKind::Compose => checkout.dir().load().unwrap().is_none(),
        BackendKind::External => false,
    };
    while is_early() {
        assert!(!deadline.has_passed(), "it never got as far as to start the servers");
        pause(Duration::from_millis(20));
    }
    let started = checkout.processes();
    // Of external servers none is started: it ends by itself.
    if checkout.backend != BackendKind::External {
        interrupt(&child);
    }
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() == (checkout.backend == BackendKind::External),
        "{}",
        output.status
    );
    assert!(all_gone(&started));
    assert!(!checkout.dir().path().exists());
}

#[test]
fn what_died_is_started_again_and_what_runs_is_left_alone() {
    let checkout = Checkout::new("repaired");
    succeeded(&up(&checkout).output().unwrap());
    succeeded(&checkout.run(&["status"]));
    let before = checkout.dir().load().unwrap();

    let (doomed, spared) = {
        let mut processes = checkout.processes();
        let spared = processes.split_off(processes.len().min(2));
        (processes, spared)
    };
    for process in &doomed {
        process.end(Signal::KILL, Duration::from_secs(5)).unwrap();
    }
    succeeded(&up(&checkout).output().unwrap());
    succeeded(&checkout.run(&["status"]));
    let ports = |state: &Option<State>| {
        let servers = state.iter().flat_map(|state| state.servers.clone());
        servers.map(|record| (record.service, record.ports)).collect::<Vec<_>>()
    };
    assert_eq!(ports(&before), ports(&checkout.dir().load().unwrap()));
    assert!(all_gone(&doomed));
    assert!(spared.iter().all(Process::is_running));

    let all = checkout.processes();
    assert_eq!(all.len(), doomed.len() + spared.len());
    succeeded(&checkout.run(&["down"]));
    assert!(all_gone(&all));
    assert!(!checkout.dir().path().exists());
    if checkout.backend != BackendKind::External {
        let answer = checkout.run(&["status"]);
        assert!(String::from_utf8_lossy(&answer.stderr).contains("no servers are up"));
    }
}

#[test]
fn a_port_lost_while_its_server_was_down_is_told_with_the_cure() {
    let checkout = Checkout::new("lost-port");
    // Of a server of this machine: an engine tells of the ports of its containers.
    let up = || checkout.run(&["up", "--backend", "native", "redis"]);
    succeeded(&up());
    let state = checkout.dir().load().unwrap().unwrap();
    let port = state.find(Service::Redis).unwrap().port(TLS);
    for process in checkout.processes() {
        process.end(Signal::KILL, Duration::from_secs(5)).unwrap();
    }
    let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let failed = up();
    let said = String::from_utf8_lossy(&failed.stderr);
    let cause = format!("redis ended: another process has its port {port} now");
    assert!(!failed.status.success() && said.contains(&cause), "{said}");
    assert!(said.contains("`cargo xtask down`"), "{said}");
    drop(stranger);
    succeeded(&up());
}
