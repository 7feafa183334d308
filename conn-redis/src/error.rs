//! What can go wrong between a call and its reply, and how it looks to code that only knows redis-rs.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::{ErrorKind, RedisError};
use resilience_core::{CallError, Name};

/// Why a closure, or a command, has no value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no connection to be had, and that is not for want of places in the pool.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The driver's own error: what the server answered, or how the connection was lost.
    #[error("{0}")]
    Redis(RedisError),
    /// Every connection is lent out, and none came back in time. They work: this process wants too many.
    #[error(
        "all {limit} connections to redis at {endpoint} are in use; none was returned within {waited:?}"
    )]
    Exhausted {
        /// Where the connections lead.
        endpoint: Arc<str>,
        /// How many may be lent out at once.
        limit: usize,
        /// How long this borrower waited.
        waited: Duration,
    },
    /// Waiting for a connection took so much of the attempt that the rest says nothing about the server.
    #[error("no reply in what {waited:?} of waiting for a connection left of the attempt")]
    Starved {
        /// How long this borrower waited.
        waited: Duration,
    },
    /// The watched set of endpoints is empty.
    #[error("no endpoint of {name:?} is known")]
    NoEndpoint {
        /// The manager's name.
        name: Name,
    },
    /// The manager was drained: its connections are closed.
    #[error("{name:?} is closed")]
    Closed {
        /// The manager's name.
        name: Name,
    },
    /// An error of the closure's own. It counts as an answer: neither the breaker nor the retry minds.
    #[error("{0}")]
    Other(Box<dyn StdError + Send + Sync>),
}

