//! sqlx's `Executor` on borrowed connections, so that sqlx code runs on them unchanged.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::StreamExt;
use resilience_core::Deadline;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Execute, Executor, Postgres, SqlStr};
use tokio::time::{Sleep, sleep_until};

use crate::conn::Conn;
use crate::session::Session;
use crate::statement::Statement;
use crate::track::{Track, silence};
use crate::tx::Tx;

pub(crate) type Step = Either<PgQueryResult, PgRow>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A query taken apart, since sqlx shows its text only to whoever consumes it.
pub(crate) struct Query {
    sql: SqlStr,
    arguments: Result<Option<PgArguments>, BoxError>,
    prepared: Option<PgStatement>,
    persistent: bool,
}

impl Query {
    pub(crate) fn of<'q>(mut query: impl Execute<'q, Postgres>) -> Self {
        let prepared = query.statement().cloned();
        let arguments = query.take_arguments();
        let persistent = query.persistent();
        Self { sql: query.sql(), arguments, prepared, persistent }
    }

    fn statement(&self) -> Statement {
        Statement::of(self.sql.as_str(), matches!(self.arguments, Ok(None)))
    }
}

impl Execute<'_, Postgres> for Query {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.prepared.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxError> {
        std::mem::replace(&mut self.arguments, Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

impl Session {
    pub(crate) async fn execute_query(
        &mut self,
        query: Query,
    ) -> Result<PgQueryResult, sqlx::Error> {
        let statement = query.statement();
        self.track.watch(statement, self.raw.execute(query)).await
    }

    pub(crate) async fn fetch_all_rows(&mut self, query: Query) -> Result<Vec<PgRow>, sqlx::Error> {
        let statement = query.statement();
        self.track.watch(statement, self.raw.fetch_all(query)).await
    }

    pub(crate) async fn fetch_row(&mut self, query: Query) -> Result<Option<PgRow>, sqlx::Error> {
        let statement = query.statement();
        self.track.watch(statement, self.raw.fetch_optional(query)).await
    }

    pub(crate) fn stream<'e>(&'e mut self, query: Query) -> Rows<'e> {
        let statement = query.statement();
        let Self { raw, track } = self;
        Rows {
            steps: Some(raw.fetch_many(query)),
            is_started: false,
            statement,
            track,
            timer: None,
        }
    }

    pub(crate) async fn prepare_sql(
        &mut self,
        sql: SqlStr,
        parameters: &[PgTypeInfo],
    ) -> Result<PgStatement, sqlx::Error> {
        self.track.watch(Statement::harmless(), self.raw.prepare_with(sql, parameters)).await
    }

    pub(crate) async fn describe_sql(
        &mut self,
        sql: SqlStr,
    ) -> Result<Describe<Postgres>, sqlx::Error> {
        self.track.watch(Statement::harmless(), self.raw.describe(sql)).await
    }
}

/// The steps of a running statement. Dropped before the end, it leaves the connection marked as busy.
pub(crate) struct Rows<'e> {
    /// `None` after the end.
    steps: Option<BoxStream<'e, Result<Step, sqlx::Error>>>,
    is_started: bool,
    statement: Statement,
    track: &'e mut Track,
    /// Ends the wait for one step, where no pipeline does.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Rows<'_> {
    fn end(&mut self, error: Option<&sqlx::Error>) {
        self.steps = None;
        self.track.settle(self.statement, error);
    }

    /// Starts the wait at the first poll that finds nothing; says whether it is over.
    fn waited_too_long(&mut self, cx: &mut Context<'_>) -> Option<sqlx::Error> {
        let limit = self.track.limit?;
        let timer = self.timer.get_or_insert_with(|| {
            Box::pin(sleep_until(Deadline::within(limit).inherited().instant()))
        });
        timer.as_mut().poll(cx).is_ready().then(|| silence(limit))
    }
}

impl Stream for Rows<'_> {
    type Item = Result<Step, sqlx::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let rows = &mut *self;
        if !rows.is_started {
            rows.is_started = true;
            if let Err(refusal) = rows.track.start(rows.statement) {
                rows.steps = None;
                return Poll::Ready(Some(Err(refusal)));
            }
        }
        let Some(steps) = &mut rows.steps else { return Poll::Ready(None) };
        let step = match steps.poll_next_unpin(cx) {
            Poll::Ready(step) => step,
            Poll::Pending => match rows.waited_too_long(cx) {
                Some(error) => Some(Err(error)),
                None => return Poll::Pending,
            },
        };
        rows.timer = None;
        match &step {
            Some(Ok(_)) => {}
            Some(Err(error)) => rows.end(Some(error)),
            None => rows.end(None),
        }
        Poll::Ready(step)
    }
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(self.execute_query(Query::of(query)))
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.stream(Query::of(query)).boxed()
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(self.fetch_all_rows(Query::of(query)))
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(self.fetch_row(Query::of(query)))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(self.prepare_sql(sql, parameters))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(self.describe_sql(sql))
    }
}

/// What dereferences to a session is an executor by it.
macro_rules! executor_by_session {
    ($($owner:ty),*) => {$(
        impl<'c> Executor<'c> for &'c mut $owner {
            type Database = Postgres;

            fn execute<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                Executor::execute(&mut **self, query)
            }

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                Executor::fetch_many(&mut **self, query)
            }

            fn fetch_all<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                Executor::fetch_all(&mut **self, query)
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                Executor::fetch_optional(&mut **self, query)
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
            where
                'c: 'e,
            {
                Executor::prepare_with(&mut **self, sql, parameters)
            }

            fn describe<'e>(
                self,
                sql: SqlStr,
            ) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
            where
                'c: 'e,
            {
                Executor::describe(&mut **self, sql)
            }
        }
    )*};
}

executor_by_session!(Conn, Tx<'_>);
