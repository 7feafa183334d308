//! Why a call to the database did not succeed.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use resilience_core::{CallError, Name, RotationError};
use sqlx::postgres::PgDatabaseError;

use crate::classify::Context;
use crate::cure;
use crate::holders::Holder;
use crate::pgbouncer::hint;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a call to the database did not succeed.
///
/// It converts from and to [`sqlx::Error`], so `?` works on sqlx's results inside closures, and on ours
/// in functions that return sqlx's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// All connections are lent out, and none came back in time.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// Waiting for a connection took so much of the attempt that the rest says nothing about the server.
    #[error("no answer in what {waited:?} of waiting for a connection left of the attempt")]
    Starved {
        /// How long this borrower waited.
        waited: Duration,
    },
    /// No connection could be opened.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// There were no credentials yet to connect with, and their provider gave none.
    #[error("cannot connect without credentials: {0}")]
    Credentials(RotationError),
    /// The manager is being drained: what runs may end, and nothing new begins.
    #[error("the pool {pool:?} is draining and lends nothing new; ask another instance")]
    Draining {
        /// The pool's name.
        pool: Name,
    },
    /// The manager was drained: its connections are closed.
    #[error("the pool {pool:?} was drained and is closed; connect a new manager")]
    Closed {
        /// The pool's name.
        pool: Name,
    },
    /// The call was not made: the circuit is open, or the deadline has passed.
    #[error(transparent)]
    Rejected(Box<CallError<Infallible>>),
    /// The driver's or the server's own error.
    #[error(transparent)]
    Sql(SqlError),
    /// COMMIT was asked for after a statement of the transaction had failed: nothing was committed.
    #[error("a statement of the transaction had failed, so it was rolled back and not committed")]
    Aborted,
    /// The connection still works on a statement whose future was dropped; it goes no further.
    #[error("an earlier statement on this connection was abandoned; take another connection")]
    Unfinished,
    /// A statement that would begin or end a transaction behind the pool's back.
    #[error("{0} as a statement is refused; use begin(), commit() and rollback()")]
    TransactionControl(&'static str),
    /// The application's own error, carried out of a closure.
    #[error("{0}")]
    Application(BoxError),
}

impl Error {
    /// The application's own error, so that a closure can end with it: a transaction is rolled back,
    /// nothing is repeated, and the breaker takes it for an answer.
    pub fn application(error: impl Into<BoxError>) -> Self {
        Self::Application(error.into())
    }

    /// The application's own error, if it is one of type `E`.
    #[must_use]
    pub fn application_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        match self {
            Self::Application(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// The driver's error, if it is one.
    #[must_use]
    pub fn sqlx(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Sql(error) => Some(&error.error),
            Self::Unreachable(unreachable) => Some(&unreachable.error),
            _ => None,
        }
    }

    /// The SQLSTATE of the server's answer, if that is what it is.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.sqlx().and_then(database_error).map(PgDatabaseError::code)
    }

    /// A call's error as this type.
    pub(crate) fn from_call(error: CallError<Self>) -> Self {
        match error {
            CallError::Inner(failed) => failed.error.spent(),
            refused => {
                let refused = refused.map_inner(|_| unreachable!("the inner error is taken above"));
                Self::Rejected(Box::new(refused))
            }
        }
    }

    /// The same error with what is known of where it struck, unless that is known already.
    pub(crate) fn at(mut self, context: Context) -> Self {
        if let Self::Sql(sql) = &mut self {
            sql.context.get_or_insert(context);
        }
        self
    }

    /// The same error with the endpoint that it came from, where that is known.
    pub(crate) fn told_by(mut self, endpoint: Option<Arc<str>>) -> Self {
        if let Self::Sql(sql) = &mut self {
            sql.endpoint = sql.endpoint.take().or(endpoint);
        }
        self
    }

