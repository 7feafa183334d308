//! Behind PgBouncer in transaction mode: a server's process is ours for a transaction, and for nothing longer.
//!
//! The driver sends a statement with arguments in two steps, and PgBouncer may lend another process in between:
//! the second step would meet no statement there, or somebody else's. So outside a transaction, such a statement
//! gets one of its own. It has no name, or it would meet another client's of the same.
//!
//! Where the driver meets a type that it does not know, it asks the server between the two steps, which loses a
//! statement without a name. So the first time that a text is run on a connection, a savepoint lets it be run
//! again; the driver knows its types then.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};

use crate::error::{Error, database_error};
use crate::executor::{Query, Step};
use crate::session::Session;
use crate::statement::Kind;

/// How many texts a connection remembers; then it begins anew.
const MOST_KNOWN: usize = 1024;

const SAVEPOINT: &str = "SAVEPOINT first_time";
const BACK: &str = "ROLLBACK TO SAVEPOINT first_time";
const RELEASE: &str = "RELEASE SAVEPOINT first_time";

/// How a statement runs once there is a connection.
pub(crate) type Run<T> =
    for<'a> fn(&'a mut Session, Query) -> BoxFuture<'a, Result<T, sqlx::Error>>;

/// What is known of a connection through PgBouncer: the texts whose types the driver has learned.
#[derive(Debug, Default)]
pub(crate) struct Bounced {
    known: HashSet<u64>,
}

/// What a statement through PgBouncer needs around it.
struct Needs {
    text: u64,
    transaction: bool,
    savepoint: bool,
    /// Whether the connection was to be closed already.
    retired: bool,
}

impl Session {
    /// Runs `query` as `run` says, with what it needs around it behind PgBouncer.
    pub(crate) fn run<'s, T: Send + 's>(
        &'s mut self,
        query: Query,
        run: Run<T>,
    ) -> BoxFuture<'s, Result<T, sqlx::Error>> {
        let Some(needs) = self.needs(&query) else { return run(self, query) };
        Box::pin(async move {
            self.prepare_for(&needs).await?;
            let mut result = run(self, query.clone()).await;
            if let Err(error) = &result
                && self.is_to_run_again(&needs, error).await?
            {
                result = run(self, query).await;
            }
            self.conclude(&needs, result.is_ok()).await?;
            result
        })
    }

    /// The steps of `query`, with what it needs around it behind PgBouncer.
    pub(crate) fn steps(&mut self, query: Query) -> BoxStream<'_, Result<Step, sqlx::Error>> {
        let Some(needs) = self.needs(&query) else { return self.stream(query).boxed() };
        Box::pin(sqlx_core::try_stream! {
            self.prepare_for(&needs).await?;
            let mut again = true;
            let failed = loop {
                let failed = {
                    let mut steps = self.stream(query.clone());
                    loop {
                        match steps.try_next().await {
                            Ok(Some(step)) => {
                                again = false;
                                r#yield!(step);
                            }
                            Ok(None) => break None,
                            Err(error) => break Some(error),
                        }
                    }
                };
                match failed {
                    Some(error) if again && self.is_to_run_again(&needs, &error).await? => again = false,
                    failed => break failed,
                }
            };
            self.conclude(&needs, failed.is_none()).await?;
            failed.map_or(Ok(()), Err)
        })
    }

    /// The driver's prepared statements have names, and live in one process of the server.
    pub(crate) fn keep_no_statement(&self) -> Result<(), sqlx::Error> {
        match self.bounced {
            Some(_) => Err(refusal("prepare()", "run the statement as it is")),
            None => Ok(()),
        }
    }

    fn needs(&self, query: &Query) -> Option<Needs> {
        let bounced = self.bounced.as_ref()?;
        // Those that begin or end a transaction are refused before they are sent.
        let is_plain = matches!(query.statement().kind, Kind::Plain | Kind::Session);
        if !is_plain || !query.has_arguments() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        query.text().hash(&mut hasher);
        let text = hasher.finish();
        let (transaction, savepoint) = (!self.track.in_transaction, !bounced.known.contains(&text));
        let needs = Needs { text, transaction, savepoint, retired: self.track.retired };
        (transaction || savepoint).then_some(needs)
    }

    async fn prepare_for(&mut self, needs: &Needs) -> Result<(), sqlx::Error> {
        if needs.transaction {
            self.begin().await?;
        }
        if needs.savepoint {
            self.execute_query(Query::plain(SAVEPOINT)).await?;
        }
        Ok(())
    }

    /// Whether `error` is that the driver lost the statement while it learned a type. Goes back, if so.
    async fn is_to_run_again(
        &mut self,
        needs: &Needs,
        error: &sqlx::Error,
    ) -> Result<bool, sqlx::Error> {
        let is_lost = database_error(error).is_some_and(|answer| answer.code() == "26000");
        if !is_lost || !needs.savepoint {
            return Ok(false);
        }
        self.execute_query(Query::plain(BACK)).await?;
        // It is as good as before.
        self.track.retired = needs.retired;
        Ok(true)
    }

    async fn conclude(&mut self, needs: &Needs, is_well: bool) -> Result<(), Error> {
        if !is_well {
            if needs.transaction {
                // Where this fails, the server rolls back by itself.
                let _ = self.rollback().await;
            }
            return Ok(());
        }
        if needs.savepoint {
            self.execute_query(Query::plain(RELEASE)).await?;
            if let Some(bounced) = &mut self.bounced {
                if bounced.known.len() >= MOST_KNOWN {
                    bounced.known.clear();
                }
                bounced.known.insert(needs.text);
            }
        }
        if needs.transaction { self.commit().await } else { Ok(()) }
    }
}

/// That `what` cannot be had behind PgBouncer, and what to do instead.
pub(crate) fn refusal(what: &str, cure: &str) -> sqlx::Error {
    let why = format!(
        "{what} needs a server's process to itself, which PgBouncer in transaction mode gives nobody (pgbouncer=true); {cure}"
    );
    sqlx::Error::Configuration(why.into())
}

/// What to add to a server's answer that PgBouncer in transaction mode is known for; empty for all others.
pub(crate) fn hint(code: &str, message: &str) -> &'static str {
    let is_known = match code {
        // A prepared statement that is not there, or that is there already.
        "26000" | "42P05" => true,
        // PgBouncer's own word, where it takes no settings of the session.
        "08P01" => message.starts_with("unsupported startup parameter"),
        _ => false,
    };
    match is_known {
        true => "; behind PgBouncer in transaction mode, set pgbouncer=true",
        false => "",
    }
}
