//! What an error of the database means: whose fault it is, and whether doing it again is safe.
//!
//! The server's SQLSTATE says most of it. The rest is where the error struck: a connection that breaks
//! before COMMIT was sent has rolled back, one that breaks under an autocommitted statement may have
//! executed it.

use std::io;

use resilience_core::{Blame, Classify, Replay, Verdict};
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::defaults::SLOWLY;
use crate::error::{Error, Exhausted, SqlError, Unreachable, database_error};
use crate::track::is_silence;

/// Out of file descriptors: of the process, of the system.
const NO_DESCRIPTORS: [i32; 2] = [24, 23];

/// Reads the errors of this crate: [`Classify`] for a pipeline of your own.
///
/// | SQLSTATE or event | replay | blame |
/// |---|---|---|
/// | DNS, refused, connect timeout, TLS; 08001, 08004, 53300, 57P03, 57P05 | safe | service |
/// | pool exhausted, no credentials to be had, out of file descriptors | safe | local |
/// | no answer in what a long wait for a connection left of the attempt | if idempotent | local |
/// | connection lost, server silent, 08006 and others of class 08, 57P01, 57P02 under an autocommitted statement or COMMIT; 08007, 40003 | if idempotent | service |
/// | the same within a transaction before COMMIT | transaction | service |
/// | 40000, 40001, 40P01, 55P03, 25P03, 72000 | transaction | caller |
/// | 25006 (read-only) | safe | service |
/// | 26000, 42P05, 0A000 "cached plan", once | safe; within a transaction: transaction | caller |
/// | 53000, 53100, 53200, 53400, 58000, 58030, after 5 s | transaction | service |
/// | 57014 (cancelled or past `statement_timeout`) | never | service |
/// | what else is of class 57 or 58 or XX: the server failed | never | service |
/// | everything else that the server answers: the statement was wrong; so are 57P04, and 08P01 that costs no connection | never | caller |
///
/// With several hosts, an error that comes with the loss of one of them is local: what counts against the service
/// is that no other is found in time. Once an earlier command of the same closure may have taken effect, "safe" and "transaction" become
/// "if idempotent".
#[derive(Clone, Copy, Debug, Default)]
pub struct PgClassifier;

impl Classify<Error> for PgClassifier {
    fn verdict(&self, error: &Error) -> Verdict {
        match error {
            // A pipeline further in has done what there was to do.
            Error::Exhausted(Exhausted { spent: true, .. }) => Verdict::local(Replay::Never),
            Error::Unreachable(unreachable) if unreachable.spent => {
                Verdict { replay: Replay::Never, ..connecting(unreachable) }
            }
            Error::Exhausted(_) | Error::Credentials(_) => Verdict::local(Replay::Safe),
            Error::Starved { .. } => Verdict::local(Replay::IfIdempotent),
            Error::Unreachable(unreachable) => connecting(unreachable),
            Error::Draining { .. } | Error::Closed { .. } | Error::Rejected(_) => {
                Verdict::local(Replay::Never)
            }
            Error::Sql(SqlError { error, context, .. }) => {
                running(error, context.unwrap_or(Context::UNKNOWN))
            }
            Error::Aborted
            | Error::Unfinished
            | Error::TransactionControl(_)
            | Error::Application(_) => Verdict::caller(Replay::Never),
        }
    }
}

/// Where an error struck.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Context {
    pub(crate) phase: Phase,
    /// Something done earlier in the same closure may have taken effect.
    pub(crate) effect: bool,
    /// The caller gave the attempt less time than is fair to the server.
    pub(crate) hurried: bool,
    /// The statement cache was found stale before, in the same call.
    pub(crate) stale: bool,
    /// One host of several was lost meanwhile: the service may be had from another.
    pub(crate) one_host: bool,
}

impl Context {
    /// Nobody watched: the worst is assumed.
    pub(crate) const UNKNOWN: Self = Self {
        phase: Phase::Autocommit,
        effect: true,
        hurried: false,
        stale: true,
        one_host: false,
    };
}

/// What was under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// Nothing was sent.
    Unsent,
    /// A statement outside a transaction.
    Autocommit,
    /// A statement in a transaction, before COMMIT.
    Transaction,
    /// COMMIT.
    Commit,
}

fn connecting(unreachable: &Unreachable) -> Verdict {
    match (database_error(&unreachable.error), &*unreachable.error) {
        (Some(answer), _) => match of_code(answer.code()) {
            Meaning::Caller => Verdict::caller(Replay::Never),
            Meaning::Slowly => Verdict::service(Replay::Safe).after(SLOWLY),
            _ => Verdict::service(Replay::Safe),
        },
        (None, sqlx::Error::Configuration(_)) => Verdict::caller(Replay::Never),
        (None, sqlx::Error::Io(error)) if is_out_of_descriptors(error) => {
            Verdict::local(Replay::Safe)
        }
        (None, sqlx::Error::WorkerCrashed) => Verdict::local(Replay::Never),
        (None, _) => Verdict::service(Replay::Safe),
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| NO_DESCRIPTORS.contains(&number))
}

fn running(error: &sqlx::Error, context: Context) -> Verdict {
    use sqlx::Error as E;
    let verdict = match error {
        E::Database(_) => match database_error(error) {
            Some(answer) => answered(&Meaning::of(error, answer.code()), context),
            None => Verdict::caller(Replay::Never),
        },
        E::Io(_) => lost(context),
        E::Tls(_) | E::BeginFailed => Verdict::service(Replay::Safe),
        E::Protocol(_) => lost(context),
        E::PoolTimedOut => Verdict::local(Replay::Safe),
        E::PoolClosed | E::WorkerCrashed => Verdict::local(Replay::Never),
        E::Migrate(error) => migrating(error),
        // A wrong argument, a row that does not decode, no row where one was asked for.
        _ => Verdict::caller(Replay::Never),
    };
    let verdict = match verdict.blame {
        Blame::Service if context.one_host => Verdict { blame: Blame::Local, ..verdict },
        _ => verdict,
    };
    match verdict.replay {
        Replay::Safe | Replay::Transaction if context.effect => {
            Verdict { replay: Replay::IfIdempotent, ..verdict }
        }
        _ => verdict,
    }
}

