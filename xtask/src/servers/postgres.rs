//! PostgreSQL as processes of this machine: a cluster's directory, its roles, its command line; and a copy that follows it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::process::{Launch, User};

use super::certs::write;
use super::packages::append;
use super::profile::{self, TLS};
use super::state::Record;

/// Makes the cluster in `home/data` unless it is there; says how to start it. Commits wait for a standby where it has one.
///
/// # Errors
///
/// If `initdb` fails; its output is in the error.
pub fn prepare(
    home: &Path,
    record: &Record,
    programs: &Path,
    user: Option<User>,
    has_standby: bool,
) -> Result<Launch> {
    let setup = Setup { home, record, programs, user };
    if !home.join("data").exists() {
        setup.make_cluster(has_standby)?;
    }
    Ok(setup.launch("postgres", &["-D", "data"]))
}

/// Copies the primary at `primary`, which has to run, into `home/data` unless it is there; says how to start the copy.
///
/// # Errors
///
/// If `pg_basebackup` fails; its output is in the error.
pub fn prepare_standby(
    home: &Path,
    record: &Record,
    programs: &Path,
    user: Option<User>,
    primary: u16,
) -> Result<Launch> {
    let setup = Setup { home, record, programs, user };
    if !home.join("data").exists() {
        setup.copy_primary(primary)?;
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
    fn make_cluster(&self, has_standby: bool) -> Result<()> {
        let (draft, password_file) = (self.draft()?, self.home.join("password"));
        write(&password_file, profile::DATABASE_ADMIN_PASSWORD, 0o600, self.user.as_ref())?;
        let admin = format!("--username={}", profile::DATABASE_ADMIN_USER);
        let fixed =
            ["-D", "data.new", "--no-sync", "--auth=scram-sha-256", "--pwfile=password", &admin];
        let args: Vec<_> =
            fixed.into_iter().chain(profile::POSTGRES_INITDB.iter().copied()).collect();
        self.run(&self.launch("initdb", &args), "")?;
        fs::remove_file(&password_file)?;

        self.extend(&draft.join("postgresql.conf"), &self.settings())?;
        write(&draft.join("pg_hba.conf"), profile::POSTGRES_HBA, 0o600, self.user.as_ref())?;
        write(&draft.join("pg_ident.conf"), profile::POSTGRES_IDENT, 0o600, self.user.as_ref())?;
        // Single-user mode needs neither a port nor a client program.
        let single = self.launch("postgres", &["--single", "-j", "-D", "data.new", "postgres"]);
        self.run(&single, &profile::postgres_init_sql(has_standby))?;
        fs::rename(&draft, self.home.join("data")).context("cannot name the finished cluster")
    }

    /// Under another name until it is complete. What it follows the primary as is written by `pg_basebackup`.
    fn copy_primary(&self, primary: u16) -> Result<()> {
        let draft = self.draft()?;
        let from = format!(
            "host=localhost port={primary} user={} application_name={} sslmode=verify-full sslrootcert={}",
            profile::REPLICATION_USER,
            profile::STANDBY_NAME,
            self.home.join("ca.pem").display()
        );
        let slot = format!("--slot={}", profile::STANDBY_NAME);
        let fixed =
            ["--pgdata=data.new", "--write-recovery-conf", "--checkpoint=fast", "--no-sync"];
        let args: Vec<_> = fixed.into_iter().chain([slot.as_str(), "--dbname", &from]).collect();
        let mut launch = self.launch("pg_basebackup", &args);
        launch.env.push(("PGPASSWORD".to_owned(), profile::REPLICATION_PASSWORD.to_owned()));
        self.run(&launch, "")?;

        let mut settings = self.settings();
        for (name, value) in profile::STANDBY_SETTINGS {
            settings.push_str(&format!("{name} = {value}\n"));
        }
        self.extend(&draft.join("postgresql.conf"), &settings)?;
        // Promoted, it has no standby to wait for. The copied setting stands in this file, whose last word counts.
        self.extend(&draft.join("postgresql.auto.conf"), "synchronous_standby_names = ''\n")?;
        fs::rename(&draft, self.home.join("data")).context("cannot name the finished copy")
    }

    /// Where a cluster is made; what is left of an earlier try is removed.
    fn draft(&self) -> Result<PathBuf> {
        let draft = self.home.join("data.new");
        if draft.exists() {
            fs::remove_dir_all(&draft)?;
        }
        Ok(draft)
    }

    /// Adds `lines` to a file of settings: the last of two counts.
    fn extend(&self, file: &Path, lines: &str) -> Result<()> {
        let before = fs::read_to_string(file)?;
        write(file, &format!("{before}\n{lines}"), 0o600, self.user.as_ref())
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
