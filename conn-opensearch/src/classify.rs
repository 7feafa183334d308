//! What an error of OpenSearch means: whose fault it is, and whether doing it again is safe.
//!
//! | error | replay | blame |
//! |---|---|---|
//! | name not found, refused, connect timeout, TLS; no node known | safe | service |
//! | out of file descriptors | safe | local |
//! | connection lost, the request's timeout, an answer that ends early or is no JSON | if idempotent | service |
//! | 429 | safe, after `Retry-After` | service |
//! | 502, 503, 504 and every other 5xx; 408 | if idempotent | service |
//! | 501, 505 | never | caller |
//! | 400, 401, 403, 404, 409, 413 and every other 4xx | never | caller |
//! | JSON of another shape, a request that cannot be made | never | caller |
//!
//! Safe becomes "if idempotent" once an earlier command of the same closure may have taken effect.
//! A 503 is not safe even where the node sent it: a proxy may have, after the node had worked.
//! A `_bulk` answers 200 with an error per item: see [`BulkOutcome`](crate::BulkOutcome).
//! A 409 after an attempt that may have taken effect is probably the call's own write:
//! [`Error::is_probably_own_write`].

use resilience_core::{Blame, Classify, Replay, Verdict};

use crate::error::{Error, ErrorKind, Status};

/// Says what an [`Error`] means, for a pipeline of your own; the manager's has it already.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenSearchErrors;

impl Classify<Error> for OpenSearchErrors {
    fn verdict(&self, error: &Error) -> Verdict {
        error.verdict()
    }
}

impl Error {
    /// What it means.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let verdict = match &self.kind {
            ErrorKind::NoNode | ErrorKind::Connect { .. } => Verdict::service(Replay::Safe),
            ErrorKind::Local { .. } => Verdict::local(Replay::Safe),
            ErrorKind::Lost { .. } | ErrorKind::Timeout | ErrorKind::Malformed { .. } => {
                Verdict::service(Replay::IfIdempotent)
            }
            ErrorKind::Status(status) => status.verdict(),
            ErrorKind::Unexpected { .. } | ErrorKind::Request { .. } => {
                Verdict::caller(Replay::Never)
            }
        };
        match verdict.replay {
            Replay::Safe if self.after_others => {
                Verdict { replay: Replay::IfIdempotent, ..verdict }
            }
            _ => verdict,
        }
    }

    /// Whether it says that the node itself is in trouble. A node that is merely busy is not.
    pub(crate) fn speaks_against_the_node(&self) -> bool {
        self.verdict().blame == Blame::Service && self.status() != Some(429)
    }
}

impl Status {
    fn verdict(&self) -> Verdict {
        let verdict = match self.code {
            429 => Verdict::service(Replay::Safe),
            501 | 505 => Verdict::caller(Replay::Never),
            408 | 500.. => Verdict::service(Replay::IfIdempotent),
            _ => Verdict::caller(Replay::Never),
        };
        Verdict { retry_after: self.retry_after, ..verdict }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn text() -> String {
        String::new()
    }

    fn status(code: u16) -> ErrorKind {
        ErrorKind::Status(Status { code, ..Status::default() })
    }

    #[test]
    fn every_row_of_the_table_holds() {
        use Blame::{Caller, Local, Service};
        use Replay::{IfIdempotent, Never, Safe};
        let rows = [
            (ErrorKind::NoNode, Safe, Service),
            (ErrorKind::Connect { cause: text() }, Safe, Service),
            (ErrorKind::Local { cause: text() }, Safe, Local),
            (ErrorKind::Lost { cause: text() }, IfIdempotent, Service),
            (ErrorKind::Timeout, IfIdempotent, Service),
            (ErrorKind::Malformed { cause: text() }, IfIdempotent, Service),
            (ErrorKind::Unexpected { cause: text() }, Never, Caller),
            (ErrorKind::Request { cause: text() }, Never, Caller),
            (status(429), Safe, Service),
            (status(408), IfIdempotent, Service),
            (status(500), IfIdempotent, Service),
            (status(502), IfIdempotent, Service),
            (status(503), IfIdempotent, Service),
            (status(504), IfIdempotent, Service),
            (status(501), Never, Caller),
            (status(400), Never, Caller),
            (status(401), Never, Caller),
            (status(403), Never, Caller),
            (status(404), Never, Caller),
            (status(409), Never, Caller),
            (status(413), Never, Caller),
        ];
        for (kind, replay, blame) in rows {
            let error = Error::new(kind);
            assert_eq!(error.verdict(), Verdict { blame, replay, retry_after: None }, "{error}");
        }
    }

    #[test]
    fn nothing_is_safe_after_a_command_that_may_have_taken_effect() {
        for kind in [status(429), ErrorKind::Connect { cause: text() }] {
            let error = Error { after_others: true, ..Error::new(kind) };
            assert_eq!(error.verdict().replay, Replay::IfIdempotent, "{error}");
        }
    }

    #[test]
    fn the_server_says_when_to_come_back() {
        let retry_after = Some(Duration::from_secs(7));
        let error =
            Error::new(ErrorKind::Status(Status { code: 429, retry_after, ..Status::default() }));
        assert_eq!(error.verdict().retry_after, retry_after);
    }

    #[test]
    fn a_busy_node_is_not_passed_over() {
        assert!(!Error::new(status(429)).speaks_against_the_node());
        assert!(!Error::new(status(404)).speaks_against_the_node());
        assert!(Error::new(status(503)).speaks_against_the_node());
    }
}