    /// The same error after a pipeline has spent its attempts: one around it does not repeat it.
    fn spent(mut self) -> Self {
        match &mut self {
            Self::Exhausted(exhausted) => exhausted.spent = true,
            Self::Unreachable(unreachable) => unreachable.spent = true,
            _ => {}
        }
        self
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Exhausted(_) | Self::Starved { .. } => io::ErrorKind::TimedOut,
            Self::Unreachable(_)
            | Self::Credentials(_)
            | Self::Draining { .. }
            | Self::Closed { .. } => io::ErrorKind::NotConnected,
            _ => io::ErrorKind::Other,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let error = match error {
            sqlx::Error::Io(error) => match error.downcast() {
                Ok(ours) => return ours,
                Err(error) => sqlx::Error::Io(error),
            },
            error => error,
        };
        Self::Sql(SqlError { error, context: None, endpoint: None })
    }
}

/// What sqlx has no word for travels inside [`sqlx::Error::Io`], and comes out again unchanged.
impl From<Error> for sqlx::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Sql(SqlError { error, .. }) => error,
            other => Self::Io(io::Error::new(other.kind(), other)),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for Error {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        sqlx::Error::from(error).into()
    }
}

/// All connections are lent out, and none came back in time.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "pool {pool:?} is exhausted: {in_use} of {limit} connections are in use and none came back within {waited:?}{}; \
     hold connections for less long, or raise pool_size or max_overflow",
    Longest(.longest)
)]
#[non_exhaustive]
pub struct Exhausted {
    /// The pool's name.
    pub pool: Name,
    /// Connections that may be open at once.
    pub limit: usize,
    /// Connections lent out when the wait ended.
    pub in_use: usize,
    /// How long the caller waited.
    pub waited: Duration,
    /// Who had held a connection for longest when the wait ended.
    pub longest: Option<Holder>,
    pub(crate) spent: bool,
}

/// No connection could be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot connect to {endpoint}: {}{}{}", Cause(.error), Cure(.error), Passed(.passed))]
#[non_exhaustive]
pub struct Unreachable {
    /// The last address that was tried.
    pub endpoint: Arc<str>,
    /// Why that failed.
    pub error: Arc<sqlx::Error>,
    /// The addresses that were tried before it, and why they failed.
    pub(crate) passed: Vec<(Arc<str>, Arc<sqlx::Error>)>,
    pub(crate) spent: bool,
}

impl Unreachable {
    pub(crate) fn new(endpoint: impl Into<Arc<str>>, error: sqlx::Error) -> Self {
        Self::shared(endpoint.into(), Arc::new(error))
    }

    pub(crate) fn shared(endpoint: Arc<str>, error: Arc<sqlx::Error>) -> Self {
        Self { endpoint, error, passed: Vec::new(), spent: false }
    }

    /// There is nowhere to connect to.
    pub(crate) fn nowhere() -> Self {
        let nowhere = io::Error::new(io::ErrorKind::NotFound, "there are no endpoints");
        Self::new("any endpoint", nowhere.into())
    }

    /// The same, after `earlier` had failed.
    pub(crate) fn after(mut self, earlier: Option<Self>) -> Self {
        if let Some(Self { endpoint, error, mut passed, .. }) = earlier {
            // One that was asked twice is told once.
            passed.push((endpoint, error));
            passed.retain(|(endpoint, _)| *endpoint != self.endpoint);
            self.passed = passed;
        }
        self
    }
}

/// The driver's or the server's own error, and where it struck.
#[derive(Debug)]
pub struct SqlError {
    pub(crate) error: sqlx::Error,
    pub(crate) context: Option<Context>,
    pub(crate) endpoint: Option<Arc<str>>,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Cause(&self.error).fmt(f)?;
        if let Some(endpoint) = &self.endpoint {
            write!(f, " at {endpoint}")?;
        }
        match database_error(&self.error).and_then(PgDatabaseError::hint) {
            Some(hint) => write!(f, "; {}", hint.trim_end_matches('.')),
            None => Ok(()),
        }
    }
}

