//! What is known of a connection beyond what the driver tells: what runs on it, and what that may have left behind.
//!
//! sqlx shows no reliable sign of an operation whose future was dropped, so each one is marked before it
//! begins and unmarked when its end was seen.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use resilience_core::Deadline;
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use tokio::time::{Instant, timeout};

use crate::cancel::Cut;
use crate::classify::{Context, Phase, is_read_only, is_stale_plan};
use crate::endpoints::Origin;
use crate::error::{Error, database_error};
use crate::greeting::Greeting;
use crate::look::{Look, is_silent};
use crate::statement::{Kind, Statement};

/// What is known of a connection beyond what the driver tells.
pub(crate) struct Track {
    pub(crate) origin: Arc<Origin>,
    epoch: u64,
    pub(crate) greeting: Greeting,
    dies_at: Instant,
    pub(crate) idle_since: Instant,
    /// Something was started and its end was not seen.
    pub(crate) busy: bool,
    /// The connection broke.
    lost: bool,
    /// And that because nobody answered any more.
    silenced: bool,
    pub(crate) in_transaction: bool,
    /// A statement of the open transaction failed.
    pub(crate) failed: bool,
    /// Not to be handed on.
    pub(crate) retired: bool,
    /// Since it was borrowed, something outside an open transaction may have taken effect.
    pub(crate) effect: bool,
    /// The last error, and where it struck.
    pub(crate) struck: Option<Strike>,
    /// Time for each operation, where no pipeline limits it.
    pub(crate) limit: Option<Duration>,
}

impl Track {
    pub(crate) fn new(
        origin: Arc<Origin>,
        epoch: u64,
        greeting: Greeting,
        dies_at: Instant,
    ) -> Self {
        Self {
            origin,
            epoch,
            greeting,
            dies_at,
            idle_since: Instant::now(),
            busy: false,
            lost: false,
            silenced: false,
            in_transaction: false,
            failed: false,
            retired: false,
            effect: false,
            struck: None,
            limit: None,
        }
    }

    /// As errors and logs name where it leads.
    pub(crate) fn endpoint(&self) -> &str {
        &self.origin.label
    }

    /// Tells whether a server that does not answer is slow or silent.
    pub(crate) fn look(&self) -> &Look {
        &self.origin.look
    }

    /// Where it leads, if nobody answers there any more.
    pub(crate) fn silent_origin(&self) -> Option<&Arc<Origin>> {
        self.silenced.then_some(&self.origin)
    }

    /// Whether the connection was seen to break.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    /// What the server may be doing for it, if nobody waits for that any more. Where the connection broke, the
    /// server has noticed or is gone.
    pub(crate) fn cut(&self) -> Option<Cut> {
        let is_under_way = self.busy && !self.lost;
        is_under_way.then(|| Cut::new(&self.origin, self.greeting)).flatten()
    }

    /// Forgets the last borrower.
    pub(crate) fn renew(&mut self, now: Instant) {
        (self.effect, self.struck, self.limit, self.idle_since) = (false, None, None, now);
    }

    /// Whether the connection itself, whoever used it, may be used on.
    pub(crate) fn is_current(&self, now: Instant) -> bool {
        self.origin.is_current(self.epoch) && now < self.dies_at
    }

    /// Runs `work` under the mark, and learns from how it ends.
    pub(crate) async fn watch<T>(
        &mut self,
        statement: Statement,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        self.start(statement)?;
        let result = self.limited(work).await;
        self.settle(statement, result.as_ref().err());
        result
    }

    /// Marks the beginning of `statement`, unless it may not run.
    pub(crate) fn start(&mut self, statement: Statement) -> Result<(), sqlx::Error> {
        if self.lost {
            let gone = io::Error::new(io::ErrorKind::NotConnected, "the connection was lost");
            return Err(gone.into());
        }
        if self.busy {
            self.struck = None;
            return Err(Error::Unfinished.into());
        }
        match statement.kind {
            Kind::Transaction(word) if self.in_transaction || !statement.several => {
                return Err(Error::TransactionControl(word).into());
            }
            Kind::Savepoint if !self.in_transaction && !statement.several => {
                return Err(Error::TransactionControl("SAVEPOINT outside a transaction").into());
            }
            Kind::Plain | Kind::Savepoint => {}
            Kind::Session | Kind::Transaction(_) => self.retired = true,
        }
        self.busy = true;
        Ok(())
    }

    /// Learns from the end of `statement`.
    pub(crate) fn settle(&mut self, statement: Statement, error: Option<&sqlx::Error>) {
        let at_large = !self.in_transaction;
        let Some(error) = error else {
            self.busy = false;
            // In a failed transaction, only the return to a savepoint succeeds.
            (self.failed, self.struck) = (false, None);
            self.effect |= at_large && statement.executes;
            return;
        };
        let phase = if at_large { Phase::Autocommit } else { Phase::Transaction };
        // What it had done before it failed counts as done earlier.
        self.effect |= at_large && statement.may_commit_inside;
        self.fail(phase, error);
        self.effect |= at_large && statement.executes && self.busy;
        // A statement that was refused leaves its transaction failed; one that was never sent does not.
        self.failed |= !at_large && error.as_database_error().is_some();
    }

