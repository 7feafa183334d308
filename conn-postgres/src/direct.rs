//! sqlx's `Executor` on the manager: one statement through the breaker, never sent twice.

use std::sync::{Mutex, PoisonError};

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::TryStreamExt;
use resilience_core::{
    Attempt, Blame, Call, Classify, Outcome, Permit, Replay, Standstill, Verdict,
};
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Execute, SqlStr};

use crate::classify::PgClassifier;
use crate::conn::Conn;
use crate::error::Error;
use crate::executor::{Query, Step, impl_executor};
use crate::holders::CallSite;
use crate::manager::DatabaseManager;
use crate::pgbouncer::Run;

impl DatabaseManager {
    /// Runs one statement. Only what failed before it was sent is tried again: sqlx's arguments are used up then.
    /// With several hosts there is a copy, for what a host that was lost or takes no writes has not executed.
    async fn direct<T: Send>(self, query: Query, run: Run<T>) -> Result<T, sqlx::Error> {
        let (pool, query) = (&self.pool, &Mutex::new(Some(query)));
        let take = || query.lock().unwrap_or_else(PoisonError::into_inner).take();
        let is_sent = || query.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        let classifier = |error: &Error| match PgClassifier.verdict(error) {
            verdict if is_sent() => Verdict { replay: Replay::Never, ..verdict },
            verdict => verdict,
        };
        let put_back = |spare| *query.lock().unwrap_or_else(PoisonError::into_inner) = spare;
        let operation = |attempt: Attempt| {
            let mut repeats = self.repeats(false);
            async move {
                loop {
                    let in_all = attempt.deadline.remaining();
                    let conn = pool.acquire(attempt.deadline, CallSite::Operation("query")).await?;
                    let query = take().expect("an attempt that took it is the last");
                    // Only where there is another host to begin again at.
                    let spare = repeats.are_possible().then(|| query.spare()).flatten();
                    let work = async |mut conn: Conn| {
                        let result = conn.run(query, run).await;
                        result.map_err(|error| conn.track.explain(error))
                    };
                    let result = conn.fairly(in_all, attempt.deadline, work).await;
                    let Err(mut error) = result else { return result };
                    if !repeats.may_follow(&mut error) || spare.is_none() {
                        return Err(error);
                    }
                    put_back(spare);
                }
            }
        };
        let call = Call::write().named("query");
        let result = self.pipeline.run(call, &classifier, operation).await;
        result.map_err(|error| self.error_of(error).into())
    }

    /// Runs one statement as a stream. The breaker judges it by its first answer; after that, the time
    /// between two answers is limited, not the whole.
    fn stream(self, query: Query) -> BoxStream<'static, Result<Step, sqlx::Error>> {
        Box::pin(sqlx_core::try_stream! {
            let mut conn = self.borrow(CallSite::Operation("stream")).await?;
            let permit = self.breaker().try_acquire().map_err(|open| Error::from_call(open.into()))?;
            let (mut permit, standstill) = (Some(permit), Standstill::watch());
            let failed = {
                let mut steps = conn.steps(query);
                loop {
                    match steps.try_next().await {
                        Ok(Some(step)) => {
                            settle(permit.take(), Outcome::Success);
                            r#yield!(step);
                        }
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                }
            };
            match failed {
                None => {
                    settle(permit, Outcome::Success);
                    Ok(())
                }
                Some(error) => {
                    let error = conn.track.explain(error);
                    settle(permit, match PgClassifier.verdict(&error).blame {
                        Blame::Caller => Outcome::Success,
                        Blame::Service if !standstill.excuses() => Outcome::Failure,
                        Blame::Service | Blame::Local => Outcome::Excluded,
                    });
                    Err(error.into())
                }
            }
        })
    }
}

fn settle(permit: Option<Permit>, outcome: Outcome) {
    if let Some(permit) = permit {
        permit.settle(outcome);
    }
}

impl_executor! {
    for &'_ DatabaseManager as db: &DatabaseManager;
    execute(query) {
        let query = Query::of(query);
        Box::pin(db.clone().direct(query, |session, query| Box::pin(session.execute_query(query))))
    }
    fetch_many(query) { db.clone().stream(Query::of(query)) }
    fetch_all(query) {
        let query = Query::of(query);
        Box::pin(db.clone().direct(query, |session, query| Box::pin(session.fetch_all_rows(query))))
    }
    fetch_optional(query) {
        let query = Query::of(query);
        Box::pin(db.clone().direct(query, |session, query| Box::pin(session.fetch_row(query))))
    }
    prepare_with(sql, parameters) {
        let db = db.clone();
        let taken = CallSite::Operation("prepare");
        Box::pin(async move { db.borrow(taken).await?.prepare_sql(sql, parameters).await })
    }
    describe(sql) {
        let db = db.clone();
        let taken = CallSite::Operation("describe");
        Box::pin(async move { db.borrow(taken).await?.describe_sql(sql).await })
    }
}
