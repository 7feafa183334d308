//! Counts the requests that one attempt sends, so that a second one's failure is not taken for
//! proof that nothing happened.
//!
//! The client asks its connection pool for a connection once per request, within the task that
//! sends it. A task that the closure spawns is not ours: its requests are counted on the node as
//! stray, and whoever sees that number move takes the cautious view.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use opensearch::http::Url;
use opensearch::http::transport::{Connection, ConnectionPool};

tokio::task_local! {
    static SENT: AtomicUsize;
}

/// Runs `attempt`, and says how many requests it sent from within its own task.
pub(crate) async fn counted<F: Future>(attempt: F) -> (F::Output, usize) {
    SENT.scope(AtomicUsize::new(0), async {
        let output = attempt.await;
        (output, SENT.with(|sent| sent.load(Ordering::Relaxed)))
    })
    .await
}

/// The one connection of one node, which counts how often it is asked for.
#[derive(Clone, Debug)]
pub(crate) struct CountingPool {
    connection: Connection,
    stray: Arc<AtomicUsize>,
}

impl CountingPool {
    pub(crate) fn new(url: Url, stray: Arc<AtomicUsize>) -> Self {
        Self { connection: Connection::new(url), stray }
    }
}

impl ConnectionPool for CountingPool {
    fn next(&self) -> Connection {
        let count = |sent: &AtomicUsize| sent.fetch_add(1, Ordering::Relaxed);
        if SENT.try_with(count).is_err() {
            count(&self.stray);
        }
        self.connection.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_of_a_spawned_task_are_seen_as_stray() {
        let stray = Arc::new(AtomicUsize::new(0));
        let pool = CountingPool::new("http://localhost".parse().unwrap(), Arc::clone(&stray));
        let ((), sent) = counted(async {
            pool.next();
            pool.next();
            let pool = pool.clone();
            tokio::spawn(async move { pool.next() }).await.unwrap();
        })
        .await;
        assert_eq!((sent, stray.load(Ordering::Relaxed)), (2, 1));
    }
}
