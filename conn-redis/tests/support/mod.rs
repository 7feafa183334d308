//! Throw-away servers, scripted peers and small helpers of the tests.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::future::{Future, poll_fn};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use conn_redis::redis::{Client, Connection, cmd};
use conn_redis::{CallError, Error, RedisConfig, RedisConfigBuilder, RedisManager};
use resilience_core::{Deadline, Failed};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::{Instant, sleep};

/// The longest a test waits for anything to come true.
const PATIENCE: Duration = Duration::from_secs(15);

/// A Redis server of this test alone. It ends with the test.
pub(crate) struct RedisServer {
    child: Option<Child>,
    pub(crate) port: u16,
    pub(crate) dir: PathBuf,
    args: Vec<String>,
}

impl RedisServer {
    pub(crate) async fn start(args: &[&str]) -> Self {
        Self::start_on(free_port(), args).await
    }

    pub(crate) async fn start_on(port: u16, args: &[&str]) -> Self {
        let mut server = Self::stopped(port, args);
        server.start_again().await;
        server
    }

    /// A server that has not been started yet.
    pub(crate) fn stopped(port: u16, args: &[&str]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("conn-redis-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Self { child: None, port, dir, args }
    }

    /// More arguments for the next start.
    pub(crate) fn args<'a>(&mut self, args: impl IntoIterator<Item = &'a str>) {
        self.args.extend(args.into_iter().map(str::to_owned));
    }

    pub(crate) fn launch(&mut self) {
        let mut server = Command::new("redis-server");
        server.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        server.args(&self.args).current_dir(&self.dir);
        let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child =
            Some(child.expect("the package redis-server is installed by `cargo xtask test`"));
    }

    pub(crate) async fn start_again(&mut self) {
        self.launch();
        until("the server listens", async || {
            // Where something else was there first, it has ended.
            let child = self.child.as_mut().expect("it was just launched");
            if child.try_wait().unwrap().is_some() {
                self.launch();
            }
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
        })
        .await;
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// A connection past the manager, for looking at the server from outside.
    pub(crate) fn admin(&self) -> Connection {
        Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// A manager that gives up quickly.
    pub(crate) fn manager(&self) -> RedisManager {
        RedisManager::connect(hasty(&self.url()).build().unwrap()).unwrap()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Settings under which nothing takes long and nothing is repeated.
pub(crate) fn hasty(url: &str) -> RedisConfigBuilder {
    RedisConfig::builder(url)
        .max_retries(0)
        .base_delay(Duration::from_millis(1))
        .socket_timeout(Duration::from_millis(500))
        .connect_timeout(Duration::from_millis(500))
        .acquire_timeout(Duration::from_millis(500))
        .health_timeout(Duration::from_millis(500))
        .deadline(Duration::from_secs(2))
}

/// A manager of `server` that lends `lent` connections at once, and is patient with an answer.
pub(crate) fn lending(server: &RedisServer, lent: u32) -> RedisManager {
    let config =
        hasty(&server.url()).max_connections(lent + 1).socket_timeout(Duration::from_secs(5));
    RedisManager::connect(config.build().unwrap()).unwrap()
}

/// What the server calls a connection that `redis` lends.
pub(crate) async fn client_id(redis: &RedisManager) -> u64 {
    redis
        .read(|mut conn| async move { Ok(cmd("CLIENT").arg("ID").query_async(&mut conn).await?) })
        .await
        .unwrap()
}

/// The clients that the server sees, `connection` itself left out.
pub(crate) fn clients(connection: &mut Connection) -> Vec<String> {
    let list: String = cmd("CLIENT").arg("LIST").query(connection).unwrap();
    let me: u64 = cmd("CLIENT").arg("ID").query(connection).unwrap();
    list.lines().filter(|line| !line.starts_with(&format!("id={me} "))).map(str::to_owned).collect()
}

/// How often the server has executed `command`.
pub(crate) fn executed(connection: &mut Connection, command: &str) -> u64 {
    let stats: String = cmd("INFO").arg("commandstats").query(connection).unwrap();
    let prefix = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

/// The last real error of a call.
pub(crate) fn failed<T: std::fmt::Debug>(result: Result<T, CallError<Error>>) -> Failed<Error> {
    match result {
        Err(CallError::Inner(failed)) => failed,
        other => panic!("no error of the operation: {other:?}"),
    }
}

pub(crate) fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(5))
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "it never came true that {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Lets every task of this runtime see what has already happened to its socket.
pub(crate) async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

/// Polls `future` up to `polls` times, then drops it.
pub(crate) async fn poll_n<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Below those that systems give to the near end of a connection, and so is the port 10,000 above it, which a
/// cluster's node takes too: while the server is down, none comes by it.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut ports = std::iter::repeat_with(|| {
        let next = std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed);
        u16::try_from(11_000 + next % 4_000).unwrap()
    });
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    ports.find(|port| is_free(*port) && is_free(port + 10_000)).unwrap()
}

