//! The background tasks of a manager: they end with it.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Where tasks run, once they do, and those that run. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Life {
    given: Option<Handle>,
    tasks: Mutex<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    runtime: Option<Handle>,
    watch: JoinSet<()>,
    deliveries: JoinSet<()>,
}

impl Life {
    pub(crate) fn new(given: Option<Handle>) -> Self {
        Self { given, tasks: Mutex::default() }
    }

    /// Settles where tasks run; whether this is the first time.
    ///
    /// # Panics
    ///
    /// Without a runtime.
    pub(crate) fn begin(&self) -> bool {
        let runtime = self.given.clone().unwrap_or_else(Handle::current);
        let mut tasks = self.lock();
        let first = tasks.runtime.is_none();
        tasks.runtime.get_or_insert(runtime);
        first
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.lock().runtime.is_some()
    }

    /// Runs a task that watches, until [`end_watch`](Self::end_watch).
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Tasks { runtime, watch, .. } = &mut *self.lock();
        if let Some(runtime) = runtime {
            watch.spawn_on(task, runtime);
        }
    }

    /// Runs a task that delivers, until it ends by itself.
    pub(crate) fn spawn_delivery(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Tasks { runtime, deliveries, .. } = &mut *self.lock();
        if let Some(runtime) = runtime {
            deliveries.spawn_on(task, runtime);
        }
    }

    pub(crate) fn end_watch(&self) {
        self.lock().watch.abort_all();
    }

    /// Waits for the tasks that deliver.
    pub(crate) async fn deliveries_end(&self) {
        let mut deliveries = std::mem::take(&mut self.lock().deliveries);
        while deliveries.join_next().await.is_some() {}
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
