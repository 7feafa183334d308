//! Its pool: places, who waits for one, and the connections that lie idle.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use resilience_conformance::Setup;
use resilience_core::settings::{Problems, Quantity, Resilience};
use resilience_core::{
    Address, Blame, Deadline, Event, Pipeline, PipelineBuilder, RetryBudget, emit,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::line::{Conn, Line};
use super::{Error, Flaw};

pub(crate) struct Shared {
    pub(crate) setup: Setup,
    pub(crate) flaw: Option<Flaw>,
    pub(crate) pipeline: Pipeline,
    pub(crate) places: Semaphore,
    pub(crate) idle: Mutex<Vec<Line>>,
    pub(crate) lent: AtomicUsize,
    pub(crate) waiting: AtomicUsize,
    /// Those who are served in the wrong order.
    stack: Mutex<VecDeque<usize>>,
}

impl Shared {
    pub(crate) fn new(setup: &Setup, flaw: Option<Flaw>) -> Result<Self, String> {
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
        problems.check([("limit", Quantity::Count(&mut setup.limit, 1..=100))]);
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
            pipeline: pipeline
                .and_then(PipelineBuilder::build)
                .map_err(|error| error.to_string())?,
            setup,
            flaw,
            idle: Mutex::default(),
            lent: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            stack: Mutex::default(),
        })
    }

    pub(crate) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    pub(crate) fn address(&self) -> Option<Address> {
        match &self.setup.endpoints {
            Some(_) if self.has(Flaw::StaysAtTheFirstEndpoint) => Some(self.setup.address.clone()),
            Some(set) => set.borrow().candidates().first().map(|it| it.address.clone()),
            None => Some(self.setup.address.clone()),
        }
    }

    pub(crate) async fn acquire(self: &Arc<Self>, by: Deadline) -> Result<Conn, Error> {
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

    pub(crate) async fn look(&self) -> Result<(), Error> {
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
