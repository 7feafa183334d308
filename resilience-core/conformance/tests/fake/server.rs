//! A server of lines: a request a line, an answer a line.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// Who is let in.
pub(crate) const NAME: &str = "app";
pub(crate) const PASSWORD: &str = "right-hunter2";

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    counts: Arc<Mutex<HashMap<String, u64>>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Self { address, counts: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        server
    }

    pub(crate) fn executed(&self, key: &str) -> u64 {
        self.counts.lock().unwrap().get(key).copied().unwrap_or_default()
    }

    async fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = BufStream::new(stream);
        let mut line = String::new();
        while stream.read_line(&mut line).await? > 0 {
            let answer = self.answer(line.trim_end()).await;
            stream.write_all(format!("{answer}\n").as_bytes()).await?;
            stream.flush().await?;
            line.clear();
        }
        Ok(())
    }

    /// `=` and the value, or `!` and why not.
    async fn answer(&self, request: &str) -> String {
        let (command, rest) = request.split_once(' ').unwrap_or((request, ""));
        match command {
            "LOGIN" if rest == format!("{NAME} {PASSWORD}") => "=".into(),
            "LOGIN" => "!login".into(),
            "ECHO" => format!("={rest}"),
            "COUNT" => {
                *self.counts.lock().unwrap().entry(rest.to_owned()).or_default() += 1;
                "=counted".into()
            }
            "TAKE" => {
                // A slow server, as a request wishes.
                let wish = async { sleep(Duration::from_millis(rest.parse().unwrap())).await };
                wish.await;
                "=".into()
            }
            _ => "!wrong".into(),
        }
    }
}
