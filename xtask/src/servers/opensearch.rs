//! OpenSearch as a process of this machine: its configuration directory and command line.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::process::{Launch, User};

use super::certs::{give, write};
use super::java::Java;
use super::profile::{self, TLS, TRANSPORT};
use super::state::Record;

/// Prints to standard output, which goes to the log file.
const LOGGING: &str = "\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%-25c{1.}] %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
";

/// Writes the configuration into `home/config`; says how to start the installation in `installed`.
///
/// # Errors
///
/// If a file cannot be written.
pub fn prepare(
    home: &Path,
    record: &Record,
    installed: &Path,
    java: &Java,
    user: Option<User>,
) -> Result<Launch> {
    let owner = user.as_ref();
    let config = home.join("config");
    let security = config.join("opensearch-security");
    for dir in [&config, &security, &home.join("data"), &home.join("tmp"), &home.join("logs")] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        give(dir, owner)?;
    }
    for name in ["ca.pem", "server.pem", "server.key"] {
        let mode = if name == "server.key" { 0o600 } else { 0o644 };
        write(&config.join(name), &fs::read_to_string(home.join(name))?, mode, owner)?;
    }
    for entry in fs::read_dir(installed.join("security-config"))? {
        let entry = entry?;
        write(&security.join(entry.file_name()), &fs::read_to_string(entry.path())?, 0o600, owner)?;
    }
    write(&security.join("config.yml"), profile::OPENSEARCH_SECURITY_CONFIG, 0o600, owner)?;
    write(&security.join("roles_mapping.yml"), profile::OPENSEARCH_ROLES_MAPPING, 0o600, owner)?;
    write(&config.join("log4j2.properties"), LOGGING, 0o644, owner)?;
    write(&config.join("opensearch.yml"), &settings(home, record), 0o644, owner)?;

    let property = |name: &str, value: &Path| format!("-D{name}={}", value.display());
    let mut args: Vec<_> = profile::OPENSEARCH_HEAP.iter().map(ToString::to_string).collect();
    args.extend([
        // Two processors are few for a concurrent collector.
        "-XX:+UseSerialGC".to_owned(),
        // It would leave a file outside our directory.
        "-XX:-UsePerfData".to_owned(),
        property("opensearch.path.home", installed),
        property("opensearch.path.conf", &config),
        "-Dopensearch.distribution.type=zip".to_owned(),
        "-Dopensearch.bundled_jdk=false".to_owned(),
        property("java.io.tmpdir", &home.join("tmp")),
        "--enable-native-access=ALL-UNNAMED".to_owned(),
        "-cp".to_owned(),
        format!("{}/lib/*", installed.display()),
        "org.opensearch.bootstrap.OpenSearch".to_owned(),
    ]);
    Ok(Launch {
        program: java.program.clone(),
        args,
        env: Vec::new(),
        dir: home.to_path_buf(),
        user,
    })
}

fn settings(home: &Path, record: &Record) -> String {
    let mut settings = format!(
        "cluster.name: shared-external\nnode.name: opensearch\ndiscovery.type: single-node\nnetwork.host: _local_\n\
         http.port: {http}\ntransport.port: {transport}\npath.data: {home}/data\npath.logs: {home}/logs\n",
        http = record.port(TLS),
        transport = record.port(TRANSPORT),
        home = home.display(),
    );
    for layer in ["transport", "http"] {
        let prefix = format!("plugins.security.ssl.{layer}");
        settings.push_str(&format!(
            "{prefix}.pemcert_filepath: server.pem\n{prefix}.pemkey_filepath: server.key\n\
             {prefix}.pemtrustedcas_filepath: ca.pem\n"
        ));
    }
    settings.push_str(profile::OPENSEARCH_SETTINGS);
    settings
}
