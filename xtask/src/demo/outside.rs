//! What the servers themselves say, asked behind the example service's back.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::servers::packages::install;
use crate::servers::{Servers, program};

/// The three servers' own clients.
#[derive(Debug)]
pub struct Outside {
    env: Vec<(String, String)>,
    servers: Servers,
}

impl Outside {
    /// The clients of these servers; installs `psql` and `redis-cli` where they are missing.
    ///
    /// # Errors
    ///
    /// If they are missing and may not be installed: the one command that would.
    pub fn of(servers: &Servers) -> Result<Self> {
        let tools = [("psql", "postgresql-client"), ("redis-cli", "redis-tools")];
        let missing: Vec<_> = tools
            .iter()
            .filter(|(tool, _)| program(tool).is_none())
            .map(|(_, package)| *package)
            .collect();
        install(&missing)?;
        Ok(Self { env: servers.env(), servers: servers.clone() })
    }

    /// The one value that a query gives, by `psql`.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn sql(&self, query: &str) -> Result<String> {
        output(self.psql(query)?)
    }

    /// Starts a query by `psql`, and does not wait for its end.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn sql_in_background(&self, query: &str) -> Result<Child> {
        let mut psql = self.psql(query)?;
        psql.stdout(Stdio::null()).spawn().context("cannot start psql")
    }

    fn psql(&self, query: &str) -> Result<Command> {
        let url = self.variable("DATABASE_URL")?.replace("+asyncpg", "");
        let mut psql = Command::new("psql");
        psql.args([
            "--no-psqlrc",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            "--command",
            query,
            &url,
        ]);
        psql.env("PGSSLROOTCERT", self.variable("DATABASE_CA_FILE")?)
            .env("PGSSLMODE", "verify-full");
        Ok(psql)
    }

    /// What a Redis command answers, by `redis-cli`.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn redis(&self, command: &[&str]) -> Result<String> {
        let url = self.variable("REDIS_URL")?;
        // By parts: redis-cli 7.0 takes the missing user name of a URL for an empty one.
        let parts = url.strip_prefix("rediss://:").and_then(|rest| {
            let (password, rest) = rest.split_once('@')?;
            let (host, port) = rest.split_once('/')?.0.rsplit_once(':')?;
            Some((password.to_owned(), host.to_owned(), port.to_owned()))
        });
        let (password, host, port) = parts.context("REDIS_URL is not as `up` writes it")?;
        let mut cli = Command::new("redis-cli");
        cli.env("REDISCLI_AUTH", password).args(["-h", &host, "-p", &port, "--tls", "--cacert"]);
        cli.arg(self.variable("REDIS_CA_FILE")?).args(command);
        output(cli)
    }

    /// How many documents of the index `query` finds, by OpenSearch's own `_count`.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn count(&self, query: &str) -> Result<u64> {
        let (status, body) = self.servers.opensearch_get(&format!("/campaigns/_count?{query}"))?;
        let json: Value =
            serde_json::from_str(&body).with_context(|| format!("{status}: {body}"))?;
        json["count"].as_u64().with_context(|| format!("{status}: {body}"))
    }

    fn variable(&self, name: &str) -> Result<String> {
        let found = self.env.iter().find(|(variable, _)| variable == name);
        found.map(|(_, value)| value.clone()).with_context(|| format!("{name} is not set"))
    }
}

fn output(mut command: Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
