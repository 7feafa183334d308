//! Why an operation on a node failed, with the node's name and without a secret.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use opensearch::http::Url;
use rustls::AlertDescription;

/// The longest text of a cause or reason that is kept, in characters.
const LONGEST_TEXT: usize = 300;

/// Why an operation on a node failed.
///
/// `?` turns the client's own error into it. An answer of 400 and above is no error to the client:
/// [`check`](crate::check) and [`json`](crate::json) make it one.
///
/// ```
/// # async fn doc(node: conn_opensearch::Node) -> Result<(), conn_opensearch::Error> {
/// use conn_opensearch::opensearch::GetParts;
///
/// let found = conn_opensearch::check(node.get(GetParts::IndexId("campaigns", "7")).send().await?).await;
/// match found {
///     Ok(_) => println!("there it is"),
///     Err(error) if error.status() == Some(404) => println!("no such campaign"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Error {
    pub(crate) kind: ErrorKind,
    pub(crate) node: Option<Arc<str>>,
    /// An earlier command of the same attempt may have taken effect.
    pub(crate) after_others: bool,
    /// An earlier attempt of the same call may have taken effect.
    pub(crate) after_uncertain: bool,
}

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No node is known: the set of endpoints is empty, or none of them makes a URL.
    NoNode,
    /// No connection was made, so nothing was sent: name not found, refused, TLS.
    Connect {
        /// What the system or TLS says.
        cause: String,
    },
    /// This process can open no more files or sockets.
    Local {
        /// What the system says.
        cause: String,
    },
    /// The connection ended before the whole answer had come.
    Lost {
        /// What the system or HTTP says.
        cause: String,
    },
    /// The request's own `request_timeout` was over before the whole answer had come.
    Timeout,
    /// The node answered with 400 or above.
    Status(Status),
    /// The answer is not JSON, or ends early.
    Malformed {
        /// What the parser says.
        cause: String,
    },
    /// The answer is JSON, but not of the type that it was to be read into.
    Unexpected {
        /// What the parser says.
        cause: String,
    },
    /// The request could not be made: its body or its path is wrong.
    Request {
        /// What is wrong with it.
        cause: String,
    },
}

/// An answer of 400 or above.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// The status, such as 429.
    pub code: u16,
    /// The type that OpenSearch gives the error, such as `index_not_found_exception`.
    pub kind: Option<String>,
    /// The reason in its words, or the beginning of an answer that is not JSON; 300 characters at the most.
    pub reason: Option<String>,
    /// The header `Retry-After` where it is in seconds; a date is not read.
    pub retry_after: Option<Duration>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self { kind, node: None, after_others: false, after_uncertain: false }
    }

    /// The same error, at `node`, unless it knows its node already.
    pub(crate) fn at(mut self, node: &Arc<str>) -> Self {
        self.node.get_or_insert_with(|| Arc::clone(node));
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The node, as `scheme://host:port`, where it is known.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The status of the answer, if there was one of 400 or above.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match &self.kind {
            ErrorKind::Status(status) => Some(status.code),
            _ => None,
        }
    }

    /// Whether this is a conflict (409) in a call of which an earlier attempt may have taken effect:
    /// then the document that is in the way is probably the call's own. Read it to be sure.
    #[must_use]
    pub fn is_probably_own_write(&self) -> bool {
        self.status() == Some(409) && self.after_uncertain
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node.as_deref().unwrap_or("the node");
        match &self.kind {
            ErrorKind::NoNode => f.write_str("no node is known"),
            ErrorKind::Connect { cause } => write!(f, "no connection to {node}: {cause}"),
            ErrorKind::Local { cause } => write!(f, "this process cannot reach {node}: {cause}"),
            ErrorKind::Lost { cause } => write!(f, "connection to {node} lost: {cause}"),
            ErrorKind::Timeout => write!(f, "no answer from {node} in time"),
            ErrorKind::Status(status) => write!(f, "{node} answered {status}"),
            ErrorKind::Malformed { cause } => write!(f, "{node} answered no valid JSON: {cause}"),
            ErrorKind::Unexpected { cause } => {
                write!(f, "{node} answered other JSON than expected: {cause}")
            }
            ErrorKind::Request { cause } => write!(f, "request to {node} not made: {cause}"),
        }
    }
}

