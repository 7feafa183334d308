//! A transaction that is rolled back unless it was committed.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::conn::Conn;
use crate::error::Error;
use crate::session::Session;

/// An open transaction. `&mut tx` and `&mut *tx` are sqlx [`Executor`](sqlx::Executor)s.
///
/// Dropped without [`commit`](Self::commit) it is rolled back, by one write that does not wait; where that
/// cannot be sent, or a statement is still under way, the connection is closed instead.
///
/// ```no_run
/// # async fn example(db: conn_postgres::DatabaseManager) -> Result<(), conn_postgres::Error> {
/// let mut tx = db.begin().await?;
/// sqlx::query("UPDATE accounts SET balance = balance - 5 WHERE id = 1").execute(&mut *tx).await?;
/// sqlx::query("UPDATE accounts SET balance = balance + 5 WHERE id = 2").execute(&mut *tx).await?;
/// tx.commit().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropped, it is rolled back"]
pub struct Tx<'c> {
    holder: Holder<'c>,
}

#[derive(Debug)]
enum Holder<'c> {
    Owned(Conn),
    Lent(&'c mut Conn),
    /// Belongs to a closure's caller, who decides how it ends.
    Closure(Option<Conn>, Home),
}

/// Where the transaction of a closure comes back to when the closure lets go of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Home(Arc<Mutex<Option<Conn>>>);

impl Home {
    /// The transaction to lend to a closure.
    pub(crate) fn lend(&self, conn: Conn) -> Tx<'static> {
        Tx { holder: Holder::Closure(Some(conn), self.clone()) }
    }

    /// What came back; `None` while the closure's transaction is still out.
    pub(crate) fn take(&self) -> Option<Conn> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<'c> Tx<'c> {
    pub(crate) fn owned(conn: Conn) -> Self {
        Self { holder: Holder::Owned(conn) }
    }

    pub(crate) fn lent(conn: &'c mut Conn) -> Self {
        Self { holder: Holder::Lent(conn) }
    }

    /// Makes what was done last.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] if a statement of the transaction had failed: it was rolled back. What the server
    /// refuses at COMMIT (a serialization failure, a deferred constraint) is rolled back too. If the
    /// connection is lost before the answer, nobody knows whether it was committed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future costs the connection; the transaction may or may not be committed.
    pub async fn commit(mut self) -> Result<(), Error> {
        Session::commit(&mut self).await
    }

    /// Undoes what was done, and waits for the server's word.
    ///
    /// # Errors
    ///
    /// That the connection was lost; the server then rolls back by itself.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future costs the connection; the transaction is rolled back all the same.
    pub async fn rollback(mut self) -> Result<(), Error> {
        Session::rollback(&mut self).await
    }
}

impl Deref for Tx<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        match &self.holder {
            Holder::Owned(conn) => conn,
            Holder::Lent(conn) => conn,
            Holder::Closure(conn, _) => conn.as_ref().expect("only the drop takes it"),
        }
    }
}

impl DerefMut for Tx<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        match &mut self.holder {
            Holder::Owned(conn) => conn,
            Holder::Lent(conn) => conn,
            Holder::Closure(conn, _) => conn.as_mut().expect("only the drop takes it"),
        }
    }
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        match &mut self.holder {
            Holder::Owned(conn) => conn.rollback_now(),
            Holder::Lent(conn) => conn.rollback_now(),
            // Where nobody waits for it any more, it goes down with its home.
            Holder::Closure(conn, home) => {
                *home.0.lock().unwrap_or_else(PoisonError::into_inner) = conn.take();
            }
        }
    }
}
