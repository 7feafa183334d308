//! sqlx's `Executor` on borrowed connections, so that sqlx code runs on them unchanged.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::StreamExt;
use resilience_core::{Deadline, Vigil};
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

    /// A statement without arguments.
    pub(crate) fn plain(sql: &'static str) -> Self {
        let sql = sqlx::SqlSafeStr::into_sql_str(sql);
        Self { sql, arguments: Ok(None), prepared: None, persistent: false }
    }

    /// The same once more, unless its arguments could not be encoded.
    pub(crate) fn spare(&self) -> Option<Self> {
        let arguments = Ok(self.arguments.as_ref().ok()?.clone());
        let (sql, prepared) = (self.sql.clone(), self.prepared.clone());
        Some(Self { sql, arguments, prepared, persistent: self.persistent })
    }

    pub(crate) fn text(&self) -> &str {
        self.sql.as_str()
    }

    pub(crate) fn has_arguments(&self) -> bool {
        matches!(self.arguments, Ok(Some(_)))
    }

    pub(crate) fn statement(&self) -> Statement {
        Statement::of(self.sql.as_str(), matches!(self.arguments, Ok(None)))
    }
}

impl Clone for Query {
    fn clone(&self) -> Self {
        let arguments = match &self.arguments {
            Ok(arguments) => Ok(arguments.clone()),
            Err(error) => Err(error.to_string().into()),
        };
        Self { sql: self.sql.clone(), arguments, prepared: self.prepared.clone(), ..*self }
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
        let (statement, query) = self.looked_at(query);
        self.track.watch(statement, self.raw.execute(query)).await
    }

    pub(crate) async fn fetch_all_rows(&mut self, query: Query) -> Result<Vec<PgRow>, sqlx::Error> {
        let (statement, query) = self.looked_at(query);
        self.track.watch(statement, self.raw.fetch_all(query)).await
    }

    pub(crate) async fn fetch_row(&mut self, query: Query) -> Result<Option<PgRow>, sqlx::Error> {
        let (statement, query) = self.looked_at(query);
        self.track.watch(statement, self.raw.fetch_optional(query)).await
    }

    pub(crate) fn stream<'e>(&'e mut self, query: Query) -> Rows<'e> {
        let (statement, query) = self.looked_at(query);
        let Self { raw, track, .. } = self;
        Rows {
            steps: Some(raw.fetch_many(query)),
            is_started: false,
            statement,
            track,
            timer: None,
            vigil: None,
        }
    }

    /// What `query` does, and the query without a name where it may have none.
    fn looked_at(&self, mut query: Query) -> (Statement, Query) {
        query.persistent &= self.bounced.is_none();
        (query.statement(), query)
    }

    pub(crate) async fn prepare_sql(
        &mut self,
        sql: SqlStr,
        parameters: &[PgTypeInfo],
    ) -> Result<PgStatement, sqlx::Error> {
        self.keep_no_statement()?;
        self.track.watch(Statement::harmless(), self.raw.prepare_with(sql, parameters)).await
    }

    pub(crate) async fn describe_sql(
        &mut self,
        sql: SqlStr,
    ) -> Result<Describe<Postgres>, sqlx::Error> {
        self.keep_no_statement()?;
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
    /// Ends it where the server is silent.
    vigil: Option<Pin<Box<Vigil>>>,
}

impl Rows<'_> {
    fn end(&mut self, error: Option<&sqlx::Error>) {
        self.steps = None;
        self.track.settle(self.statement, error);
    }

    /// Starts the wait at the first poll that finds nothing; says whether it is over.
    fn waited_too_long(&mut self, cx: &mut Context<'_>) -> Option<sqlx::Error> {
        let vigil = self.vigil.get_or_insert_with(|| Box::pin(Vigil::new()));
        if let Poll::Ready(silent) = vigil.as_mut().poll_silent(self.track.look().lookout(), cx) {
            return Some(io::Error::from(silent).into());
        }
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
        if let Some(vigil) = &mut rows.vigil {
            vigil.as_mut().end_wait();
        }
        match &step {
            Some(Ok(_)) => rows.track.look().lookout().answered(),
            Some(Err(error)) => rows.end(Some(error)),
            None => rows.end(None),
        }
        Poll::Ready(step)
    }
}

/// Implements `Executor`: how each of its methods runs on what an owner coerces to.
macro_rules! impl_executor {
    (
        for $($owner:ty),+ as $this:ident: $seen:ty;
        execute($executed:ident) $execute:block
        fetch_many($many:ident) $fetch_many:block
        fetch_all($all:ident) $fetch_all:block
        fetch_optional($optional:ident) $fetch_optional:block
        prepare_with($prepared:ident, $parameters:ident) $prepare_with:block
        describe($described:ident) $describe:block
    ) => {$(
        impl<'c> sqlx::Executor<'c> for $owner {
            type Database = sqlx::Postgres;

            impl_executor!(@query execute($executed) -> BoxFuture<PgQueryResult>, $this: $seen, $execute);
            impl_executor!(@query fetch_many($many) -> BoxStream<Step>, $this: $seen, $fetch_many);
            impl_executor!(@query fetch_all($all) -> BoxFuture<Vec<PgRow>>, $this: $seen, $fetch_all);
            impl_executor!(@query fetch_optional($optional) -> BoxFuture<Option<PgRow>>, $this: $seen, $fetch_optional);

            fn prepare_with<'e>(
                self,
                $prepared: SqlStr,
                $parameters: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
            where
                'c: 'e,
            {
                let $this: $seen = self;
                $prepare_with
            }

            fn describe<'e>(
                self,
                $described: SqlStr,
            ) -> BoxFuture<'e, Result<Describe<sqlx::Postgres>, sqlx::Error>>
            where
                'c: 'e,
            {
                let $this: $seen = self;
                $describe
            }
        }
    )+};
    (@query $method:ident($query:ident) -> $later:ident<$what:ty>, $this:ident: $seen:ty, $run:block) => {
        fn $method<'e, 'q: 'e, E>(self, $query: E) -> $later<'e, Result<$what, sqlx::Error>>
        where
            'c: 'e,
            E: 'q + Execute<'q, sqlx::Postgres>,
        {
            let $this: $seen = self;
            $run
        }
    };
}

pub(crate) use impl_executor;

impl_executor! {
    for &'c mut Session, &'c mut Conn, &'c mut Tx<'_> as session: &mut Session;
    execute(query) { session.run(Query::of(query), |it, query| Box::pin(it.execute_query(query))) }
    fetch_many(query) { session.steps(Query::of(query)) }
    fetch_all(query) { session.run(Query::of(query), |it, query| Box::pin(it.fetch_all_rows(query))) }
    fetch_optional(query) { session.run(Query::of(query), |it, query| Box::pin(it.fetch_row(query))) }
    prepare_with(sql, parameters) { Box::pin(session.prepare_sql(sql, parameters)) }
    describe(sql) { Box::pin(session.describe_sql(sql)) }
}
