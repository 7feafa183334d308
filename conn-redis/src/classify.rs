//! What an error of Redis means: whose fault it is, and whether the command may be sent again.
//!
//! redis-rs has its own opinion (`RedisError::retry_method`). It is not asked: it forbids repeating
//! after BUSY, NOREPLICAS, OOM, UNBLOCKED and "max number of clients", none of which was executed.

use std::io;
use std::time::Duration;

use deadpool_redis::redis::{ErrorKind, RedisError, ServerError};
use resilience_core::{Blame, Classify, Replay, Verdict};

use crate::error::{ConnectCause, Error, NotSent, Overdue, made_from};

/// The server asks for a moment: it is loading, busy, or between two primaries.
const A_MOMENT: Duration = Duration::from_millis(500);

/// Memory or disk has run out: that takes longer to mend.
const A_WHILE: Duration = Duration::from_secs(2);

/// Reads the errors of this crate and those of the driver.
///
/// ```
/// use conn_redis::{Classifier, redis};
/// use resilience_core::{Blame, Classify};
///
/// let error = redis::make_extension_error("OOM".into(), None);
/// assert_eq!(Classifier.verdict(&error).blame, Blame::Service);
/// ```
///
/// | error | blame | again? |
/// |---|---|---|
/// | cannot connect: name, socket, TLS, timeout | service | yes |
/// | LOADING, BUSY, CLUSTERDOWN, TRYAGAIN, MASTERDOWN, NOREPLICAS, UNBLOCKED, max clients | service | yes, after 0.5 s |
/// | MOVED, ASK, READONLY | service | yes |
/// | OOM, MISCONF | service | yes, after 2 s |
/// | connection lost, or no reply, after the command was sent | service | if idempotent |
/// | NOSCRIPT | caller | yes, once loaded |
/// | NOAUTH, WRONGPASS, NOPERM, WRONGTYPE, CROSSSLOT, EXECABORT, ERR, every other | caller | no |
/// | a reply of another type than was asked for | caller | no |
/// | pool exhausted, file descriptors exhausted | local | yes |
/// | a blocking command that outlasts its attempt | local | if idempotent |
///
/// A pipeline takes the gravest of its errors, a transaction that the server aborted that of the command
/// which it refused. A script that had begun is repeated only if idempotent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Classifier;

impl Classify<Error> for Classifier {
    fn verdict(&self, error: &Error) -> Verdict {
        match error {
            Error::Connect(error) => match &error.cause {
                ConnectCause::Refused(refusal) => at_login(refusal),
                ConnectCause::Io(error) if no_descriptors(error) => Verdict::local(Replay::Safe),
                ConnectCause::Resolve(_)
                | ConnectCause::Io(_)
                | ConnectCause::Tls(_)
                | ConnectCause::TimedOut { .. } => Verdict::service(Replay::Safe),
            },
            Error::Redis(error) => self.verdict(error),
            Error::Exhausted { .. } => Verdict::local(Replay::Safe),
            Error::Starved { .. } => Verdict::local(Replay::IfIdempotent),
            Error::NoEndpoint { .. } => Verdict::service(Replay::Safe),
            Error::Closed { .. } => Verdict::local(Replay::Never),
            Error::Other(_) => Verdict::caller(Replay::Never),
        }
    }
}

impl Classify<RedisError> for Classifier {
    fn verdict(&self, error: &RedisError) -> Verdict {
        if made_from::<NotSent>(error).is_some() {
            return Verdict::service(Replay::Safe);
        }
        if made_from::<Overdue>(error).is_some() {
            return Verdict::local(Replay::IfIdempotent);
        }
        if let Some(answers) = error.clone().into_server_errors() {
            return answers
                .iter()
                .map(|(_, answer)| answered(answer))
                .reduce(graver)
                .unwrap_or(REFUSED);
        }
        match error.kind() {
            ErrorKind::Io => Verdict::service(Replay::IfIdempotent),
            // What redis-rs says about a topology it cannot see: nothing was sent.
            ErrorKind::MasterNameNotFoundBySentinel
            | ErrorKind::NoValidReplicasFoundBySentinel
            | ErrorKind::ClusterConnectionNotFound => {
                Verdict::service(Replay::Safe).after(A_MOMENT)
            }
            // The reply was of another type, or the request could not be made of what was given.
            _ => REFUSED,
        }
    }
}

const REFUSED: Verdict = Verdict::caller(Replay::Never);

/// What an error reply means.
pub(crate) fn answered(answer: &ServerError) -> Verdict {
    let verdict = of_code(answer.code(), answer.details().unwrap_or_default());
    if is_part_way(answer) { uncertain(verdict) } else { verdict }
}

