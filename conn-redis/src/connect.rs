//! Opens connections: name, socket, TLS, login.
//!
//! redis-rs could do all that itself, but then a server that is full looks like one with another
//! password, every TLS connection reads the machine's certificate store anew, and under RESP2 nobody
//! learns that an idle connection has been closed. So it gets a stream that is ready for use, and its
//! driver runs where its end is noticed.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_redis::redis::aio::{ConnectionLike, MultiplexedConnection};
use deadpool_redis::redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, RedisConnectionInfo, RedisError, Value, cmd,
    parse_redis_value,
};
use resilience_core::{Deadline, Event, Name, emit};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::address::{Login, Target};
use crate::error::{ConnectCause, ConnectError};

/// The longest greeting that is taken for Redis.
const LONGEST_LINE: usize = 4096;

/// Opens connections to one place.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) name: Name,
    pub(crate) target: Target,
    /// The target, for those who read errors.
    pub(crate) endpoint: Arc<str>,
    pub(crate) login: Login,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) limit: Duration,
    pub(crate) runtime: Option<Handle>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.endpoint).finish()
    }
}

/// An open connection. Dropping it closes the socket, whatever is still on its way.
#[derive(Debug)]
pub(crate) struct Connection {
    multiplexed: MultiplexedConnection,
    driver: AbortHandle,
    lost: Arc<AtomicBool>,
    pub(crate) database: i64,
}

impl Connection {
    /// Whether its socket is known to be gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The driver's connection. Only for those who keep account of what they send.
    pub(crate) fn driver(&mut self) -> &mut MultiplexedConnection {
        &mut self.multiplexed
    }

    /// One round trip, by `deadline`; any answer will do.
    pub(crate) async fn ping(&mut self, deadline: Deadline) -> Result<Value, RedisError> {
        let ping = cmd("PING");
        match timeout_at(deadline.instant(), self.multiplexed.req_packed_command(&ping)).await {
            Ok(reply) => reply,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connector {
    /// Opens a connection, by the surrounding deadline if that is nearer than the limit.
    ///
    /// Dropping the future closes what was opened so far.
    pub(crate) async fn open(&self) -> Result<Connection, ConnectError> {
        let started = Instant::now();
        let until = Deadline::within(self.limit).inherited();
        tracing::debug!(target: "shared_external::redis", name = %self.name, endpoint = %self.endpoint, "connecting");
        let result = match &self.runtime {
            // Boxed: a TLS handshake is large, and every call would have to make room for it.
            None => Box::pin(self.open_here(until)).await,
            Some(runtime) => {
                let connector = self.clone();
                let task = runtime.spawn(async move { connector.open_here(until).await });
                let _abort = AbortOnDrop(task.abort_handle());
                // A runtime that is shutting down opens nothing any more.
                task.await.unwrap_or_else(|error| {
                    Err(ConnectCause::Io(Arc::new(io::Error::other(error))))
                })
            }
        };
        let elapsed = started.elapsed();
        match result {
            Ok(connection) => {
                tracing::debug!(target: "shared_external::redis", name = %self.name, endpoint = %self.endpoint, ?elapsed, "connected");
                emit(&Event::ConnectionCreated { pool: &self.name, elapsed });
                Ok(connection)
            }
            Err(cause) => {
                tracing::debug!(target: "shared_external::redis", name = %self.name, endpoint = %self.endpoint, ?elapsed, %cause, "cannot connect");
                Err(ConnectError { endpoint: Arc::clone(&self.endpoint), cause })
            }
        }
    }

    async fn open_here(&self, until: Deadline) -> Result<Connection, ConnectCause> {
        match &self.target {
            Target::Unix(path) => {
                let stream = in_time(until, "connection", async {
                    UnixStream::connect(path).await.map_err(broken)
                })
                .await?;
                self.log_in(until, stream).await
            }
            Target::Tcp { host, port, server_name } => {
                let stream = connect(until, host, *port).await?;
                match &self.tls {
                    None => self.log_in(until, stream).await,
                    Some(config) => {
                        let failed = |error| ConnectCause::Tls(Arc::new(error));
                        let name = ServerName::try_from(server_name.to_string())
                            .map_err(|error| failed(io::Error::other(error)))?;
                        let tls = TlsConnector::from(Arc::clone(config));
                        // A server that does not speak TLS waits for the end of our line: so do we.
                        let stream = in_time(until, "tls handshake", async {
                            tls.connect(name, stream).await.map_err(failed)
                        })
                        .await?;
                        self.log_in(until, stream).await
                    }
                }
            }
        }
    }

    async fn log_in<S>(&self, until: Deadline, mut stream: S) -> Result<Connection, ConnectCause>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        in_time(until, "answer to the login", greet(&mut stream, &self.login)).await?;
        let info = RedisConnectionInfo::default()
            .set_protocol(self.login.protocol)
            .set_skip_set_lib_name();
        // A driver's time limit would cut off commands that may rightly wait: the attempt's holds.
        let config =
            AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let (multiplexed, driver) = in_time(until, "answer to the login", async {
            let ready = MultiplexedConnection::new_with_config(&info, stream, config).await;
            ready.map_err(ConnectCause::Refused)
        })
        .await?;
        let lost = Arc::new(AtomicBool::new(false));
        let ended = SetOnDrop(Arc::clone(&lost));
        let driver = tokio::spawn(async move {
            let _ended = ended;
            driver.await;
        });
        let (driver, database) = (driver.abort_handle(), self.login.database);
        Ok(Connection { multiplexed, driver, lost, database })
    }
}

/// The first address that takes us. One after the other, for a server counts every socket; an address
/// that does not answer leaves the others their share of the time.
async fn connect(until: Deadline, host: &str, port: u16) -> Result<TcpStream, ConnectCause> {
    let unresolved = |error| ConnectCause::Resolve(Arc::new(error));
    let resolved = async { lookup_host((host, port)).await.map_err(unresolved) };
    let addresses: Vec<_> = in_time(until, "address", resolved).await?.collect();
    let mut last = unresolved(io::Error::from(io::ErrorKind::NotFound));
    for (tried, address) in addresses.iter().enumerate() {
        let share = until.remaining() / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let stream = async { TcpStream::connect(address).await.map_err(broken) };
        match in_time(Deadline::within(share), "connection", stream).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(broken)?;
                return Ok(stream);
            }
            Err(cause) => last = cause,
        }
    }
    Err(last)
}

