//! A PgBouncer of the test's own, in transaction mode, before a PostgreSQL of the test's own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use tokio::net::TcpStream;

use super::eventually;
use super::throwaway::Throwaway;

/// Processes of the server that it shares out.
pub const SERVERS: usize = 4;

pub struct Bouncer {
    port: u16,
    process: Child,
}

impl Bouncer {
    /// Starts one before `server`, which lets `passed` pass among the parameters of a new connection.
    pub async fn before(server: &Throwaway, passed: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {SERVERS}\n\
             ignore_startup_parameters = {passed}\n",
            server.port
        );
        let file = format!("pgbouncer-{port}.ini");
        server.put(&file, &settings);
        let mut command = server.command_of(&program());
        let process = command.arg(file).stderr(Stdio::null()).spawn().unwrap();
        let bouncer = Self { port, process };
        eventually("PgBouncer answers", async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        bouncer
    }

    pub fn url(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([Path::new("/usr/sbin").to_path_buf()]);
    let mut programs = dirs.map(|dir| dir.join("pgbouncer"));
    programs.find(|program| program.exists()).expect("the tests need PgBouncer (Debian: pgbouncer)")
}
