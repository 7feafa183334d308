//! A second look at a server whose answer is late: on another socket, down to the protocol, and without a login.
//!
//! Asked whether it encrypts by GSSAPI, a server answers in one byte, before it counts connections and before
//! anybody logs in; PgBouncer does so too. The same question about TLS would leave a line in the log of every server
//! that has it, for each look. A kernel that goes on accepting for a stopped server answers nothing.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use resilience_core::{Address, Lookout, Silent};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::connector::AbortOnDrop;

/// Eight bytes in all, and the number that stands for the question.
const GSS_ENCRYPTION_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x30];

/// Addresses of one name that are asked.
const ADDRESSES: usize = 4;

/// How long one ask may take that nobody waits for.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// How long a look may take to find the address of a name that nobody has connected to yet.
const RESOLVE_LIMIT: Duration = Duration::from_millis(100);

/// Watches one endpoint.
#[derive(Debug)]
pub(crate) struct Look {
    lookout: Lookout,
    peer: Arc<Peer>,
}

impl Look {
    /// Looks at `address` from `runtime`, if there is one of our own.
    pub(crate) fn at(address: &Address, runtime: Option<Handle>) -> Self {
        let peer = Arc::new(Peer {
            address: address.clone(),
            runtime,
            known: Mutex::default(),
            resolving: AtomicBool::new(false),
        });
        let asked = Arc::clone(&peer);
        let lookout = Lookout::new(address.to_string(), move || Arc::clone(&asked).ask());
        Self { lookout, peer }
    }

    pub(crate) fn lookout(&self) -> &Lookout {
        &self.lookout
    }

    /// Runs `work` to its end, unless the server is seen to be silent.
    pub(crate) async fn watch<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let result = self.lookout.watch(work).await;
        let result = result.unwrap_or_else(|silent| Err(io::Error::from(silent).into()));
        if matches!(result, Ok(_) | Err(sqlx::Error::Database(_))) {
            self.lookout.answered();
        }
        result
    }

    /// Whether the server answers one ask now.
    pub(crate) async fn is_answered(&self) -> bool {
        matches!(timeout(ASK_LIMIT, Arc::clone(&self.peer).ask()).await, Ok(Ok(())))
    }

    /// Remembers where the name leads now, since a connection was opened there. Nobody waits for it: when the
    /// network is gone, it is too late to ask.
    pub(crate) fn remember(&self) {
        if self.peer.has_a_name() {
            drop(Arc::clone(&self.peer).resolve());
        }
    }
}

/// Whether an error says that the server was seen to be silent.
pub(crate) fn is_silent(error: &sqlx::Error) -> bool {
    let sqlx::Error::Io(error) = error else { return false };
    error.get_ref().and_then(|cause| cause.downcast_ref::<Silent>()).is_some()
}

/// Whom to ask.
#[derive(Debug)]
struct Peer {
    address: Address,
    runtime: Option<Handle>,
    /// Where the name led when a connection was last opened.
    known: Mutex<Vec<SocketAddr>>,
    /// One lookup at a time: where the name service is silent too, each holds a thread for long.
    resolving: AtomicBool,
}

impl Peer {
    async fn ask(self: Arc<Self>) -> io::Result<()> {
        let runtime = self.runtime.clone();
        match runtime {
            None => self.ask_here().await,
            Some(runtime) => {
                let mut task = AbortOnDrop(runtime.spawn(self.ask_here()));
                // A runtime that is gone says nothing of the server.
                (&mut task.0).await.unwrap_or(Ok(()))
            }
        }
    }

    async fn ask_here(self: Arc<Self>) -> io::Result<()> {
        #[cfg(unix)]
        if self.address.host().starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", self.address.host(), self.address.port());
            let asked = async { greet(tokio::net::UnixStream::connect(path).await?).await };
            return judge([asked.await]);
        }
        let addresses = self.addresses().await;
        let asks = addresses
            .iter()
            .take(ADDRESSES)
            .map(|address| async move { greet(TcpStream::connect(address).await?).await });
        let mut asks: FuturesUnordered<_> = asks.collect();
        let mut failed = Vec::new();
        while let Some(answer) = asks.next().await {
            match answer {
                Ok(()) => return Ok(()),
                Err(error) => failed.push(Err(error)),
            }
        }
        judge(failed)
    }

    fn has_a_name(&self) -> bool {
        let host = self.address.host();
        !host.starts_with('/') && host.parse::<std::net::IpAddr>().is_err()
    }

    /// None if they are not to be had now.
    async fn addresses(self: &Arc<Self>) -> Vec<SocketAddr> {
        if let Ok(ip) = self.address.host().parse() {
            return vec![SocketAddr::new(ip, self.address.port())];
        }
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known().is_empty()
            && let Some(resolving) = Arc::clone(self).resolve()
        {
            let _ = timeout(RESOLVE_LIMIT, resolving).await;
        }
        known()
    }

    /// Looks the name up, unless that is being done.
    fn resolve(self: Arc<Self>) -> Option<tokio::task::JoinHandle<()>> {
        let runtime = self.runtime.clone().or_else(|| Handle::try_current().ok())?;
        if self.resolving.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(runtime.spawn(async move {
            let resolving = Resolving(&self.resolving);
            if let Ok(found) = lookup_host((self.address.host(), self.address.port())).await {
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = found.collect();
            }
            drop(resolving);
        }))
    }
}

/// A lookup under way.
struct Resolving<'a>(&'a AtomicBool);

impl Drop for Resolving<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Asks on a new connection. One byte is an answer, and so is its end.
async fn greet(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(&GSS_ENCRYPTION_REQUEST).await?;
    stream.read(&mut [0]).await.map(drop)
}

/// What it means that none of the asks was answered: nobody is there only if each says so.
fn judge(asks: impl IntoIterator<Item = io::Result<()>>) -> io::Result<()> {
    let mut nobody = Ok(());
    for ask in asks {
        match ask {
            Err(error) if is_nobody(&error) => nobody = Err(error),
            // Who refuses is there; and what we lack ourselves says nothing.
            _ => return Ok(()),
        }
    }
    nobody
}

fn is_nobody(error: &io::Error) -> bool {
    use ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut};
    matches!(error.kind(), HostUnreachable | NetworkDown | NetworkUnreachable | TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kinds: &[ErrorKind]) -> bool {
        judge(kinds.iter().map(|kind| Err((*kind).into()))).is_err()
    }

    #[test]
    fn only_who_is_nowhere_at_all_is_nobody() {
        use ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable};
        assert!(failed(&[HostUnreachable]) && failed(&[NetworkUnreachable, HostUnreachable]));
        assert!(!failed(&[ConnectionRefused]) && !failed(&[ConnectionReset]));
        assert!(!failed(&[HostUnreachable, ConnectionRefused]), "the other address is there");
        assert!(!failed(&[]), "a name that nobody can look up now");
        let out_of_descriptors = io::Error::from_raw_os_error(24);
        assert!(judge([Err(out_of_descriptors)]).is_ok());
    }
}