/// Each migration is a transaction of its own, and those done are not done again: it may always be repeated.
fn migrating(error: &sqlx::migrate::MigrateError) -> Verdict {
    use sqlx::migrate::MigrateError as M;
    match error {
        M::Execute(error) | M::ExecuteMigration(error, _) => {
            running(error, Context { effect: false, ..Context::UNKNOWN })
        }
        _ => Verdict::caller(Replay::Never),
    }
}

/// What the server's answer means, apart from where it struck.
enum Meaning {
    /// The statement, or who asked, was wrong.
    Caller,
    /// It was not executed.
    NotExecuted,
    /// It collided with another transaction: all of this one was rolled back.
    Collision,
    /// The connection is gone, or nobody knows what became of the transaction.
    Lost,
    /// Nobody knows what became of the transaction, whatever was under way.
    Unknown,
    /// The server has run out of disk or memory.
    Slowly,
    /// It was cut short.
    Cancelled,
    /// The server itself failed.
    Broken,
    /// The statement cache does not match the server's.
    Stale,
}

impl Meaning {
    fn of(error: &sqlx::Error, code: &str) -> Self {
        match of_code(code) {
            _ if is_stale_plan(error) => Self::Stale,
            // A message of ours that it did not take, such as one with too few arguments; the session goes on.
            Self::Lost if code == "08P01" && !ends_the_session(error) => Self::Caller,
            meaning => meaning,
        }
    }
}

fn of_code(code: &str) -> Meaning {
    match code {
        // 57P05: a session that the server ended for its idleness; what came later found nobody.
        "08001" | "08004" | "53300" | "57P03" | "57P05" | "25006" => Meaning::NotExecuted,
        "40001" | "40P01" | "40000" | "55P03" | "25P03" | "72000" => Meaning::Collision,
        "08007" | "40003" => Meaning::Unknown,
        "57P01" | "57P02" => Meaning::Lost,
        "57014" => Meaning::Cancelled,
        "53000" | "53100" | "53200" | "53400" | "58000" | "58030" => Meaning::Slowly,
        code => match code.get(..2) {
            Some("08") => Meaning::Lost,
            Some("57" | "58" | "XX") if code != "57P04" => Meaning::Broken,
            _ => Meaning::Caller,
        },
    }
}

/// Whether the server's plan or prepared statement is not the one that the driver remembers.
pub(crate) fn is_stale_plan(error: &sqlx::Error) -> bool {
    database_error(error).is_some_and(|answer| match answer.code() {
        "26000" | "42P05" => true,
        "0A000" => {
            answer.routine() == Some("RevalidateCachedQuery")
                || answer.message().starts_with("cached plan")
        }
        _ => false,
    })
}

/// Whether the server closes the connection after it.
fn ends_the_session(error: &sqlx::Error) -> bool {
    let severity = database_error(error).map(PgDatabaseError::severity);
    matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether the server is one that takes no writes.
pub(crate) fn is_read_only(error: &sqlx::Error) -> bool {
    database_error(error).is_some_and(|answer| answer.code() == "25006")
}

fn answered(meaning: &Meaning, context: Context) -> Verdict {
    match meaning {
        Meaning::Caller => Verdict::caller(Replay::Never),
        Meaning::NotExecuted => Verdict::service(Replay::Safe),
        Meaning::Collision => Verdict::caller(Replay::Transaction),
        Meaning::Lost => lost(context),
        Meaning::Unknown => Verdict::service(Replay::IfIdempotent),
        Meaning::Slowly => Verdict::service(Replay::Transaction).after(SLOWLY),
        Meaning::Cancelled if context.hurried => Verdict::caller(Replay::Never),
        Meaning::Cancelled | Meaning::Broken => Verdict::service(Replay::Never),
        Meaning::Stale if context.stale => Verdict::caller(Replay::Never),
        Meaning::Stale => Verdict::caller(match context.phase {
            Phase::Transaction => Replay::Transaction,
            Phase::Unsent | Phase::Autocommit | Phase::Commit => Replay::Safe,
        }),
    }
}

fn lost(context: Context) -> Verdict {
    Verdict::service(match context.phase {
        Phase::Unsent => Replay::Safe,
        Phase::Autocommit | Phase::Commit => Replay::IfIdempotent,
        Phase::Transaction => Replay::Transaction,
    })
}

/// Whether a connect that ended so, or a look, says that the host does not serve, or not for long, or not
/// in the role that was asked for: another may be about to.
pub(crate) fn is_going_away(error: &Error) -> bool {
    let Some(cause) = error.sqlx() else { return false };
    match (database_error(cause), cause) {
        (Some(answer), _) => {
            matches!(answer.code(), "57P01" | "57P02" | "57P03" | "25006")
        }
        // A certificate that is not believed is no sign of it, nor is our own want of descriptors or time.
        (None, sqlx::Error::Io(error)) => {
            error.kind() != io::ErrorKind::InvalidData
                && !is_silence(error)
                && !is_out_of_descriptors(error)
        }
        _ => false,
    }
}

/// Whether an error says that the service, not the caller or this process, is at fault.
pub(crate) fn blames_the_service(error: &Error) -> bool {
    PgClassifier.verdict(error).blame == Blame::Service
}