impl std::error::Error for SqlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// The server's answer in an error of the driver.
pub(crate) fn database_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// An error of the driver in one line: the server's message with its SQLSTATE, or the cause itself.
struct Cause<'a>(&'a sqlx::Error);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (database_error(self.0), self.0) {
            (Some(answer), _) => {
                let (message, code) = (answer.message(), answer.code());
                write!(f, "{message} ({code}){}", hint(code, message))
            }
            (None, sqlx::Error::Io(error)) => error.fmt(f),
            (None, sqlx::Error::Tls(error)) => write!(f, "TLS: {error}"),
            (None, error) => error.fmt(f),
        }
    }
}

/// The part of a sentence that tells what may help, where the cause alone does not.
struct Cure<'a>(&'a sqlx::Error);

impl fmt::Display for Cure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        cure::of(self.0).map_or(Ok(()), |cure| write!(f, "; {cure}"))
    }
}

/// The part of a sentence that tells who has had a connection for longest.
struct Longest<'a>(&'a Option<Holder>);

impl fmt::Display for Longest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Holder { held, taken }) = self.0 else { return Ok(()) };
        // Nobody wants to read its nanoseconds.
        let held = Duration::from_millis(held.as_millis() as u64);
        write!(f, "; the longest has been held for {held:?} by {taken}")
    }
}

/// The part of a sentence that tells of the hosts that were tried before.
struct Passed<'a>(&'a [(Arc<str>, Arc<sqlx::Error>)]);

impl fmt::Display for Passed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (endpoint, error) in self.0 {
            write!(f, "; before that to {endpoint}: {}", Cause(error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holders::CallSite;
    use crate::role::{Misfit, Role, TargetSessionAttrs};

    #[test]
    fn our_own_errors_survive_the_way_through_sqlx() {
        let exhausted = Exhausted {
            pool: "db".into(),
            limit: 2,
            in_use: 2,
            waited: Duration::from_secs(1),
            longest: Some(Holder {
                held: Duration::from_micros(3_200_400),
                taken: CallSite::Operation("migrate"),
            }),
            spent: false,
        };
        let there = sqlx::Error::from(Error::from(exhausted.clone()));
        let text = "pool \"db\" is exhausted: 2 of 2 connections are in use and none came back within 1s; \
                    the longest has been held for 3.2s by migrate; \
                    hold connections for less long, or raise pool_size or max_overflow";
        assert!(there.to_string().ends_with(text), "{there}");
        let Error::Exhausted(back) = Error::from(there) else { panic!("it changed its kind") };
        assert_eq!(back, exhausted);
    }

    #[test]
    fn the_applications_error_comes_out_as_it_went_in() {
        #[derive(Debug, PartialEq, thiserror::Error)]
        #[error("sold out")]
        struct SoldOut;

        let error = Error::application(SoldOut);
        assert_eq!(error.application_ref::<SoldOut>(), Some(&SoldOut));
        assert_eq!(error.to_string(), "sold out");
    }

    #[test]
    fn an_unreachable_server_is_named_with_its_cause() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let error = Error::from(Unreachable::new("db:5432", refused.into()));
        assert_eq!(error.to_string(), "cannot connect to db:5432: connection refused");
    }

    #[test]
    fn of_several_hosts_each_is_named_once_with_why_it_was_passed_over() {
        let role = Role { is_standby: true, is_read_only: false };
        let misfit = Misfit::Role { role, attrs: TargetSessionAttrs::ReadWrite };
        let refused = || sqlx::Error::from(io::Error::from(io::ErrorKind::ConnectionRefused));
        let first = Unreachable::new("a:1", refused());
        let second = Unreachable::new("b:2", misfit.into()).after(Some(first));
        let again = Unreachable::new("a:1", refused()).after(Some(second));
        assert_eq!(
            again.to_string(),
            "cannot connect to a:1: connection refused; \
             before that to b:2: it is a standby, and target_session_attrs is read-write"
        );
    }
}
