//! The servers as processes of this machine: everything is made ready, started together, and waited for.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::checkout;
use crate::clock::{Deadline, Stopwatch, pause};
use crate::interrupt;
use crate::process::{Process, Signal, User};
use crate::progress::{say, seconds};

use super::certs::{Authority, give, write};
use super::java::Java;
use super::packages::{install_for, installed, postgres_programs, tail};
use super::ports::{Picker, is_free};
use super::profile::{Profile, Service, TLS};
use super::state::{Dir, Record, State};
use super::{
    BackendKind, check, opensearch, opensearch_home, pgbouncer, postgres, redis, toxiproxy,
};

/// How long a server may take from its start until it answers.
pub(super) const START_PATIENCE: Duration = Duration::from_secs(180);

/// Starts what does not answer, and leaves the rest alone.
///
/// # Errors
///
/// If a server cannot be had or does not answer in time: then what was started here has been ended.
pub(super) fn up(
    dir: &Dir,
    profile: Profile,
    wanted: &[Service],
    state: Option<State>,
) -> Result<State> {
    let (fresh, missing) = match &state {
        Some(state) => (false, silent(dir, state)),
        None => (true, wanted.to_vec()),
    };
    if let Some(state) = state.as_ref().filter(|_| missing.is_empty()) {
        return Ok(state.clone());
    }
    install_for(&missing)?;
    let (state, picker) = match state {
        Some(state) => (state, Picker::default()),
        None => lay_foundation(dir, profile, wanted)?,
    };
    let (state, picker) = (Mutex::new(state), Mutex::new(picker));
    let results: Vec<Result<()>> = together(&chains(&missing), |chain| {
        chain.into_iter().try_for_each(|service| start_one(dir, &state, &picker, service))
    });
    let mut state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    // An interruption fails all of them: it is said once.
    let done =
        if interrupt::requested() { interrupt::check() } else { results.into_iter().collect() };
    let Err(error) = done else { return Ok(state) };
    say("xtask", "ending what was started …");
    let started: Vec<_> =
        state.servers.iter().filter(|record| missing.contains(&record.service)).cloned().collect();
    together(&started, |record| end(&record)).into_iter().collect::<Result<()>>()?;
    if fresh {
        dir.clear()?;
    } else {
        for service in missing {
            forget(&mut state, service);
        }
        dir.save(&state)?;
    }
    Err(error)
}

/// Starts the server again as it was started before, and writes down its process.
///
/// # Errors
///
/// If it cannot be started.
pub(super) fn start(dir: &Dir, state: &mut State, service: Service) -> Result<()> {
    let record =
        state.find_mut(service).with_context(|| format!("{service} is not in this profile"))?;
    if record.is_running() {
        return Ok(());
    }
    let launch = record.launch.as_ref().with_context(|| format!("{service} was never started"))?;
    if [Service::Postgres, Service::Standby].contains(&service) {
        postgres::forget_owner(&dir.home(service));
    }
    record.process = Some(Process::start(launch, &record.log)?);
    dir.save(state)
}

/// Stops the server if it runs, and writes that down.
///
/// # Errors
///
/// If it does not end, even by SIGKILL.
pub(super) fn stop(dir: &Dir, state: &mut State, service: Service) -> Result<()> {
    end(state.find(service).with_context(|| format!("{service} is not in this profile"))?)?;
    forget(state, service);
    dir.save(state)
}

/// Ends all servers at once; a slow one does not hold up the others.
///
/// # Errors
///
/// If one does not end, even by SIGKILL.
pub(super) fn down(state: &State) -> Result<()> {
    together(&state.servers, |record| end(&record)).into_iter().collect()
}

