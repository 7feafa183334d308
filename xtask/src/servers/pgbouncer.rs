//! PgBouncer as a process of this machine: its configuration, its file of users, its command line.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{Launch, User};

use super::certs::write;
use super::profile::{self, TLS};
use super::state::Record;

/// From this version on, PgBouncer keeps prepared statements apart by client.
const PREPARED_STATEMENTS: (u32, u32) = (1, 21);

/// Where one PgBouncer stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The directory of its certificates and its file of users.
    pub dir: &'a str,
    /// The address and the port that it listens on.
    pub listen: (&'a str, u16),
    /// The host and the port of the primary.
    pub primary: (&'a str, u16),
    /// Whether its version knows of prepared statements.
    pub prepared_statements: bool,
}

/// Writes `home/pgbouncer.ini` and `home/userlist.txt`; says how to start it.
///
/// # Errors
///
/// If a file cannot be written, or the program does not tell its version.
pub fn prepare(
    home: &Path,
    record: &Record,
    program: &Path,
    user: Option<User>,
    primary: u16,
) -> Result<Launch> {
    let place = Place {
        dir: &home.display().to_string(),
        listen: ("localhost", record.port(TLS)),
        primary: ("localhost", primary),
        prepared_statements: version(program)? >= PREPARED_STATEMENTS,
    };
    write(&home.join("pgbouncer.ini"), &settings(place), 0o600, user.as_ref())?;
    write(&home.join("userlist.txt"), &users(), 0o600, user.as_ref())?;
    Ok(Launch {
        program: program.to_path_buf(),
        args: vec!["pgbouncer.ini".to_owned()],
        env: Vec::new(),
        dir: home.to_path_buf(),
        user,
    })
}

/// The content of `pgbouncer.ini`.
#[must_use]
pub fn settings(place: Place<'_>) -> String {
    let Place { dir, listen, primary, prepared_statements } = place;
    let mut settings = format!(
        "[databases]\n* = host={} port={}\n\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\nunix_socket_dir =\n\
         auth_file = {dir}/userlist.txt\nadmin_users = {}\n\
         client_tls_sslmode = require\nclient_tls_ca_file = {dir}/ca.pem\n\
         client_tls_cert_file = {dir}/server.pem\nclient_tls_key_file = {dir}/server.key\n\
         server_tls_sslmode = verify-ca\nserver_tls_ca_file = {dir}/ca.pem\n",
        primary.0,
        primary.1,
        listen.0,
        listen.1,
        profile::DATABASE_ADMIN_USER,
    );
    for (name, value) in profile::PGBOUNCER_SETTINGS {
        settings.push_str(&format!("{name} = {value}\n"));
    }
    if prepared_statements {
        settings.push_str("max_prepared_statements = 200\n");
    }
    settings
}

/// The content of `userlist.txt`. The passwords in the clear, for PgBouncer has to log in with them by SCRAM.
#[must_use]
pub fn users() -> String {
    let known = [
        (profile::DATABASE_USER, profile::DATABASE_PASSWORD),
        (profile::DATABASE_ADMIN_USER, profile::DATABASE_ADMIN_PASSWORD),
    ];
    known.iter().map(|(name, password)| format!("\"{name}\" \"{password}\"\n")).collect()
}

fn version(program: &Path) -> Result<(u32, u32)> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    parse(&String::from_utf8_lossy(&output.stdout)).context("pgbouncer does not tell its version")
}

/// The first line is `PgBouncer 1.18.0` or alike.
fn parse(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.lines().next()?.strip_prefix("PgBouncer ")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_version_is_not_given_a_setting_that_it_refuses() {
        let place = |prepared_statements| Place {
            dir: "/given",
            listen: ("localhost", 1),
            primary: ("localhost", 2),
            prepared_statements,
        };
        assert!(parse("PgBouncer 1.18.0\nlibevent 2.1.12").unwrap() < PREPARED_STATEMENTS);
        assert!(parse("PgBouncer 1.21.0").unwrap() >= PREPARED_STATEMENTS);
        assert!(parse("PgBouncer 2.0").unwrap() >= PREPARED_STATEMENTS);
        assert_eq!(parse("no such thing"), None);
        assert!(!settings(place(false)).contains("max_prepared_statements"));
        assert!(settings(place(true)).contains("max_prepared_statements = 200\n"));
    }
}
