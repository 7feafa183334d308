//! A connector in little, to a server of lines: whole, or with one flaw. Whoever writes a connector may begin here.

mod server;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use resilience_conformance::{
    Capability, Harness, Setup, Subject, Support, Told, Way, Work, unsupported,
};
use resilience_core::settings::{Problems, Quantity, Resilience};
use resilience_core::{
    Address, Backend, Blame, Call, CallError, Classify, Credentials, Deadline, Drained, Event,
    Health, HealthCheck, Pipeline, PoolStatus, Replay, RetryBudget, Verdict, emit,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

pub(crate) use server::Server;

/// What may be wrong with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Flaw {
    ConnectsAtOnce,
    ForgetsToCheckSettings,
    ShowsPasswordInDebug,
    ShowsPasswordInErrors,
    NamesNoEndpoint,
    RetriesLogins,
    BlamesTheServerForRefusals,
    BlamesTheServerForExhaustion,
    RepeatsEveryWrite,
    RepeatsNothing,
    HasNoAttemptTimeout,
    LendsWhatIsUnfinished,
    LosesPlaces,
    CountsNoPlaces,
    IsDeafToTheAcquireTimeout,
    ServesTheLastFirst,
    KeepsNothingIdle,
    KeepsWhatDied,
    StaysAtTheFirstEndpoint,
    DrainsWithoutWaiting,
    DrainsForEver,
    KeepsConnectionsAfterDrain,
    AsksHealthThroughTheCircuit,
    WaitsForHealthForEver,
    TellsOfNoReturn,
}

/// A server of its own, and what is wrong with the managers.
pub(crate) struct Fake {
    pub(crate) server: Server,
    pub(crate) flaw: Option<Flaw>,
    /// What it says that it lacks.
    pub(crate) denies: &'static [Capability],
}

impl Fake {
    pub(crate) async fn new(flaw: Option<Flaw>) -> Self {
        Self { server: Server::start().await, flaw, denies: &[] }
    }
}

#[async_trait]
impl Harness for Fake {
    fn server(&self) -> String {
        self.server.address.clone()
    }

    fn credentials(&self) -> Credentials {
        Credentials::new(server::NAME, server::PASSWORD)
    }

    fn support(&self, capability: Capability) -> Support {
        match capability {
            denied if self.denies.contains(&denied) => Support::Lacks("it is denied"),
            Capability::Pool | Capability::PoolEvents => Support::Gives,
            _ => Support::Lacks("it is little"),
        }
    }

    fn connect(&self, setup: &Setup) -> Result<Arc<dyn Subject>, String> {
        Ok(Arc::new(Manager(Arc::new(Shared::new(setup, self.flaw)?))))
    }

    fn shown(&self, setup: &Setup) -> Vec<String> {
        vec![format!("{:?}", Shared::new(setup, self.flaw).unwrap())]
    }