/// Waits until the server answers.
///
/// # Errors
///
/// If it ends, or does not answer within `patience`: what it said last, and the end of its log.
pub(super) fn wait_ready(dir: &Dir, record: &Record, patience: Duration) -> Result<()> {
    let service = record.service;
    let deadline = Deadline::after(patience);
    let mut said = Stopwatch::start();
    let mut wait = Duration::from_millis(50);
    loop {
        interrupt::check()?;
        let Err(error) = check(dir, record) else { return Ok(()) };
        let trouble = if record.launch.is_some() && !record.is_running() {
            format!("{service} ended{}", taken(record))
        } else if deadline.has_passed() {
            format!("{service} did not answer within {}: {error:#}", seconds(patience))
        } else {
            if said.elapsed() > Duration::from_secs(10) {
                said = Stopwatch::start();
                say(service, format!("not ready yet: {error:#}"));
            }
            pause(wait.min(deadline.left()));
            wait = wait.mul_f64(1.5).min(Duration::from_millis(400));
            continue;
        };
        bail!("{trouble}\nthe end of its log:\n{}", tail(&record.log, 30));
    }
}

/// Which port of a server that does not run somebody else has, and what to do about it; empty if none.
fn taken(record: &Record) -> String {
    let Some(port) = record.ports.values().find(|port| !is_free(**port)) else {
        return String::new();
    };
    format!(
        ": another process has its port {port} now; end that one, or take new ports by `cargo xtask down` and `up`"
    )
}

/// Directories, certificates, ports: all that must be there before any server is.
fn lay_foundation(dir: &Dir, profile: Profile, wanted: &[Service]) -> Result<(State, Picker)> {
    dir.clear()?;
    let authority = Authority::new()?;
    checkout::make_own_dir(&dir.certs(), 0o755)?;
    authority.write_client(&dir.certs())?;
    let mut picker = Picker::default();
    let mut servers = Vec::new();
    for service in wanted.iter().copied() {
        let user = user_of(service);
        let home = dir.home(service);
        checkout::make_own_dir(&home, 0o700)?;
        authority.write_server(service, &home, user.as_ref(), 0o600)?;
        give(&home, user.as_ref())?;
        let log = dir.log(service);
        write(&log, "", 0o644, None)?;
        let mut record = Record { service, ports: [].into(), log, launch: None, process: None };
        for (purpose, preferred) in service.ports() {
            let port = picker.pick(*preferred)?;
            if port != *preferred {
                say(service, format!("port {preferred} is taken: {purpose} on {port}"));
            }
            record.ports.insert((*purpose).to_owned(), port);
        }
        servers.push(record);
    }
    let state =
        State { checkout: checkout::root(), backend: BackendKind::Native, profile, servers };
    dir.save(&state)?;
    Ok((state, picker))
}

/// What may start at once: each chain beside the others, a server in it after the one before, which it is made from.
fn chains(services: &[Service]) -> Vec<Vec<Service>> {
    let mut chains: Vec<Vec<Service>> = Vec::new();
    for service in services.iter().copied() {
        match chains.last_mut() {
            Some(chain) if service == Service::Standby && chain.contains(&Service::Postgres) => {
                chain.push(service);
            }
            _ => chains.push(vec![service]),
        }
    }
    chains
}