fn of_code(code: &str, details: &str) -> Verdict {
    match code {
        "LOADING" | "BUSY" | "CLUSTERDOWN" | "TRYAGAIN" | "MASTERDOWN" | "NOREPLICAS"
        | "UNBLOCKED" => Verdict::service(Replay::Safe).after(A_MOMENT),
        "ERR" if details.starts_with("max number of clients") => {
            Verdict::service(Replay::Safe).after(A_MOMENT)
        }
        "MOVED" | "ASK" | "READONLY" => Verdict::service(Replay::Safe),
        "OOM" | "MISCONF" => Verdict::service(Replay::Safe).after(A_WHILE),
        "NOSCRIPT" => Verdict::caller(Replay::Safe),
        // An EXEC that is refused takes nothing of its transaction with it, and says why.
        "EXECABORT" => {
            match details.split_once("because of: ").and_then(|(_, cause)| cause.split_once(' ')) {
                Some((code, details)) => of_code(code, details),
                None => REFUSED,
            }
        }
        _ => REFUSED,
    }
}

/// Whether the error came from within a script, which may have written before.
pub(crate) fn is_part_way(answer: &ServerError) -> bool {
    answer
        .details()
        .is_some_and(|details| details.contains("script: ") && details.contains(", on @"))
}

/// The same verdict for what may have been executed after all.
pub(crate) fn uncertain(verdict: Verdict) -> Verdict {
    match verdict.replay {
        Replay::Safe => Verdict { replay: Replay::IfIdempotent, ..verdict },
        Replay::Transaction | Replay::IfIdempotent | Replay::Never => verdict,
    }
}

/// A refusal while logging in. What is no error reply is no Redis: perhaps one comes back.
fn at_login(refusal: &RedisError) -> Verdict {
    match refusal.clone().into_server_errors() {
        Some(answers) => {
            answers.iter().map(|(_, answer)| answered(answer)).reduce(graver).unwrap_or(REFUSED)
        }
        None => Verdict::service(Replay::Safe),
    }
}

/// Of two errors in one pipeline, the one that decides: the caller's own mistake stays when the
/// server has recovered, so there is no use in repeating.
pub(crate) fn graver(a: Verdict, b: Verdict) -> Verdict {
    let rank = |verdict: &Verdict| match verdict.replay {
        Replay::Safe => 0,
        Replay::Transaction => 1,
        Replay::IfIdempotent => 2,
        Replay::Never => 3,
    };
    let blame = if a.blame == Blame::Service { a.blame } else { b.blame };
    let graver = if rank(&b) > rank(&a) { b } else { a };
    Verdict { blame, replay: graver.replay, retry_after: a.retry_after.max(b.retry_after) }
}