    async fn executed(&self, key: &str) -> u64 {
        self.server.executed(key)
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot connect to {endpoint}: {cause}")]
    Connect { endpoint: String, cause: String },
    #[error("{0}")]
    Login(String),
    #[error("no endpoint is known")]
    NoEndpoint,
    #[error("all {limit} connections are in use")]
    Exhausted { limit: u32, blame: Blame },
    #[error("closed")]
    Closed,
    #[error("connection lost: {0}")]
    Lost(#[from] io::Error),
    #[error("the server says {answer:?}")]
    Refused { answer: String, blame: Blame },
    #[error("as it was told")]
    Own,
}

struct Errors(Option<Flaw>);

impl Classify<Error> for Errors {
    fn verdict(&self, error: &Error) -> Verdict {
        match error {
            Error::Login(_) if self.0 == Some(Flaw::RetriesLogins) => {
                Verdict::service(Replay::Safe)
            }
            Error::Connect { .. } | Error::NoEndpoint => Verdict::service(Replay::Safe),
            Error::Login(_) | Error::Own => Verdict::caller(Replay::Never),
            Error::Closed => Verdict::local(Replay::Never),
            Error::Lost(_) => Verdict::service(Replay::IfIdempotent),
            Error::Exhausted { blame: Blame::Service, .. } => Verdict::service(Replay::Safe),
            Error::Exhausted { .. } => Verdict::local(Replay::Safe),
            Error::Refused { blame: Blame::Service, .. } => Verdict::service(Replay::Never),
            Error::Refused { .. } => Verdict::caller(Replay::Never),
        }
    }
}

struct Shared {
    setup: Setup,
    flaw: Option<Flaw>,
    pipeline: Pipeline,
    places: Semaphore,
    idle: Mutex<Vec<Line>>,
    lent: AtomicUsize,
    waiting: AtomicUsize,
    /// Those who are served in the wrong order.
    stack: Mutex<VecDeque<usize>>,
}

impl Shared {
    fn new(setup: &Setup, flaw: Option<Flaw>) -> Result<Self, String> {
        let mut setup = setup.clone();
        let mut resilience = Resilience {
            deadline: setup.deadline,
            attempt_timeout: setup.attempt_timeout,
            max_retries: setup.max_retries,
            base_delay: setup.base_delay,
            max_delay: setup.max_delay,
            fail_max: setup.fail_max,
            reset_timeout: setup.reset_timeout,
            success_threshold: setup.success_threshold,
            half_open_max_calls: 1,
        };
        if flaw == Some(Flaw::HasNoAttemptTimeout) {
            resilience.attempt_timeout = resilience.deadline;
        }
        let mut problems = Problems::by_field();
        problems.check(resilience.quantities("attempt_timeout"));
        problems.check([("limit", Quantity::Count(&mut setup.limit, 1..=100))].into_iter());
        match problems.finish() {
            Err(_) if flaw == Some(Flaw::ForgetsToCheckSettings) => {
                resilience.fail_max = 1;
                resilience.reset_timeout = Duration::from_secs(1);
            }
            checked => checked.map_err(|error| error.to_string())?,
        }
        if flaw == Some(Flaw::ConnectsAtOnce) {
            let address = (setup.address.host(), setup.address.port());
            drop(std::net::TcpStream::connect(address));
        }
        let pipeline =
            resilience.pipeline(&setup.name, setup.acquire_timeout, RetryBudget::default());
        Ok(Self {
            places: Semaphore::new(setup.limit as usize),
            pipeline: pipeline.and_then(|it| it.build()).map_err(|error| error.to_string())?,
            setup,
            flaw,
            idle: Mutex::default(),
            lent: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            stack: Mutex::default(),
        })
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn address(&self) -> Option<Address> {
        match &self.setup.endpoints {
            Some(_) if self.has(Flaw::StaysAtTheFirstEndpoint) => Some(self.setup.address.clone()),
            Some(set) => set.borrow().candidates().first().map(|it| it.address.clone()),
            None => Some(self.setup.address.clone()),
        }
    }

    async fn acquire(self: &Arc<Self>, by: Deadline) -> Result<Conn, Error> {
        let asked = Instant::now();
        self.place(by).await?;
        let mut conn = Conn { shared: Arc::clone(self), line: None, lent: None };
        let Some(address) = self.address() else { return Err(Error::NoEndpoint) };
        conn.line = {
            let mut idle = self.idle.lock().unwrap();
            idle.retain(|line| line.address == address);
            idle.pop()
        };
        if conn.line.is_none() {
            conn.line = Some(self.open(address, by).await?);
            let elapsed = asked.elapsed();
            emit(&Event::ConnectionCreated { pool: &self.setup.name, elapsed });
        }
        let waited = asked.elapsed();
        emit(&Event::ConnectionAcquired { pool: &self.setup.name, waited });
        self.lent.fetch_add(1, Ordering::Relaxed);
        conn.lent = Some(Instant::now());
        Ok(conn)
    }

    async fn place(&self, by: Deadline) -> Result<(), Error> {
        if self.has(Flaw::CountsNoPlaces) && !self.places.is_closed() {
            self.places.add_permits(1);
        }
        let patience = match self.has(Flaw::IsDeafToTheAcquireTimeout) {
            true => by.instant(),
            false => by.instant().min(Instant::now() + self.setup.acquire_timeout),
        };
        if let Ok(permit) = self.places.try_acquire() {
            permit.forget();
            return Ok(());
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _queued = Queued(self);
        let place = async {
            match self.has(Flaw::ServesTheLastFirst) {
                true => self.last_first().await,
                false => self.places.acquire().await,
            }
        };
        match timeout_at(patience, place).await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(())
            }
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(self.waited_in_vain()),
        }
    }

    fn waited_in_vain(&self) -> Error {
        emit(&Event::AcquireTimedOut { pool: &self.setup.name });
        if self.lent.load(Ordering::Relaxed) == 0 {
            return self.unreachable(&self.setup.address, "no answer");
        }
        let blame = match self.has(Flaw::BlamesTheServerForExhaustion) {
            true => Blame::Service,
            false => Blame::Local,
        };
        Error::Exhausted { limit: self.setup.limit, blame }
    }

    async fn last_first(
        &self,
    ) -> Result<tokio::sync::SemaphorePermit<'_>, tokio::sync::AcquireError> {
        let turn = {
            let mut stack = self.stack.lock().unwrap();
            let turn = stack.len();
            stack.push_back(turn);
            turn
        };
        loop {
            let permit = self.places.acquire().await?;
            {
                let mut stack = self.stack.lock().unwrap();
                if stack.back() == Some(&turn) {
                    stack.pop_back();
                    return Ok(permit);
                }
            }
            drop(permit);
            tokio::task::yield_now().await;
        }
    }

    async fn open(&self, address: Address, by: Deadline) -> Result<Line, Error> {
        let limit = self.setup.connect_timeout.min(by.remaining());
        let opening = Line::open(address.clone(), self.setup.credentials.clone());
        let opened = match &self.setup.runtime {
            Some(runtime) => runtime.spawn(timeout(limit, opening)).await.unwrap(),
            None => timeout(limit, opening).await,
        };
        match opened {
            Ok(Ok((line, true))) => Ok(line),
            Ok(Ok((_, false))) if self.has(Flaw::ShowsPasswordInErrors) => {
                let password = self.setup.credentials.expose_password().unwrap();
                Err(Error::Login(format!("the server refuses the password {password}")))
            }
            Ok(Ok((_, false))) => Err(Error::Login("the server refuses the password".into())),
            Ok(Err(error)) => Err(self.unreachable(&address, &error.to_string())),
            Err(_) => Err(self.unreachable(&address, "no answer")),
        }
    }

    fn unreachable(&self, address: &Address, cause: &str) -> Error {
        let endpoint = match self.has(Flaw::NamesNoEndpoint) {
            true => "the server".to_owned(),
            false => address.to_string(),
        };
        Error::Connect { endpoint, cause: cause.to_owned() }
    }

    async fn look(&self) -> Result<(), Error> {
        if self.places.is_closed() {
            return Err(Error::Closed);
        }
        let address = self.address().ok_or(Error::NoEndpoint)?;
        self.open(address, Deadline::within(self.setup.attempt_timeout)).await.map(drop)
    }
}

struct Queued<'a>(&'a Shared);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            f.debug_struct("Shared").field("name", &self.setup.name).finish_non_exhaustive();
        match self.has(Flaw::ShowsPasswordInDebug) {
            true => write!(f, "{:?}", self.setup.credentials.expose_password()),
            false => shown,
        }
    }
}