/// `step`, or that there was none of it in time.
async fn in_time<T>(
    until: Deadline,
    what: &'static str,
    step: impl Future<Output = Result<T, ConnectCause>>,
) -> Result<T, ConnectCause> {
    let started = Instant::now();
    match timeout_at(until.instant(), step).await {
        Ok(result) => result,
        Err(_) => Err(ConnectCause::TimedOut { what, after: started.elapsed() }),
    }
}

/// Logs in and chooses the database; with neither to do, asks for any answer at all.
///
/// By hand: every reply here is one line, and the first may be the server's refusal to have us.
async fn greet<S>(stream: &mut S, login: &Login) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut commands = Vec::new();
    if let Some(password) = &login.password {
        let mut auth = cmd("AUTH");
        auth.arg(login.username.as_deref()).arg(password.expose_secret());
        commands.push(auth);
    }
    if login.database != 0 {
        let mut select = cmd("SELECT");
        select.arg(login.database);
        commands.push(select);
    }
    if commands.is_empty() {
        commands.push(cmd("PING"));
    }
    let bytes: Vec<u8> = commands.iter().flat_map(Cmd::get_packed_command).collect();
    stream.write_all(&bytes).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let ping = login.password.is_none() && login.database == 0;
    for _ in &commands {
        match parse_redis_value(&read_line(stream).await?).map_err(ConnectCause::Refused)? {
            // A server that is loading, or whose disk is full, says so to each command: it is for those to judge.
            Value::ServerError(error)
                if ping && !matches!(error.code(), "ERR" | "NOAUTH" | "DENIED") => {}
            Value::ServerError(error) => return Err(ConnectCause::Refused(error.into())),
            _ => {}
        }
    }
    Ok(())
}

async fn read_line<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, ConnectCause> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() == LONGEST_LINE {
            return Err(ConnectCause::Refused(
                (ErrorKind::Parse, "what answers there is not redis").into(),
            ));
        }
        line.push(stream.read_u8().await.map_err(broken)?);
    }
    Ok(line)
}

fn broken(error: io::Error) -> ConnectCause {
    // A server that does not like our certificate may say so only once the handshake is over.
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some();
    let cause = if of_tls { ConnectCause::Tls } else { ConnectCause::Io };
    cause(Arc::new(error))
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::ProtocolVersion;

    use super::*;

    fn login(password: Option<&str>, database: i64) -> Login {
        let password = password.map(Into::into);
        Login { username: None, password, database, protocol: ProtocolVersion::RESP2 }
    }

    async fn greeted_with(answer: &str, login: Login) -> Result<(), ConnectCause> {
        let (mut ours, mut theirs) = tokio::io::duplex(8192);
        theirs.write_all(answer.as_bytes()).await.unwrap();
        // Whoever answers without listening has also closed without listening.
        theirs.shutdown().await.unwrap();
        greet(&mut ours, &login).await
    }

    async fn refusal(answer: &str, login: Login) -> String {
        greeted_with(answer, login).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_full_server_is_not_taken_for_a_wrong_password() {
        let full = "-ERR max number of clients reached\r\n";
        assert_eq!(
            refusal(full, login(Some("secret"), 0)).await,
            "ERR max number of clients reached"
        );
        assert_eq!(refusal(full, login(None, 0)).await, "ERR max number of clients reached");
    }

    #[tokio::test]
    async fn a_refused_login_is_told_in_the_servers_words_and_without_the_password() {
        let wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
        let text = refusal(wrong, login(Some("hunter2"), 0)).await;
        assert_eq!(text, "WRONGPASS invalid username-password pair or user is disabled.");
        let missing = "-NOAUTH Authentication required.\r\n";
        assert_eq!(refusal(missing, login(None, 0)).await, "NOAUTH Authentication required.");
        let database = "+OK\r\n-ERR DB index is out of range\r\n";
        assert_eq!(
            refusal(database, login(Some("hunter2"), 99)).await,
            "ERR DB index is out of range"
        );
    }

    #[tokio::test]
    async fn a_server_that_is_loading_can_be_connected_to() {
        greeted_with("-LOADING Redis is loading the dataset in memory\r\n", login(None, 0))
            .await
            .unwrap();
        greeted_with("+PONG\r\n", login(None, 0)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_redis_is_found_out() {
        for answer in ["HTTP/1.1 400 Bad Request\r\n", "220 mail ready\r\n", "\r\n"] {
            let cause = greeted_with(answer, login(None, 0)).await.unwrap_err();
            assert!(matches!(cause, ConnectCause::Refused(_)), "{answer:?}: {cause}");
        }
        let endless = "x".repeat(LONGEST_LINE + 1);
        assert!(refusal(&endless, login(None, 0)).await.contains("not redis"));
        assert!(matches!(greeted_with("", login(None, 0)).await.unwrap_err(), ConnectCause::Io(_)));
    }
}
