//! What may help where a connection cannot be opened.

use std::io;

use rustls::CertificateError as Certificate;
use sqlx_postgres::PgDatabaseError;

use crate::error::database_error;

const NOT_POSTGRES: &str = "check that host and port are those of a PostgreSQL server";

/// What may help against `error`, which ended a connect; `None` where the error says it, or nobody knows.
pub(crate) fn of(error: &sqlx::Error) -> Option<&'static str> {
    match error {
        sqlx::Error::Database(_) => database_error(error).and_then(of_answer),
        sqlx::Error::Tls(_) => Some(
            "turn on ssl at the server, or use sslmode=prefer or disable where the network is trusted",
        ),
        sqlx::Error::Protocol(_) => Some(NOT_POSTGRES),
        sqlx::Error::Io(error) => of_io(error),
        _ => None,
    }
}

fn of_answer(answer: &PgDatabaseError) -> Option<&'static str> {
    match answer.code() {
        "28P01" => Some("check the user and the password"),
        "28000" => Some("check the server's pg_hba.conf, the role's LOGIN, and sslmode"),
        "3D000" => Some("check the database's name, or create it"),
        "53300" => Some(
            "lower pool_size and max_overflow, or raise the server's max_connections or the role's limit",
        ),
        _ => None,
    }
}

fn of_io(error: &io::Error) -> Option<&'static str> {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match (tls, error.kind()) {
        (Some(rustls::Error::InvalidCertificate(why)), _) => of_certificate(why),
        (Some(rustls::Error::InvalidMessage(_)), _)
        | (
            None,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe,
        ) => Some(NOT_POSTGRES),
        _ => None,
    }
}

fn of_certificate(why: &Certificate) -> Option<&'static str> {
    match why {
        Certificate::Expired | Certificate::ExpiredContext { .. } => {
            Some("renew the server's certificate, or check the clock of this machine")
        }
        Certificate::UnknownIssuer => {
            Some("name the file with the certificate of its authority as ca_file")
        }
        Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => Some(
            "connect by a name that is in the certificate, or waive the name by sslmode=verify-ca",
        ),
        _ => None,
    }
}
