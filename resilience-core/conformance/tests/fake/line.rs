//! Its connections: one request and one answer at a time, and the way back to the pool.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use resilience_conformance::Work;
use resilience_core::{Address, Blame, Credentials, Event, emit};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::pool::Shared;
use super::{Error, Flaw};

/// A connection to the server.
pub(crate) struct Line {
    stream: BufStream<TcpStream>,
    pub(crate) address: Address,
    /// A request is on its way, and its answer was not seen.
    busy: bool,
}

impl Line {
    pub(crate) async fn open(address: Address, who: Credentials) -> io::Result<(Self, bool)> {
        let stream = TcpStream::connect((address.host(), address.port())).await?;
        let mut line = Self { stream: BufStream::new(stream), address, busy: false };
        let (name, password) = (who.username().unwrap(), who.expose_password().unwrap());
        let answer = line.ask(&format!("LOGIN {name} {password}")).await?;
        Ok((line, answer == "="))
    }

    async fn ask(&mut self, request: &str) -> io::Result<String> {
        self.busy = true;
        self.stream.write_all(format!("{request}\n").as_bytes()).await?;
        self.stream.flush().await?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).await?;
        match answer.strip_suffix('\n') {
            Some(answer) => {
                self.busy = false;
                Ok(answer.to_owned())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A place, and what is in it.
pub(crate) struct Conn {
    pub(crate) shared: Arc<Shared>,
    pub(crate) line: Option<Line>,
    pub(crate) lent: Option<Instant>,
}

impl Conn {
    pub(crate) async fn perform(mut self, work: Work) -> Result<String, Error> {
        let (request, then) = match work {
            Work::Nothing => return Ok(String::new()),
            Work::Echo(text) => (format!("ECHO {text}"), Ok(())),
            Work::Count(key) => (format!("COUNT {key}"), Ok(())),
            Work::CountAndFail(key) => (format!("COUNT {key}"), Err(Error::Own)),
            Work::Take(time) => (format!("TAKE {}", time.as_millis()), Ok(())),
            Work::Hold(gate) => {
                gate.pass().await;
                return Ok(String::new());
            }
            Work::Panic => panic!("as it was told"),
            _ => ("REFUSE".to_owned(), Ok(())),
        };
        let line = self.line.as_mut().expect("it was opened");
        let asked = line.ask(&request).await;
        if asked.is_err() && !self.shared.has(Flaw::KeepsWhatDied) {
            self.shared.idle.lock().unwrap().clear();
        }
        let answer = asked?;
        match answer.strip_prefix('=') {
            Some(value) => then.map(|()| value.to_owned()),
            None => {
                let blame = match self.shared.has(Flaw::BlamesTheServerForRefusals) {
                    true => Blame::Service,
                    false => Blame::Caller,
                };
                Err(Error::Refused { answer, blame })
            }
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let shared = &self.shared;
        let fit = |line: &Line| {
            let finished = !line.busy || shared.has(Flaw::LendsWhatIsUnfinished);
            let closed = shared.places.is_closed() && !shared.has(Flaw::KeepsConnectionsAfterDrain);
            finished && !closed && !shared.has(Flaw::KeepsNothingIdle)
        };
        let lost = self.line.as_ref().is_some_and(|line| line.busy);
        if let Some(line) = self.line.take().filter(fit)
            && shared.address().as_ref() == Some(&line.address)
        {
            shared.idle.lock().unwrap().push(line);
        }
        if let Some(since) = self.lent {
            shared.lent.fetch_sub(1, Ordering::Relaxed);
            if !shared.has(Flaw::TellsOfNoReturn) {
                let used = since.elapsed();
                emit(&Event::ConnectionReleased { pool: &shared.setup.name, used });
            }
        }
        if !(lost && shared.has(Flaw::LosesPlaces)) {
            shared.places.add_permits(1);
        }
    }
}
