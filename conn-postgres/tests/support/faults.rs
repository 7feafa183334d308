//! A peer that goes wrong on the way back: it resets, says nothing, says it slowly, or leaves in mid-sentence.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::sleep;

/// What becomes of the server's answers, on connections that are open and on new ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// The connection is reset instead.
    Resets,
    /// They are swallowed. The peer's kernel goes on accepting.
    HalfOpen,
    /// They come a byte at a time, one every 50 ms.
    Slow,
    /// The connection is closed in the middle of one.
    Truncates,
}

/// A port that leads to a server, by way of a fault.
pub struct Faulty {
    pub port: u16,
    fault: watch::Sender<Fault>,
    task: tokio::task::JoinHandle<()>,
}

impl Faulty {
    pub async fn before(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fault, watched) = watch::channel(Fault::None);
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(&target).await.unwrap();
                near.set_nodelay(true).unwrap();
                let ((mut from_near, to_near), (from_far, mut to_far)) =
                    (near.into_split(), far.into_split());
                let watched = watched.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy(&mut from_near, &mut to_far) => {}
                        _ = answer(from_far, to_near, watched) => {}
                    }
                });
            }
        });
        Self { port, fault, task }
    }

    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    pub fn url(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    fault: watch::Receiver<Fault>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let answer = &buffer[..length];
        let fault = *fault.borrow();
        match fault {
            _ if answer.is_empty() => return Ok(()),
            Fault::None => to.write_all(answer).await?,
            Fault::Resets => {
                to.as_ref().set_zero_linger()?;
                // Dropped, it would say goodbye first.
                to.forget();
                return Ok(());
            }
            Fault::HalfOpen => return std::future::pending().await,
            Fault::Slow => {
                for byte in answer {
                    sleep(Duration::from_millis(50)).await;
                    to.write_all(&[*byte]).await?;
                }
            }
            Fault::Truncates => return to.write_all(&answer[..length / 2]).await,
        }
    }
}
