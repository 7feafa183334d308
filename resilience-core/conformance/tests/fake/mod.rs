//! A connector in little, to a server of lines: whole, or with one flaw. Whoever writes a connector may begin here.

mod line;
mod manager;
mod pool;
mod server;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use resilience_conformance::{Capability, Harness, Setup, Subject, Support};
use resilience_core::{Blame, Classify, Credentials, Replay, Verdict};

use manager::Manager;
use pool::Shared;
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
pub(crate) enum Error {
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

pub(crate) struct Errors(pub(crate) Option<Flaw>);

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
