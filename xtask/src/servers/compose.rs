//! The servers as containers: compose.yaml says what they are, this room starts and stops them.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::checkout;
use crate::process::Signal;
use crate::progress::say;

use super::BackendKind;
use super::certs::{Authority, write};
use super::ports::Picker;
use super::profile::{self, Profile, Service};
use super::state::{Dir, Record, State};
use super::{pgbouncer, toxiproxy};

/// Whether a container engine answers here.
#[must_use]
pub(super) fn is_available() -> bool {
    let answers = |args: &[&str]| {
        let mut command = Command::new("docker");
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    answers(&["compose", "version"]) && answers(&["info"])
}

/// Starts what does not run; the engine itself knows what does.
///
/// # Errors
///
/// If the engine fails; it prints why.
pub(super) fn up(
    dir: &Dir,
    profile: Profile,
    wanted: &[Service],
    state: Option<State>,
) -> Result<State> {
    let fresh = state.is_none();
    let state = match state {
        Some(state) => state,
        None => lay_foundation(dir, profile, wanted)?,
    };
    say("compose", "starting the containers (a first time downloads their images) …");
    // Ctrl-C at the terminal reaches the engine's client too, which gives up then.
    let fixed = ["up", "--detach", "--wait", "--wait-timeout", "180"];
    let names = state.servers.iter().map(|record| record.service.name());
    if let Err(error) = run(dir, &state, &fixed.into_iter().chain(names).collect::<Vec<_>>()) {
        if fresh {
            say("compose", "ending what was started …");
            down(dir, &state)?;
            dir.clear()?;
        }
        return Err(error);
    }
    Ok(state)
}

/// Removes the containers and their data.
///
/// # Errors
///
/// If the engine fails; it prints why.
pub(super) fn down(dir: &Dir, state: &State) -> Result<()> {
    run(dir, state, &["down", "--volumes", "--timeout", "20"])
}

/// Starts one container again.
///
/// # Errors
///
/// If the engine fails; it prints why.
pub(super) fn start(dir: &Dir, state: &State, service: Service) -> Result<()> {
    run(dir, state, &["start", service.name()])
}

/// Stops one container; its data stays.
///
/// # Errors
///
/// If the engine fails; it prints why.
pub(super) fn stop(dir: &Dir, state: &State, service: Service) -> Result<()> {
    run(dir, state, &["stop", service.name()])
}

/// Signals all processes of one container.
///
/// # Errors
///
/// If the engine fails; it prints why.
pub(super) fn kill(dir: &Dir, state: &State, service: Service, signal: Signal) -> Result<()> {
    // The first process of a container ignores SIGSTOP; the engine's freezer stops them all.
    match signal {
        Signal::STOP => run(dir, state, &["pause", service.name()]),
        Signal::CONT => run(dir, state, &["unpause", service.name()]),
        Signal::TERM => run(dir, state, &["kill", "--signal", "SIGTERM", service.name()]),
        _ => run(dir, state, &["kill", "--signal", "SIGKILL", service.name()]),
    }
}

/// Prints the last lines of one container's log.
///
/// # Errors
///
/// If the engine fails; it prints why.
pub(super) fn logs(dir: &Dir, state: &State, service: Service, lines: usize) -> Result<()> {
    run(dir, state, &["logs", "--no-log-prefix", "--tail", &lines.to_string(), service.name()])
}

fn lay_foundation(dir: &Dir, profile: Profile, wanted: &[Service]) -> Result<State> {
    dir.clear()?;
    let authority = Authority::new()?;
    // The users in the containers have other ids than ours, so their keys are readable. Those sign for one `up` only.
    checkout::make_own_dir(&dir.certs(), 0o755)?;
    authority.write_client(&dir.certs())?;
    let mut picker = Picker::default();
    let mut servers = Vec::new();
    for service in wanted.iter().copied() {
        let home = dir.home(service);
        checkout::make_own_dir(&home, 0o755)?;
        authority.write_server(service, &home, None, 0o644)?;
        let mut record = Record {
            service,
            ports: [].into(),
            log: dir.log(service),
            launch: None,
            process: None,
        };
        for (purpose, preferred) in
            service.ports().iter().filter(|(purpose, _)| *purpose != profile::TRANSPORT)
        {
            record.ports.insert((*purpose).to_owned(), picker.pick(*preferred)?);
        }
        servers.push(record);
        for (name, content) in files(service, wanted.contains(&Service::Standby)) {
            write(&home.join(name), &content, 0o644, None)?;
        }
    }
    let state =
        State { checkout: checkout::root(), backend: BackendKind::Compose, profile, servers };
    dir.save(&state)?;
    Ok(state)
}

/// The files that a container finds beside its certificates.
fn files(service: Service, has_standby: bool) -> Vec<(&'static str, String)> {
    let access = || {
        [
            ("pg_hba.conf", format!("local all all trust\n{}", profile::POSTGRES_HBA)),
            ("pg_ident.conf", profile::POSTGRES_IDENT.to_owned()),
        ]
    };
    match service {
        Service::Postgres => {
            let init = ("init.sql", profile::postgres_init_sql(has_standby));
            access().into_iter().chain([init]).collect()
        }
        Service::Standby => access().to_vec(),
        Service::Pgbouncer => {
            let place = pgbouncer::Place {
                dir: "/given",
                listen: ("0.0.0.0", 6432),
                primary: (Service::Postgres.name(), 5432),
                prepared_statements: false,
            };
            let settings = ("pgbouncer.ini", pgbouncer::settings(place));
            vec![settings, ("userlist.txt", pgbouncer::users())]
        }
        Service::Toxiproxy => {
            let listen = [5432, 5433, 6432].map(|port| format!("0.0.0.0:{port}"));
            let upstreams = ["postgres:5432", "standby:5432", "pgbouncer:6432"];
            let upstreams = upstreams.map(ToOwned::to_owned);
            vec![("proxies.json", toxiproxy::proxies(&listen, &upstreams))]
        }
        Service::Redis => Vec::new(),
        Service::Opensearch => vec![
            ("config.yml", profile::OPENSEARCH_SECURITY_CONFIG.to_owned()),
            ("roles_mapping.yml", profile::OPENSEARCH_ROLES_MAPPING.to_owned()),
        ],
    }
}

fn run(dir: &Dir, state: &State, args: &[&str]) -> Result<()> {
    let project = dir.path().file_name().context("the directory has no name")?;
    let mut command = Command::new("docker");
    command.args(["compose", "--project-name"]).arg(project);
    command.arg("--file").arg(state.checkout.join("compose.yaml")).args(args).stdin(Stdio::null());
    command.env("SHARED_EXTERNAL_DIR", dir.path());
    // For `down` too: without its profile, a container is left alone.
    if state.profile == Profile::Ha {
        command.env("COMPOSE_PROFILES", "ha");
    }
    for record in &state.servers {
        for (purpose, port) in &record.ports {
            command.env(port_variable(record.service, purpose), port.to_string());
        }
    }
    let status = command.status().context("cannot run docker")?;
    if !status.success() {
        bail!("docker compose {} failed ({status})", args[0]);
    }
    Ok(())
}

/// The variable of compose.yaml that holds a port, such as `REDIS_TLS_PORT`.
fn port_variable(service: Service, purpose: &str) -> String {
    format!("{service}_{purpose}_port").to_uppercase()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn compose_file() -> String {
        fs::read_to_string(checkout::root().join("compose.yaml")).unwrap()
    }

    /// The lines below `  NAME:`, up to the next service.
    fn section(service: Service) -> String {
        let text = compose_file();
        let head = format!("\n  {service}:\n");
        let start = text.find(&head).unwrap_or_else(|| panic!("no service {service}")) + head.len();
        let rest = &text[start..];
        let is_next =
            |line: &&str| line.starts_with("  ") && !line.starts_with("   ") && line.ends_with(':');
        rest.lines()
            .take_while(|line| line.is_empty() || !is_next(line))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn both_ways_run_the_same_versions() {
        for service in Service::ALL {
            let section = section(service);
            let image =
                section.lines().find_map(|line| line.trim().strip_prefix("image: ")).unwrap();
            let (_, tag) = image.rsplit_once(':').expect("the image is pinned");
            let version = tag.trim_start_matches('v').split('-').next().unwrap();
            // A major version stands for its minor releases; a full one for itself.
            let same = version == service.version()
                || version.starts_with(&format!("{}.", service.version()));
            assert!(
                same,
                "{service}: compose.yaml has {version}, the native way {}",
                service.version()
            );
            assert!(version.split('.').count() >= 2, "{service}: {version} is not pinned");
        }
    }

    #[test]
    fn both_ways_use_the_same_ports_on_loopback_only() {
        for service in Service::ALL {
            let section = section(service);
            let published: Vec<_> =
                section.lines().filter(|line| line.trim().starts_with("- \"127.0.0.1:")).collect();
            let ours: Vec<_> = service
                .ports()
                .iter()
                .filter(|(purpose, _)| *purpose != profile::TRANSPORT)
                .collect();
            assert_eq!(published.len(), ours.len(), "{service}: {published:?}");
            for (purpose, port) in ours {
                let expected =
                    format!("127.0.0.1:${{{}:-{port}}}:", port_variable(service, purpose));
                assert!(
                    published.iter().any(|line| line.contains(&expected)),
                    "{service}: no {expected}"
                );
            }
        }
    }

    #[test]
    fn a_container_of_another_profile_is_not_started_by_the_smaller_one() {
        for service in Service::ALL {
            let is_of_ha = section(service).contains("    profiles: [ha]\n");
            let is_single = Profile::Single.services().contains(&service);
            assert_eq!(is_of_ha, !is_single, "{service}");
        }
    }

    #[test]
    fn both_ways_replicate_alike() {
        let standby = section(Service::Standby);
        let slot = format!(" --slot {} ", profile::STANDBY_NAME);
        let name = format!(" application_name={}\"", profile::STANDBY_NAME);
        let user = format!(" user={} ", profile::REPLICATION_USER);
        for expected in [slot, name, user, "synchronous_standby_names = ''".to_owned()] {
            assert!(standby.contains(&expected), "{expected}: {standby}");
        }
        let password = format!("PGPASSWORD: {}\n", profile::REPLICATION_PASSWORD);
        assert!(standby.contains(&password), "{standby}");
        for (name, value) in profile::POSTGRES_SETTINGS.iter().chain(profile::STANDBY_SETTINGS) {
            assert!(standby.contains(&format!("-c {name}={value}")), "{name}");
        }
    }

    #[test]
    fn a_container_is_given_the_files_that_it_is_told_of_and_no_other() {
        for service in Service::ALL {
            let files = files(service, true);
            let contents = files.iter().map(|(_, content)| content.as_str());
            let told: String = [section(service).as_str()].into_iter().chain(contents).collect();
            for (name, _) in &files {
                assert!(told.contains(&format!("/{name}")), "{service} does not use {name}");
            }
            let given = told.split("/given/").skip(1).map(|rest| {
                rest.split(|end: char| !end.is_alphanumeric() && !"._".contains(end))
                    .next()
                    .unwrap()
            });
            let certificates = ["ca.pem", "server.pem", "server.key"];
            for name in given.filter(|name| !certificates.contains(name)) {
                assert!(files.iter().any(|(file, _)| *file == name), "{service}: no {name}");
            }
        }
    }

    #[test]
    fn both_ways_use_the_same_credentials() {
        let postgres = section(Service::Postgres);
        assert!(
            postgres
                .contains(&format!("POSTGRES_PASSWORD: {}\n", profile::DATABASE_ADMIN_PASSWORD))
        );
        assert!(postgres.contains(&format!("POSTGRES_USER: {}\n", profile::DATABASE_ADMIN_USER)));
        assert!(
            section(Service::Redis)
                .contains(&format!("--requirepass {} ", profile::REDIS_PASSWORD))
        );
        // admin/admin is what the plugin starts with if its demo installer, which sets another, does not run.
        assert_eq!(
            (profile::OPENSEARCH_USERNAME, profile::OPENSEARCH_PASSWORD),
            ("admin", "admin")
        );
        let opensearch = section(Service::Opensearch);
        assert!(opensearch.contains("DISABLE_INSTALL_DEMO_CONFIG: \"true\"\n"), "{opensearch}");
        assert!(opensearch.contains("curl -fsk -u admin:admin "), "{opensearch}");
    }

    #[test]
    fn both_ways_use_the_same_settings() {
        let postgres = section(Service::Postgres);
        for (name, value) in profile::POSTGRES_SETTINGS {
            assert!(postgres.contains(&format!("-c {name}={value}")), "{name}");
        }
        assert!(postgres.contains(&format!(
            "POSTGRES_INITDB_ARGS: \"{}\"",
            profile::POSTGRES_INITDB.join(" ")
        )));
        let opensearch = section(Service::Opensearch);
        assert!(
            opensearch
                .contains(&format!("OPENSEARCH_JAVA_OPTS: {}", profile::OPENSEARCH_HEAP.join(" ")))
        );
        for line in profile::OPENSEARCH_SETTINGS.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            assert!(opensearch.contains(&format!("{name}: \"{value}\"\n")), "{name}: {value}");
        }
    }
}