/// A connection to the server.
struct Line {
    stream: BufStream<TcpStream>,
    address: Address,
    /// A request is on its way, and its answer was not seen.
    busy: bool,
}

impl Line {
    async fn open(address: Address, who: Credentials) -> io::Result<(Self, bool)> {
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
struct Conn {
    shared: Arc<Shared>,
    line: Option<Line>,
    lent: Option<Instant>,
}

impl Conn {
    async fn perform(mut self, work: Work) -> Result<String, Error> {
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

#[derive(Debug)]
struct Manager(Arc<Shared>);

#[async_trait]
impl Subject for Manager {
    fn watched(&self) -> &dyn HealthCheck {
        self
    }

    async fn run(&self, way: Way, work: Work) -> Result<String, CallError<Told>> {
        let shared = &self.0;
        let call = match way {
            Way::Read if shared.has(Flaw::RepeatsNothing) => Call::write().named("read"),
            Way::Read => Call::read(),
            Way::Write if shared.has(Flaw::RepeatsEveryWrite) => Call::write_idempotent(),
            Way::Write => Call::write(),
            Way::WriteIdempotent => Call::write_idempotent(),
            Way::Call(call) => call,
            _ => return Err(unsupported(way)),
        };
        if matches!(work, Work::Glance) {
            return Err(unsupported(work));
        }
        let operation = |attempt: resilience_core::Attempt| {
            let work = work.clone();
            async move { shared.acquire(attempt.deadline).await?.perform(work).await }
        };
        let answer = shared.pipeline.run(call, &Errors(shared.flaw), operation).await;
        answer.map_err(|error| error.map_inner(|error| Told::of(&error)))
    }

    async fn health(&self) -> Health {
        self.check(Deadline::within(Duration::from_secs(2))).await
    }

    async fn warm_up(&self, deadline: Deadline) -> Result<(), Told> {
        self.0.acquire(deadline).await.map(drop).map_err(|error| Told::of(&error))
    }

    async fn drain(&self, deadline: Deadline) -> Drained {
        let shared = &self.0;
        let deadline = match shared.flaw {
            Some(Flaw::DrainsWithoutWaiting) => Deadline::within(Duration::ZERO),
            Some(Flaw::DrainsForEver) => Deadline::within(Duration::from_secs(60)),
            _ => deadline,
        };
        let drained = shared.pipeline.drain(deadline).await;
        shared.places.close();
        if !shared.has(Flaw::KeepsConnectionsAfterDrain) {
            shared.idle.lock().unwrap().clear();
        }
        drained
    }

    fn twin(&self) -> Arc<dyn Subject> {
        Arc::new(Self(Arc::clone(&self.0)))
    }
}

#[async_trait]
impl HealthCheck for Manager {
    async fn check(&self, deadline: Deadline) -> Health {
        let (started, shared) = (Instant::now(), &self.0);
        let look = async {
            match shared.flaw {
                Some(Flaw::AsksHealthThroughTheCircuit) => {
                    let asked = self.run(Way::Read, Work::Echo("health".into())).await;
                    asked.map(drop).map_err(|error| error.to_string())
                }
                _ => shared.look().await.map_err(|error| error.to_string()),
            }
        };
        let looked = match shared.flaw {
            Some(Flaw::WaitsForHealthForEver) => look.await,
            _ => {
                timeout_at(deadline.instant(), look).await.unwrap_or_else(|_| Err("silent".into()))
            }
        };
        match looked {
            Ok(()) => Health::healthy(started.elapsed()),
            Err(reason) => Health::unhealthy(started.elapsed(), reason),
        }
    }

    fn pool_status(&self) -> Option<PoolStatus> {
        let limit = self.0.setup.limit as usize;
        Some(PoolStatus {
            in_use: self.0.lent.load(Ordering::Relaxed),
            idle: self.0.idle.lock().unwrap().len(),
            max: limit,
            waiting: self.0.waiting.load(Ordering::Relaxed),
            idle_max: limit,
            idle_min: 0,
        })
    }

    fn pipeline(&self) -> Option<Pipeline> {
        Some(self.0.pipeline.clone())
    }

    fn backend(&self) -> Option<Backend> {
        let address = self.0.address()?;
        Some(Backend {
            system: "lines",
            address: Some(address.host().to_owned().into()),
            port: Some(address.port()),
        })
    }
}
