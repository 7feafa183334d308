//! What the tests share: a test run again in a process of its own, where nothing global is used yet.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};

/// A runtime of the calling thread.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Whether this process is the one that [`again`] started for the test `name`.
pub(crate) fn is_child_of(name: &str) -> bool {
    std::env::var("CHILD_OF").is_ok_and(|parent| parent == name)
}

/// The test `name` of this binary, to be run again in a process of its own with these variables.
pub(crate) fn again(name: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("CHILD_OF", name);
    command.envs(variables.iter().copied());
    command
}

/// A child that serves, until it is told to stop.
pub(crate) struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts it, and reads where it listens: it prints `listening on ADDRESS`.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut server = Self { child, output, address: SocketAddr::from(([0; 4], 0)) };
        loop {
            let mut line = String::new();
            assert!(server.output.read_line(&mut line).unwrap() > 0, "it ended too early");
            if let Some((_, address)) = line.split_once("listening on ") {
                server.address = address.trim().parse().unwrap();
                return server;
            }
        }
    }

    /// Sends a request on a connection that is kept open.
    pub(crate) fn ask(&self, path: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        connection
    }

    pub(crate) fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    /// Waits until it takes no connection any more.
    pub(crate) async fn refuses(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(self.address).is_ok() {
            assert!(Instant::now() < deadline, "it goes on listening");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// How it ended, within `limit`, and what it printed.
    pub(crate) async fn ended_within(mut self, limit: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut printed = String::new();
                self.output.read_to_string(&mut printed).unwrap();
                return (status, printed);
            }
            assert!(Instant::now() < deadline, "it runs on after {limit:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The head of the answer.
pub(crate) fn head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}
