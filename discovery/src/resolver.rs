//! The system resolver, a bounded number of lookups at a time.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::defaults::MAX_LOOKUPS_AT_ONCE;

type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Looks names up. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resolver {
    lookup: Arc<Lookup>,
    permits: Arc<Semaphore>,
}

impl Resolver {
    /// The resolver of the system: the hosts file, DNS, and whatever else it is set up for.
    pub(crate) fn system() -> Self {
        Self::new(|host, port| (host, port).to_socket_addrs().map(Iterator::collect))
    }

    /// A resolver that asks `lookup`, which may block.
    pub(crate) fn new(
        lookup: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_LOOKUPS_AT_ONCE));
        Self { lookup: Arc::new(lookup), permits }
    }

    /// The addresses of `host`, each with `port`; one or more.
    ///
    /// A lookup cannot be called off: one whose caller has gone keeps its permit until it ends, so
    /// that a resolver that hangs holds a fixed number of threads and no more.
    pub(crate) async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let (lookup, host) = (Arc::clone(&self.lookup), host.to_owned());
        let looking = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            lookup(&host, port)
        });
        let found = looking.await.map_err(|_| io::Error::other("the lookup panicked"))??;
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(found)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, Mutex, mpsc};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let found = Resolver::system().lookup("localhost", 6379).await.unwrap();
        assert!(found.contains(&([127, 0, 0, 1], 6379).into()), "{found:?}");
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_an_error() {
        let error = Resolver::new(|_, _| Ok(vec![])).lookup("a", 1).await.unwrap_err();
        assert_eq!(error.to_string(), "the name has no address");
    }

    #[tokio::test]
    async fn a_resolver_that_hangs_holds_no_more_than_its_threads() {
        let (release, hung) = mpsc::channel::<()>();
        let hung = Mutex::new(hung);
        let running = Arc::new(AtomicUsize::new(0));
        let all_hang = Arc::new(Barrier::new(MAX_LOOKUPS_AT_ONCE + 1));
        let resolver = {
            let (running, all_hang) = (Arc::clone(&running), Arc::clone(&all_hang));
            Resolver::new(move |_, _| {
                running.fetch_add(1, Ordering::SeqCst);
                all_hang.wait();
                let _ = hung.lock().unwrap().recv();
                Err(io::ErrorKind::TimedOut.into())
            })
        };
        let callers: Vec<_> = (0..MAX_LOOKUPS_AT_ONCE)
            .map(|_| {
                let resolver = resolver.clone();
                tokio::spawn(async move { resolver.lookup("a", 1).await })
            })
            .collect();
        tokio::task::spawn_blocking(move || all_hang.wait()).await.unwrap();
        for caller in callers {
            caller.abort();
        }
        let late = tokio::time::timeout(Duration::ZERO, resolver.lookup("a", 1)).await;
        assert!(late.is_err(), "it waits for a thread to come back");
        assert_eq!(
            resolver.permits.available_permits(),
            0,
            "the callers have gone, the threads not"
        );
        assert_eq!(running.load(Ordering::SeqCst), MAX_LOOKUPS_AT_ONCE);
        drop(release);
    }
}