/// A variable that `cargo xtask test` sets.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name}: set by `cargo xtask test`"))
}

/// Something that listens where Redis is expected, and answers as the test says.
pub(crate) struct Peer {
    pub(crate) port: u16,
    /// The commands received, without those of the login.
    pub(crate) received: Arc<Mutex<Vec<String>>>,
    /// How often it was asked for a sign of life.
    pub(crate) pings: Arc<AtomicUsize>,
}

/// How a peer answers.
pub(crate) enum Answer {
    /// With these bytes.
    Reply(String),
    /// By closing the connection, after these bytes.
    Close(String),
    /// Never.
    Silence,
}

impl Peer {
    /// Answers the `n`th command, counted from 0 over all connections, with `answer(n, command)`.
    pub(crate) async fn start(
        answer: impl Fn(usize, &str) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let received: Arc<Mutex<Vec<String>>> = Arc::default();
        let pings: Arc<AtomicUsize> = Arc::default();
        let (answer, seen, pinged) = (Arc::new(answer), Arc::clone(&received), Arc::clone(&pings));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen, pinged) =
                    (Arc::clone(&answer), Arc::clone(&seen), Arc::clone(&pinged));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Some(command) = read_command(&mut stream).await {
                        let reply = match command.split(' ').next().unwrap() {
                            "PING" => {
                                pinged.fetch_add(1, Ordering::Relaxed);
                                Answer::Reply("+PONG\r\n".into())
                            }
                            "AUTH" | "SELECT" => Answer::Reply("+OK\r\n".into()),
                            _ => {
                                let number = {
                                    let mut seen = seen.lock().unwrap();
                                    seen.push(command.clone());
                                    seen.len() - 1
                                };
                                answer(number, &command)
                            }
                        };
                        match reply {
                            Answer::Reply(bytes) => {
                                let _ = stream.write_all(bytes.as_bytes()).await;
                            }
                            Answer::Close(bytes) => {
                                let _ = stream.write_all(bytes.as_bytes()).await;
                                return;
                            }
                            Answer::Silence => std::future::pending().await,
                        }
                    }
                });
            }
        });
        Self { port, received, pings }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub(crate) fn received(&self) -> Vec<String> {
        self.received.lock().unwrap().clone()
    }
}

async fn read_command(stream: &mut BufReader<tokio::net::TcpStream>) -> Option<String> {
    let count = read_number(stream, '*').await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = read_number(stream, '$').await?;
        let mut word = vec![0; length + 2];
        stream.read_exact(&mut word).await.ok()?;
        words.push(String::from_utf8_lossy(&word[..length]).into_owned());
    }
    Some(words.join(" "))
}

async fn read_number(stream: &mut BufReader<tokio::net::TcpStream>, mark: char) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    line.trim_end().strip_prefix(mark)?.parse().ok()
}

/// Writes `contents` to a file of `dir`.
pub(crate) fn write(dir: &Path, name: &str, contents: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, contents).unwrap();
    path
}