impl StdError for Error {}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(kind) = &self.kind {
            write!(f, " {kind}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl From<opensearch::Error> for Error {
    fn from(error: opensearch::Error) -> Self {
        let facts = Facts::of(&error);
        let http = error.source().and_then(|source| source.downcast_ref::<reqwest::Error>());
        let node = http.and_then(reqwest::Error::url).map(node_name);
        let cause = || cause(&error);
        let kind = match (facts, http) {
            (Facts { no_files: true, .. }, _) => ErrorKind::Local { cause: cause() },
            (Facts { connect: true, .. } | Facts { refused: true, .. }, _) => {
                ErrorKind::Connect { cause: cause() }
            }
            (Facts { json: Some(serde_json::error::Category::Data), .. }, Some(_)) => {
                ErrorKind::Unexpected { cause: cause() }
            }
            (Facts { json: Some(_), .. }, Some(_)) => ErrorKind::Malformed { cause: cause() },
            (_, Some(http)) if http.is_timeout() => ErrorKind::Timeout,
            (_, Some(http)) if http.is_builder() => ErrorKind::Request { cause: cause() },
            (_, Some(http)) => match http.status() {
                Some(code) => {
                    ErrorKind::Status(Status { code: code.as_u16(), ..Status::default() })
                }
                None => ErrorKind::Lost { cause: cause() },
            },
            (Facts { io: true, .. }, None) => ErrorKind::Lost { cause: cause() },
            (_, None) => ErrorKind::Request { cause: cause() },
        };
        Self { node, ..Self::new(kind) }
    }
}

/// What the chain of causes holds.
#[derive(Clone, Copy, Default)]
struct Facts {
    /// The connection was never made.
    connect: bool,
    /// The peer would not have this connection, or this client.
    refused: bool,
    no_files: bool,
    io: bool,
    json: Option<serde_json::error::Category>,
}

impl Facts {
    fn of(error: &opensearch::Error) -> Self {
        let mut facts = Self::default();
        for cause in chain(error) {
            if let Some(http) = cause.downcast_ref::<reqwest::Error>() {
                facts.connect |= http.is_connect();
            }
            if let Some(io) = cause.downcast_ref::<io::Error>() {
                facts.io = true;
                facts.refused |= io.kind() == io::ErrorKind::ConnectionRefused;
                // EMFILE and ENFILE, the same numbers on every Unix that has them.
                facts.no_files |= cfg!(unix) && matches!(io.raw_os_error(), Some(23 | 24));
            }
            if let Some(rustls::Error::AlertReceived(alert)) = cause.downcast_ref() {
                facts.refused |= refuses_the_client(*alert);
            }
            if let Some(json) = cause.downcast_ref::<serde_json::Error>() {
                facts.json = Some(json.classify());
            }
        }
        facts
    }
}

/// Whether the alert ends a handshake. With TLS 1.3 the server looks at the client's certificate
/// when the client thinks the handshake done, so that this arrives in place of an answer.
fn refuses_the_client(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::HandshakeFailure
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// The error, what caused it, what caused that.
fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An io::Error stands for the error within it, and gives that one's source as its own.
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        within.map(|within| within as &(dyn StdError + 'static)).or_else(|| error.source())
    })
}

/// The causes in words, without the URL: it may hold a query.
fn cause(error: &opensearch::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    for cause in chain(error) {
        let is_http = cause.is::<opensearch::Error>() || cause.is::<reqwest::Error>();
        if is_http && cause.source().is_some() {
            continue;
        }
        let text = match cause.downcast_ref::<reqwest::Error>() {
            Some(http) if http.is_redirect() => "a redirect that cannot be followed".to_owned(),
            Some(_) => "http error".to_owned(),
            None => cause.to_string(),
        };
        let said = texts.last().is_some_and(|last| last.contains(&text));
        // "client error (Connect)" says nothing that its cause does not.
        if !said && !text.starts_with("client error (") {
            texts.push(text);
        }
    }
    bounded(&texts.join(": "))
}

/// The node of `url`, as it stands in errors and logs: `scheme://host:port`.
pub(crate) fn node_name(url: &Url) -> Arc<str> {
    let (scheme, host) = (url.scheme(), url.host_str().unwrap_or_default());
    match url.port_or_known_default() {
        Some(port) => format!("{scheme}://{host}:{port}").into(),
        None => format!("{scheme}://{host}").into(),
    }
}

/// The beginning of `text`, on one line.
pub(crate) fn bounded(text: &str) -> String {
    let line = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut kept: String = line.clone().take(LONGEST_TEXT).collect();
    if line.count() > LONGEST_TEXT {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_file_descriptors_is_no_fault_of_the_service() {
        let error = Error::from(opensearch::Error::from(io::Error::from_raw_os_error(24)));
        assert!(matches!(error.kind, ErrorKind::Local { .. }), "{error:?}");
    }

    #[test]
    fn a_refusal_is_known_however_deep_it_lies() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let wrapped = io::Error::other(io::Error::other(refused));
        let error = Error::from(opensearch::Error::from(wrapped));
        assert!(matches!(error.kind, ErrorKind::Connect { .. }), "{error:?}");
    }

    #[test]
    fn a_server_that_wants_a_certificate_has_executed_nothing() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        let error = Error::from(opensearch::Error::from(io::Error::other(alert)));
        assert!(matches!(error.kind, ErrorKind::Connect { .. }), "{error:?}");
        let close = rustls::Error::AlertReceived(AlertDescription::InternalError);
        let error = Error::from(opensearch::Error::from(io::Error::other(close)));
        assert!(matches!(error.kind, ErrorKind::Lost { .. }), "{error:?}");
    }

    #[test]
    fn a_body_that_cannot_be_written_is_the_requests_fault() {
        let error = serde_json::from_str::<u8>("x").unwrap_err();
        let error = Error::from(opensearch::Error::from(error));
        assert!(matches!(error.kind, ErrorKind::Request { .. }), "{error:?}");
        assert!(error.to_string().starts_with("request to the node not made: "), "{error}");
    }

    #[test]
    fn a_text_of_any_length_becomes_one_short_line() {
        let text = bounded(&format!("  a\nb\u{7}{}", "é".repeat(1000)));
        assert!(text.starts_with("a b é"), "{text}");
        assert_eq!(text.chars().count(), LONGEST_TEXT + 1);
    }
}
