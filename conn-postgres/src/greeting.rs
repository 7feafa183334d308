//! The first question on a new connection: which process of the server serves it, and in what role.

use sqlx::{Executor, PgConnection, Row};

/// What a server says of itself and of a new connection, in one round trip.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Greeting {
    /// The process that serves the connection, by which it can be cancelled from another.
    pub(crate) backend: i32,
    /// The server is in recovery.
    pub(crate) is_standby: bool,
    /// A transaction that does not say otherwise may not write.
    pub(crate) is_read_only: bool,
}

impl Greeting {
    const SQL: &str = "SELECT pg_backend_pid(), pg_is_in_recovery(), \
                       current_setting('default_transaction_read_only')::bool";

    /// Asks the server on `connection`.
    pub(crate) async fn ask(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let row = connection.fetch_one(sqlx::raw_sql(Self::SQL)).await?;
        Ok(Self {
            backend: row.try_get(0)?,
            is_standby: row.try_get(1)?,
            is_read_only: row.try_get(2)?,
        })
    }
}
