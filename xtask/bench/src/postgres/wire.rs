//! A wire to the server that counts round trips: how often the client asks for an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::server::sockets;

/// A simple query, the end of an extended one, and a function call: each is answered by `ReadyForQuery`.
const ASKS: [u8; 3] = *b"QSF";

/// A port that leads to the server.
pub(super) struct Wire {
    /// Where it listens.
    pub(super) port: u16,
    round_trips: Arc<AtomicU64>,
}

impl Wire {
    /// A wire to a port of loopback.
    pub(super) fn to(target: u16) -> Self {
        let round_trips = Arc::<AtomicU64>::default();
        let counter = Arc::clone(&round_trips);
        let listener = sockets()
            .block_on(TcpListener::bind(("127.0.0.1", 0)))
            .expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        sockets().spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, target, Arc::clone(&counter)));
            }
        });
        Self { port, round_trips }
    }

    /// Round trips so far, without those of the start-up.
    pub(super) fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::Acquire)
    }
}

async fn carry(near: TcpStream, target: u16, counter: Arc<AtomicU64>) -> std::io::Result<()> {
    let far = TcpStream::connect(("127.0.0.1", target)).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_in, mut near_out), (mut far_in, far_out)) = (near.into_split(), far.into_split());
    let asks = tokio::spawn(async move { count(near_in, far_out, &counter).await });
    let answered = tokio::io::copy(&mut far_in, &mut near_out).await;
    asks.abort();
    answered.map(|_| ())
}

/// Hands messages on one by one, and counts those that ask for an answer.
async fn count(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    counter: &AtomicU64,
) -> std::io::Result<()> {
    let mut body = Vec::new();
    let length = from.read_u32().await?;
    body.resize(length as usize - 4, 0);
    from.read_exact(&mut body).await?;
    to.write_all(&[&length.to_be_bytes()[..], &body].concat()).await?;
    loop {
        let kind = from.read_u8().await?;
        let length = from.read_u32().await?;
        body.resize(length as usize - 4, 0);
        from.read_exact(&mut body).await?;
        if ASKS.contains(&kind) {
            counter.fetch_add(1, Ordering::Release);
        }
        to.write_all(&[&[kind], &length.to_be_bytes()[..], &body].concat()).await?;
    }
}
