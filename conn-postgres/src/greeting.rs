//! The first question on a new connection: which process of the server serves it, and in what role.

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

/// What a server says of itself and of a new connection, in one round trip.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Greeting {
    /// The process that serves the connection, by which it can be cancelled from another.
    pub(crate) backend: i32,
    /// When that process began, in microseconds: tells it from a later one with the same number. `None` where
    /// the server does not say.
    pub(crate) since: Option<i64>,
    /// The server is in recovery.
    pub(crate) is_standby: bool,
    /// A transaction that does not say otherwise may not write.
    pub(crate) is_read_only: bool,
}

impl Greeting {
    /// The function behind `pg_stat_activity`: the view itself would take a new backend a millisecond or two.
    const SQL: &str = "SELECT pg_backend_pid(), pg_is_in_recovery(), \
                       current_setting('default_transaction_read_only')::bool, \
                       (SELECT (extract(epoch FROM backend_start) * 1000000)::int8 \
                       FROM pg_stat_get_activity(pg_backend_pid()))";

    /// Lets the server look once a second, while a statement runs, whether the connection is still there. It is
    /// for what no cancel request reaches: this process is gone, or the server takes no more connections.
    /// Servers before 14 do not know it, those that do not run on Linux may refuse it, and where someone has
    /// chosen a period, that holds.
    const WATCH: &str = ", CASE WHEN current_setting('client_connection_check_interval', true) = '0' \
                         AND version() LIKE '%linux%' \
                         THEN set_config('client_connection_check_interval', '1s', false) END";

    /// Asks the server on `connection`; where the backend `is_ours` for as long as the connection is open, it
    /// shall look after it, too.
    pub(crate) async fn ask(
        connection: &mut PgConnection,
        is_ours: bool,
    ) -> Result<Self, sqlx::Error> {
        let watch = if is_ours { Self::WATCH } else { "" };
        let sql = AssertSqlSafe(format!("{}{watch}", Self::SQL));
        let row = connection.fetch_one(sqlx::raw_sql(sql)).await?;
        Ok(Self {
            backend: row.try_get(0)?,
            is_standby: row.try_get(1)?,
            is_read_only: row.try_get(2)?,
            since: row.try_get(3)?,
        })
    }
}
