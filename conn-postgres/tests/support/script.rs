//! A server that speaks just enough of PostgreSQL's protocol to answer as the test wants.
//!
//! It takes any user, and simple queries only. The text of a query says what becomes of it:
//! `error CODE` and `fatal CODE` fail so, `cut` closes the connection, `silence` gets no answer; all
//! others, BEGIN and COMMIT among them, succeed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of a connection before there is a session.
#[derive(Clone, Copy)]
pub enum Welcome {
    /// It becomes a session.
    Session,
    /// It becomes a session that answers simple queries, and is silent to prepared ones.
    SimpleSession,
    /// It is refused with this code.
    Refused(&'static str),
    /// It is accepted, and never answered.
    Silence,
    /// It is answered in another protocol.
    Garbage,
    /// It is closed at once.
    Closed,
}

pub struct Script {
    pub port: u16,
    executed: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Script {
    pub async fn with(welcome: Welcome) -> Self {
        Self::committing(welcome, "succeed").await
    }

    /// The same, with `commit` as the text that stands for COMMIT.
    pub async fn committing(welcome: Welcome, commit: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (executed, accepted, closed) =
            <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let counters = (Arc::clone(&executed), Arc::clone(&accepted), Arc::clone(&closed));
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (executed, accepted, closed) =
                    (Arc::clone(&counters.0), Arc::clone(&counters.1), Arc::clone(&counters.2));
                tokio::spawn(async move {
                    // A client that goes away ends its session with an error, which is none of the test's.
                    let _ = serve(socket, welcome, commit, &executed, &accepted).await;
                    closed.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self { port, executed, accepted, closed, task }
    }

    pub fn url(&self) -> String {
        format!("postgresql://user:hunter2@127.0.0.1:{}/app?sslmode=disable", self.port)
    }

    /// Queries received that are not about transactions.
    pub fn executed(&self) -> usize {
        self.executed.load(Ordering::Relaxed)
    }

    /// Connections accepted that did not come for a look.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections that neither side has closed.
    pub fn open(&self) -> usize {
        let closed = self.closed.load(Ordering::Relaxed);
        self.accepted() - closed
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut socket: TcpStream,
    welcome: Welcome,
    commit: &str,
    executed: &AtomicUsize,
    accepted: &AtomicUsize,
) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut is_first = true;
    loop {
        let length = socket.read_u32().await? as usize;
        let mut startup = vec![0; length - 4];
        socket.read_exact(&mut startup).await?;
        let asks = |number: u32| startup[..] == number.to_be_bytes();
        // For GSSAPI asks a look, and nobody else.
        let is_look = asks(80_877_104);
        if std::mem::take(&mut is_first) && !is_look {
            accepted.fetch_add(1, Ordering::Relaxed);
        }
        let is_answered = is_look && !matches!(welcome, Welcome::Silence);
        if !asks(80_877_103) && !is_answered {
            break;
        }
        // It was asked for TLS or for GSSAPI, neither of which it speaks.
        socket.write_all(b"N").await?;
    }
    match welcome {
        Welcome::Session | Welcome::SimpleSession => {}
        Welcome::Refused(code) => {
            socket.write_all(&failure("FATAL", code)).await?;
            return Ok(());
        }
        Welcome::Silence => return silence(socket).await,
        Welcome::Garbage => {
            socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
            return Ok(());
        }
        Welcome::Closed => return Ok(()),
    }
    socket.write_all(&message(b'R', &[0, 0, 0, 0])).await?;
    socket.write_all(&message(b'Z', b"I")).await?;
    let mut status = b'I';
    loop {
        let kind = socket.read_u8().await?;
        let length = socket.read_u32().await? as usize;
        let mut body = vec![0; length - 4];
        socket.read_exact(&mut body).await?;
        match (kind, welcome) {
            (b'Q', _) => {}
            (b'P', Welcome::SimpleSession) => return silence(socket).await,
            _ => return Ok(()),
        }
        let text = String::from_utf8(body).unwrap();
        let text = text.trim_end_matches('\0');
        if text.starts_with("SELECT pg_backend_pid()") {
            socket.write_all(&greeting()).await?;
            continue;
        }
        let (text, next) = match text {
            "BEGIN" => ("succeed", b'T'),
            "COMMIT" => (commit, b'I'),
            "ROLLBACK" => ("succeed", b'I'),
            text => {
                executed.fetch_add(1, Ordering::Relaxed);
                (text, status)
            }
        };
        match text.split_once(' ').unwrap_or((text, "")) {
            ("error", code) => {
                status = if next == b'I' { b'I' } else { b'E' };
                socket.write_all(&failure("ERROR", code)).await?;
            }
            ("fatal", code) => {
                socket.write_all(&failure("FATAL", code)).await?;
                return Ok(());
            }
            ("cut", _) => return Ok(()),
            ("silence", _) => return silence(socket).await,
            _ => {
                status = next;
                socket.write_all(&message(b'C', b"SELECT 0\0")).await?;
            }
        }
        socket.write_all(&message(b'Z', &[status])).await?;
    }
}

/// Hears all and says nothing, until the client goes away.
async fn silence(mut socket: TcpStream) -> std::io::Result<()> {
    tokio::io::copy(&mut socket, &mut tokio::io::sink()).await.map(drop)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

/// A process, no standby, not read-only, begun at the beginning of time, and looking after the connection.
fn greeting() -> Vec<u8> {
    const COLUMNS: [(&str, i32, i16, &str); 5] = [
        ("backend", 23, 4, "4711"),
        ("standby", 16, 1, "f"),
        ("read_only", 16, 1, "f"),
        ("since", 20, 8, "0"),
        ("watch", 25, -1, "1s"),
    ];
    let count = 5_u16.to_be_bytes();
    let (mut names, mut values) = (count.to_vec(), count.to_vec());
    for (name, kind, size, value) in COLUMNS {
        names.extend_from_slice(name.as_bytes());
        // No table, no column of it, no modifier, and in text.
        names.extend_from_slice(&[0; 7]);
        names.extend_from_slice(&kind.to_be_bytes());
        names.extend_from_slice(&size.to_be_bytes());
        names.extend_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);
        values.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        values.extend_from_slice(value.as_bytes());
    }
    let answer = [message(b'T', &names), message(b'D', &values), message(b'C', b"SELECT 1\0")];
    [answer.concat(), message(b'Z', b"I")].concat()
}

fn failure(severity: &str, code: &str) -> Vec<u8> {
    let text = match code {
        "0A000" => "cached plan must not change result type",
        _ => "as the script says",
    };
    message(b'E', format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0").as_bytes())
}