fn start_one(
    dir: &Dir,
    state: &Mutex<State>,
    picker: &Mutex<Picker>,
    service: Service,
) -> Result<()> {
    let locked = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let record_of = |service| {
        let found = locked().find(service).cloned();
        found.with_context(|| format!("{service} is not in this profile"))
    };
    let record = record_of(service)?;
    end(&record)?;
    let (home, user) = (dir.home(service), user_of(service));
    let launch = match service {
        Service::Postgres => {
            let has_standby = record_of(Service::Standby).is_ok();
            postgres::prepare(&home, &record, &postgres_programs()?, user, has_standby)?
        }
        Service::Standby => {
            let primary = record_of(Service::Postgres)?.port(TLS);
            postgres::prepare_standby(&home, &record, &postgres_programs()?, user, primary)?
        }
        Service::Pgbouncer => {
            let primary = record_of(Service::Postgres)?.port(TLS);
            pgbouncer::prepare(&home, &record, &installed("pgbouncer")?, user, primary)?
        }
        Service::Toxiproxy => {
            let behind = [Service::Postgres, Service::Standby, Service::Pgbouncer].map(record_of);
            let [primary, standby, pgbouncer] = behind;
            let behind = [primary?.port(TLS), standby?.port(TLS), pgbouncer?.port(TLS)];
            toxiproxy::prepare(&home, &record, &toxiproxy::find_or_build()?, user, behind)?
        }
        Service::Redis => redis::prepare(&home, &record, &installed("redis-server")?, user)?,
        Service::Opensearch => {
            let java = Java::find_or_download()?;
            let installed = opensearch_home::find_or_download(&java)?;
            opensearch::prepare(&home, &record, &installed, &java, user)?
        }
    };
    interrupt::check()?;
    let clock = Stopwatch::start();
    say(service, format!("starting on {} …", ports(&record)));
    for port in record.ports.values() {
        picker.lock().unwrap_or_else(PoisonError::into_inner).release(*port);
    }
    let record = {
        let mut state = locked();
        state.find_mut(service).context("the record is gone")?.launch = Some(launch);
        start(dir, &mut state, service)?;
        state.find(service).cloned().context("the record is gone")?
    };
    wait_ready(dir, &record, START_PATIENCE)?;
    say(service, format!("ready after {}", seconds(clock.elapsed())));
    Ok(())
}

/// Ends the process of a record, if it runs.
fn end(record: &Record) -> Result<()> {
    let Some(process) = &record.process else { return Ok(()) };
    let (signal, grace) = farewell(record.service);
    process.end(signal, grace).with_context(|| format!("cannot end {}", record.service))
}

fn forget(state: &mut State, service: Service) {
    if let Some(record) = state.find_mut(service) {
        record.process = None;
    }
}

/// How a server is asked to end, and how long it may take.
fn farewell(service: Service) -> (Signal, Duration) {
    match service {
        // Fast shutdown: it does not wait for its clients to go.
        Service::Postgres | Service::Standby => (Signal::INT, Duration::from_secs(10)),
        Service::Pgbouncer | Service::Toxiproxy => (Signal::TERM, Duration::from_secs(2)),
        Service::Redis => (Signal::TERM, Duration::from_secs(5)),
        Service::Opensearch => (Signal::TERM, Duration::from_secs(20)),
    }
}

/// Does the same for each, in a thread of its own.
fn together<T: Clone + Send, R: Send>(
    all: &[T],
    work: impl Fn(T) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            all.iter().cloned().map(|one| scope.spawn(move || work(one))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
            .collect()
    })
}

fn ports(record: &Record) -> String {
    let named: Vec<_> = record
        .ports
        .iter()
        .map(|(purpose, port)| format!("localhost:{port} ({purpose})"))
        .collect();
    named.join(", ")
}

/// The servers that do not answer; one that is stopped by a signal gets going first.
fn silent(dir: &Dir, state: &State) -> Vec<Service> {
    let answers = |record: &Record| {
        let Some(process) = record.process.as_ref().filter(|process| process.is_running()) else {
            return false;
        };
        if check(dir, record).is_ok() {
            return true;
        }
        say(record.service, "runs, but does not answer: waiting for it …");
        process.signal_tree(Signal::CONT).is_ok()
            && wait_ready(dir, record, Duration::from_secs(15)).is_ok()
    };
    let answers = together(&state.servers, |record| Ok(answers(&record)));
    let found = state.servers.iter().zip(answers);
    found
        .filter(|(_, answers)| !matches!(answers, Ok(true)))
        .map(|(record, _)| record.service)
        .collect()
}

/// Servers refuse to run as root, or should not: they get a user of their own then.
fn user_of(service: Service) -> Option<User> {
    if !checkout::is_root() {
        return None;
    }
    let named = match service {
        Service::Postgres | Service::Standby | Service::Pgbouncer => User::named("postgres"),
        Service::Redis => User::named("redis"),
        Service::Toxiproxy | Service::Opensearch => None,
    };
    named.or_else(|| User::named("nobody"))
}