    /// Runs `work`, which begins or ends a transaction and does nothing else.
    pub(crate) async fn end(
        &mut self,
        phase: Phase,
        work: impl Future<Output = Result<(), sqlx::Error>>,
    ) -> Result<(), sqlx::Error> {
        self.start(Statement::harmless())?;
        let result = self.limited(work).await;
        match &result {
            Ok(()) => self.busy = false,
            Err(error) => {
                self.fail(phase, error);
                self.effect |= phase == Phase::Commit && self.busy;
            }
        }
        result
    }

    async fn limited<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let work = self.look().watch(work);
        let Some(limit) = self.limit else { return work.await };
        let limit = Deadline::within(limit).inherited().remaining();
        timeout(limit, work).await.unwrap_or_else(|_| Err(silence(limit)))
    }

    fn fail(&mut self, phase: Phase, error: &sqlx::Error) {
        let unsent = matches!(error, sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_));
        let phase = if unsent { Phase::Unsent } else { phase };
        // What the operation itself may have done is in its phase.
        let context =
            Context { phase, effect: self.effect, hurried: false, stale: false, one_host: false };
        let endpoint = Arc::clone(&self.origin.label);
        self.struck = Some(Strike { mark: mark(error), context, endpoint });
        match harm(error) {
            Harm::None => self.busy = false,
            Harm::Session => {}
            Harm::Endpoint => {
                self.lost = true;
                self.origin.lost(self.epoch);
            }
        }
        if is_silent(error) {
            self.silenced = true;
            // To notice it takes a while, which the next connect need not spend if there is another endpoint.
            self.origin.demote(true);
        }
        if is_stale_plan(error) {
            self.retired = true;
        }
        if is_read_only(error) {
            // Another endpoint may be the one that takes writes.
            self.origin.demote(true);
            self.origin.lost(self.epoch);
        }
    }

    /// `error` with what is known of where it struck.
    pub(crate) fn explain(&self, error: sqlx::Error) -> Error {
        let struck = self.struck.as_ref();
        let context = struck.map_or(Context::UNKNOWN, |strike| strike.context_of(&error));
        let endpoint = struck.and_then(|strike| strike.endpoint_of(&error));
        Error::from(error).at(context).told_by(endpoint)
    }
}

/// That no answer came within `limit`.
pub(crate) fn silence(limit: Duration) -> sqlx::Error {
    // What is left of a deadline has nanoseconds; nobody wants to read them.
    let limit = Duration::from_millis(limit.as_micros().div_ceil(1000) as u64);
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")).into()
}

/// Whether it was we who waited no longer: the system's own timeout has a number.
pub(crate) fn is_silence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

/// What an error does to the connection.
enum Harm {
    /// The connection is as good as before.
    None,
    /// Nobody knows what comes next on it.
    Session,
    /// It broke: others to the same endpoint may have, too.
    Endpoint,
}

fn harm(error: &sqlx::Error) -> Harm {
    use sqlx::Error as E;
    match error {
        E::Database(_) => match database_error(error).map(PgDatabaseError::severity) {
            Some(PgSeverity::Fatal | PgSeverity::Panic) => Harm::Endpoint,
            Some(_) => Harm::None,
            None => Harm::Session,
        },
        E::Encode(_) | E::InvalidArgument(_) | E::RowNotFound | E::TypeNotFound { .. } => {
            Harm::None
        }
        // Our own timeout: the endpoint may be well, and the statement slow.
        E::Io(io) if is_silence(io) && !is_silent(error) => Harm::Session,
        E::Io(_) => Harm::Endpoint,
        _ => Harm::Session,
    }
}

/// An error that struck on a connection.
#[derive(Clone, Debug)]
pub(crate) struct Strike {
    mark: (std::mem::Discriminant<sqlx::Error>, String),
    context: Context,
    endpoint: Arc<str>,
}

impl Strike {
    /// The context, if `error` is the one that struck.
    fn context_of(&self, error: &sqlx::Error) -> Context {
        if mark(error) == self.mark { self.context } else { Context::UNKNOWN }
    }

    /// The endpoint, if `error` is the one that struck.
    fn endpoint_of(&self, error: &sqlx::Error) -> Option<Arc<str>> {
        (mark(error) == self.mark).then(|| Arc::clone(&self.endpoint))
    }
}

/// What tells one error from another.
fn mark(error: &sqlx::Error) -> (std::mem::Discriminant<sqlx::Error>, String) {
    let code = database_error(error).map(|answer| answer.code().to_owned());
    (std::mem::discriminant(error), code.unwrap_or_default())
}

/// How a closure's connection fared, for whoever judges the closure's error after the connection is gone.
#[derive(Debug, Default)]
pub(crate) struct Report(Mutex<Option<Strike>>);

impl Report {
    pub(crate) fn write(&self, track: &Track) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&track.struck);
    }

    /// Where `error` struck; the worst, if that was elsewhere, or if the connection is still out.
    pub(crate) fn context_of(&self, error: &sqlx::Error) -> Context {
        let struck = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        struck.as_ref().map_or(Context::UNKNOWN, |strike| strike.context_of(error))
    }

    /// The endpoint from which `error` came, if it struck on the connection.
    pub(crate) fn endpoint_of(&self, error: &sqlx::Error) -> Option<Arc<str>> {
        let struck = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        struck.as_ref().and_then(|strike| strike.endpoint_of(error))
    }
}
