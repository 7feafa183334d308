//! PostgreSQL as a process of this machine: the cluster's directory, its roles, its command line.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::process::{Launch, User};

use super::certs::write;
use super::packages::append;
use super::profile::{self, TLS};
use super::state::Record;

/// Makes the cluster in `home/data` unless it is there; says how to start it.
///
/// # Errors
///
/// If `initdb` fails; its output is in the error.
pub fn prepare(
    home: &Path,
    record: &Record,
    programs: &Path,
    user: Option<User>,
) -> Result<Launch> {
    let data = home.join("data");
    let setup = Setup { home, record, programs, user };
    if !data.exists() {
        setup.make_cluster()?;
    }
    Ok(setup.launch("postgres", &["-D", "data"]))
}

/// Removes the note of the process that had the cluster open, to be called when that process is known to be dead: the
/// pid in it may be somebody else's by now, and PostgreSQL would not start.
pub fn forget_owner(home: &Path) {
    let _ = fs::remove_file(home.join("data/postmaster.pid"));
}

struct Setup<'a> {
    home: &'a Path,
    record: &'a Record,
    programs: &'a Path,
    user: Option<User>,
}

impl Setup<'_> {
    /// Under another name until it is complete.
    fn make_cluster(&self) -> Result<()> {
        let (draft, password_file) = (self.home.join("data.new"), self.home.join("password"));
        if draft.exists() {
            fs::remove_dir_all(&draft)?;
        }
        write(&password_file, profile::DATABASE_ADMIN_PASSWORD, 0o600, self.user.as_ref())?;
        let admin = format!("--username={}", profile::DATABASE_ADMIN_USER);
        let fixed =
            ["-D", "data.new", "--no-sync", "--auth=scram-sha-256", "--pwfile=password", &admin];
        let args: Vec<_> =
            fixed.into_iter().chain(profile::POSTGRES_INITDB.iter().copied()).collect();
        self.run(&self.launch("initdb", &args), "")?;
        fs::remove_file(&password_file)?;

        let settings = draft.join("postgresql.conf");
        let shipped = fs::read_to_string(&settings)?;
        write(&settings, &format!("{shipped}\n{}", self.settings()), 0o600, self.user.as_ref())?;
        write(&draft.join("pg_hba.conf"), profile::POSTGRES_HBA, 0o600, self.user.as_ref())?;
        write(&draft.join("pg_ident.conf"), profile::POSTGRES_IDENT, 0o600, self.user.as_ref())?;
        // Single-user mode needs neither a port nor a client program.
        let single = self.launch("postgres", &["--single", "-j", "-D", "data.new", "postgres"]);
        self.run(&single, &profile::postgres_init_sql())?;
        fs::rename(&draft, self.home.join("data")).context("cannot name the finished cluster")
    }

    fn settings(&self) -> String {
        let port = self.record.port(TLS);
        let mut settings = format!(
            "listen_addresses = 'localhost'\nport = {port}\nunix_socket_directories = ''\n\
             ssl = on\nssl_ca_file = '../ca.pem'\nssl_cert_file = '../server.pem'\nssl_key_file = '../server.key'\n"
        );
        for (name, value) in profile::POSTGRES_SETTINGS {
            settings.push_str(&format!("{name} = {value}\n"));
        }
        settings
    }

    fn launch(&self, program: &str, args: &[&str]) -> Launch {
        Launch {
            program: self.programs.join(program),
            args: args.iter().map(ToString::to_string).collect(),
            env: Vec::new(),
            dir: self.home.to_path_buf(),
            user: self.user.clone(),
        }
    }

    /// Runs it to its end with `input`; an error in a statement is a failure too, which single-user mode does not say.
    fn run(&self, launch: &Launch, input: &str) -> Result<()> {
        let mut command = launch.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = launch.program.display();
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        child.stdin.take().context("it has no input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        append(&self.record.log, &output.stdout);
        append(&self.record.log, &output.stderr);
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() || said.contains("ERROR:") {
            bail!("{name} failed ({}):\n{said}", output.status);
        }
        Ok(())
    }
}
