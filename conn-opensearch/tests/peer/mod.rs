//! A peer that speaks as much HTTP as a test scripts, and writes down what it was asked.

#![allow(dead_code, reason = "each test file uses its part")]

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use conn_opensearch::{OpenSearchConfig, OpenSearchConfigBuilder};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// What the peer was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: String,
}

/// What the peer does about it.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A status and a body of JSON.
    Json(u16, String),
    /// A whole response, to the letter.
    Raw(String),
    /// Nothing: the connection is closed.
    Close,
    /// Nothing, ever.
    Silence,
}

impl Reply {
    pub(crate) fn ok(body: impl ToString) -> Self {
        Self::Json(200, body.to_string())
    }

    pub(crate) fn status(code: u16) -> Self {
        Self::Json(
            code,
            format!(r#"{{"error":{{"type":"scripted","reason":"as told"}},"status":{code}}}"#),
        )
    }
}

/// A scripted peer on loopback; it is gone when this is dropped, connections and all.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    connections: Mutex<Vec<AbortHandle>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

type Script = Arc<dyn Fn(&Asked, usize) -> Reply + Send + Sync>;

impl Peer {
    /// A peer that answers each request as `script` says of it and its number, from 0.
    pub(crate) async fn start(
        script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script).await
    }

    /// The same at an address that is known to be free.
    pub(crate) async fn start_at(
        address: SocketAddr,
        script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(address, None, Arc::new(script)).await
    }

    /// The same behind TLS.
    pub(crate) async fn start_tls(
        acceptor: TlsAcceptor,
        script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen("127.0.0.1:0".parse().unwrap(), Some(acceptor), Arc::new(script)).await
    }

    async fn listen(address: SocketAddr, tls: Option<TlsAcceptor>, script: Script) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = tokio::spawn(accept(listener, tls, Arc::clone(&shared), script));
        Self { address, shared, accepting: accepting.abort_handle() }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.shared.asked.lock().unwrap().len()
    }

    /// Connections made so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// The most requests that were with it at once.
    pub(crate) fn busiest(&self) -> usize {
        self.shared.busiest.load(Ordering::SeqCst)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.connections.lock().unwrap().iter().for_each(AbortHandle::abort);
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    script: Script,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let serving = serve(stream, tls.clone(), Arc::clone(&shared), Arc::clone(&script));
        shared.connections.lock().unwrap().push(tokio::spawn(serving).abort_handle());
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>, script: Script) {
    let _open = Counted::new(&shared, |shared| &shared.open);
    match tls {
        None => converse(stream, &shared, &script).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                converse(stream, &shared, &script).await;
            }
        }
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    shared: &Arc<Shared>,
    script: &Script,
) {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read(&mut stream).await {
        let busy = Counted::new(shared, |shared| &shared.busy);
        shared.busiest.fetch_max(shared.busy.load(Ordering::SeqCst), Ordering::SeqCst);
        let number = {
            let mut all = shared.asked.lock().unwrap();
            all.push(asked.clone());
            all.len() - 1
        };
        // Long enough for other requests to overlap, if they may.
        tokio::task::yield_now().await;
        let text = match script(&asked, number) {
            Reply::Json(code, body) => format!(
                "HTTP/1.1 {code} scripted\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ),
            Reply::Raw(text) => text,
            Reply::Close => return,
            Reply::Silence => std::future::pending().await,
        };
        drop(busy);
        if stream.write_all(text.as_bytes()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        // A response without a length ends with the connection.
        if !text.contains("content-length:") {
            return;
        }
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked { method, path, authorization, body: String::from_utf8(body).ok()? })
}

struct Counted {
    shared: Arc<Shared>,
    counter: fn(&Shared) -> &AtomicUsize,
}

impl Counted {
    fn new(shared: &Arc<Shared>, counter: fn(&Shared) -> &AtomicUsize) -> Self {
        counter(shared).fetch_add(1, Ordering::SeqCst);
        Self { shared: Arc::clone(shared), counter }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.shared).fetch_sub(1, Ordering::SeqCst);
    }
}

/// An address where nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Settings with delays that suit a test.
pub(crate) fn quick(url: impl Into<String>) -> OpenSearchConfigBuilder {
    OpenSearchConfig::builder(url)
        .base_delay(Duration::from_millis(1))
        .max_delay(Duration::from_millis(5))
        .timeout(Duration::from_secs(10))
        .deadline(Duration::from_secs(20))
}

/// The URLs of several peers, as one setting.
pub(crate) fn urls(peers: &[&Peer]) -> String {
    peers.iter().map(|peer| peer.url()).collect::<Vec<_>>().join(",")
}

/// Waits until `condition` holds, 10 s at the most.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Polls `future` up to `polls` times, then drops it; says whether it ended before.
pub(crate) async fn poll_n<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}