/// EMFILE and ENFILE: this process, or this machine, has too many files open.
fn no_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use deadpool_redis::redis::{Value, parse_redis_value};

    use super::*;
    use crate::ConnectError;

    fn server(line: &str) -> RedisError {
        let value: Value = parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err()
    }

    fn verdict(line: &str) -> Verdict {
        Classifier.verdict(&server(line))
    }

    fn connect(cause: ConnectCause) -> Verdict {
        Classifier.verdict(&Error::from(ConnectError { endpoint: "cache:6379".into(), cause }))
    }

    fn io_error(code: i32) -> Arc<io::Error> {
        Arc::new(io::Error::from_raw_os_error(code))
    }

    #[test]
    fn a_server_that_asks_for_a_moment_is_given_one() {
        for line in [
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "NOREPLICAS Not enough good replicas to write.",
            "UNBLOCKED client unblocked via CLIENT UNBLOCK",
            "ERR max number of clients reached",
            "ERR max number of clients + cluster connections reached",
        ] {
            assert_eq!(verdict(line), Verdict::service(Replay::Safe).after(A_MOMENT), "{line}");
        }
    }

    #[test]
    fn a_server_that_has_lost_its_role_was_not_written_to() {
        for line in [
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "READONLY You can't write against a read only replica.",
        ] {
            assert_eq!(verdict(line), Verdict::service(Replay::Safe), "{line}");
        }
    }

    #[test]
    fn a_full_server_is_left_alone_for_a_while() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist on disk.",
        ] {
            assert_eq!(verdict(line), Verdict::service(Replay::Safe).after(A_WHILE), "{line}");
        }
    }

    #[test]
    fn a_transaction_that_was_refused_as_a_whole_can_be_sent_again() {
        let line = "EXECABORT Transaction discarded because of: MISCONF Errors writing to the AOF file: No space left";
        assert_eq!(verdict(line), Verdict::service(Replay::Safe).after(A_WHILE));
        let line = "EXECABORT Transaction discarded because of: NOPERM no";
        assert_eq!(verdict(line), REFUSED);
    }

    #[test]
    fn a_script_that_is_not_loaded_was_not_run() {
        assert_eq!(verdict("NOSCRIPT No matching script."), Verdict::caller(Replay::Safe));
    }

    #[test]
    fn a_refused_request_opens_no_breaker_and_is_not_sent_again() {
        for line in [
            "EXECABORT Transaction discarded because of previous errors.",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "NOPERM this user has no permissions to run the 'get' command",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "ERR unknown command 'FOO'",
            "BUSYGROUP Consumer Group name already exists",
            "BUSYKEY Target key name already exists.",
            "NOTBUSY No scripts in execution right now.",
        ] {
            assert_eq!(verdict(line), Verdict::caller(Replay::Never), "{line}");
        }
    }

    #[test]
    fn a_script_that_had_begun_is_not_run_again_blindly() {
        let line = "OOM command not allowed when used memory > 'maxmemory'. script: 9f1, on @user_script:1.";
        assert_eq!(verdict(line), Verdict::service(Replay::IfIdempotent).after(A_WHILE));
        let line = "WRONGTYPE Operation against a key holding the wrong kind of value script: 9f1, on @user_script:1.";
        assert_eq!(verdict(line), Verdict::caller(Replay::Never));
    }

    #[test]
    fn a_lost_connection_leaves_the_command_uncertain_unless_it_was_lost_before() {
        for kind in [
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::TimedOut,
        ] {
            let lost = RedisError::from(io::Error::from(kind));
            assert_eq!(Classifier.verdict(&lost), Verdict::service(Replay::IfIdempotent), "{kind}");
        }
        assert_eq!(Classifier.verdict(&RedisError::from(NotSent)), Verdict::service(Replay::Safe));
    }

    #[test]
    fn a_blocking_command_that_found_nothing_is_nobodys_fault() {
        let verdict = Classifier.verdict(&RedisError::from(Overdue));
        assert_eq!(verdict, Verdict::local(Replay::IfIdempotent));
    }

    #[test]
    fn a_connection_that_could_not_be_opened_carried_no_command() {
        for cause in [
            ConnectCause::Resolve(io_error(2)),
            ConnectCause::Io(io_error(111)),
            ConnectCause::Tls(io_error(5)),
            ConnectCause::TimedOut { what: "connection", after: A_WHILE },
        ] {
            assert_eq!(connect(cause.clone()), Verdict::service(Replay::Safe), "{cause}");
        }
        let loading =
            ConnectCause::Refused(server("LOADING Redis is loading the dataset in memory"));
        assert_eq!(connect(loading), Verdict::service(Replay::Safe).after(A_MOMENT));
        let no_redis = ConnectCause::Refused((ErrorKind::Parse, "not redis").into());
        assert_eq!(connect(no_redis), Verdict::service(Replay::Safe));
    }

    #[test]
    fn a_wrong_password_does_not_open_the_breaker() {
        let refusal = server("WRONGPASS invalid username-password pair or user is disabled.");
        assert_eq!(connect(ConnectCause::Refused(refusal)), Verdict::caller(Replay::Never));
    }

    #[test]
    fn trouble_of_this_process_is_not_blamed_on_redis() {
        assert_eq!(connect(ConnectCause::Io(io_error(24))), Verdict::local(Replay::Safe));
        let endpoint: Arc<str> = "cache:6379".into();
        let exhausted = Error::Exhausted { endpoint, limit: 1, waited: A_MOMENT };
        assert_eq!(Classifier.verdict(&exhausted), Verdict::local(Replay::Safe));
        let starved = Error::Starved { waited: A_MOMENT };
        assert_eq!(Classifier.verdict(&starved), Verdict::local(Replay::IfIdempotent));
    }

    #[test]
    fn a_reply_of_another_type_is_the_callers_affair() {
        let mismatch = RedisError::from((ErrorKind::UnexpectedReturnType, "not an integer"));
        assert_eq!(Classifier.verdict(&mismatch), Verdict::caller(Replay::Never));
        let parse = RedisError::from((ErrorKind::Parse, "not an integer"));
        assert_eq!(Classifier.verdict(&parse), Verdict::caller(Replay::Never));
        assert_eq!(Classifier.verdict(&Error::other("no json")), Verdict::caller(Replay::Never));
    }

    #[test]
    fn a_pipeline_is_repeated_only_if_that_helps_every_command_in_it() {
        let moment = Verdict::service(Replay::Safe).after(A_MOMENT);
        assert_eq!(graver(moment, Verdict::service(Replay::Safe)), moment);
        let mixed = graver(moment, Verdict::caller(Replay::Never));
        assert_eq!((mixed.blame, mixed.replay), (Blame::Service, Replay::Never));
        assert_eq!(graver(REFUSED, REFUSED), REFUSED);
    }
}
