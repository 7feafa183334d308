//! Redis as a process of this machine: its configuration file and command line. Nothing of it is kept on disk.

use std::path::Path;

use anyhow::Result;

use crate::process::{Launch, User};

use super::certs::write;
use super::profile::{PLAIN, REDIS_PASSWORD, TLS};
use super::state::Record;

/// Writes `home/redis.conf`; says how to start it.
///
/// # Errors
///
/// If the file cannot be written.
pub fn prepare(home: &Path, record: &Record, program: &Path, user: Option<User>) -> Result<Launch> {
    // In a file, the password does not show in `ps`.
    let settings = format!(
        "bind 127.0.0.1 -::1\nport {plain}\ntls-port {tls}\n\
         tls-ca-cert-file {home}/ca.pem\ntls-cert-file {home}/server.pem\ntls-key-file {home}/server.key\n\
         tls-auth-clients optional\nrequirepass {REDIS_PASSWORD}\nsave \"\"\nappendonly no\ndir {home}\n",
        plain = record.port(PLAIN),
        tls = record.port(TLS),
        home = home.display(),
    );
    write(&home.join("redis.conf"), &settings, 0o600, user.as_ref())?;
    Ok(Launch {
        program: program.to_path_buf(),
        args: vec!["redis.conf".to_owned()],
        env: Vec::new(),
        dir: home.to_path_buf(),
        user,
    })
}