impl Error {
    /// An error of the closure's own, such as a value that does not decode.
    pub fn other(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Other(error.into())
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

/// Why no connection could be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot connect to redis at {endpoint}: {cause}")]
#[non_exhaustive]
pub struct ConnectError {
    /// Where to: `host:port`, or the path of a socket.
    pub endpoint: Arc<str>,
    /// Why not.
    pub cause: ConnectCause,
}

/// At what the opening of a connection failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectCause {
    /// The name has no address.
    #[error("the name does not resolve: {0}")]
    Resolve(Arc<io::Error>),
    /// The socket.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// The TLS handshake, or a certificate.
    #[error("tls: {0}")]
    Tls(Arc<io::Error>),
    /// It took too long.
    #[error("no {what} within {after:?}")]
    TimedOut {
        /// What did not come: an address, a connection, a TLS handshake, an answer.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server answered, and what it answered is no welcome.
    #[error("{}", answer(.0))]
    Refused(RedisError),
}

/// The command was never written: its connection had been lost before.
#[derive(Debug, thiserror::Error)]
#[error("the connection was lost before the command was sent")]
pub(crate) struct NotSent;

/// A blocking command outlasted its attempt. That is its nature, and no fault of the server.
#[derive(Debug, thiserror::Error)]
#[error("the blocking command had no reply within its attempt")]
pub(crate) struct Overdue;

impl From<NotSent> for RedisError {
    fn from(error: NotSent) -> Self {
        io::Error::new(io::ErrorKind::NotConnected, error).into()
    }
}

impl From<Overdue> for RedisError {
    fn from(error: Overdue) -> Self {
        io::Error::new(io::ErrorKind::TimedOut, error).into()
    }
}

/// What an error of redis-rs was made from, if that is an `E`.
pub(crate) fn made_from<E: StdError + 'static>(error: &RedisError) -> Option<&E> {
    // redis-rs keeps causes in an Arc, and the Arc is what it gives for the source.
    let cause = error.source()?.downcast_ref::<Arc<dyn StdError + Send + Sync>>()?;
    cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}

/// Why a command given to a [`RedisManager`](crate::RedisManager) failed, if it was not the driver that
/// said so: for whoever has a [`RedisError`] and wants to know when to come back.
///
/// ```
/// use conn_redis::{call_error, redis::RedisError};
///
/// fn retry_after(error: &RedisError) -> Option<std::time::Duration> {
///     call_error(error)?.retry_after()
/// }
/// # assert!(retry_after(&std::io::Error::other("no").into()).is_none());
/// ```
#[must_use]
pub fn call_error(error: &RedisError) -> Option<&CallError<Error>> {
    made_from(error)
}

/// How a failed call looks to code that only knows redis-rs: as the manager's `ConnectionLike` says.
pub(crate) fn into_redis_error(error: CallError<Error>) -> RedisError {
    let kind = match &error {
        CallError::Inner(failed) => match &failed.error {
            Error::Redis(error) => return error.clone(),
            Error::Connect(ConnectError { cause: ConnectCause::Refused(refusal), .. })
                if is_login(refusal) =>
            {
                let kind = ErrorKind::AuthenticationFailed;
                return (kind, "cannot connect", failed.error.to_string()).into();
            }
            Error::Connect(_) | Error::NoEndpoint { .. } => io::ErrorKind::ConnectionRefused,
            Error::Starved { .. } => io::ErrorKind::TimedOut,
            Error::Exhausted { .. } => io::ErrorKind::ResourceBusy,
            Error::Closed { .. } => io::ErrorKind::NotConnected,
            Error::Other(_) => io::ErrorKind::Other,
        },
        CallError::DeadlineExceeded(_) | CallError::AttemptTimeout(_) => io::ErrorKind::TimedOut,
        CallError::CircuitOpen(_) => io::ErrorKind::ConnectionRefused,
        CallError::BulkheadFull(_) => io::ErrorKind::ResourceBusy,
        CallError::Draining(_) => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error).into()
}

/// Whether the server wants a login, or another one.
pub(crate) fn is_login(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
        || error.kind() == ErrorKind::AuthenticationFailed
}

/// The server's own words, where it has said something.
fn answer(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::make_extension_error;
    use resilience_core::{AnyError, CircuitBreaker, Failed, Replay, Verdict};

    use super::*;

    fn refused(code: &str, detail: &str) -> ConnectError {
        let refusal = make_extension_error(code.to_owned(), Some(detail.to_owned()));
        ConnectError { endpoint: "cache:6379".into(), cause: ConnectCause::Refused(refusal) }
    }

    fn inner(error: impl Into<Error>) -> CallError<Error> {
        CallError::Inner(Failed {
            error: error.into(),
            verdict: Verdict::service(Replay::Safe).after(Duration::from_secs(7)),
            attempts: 1,
            elapsed: None,
        })
    }

    #[test]
    fn a_failed_connect_names_the_endpoint_and_the_cause_once() {
        assert_eq!(
            inner(refused("WRONGPASS", "invalid username-password pair")).to_string(),
            "cannot connect to redis at cache:6379: WRONGPASS invalid username-password pair"
        );
    }

    #[tokio::test]
    async fn an_open_circuit_can_be_told_by_code_that_only_knows_redis() {
        let breaker = CircuitBreaker::builder("redis").fail_max(1).build().unwrap();
        breaker.try_acquire().unwrap().failure();
        let open =
            breaker.call_with(&AnyError, || async { Ok::<(), Error>(()) }).await.unwrap_err();
        let error = into_redis_error(open);
        assert!(error.is_connection_refusal() && error.is_io_error());
        assert!(error.to_string().starts_with("circuit \"redis\" is open"), "{error}");
        assert!(call_error(&error).unwrap().retry_after().is_some());
    }

    #[test]
    fn a_refused_login_keeps_its_kind_and_the_drivers_errors_are_left_alone() {
        let login = into_redis_error(inner(refused("NOAUTH", "Authentication required.")));
        assert_eq!(login.kind(), ErrorKind::AuthenticationFailed);
        assert!(login.to_string().contains("cache:6379"), "{login}");
        let own = make_extension_error("OOM".to_owned(), None);
        assert_eq!(into_redis_error(inner(own.clone())), own);
        let down = into_redis_error(inner(refused("LOADING", "")));
        assert_eq!(call_error(&down).unwrap().retry_after(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn markers_survive_the_drivers_error_type() {
        assert!(made_from::<NotSent>(&NotSent.into()).is_some());
        assert!(made_from::<NotSent>(&Overdue.into()).is_none());
        assert!(RedisError::from(Overdue).is_timeout());
    }
}
