//! The services of a registry: who has a name, what feeds it, which tasks serve it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use resilience_core::Endpoint;
use resilience_core::settings::{ConfigError, Held, Problem};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::LOG;
use crate::declare::{self, Declaration, Source};
use crate::file::{self, Stamp};
use crate::options::Options;
use crate::prober;
use crate::resolver::Resolver;
use crate::service::{Feed, Service};

/// What the clones of a registry share.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) options: Options,
    resolver: Resolver,
    entries: RwLock<Entries>,
    files: Mutex<BTreeMap<Arc<Path>, Task>>,
    dropped_services: AtomicU64,
}

type Entries = BTreeMap<Arc<str>, Entry>;

/// Who gave a service its source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    Code,
    Environment,
    File(Arc<Path>),
}

#[derive(Debug)]
struct Entry {
    service: Arc<Service>,
    origin: Origin,
    source: Source,
    /// Of a source that is told from here; one that looks for itself has its own.
    feed: Option<Arc<Feed>>,
    /// Its file no longer names it.
    orphaned: bool,
    _tasks: Vec<Task>,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is to be told to a service, once the book is closed again: what wakes or logs must not find
/// it locked.
enum Tell {
    Adopt(Arc<Feed>, Vec<Endpoint>),
    Distrust(Arc<Feed>, Arc<str>),
}

impl Book {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            options,
            resolver: Resolver::system(),
            entries: RwLock::default(),
            files: Mutex::default(),
            dropped_services: AtomicU64::new(0),
        }
    }

    /// The service of that name, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Service>> {
        self.read().get(&*declare::canonical(name)).map(|entry| Arc::clone(&entry.service))
    }

    /// All services, in the order of their names.
    pub(crate) fn services(&self) -> Vec<Arc<Service>> {
        self.read().values().map(|entry| Arc::clone(&entry.service)).collect()
    }

    /// Services dropped so far as too many.
    pub(crate) fn dropped_services(&self) -> u64 {
        self.dropped_services.load(Ordering::Relaxed)
    }

    /// Whether there is room for all these.
    pub(crate) fn admits<'a>(
        &self,
        declarations: impl IntoIterator<Item = &'a Declaration>,
    ) -> Result<(), ConfigError> {
        self.room_for(&self.read(), declarations)
    }

    /// Gives each service its source, or none of them.
    pub(crate) fn register(
        &self,
        declarations: Vec<Declaration>,
        origin: &Origin,
    ) -> Result<(), ConfigError> {
        let runtime = self.runtime()?;
        let tell = {
            let mut entries = self.write();
            self.room_for(&entries, &declarations)?;
            let install = |declaration| self.install(&mut entries, declaration, origin, &runtime);
            declarations.into_iter().filter_map(install).collect()
        };
        tell_all(tell);
        Ok(())
    }

    /// Takes what a file names, but for names that others have and those that do not fit, and follows
    /// the file from `stamp` on.
    pub(crate) fn register_file(
        self: &Arc<Self>,
        path: &Path,
        stamp: Option<Stamp>,
        declarations: Vec<Declaration>,
    ) -> Result<(), ConfigError> {
        let runtime = self.runtime()?;
        let path: Arc<Path> = path.into();
        self.file_told(&path, declarations);
        let book = Arc::downgrade(self);
        let follow = file::follow(book, Arc::clone(&path), stamp, self.options.max_endpoints);
        let task = Task(runtime.spawn(follow).abort_handle());
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(path, task);
        Ok(())
    }

    /// Takes what the file at `path` names at last, but for names that others have.
    pub(crate) fn file_told(&self, path: &Arc<Path>, declarations: Vec<Declaration>) {
        let Ok(runtime) = self.runtime() else { return };
        let origin = Origin::File(Arc::clone(path));
        let mut tell = Vec::new();
        let (mut taken, mut dropped, mut orphans) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut entries = self.write();
            for entry in entries.values_mut().filter(|entry| entry.origin == origin) {
                if declarations.iter().all(|declaration| declaration.name != *entry.service.name())
                {
                    if !std::mem::replace(&mut entry.orphaned, true) {
                        orphans.push(Arc::clone(entry.service.name()));
                    }
                    let cause = format!("{} no longer names it", path.display());
                    tell.extend(entry.feed.clone().map(|feed| Tell::Distrust(feed, cause.into())));
                }
            }
            for declaration in declarations {
                let full = entries.len() >= self.options.max_services;
                match entries.get_mut(&declaration.name) {
                    Some(entry) if entry.origin != origin => taken.push(declaration.name),
                    Some(entry) if entry.source == declaration.source => {
                        entry.orphaned = false;
                        if let (Some(feed), Source::Static(endpoints)) =
                            (entry.feed.clone(), declaration.source)
                        {
                            tell.push(Tell::Adopt(feed, endpoints));
                        }
                    }
                    None if full => dropped.push(declaration.name),
                    Some(_) | None => {
                        tell.extend(self.install(&mut entries, declaration, &origin, &runtime));
                    }
                }
            }
        }
        tell_all(tell);
        let file = path.display();
        for service in taken {
            tracing::debug!(target: LOG, %file, %service, "the file's entry is passed over: the name was given elsewhere");
        }
        for service in orphans {
            tracing::warn!(target: LOG, %file, %service, "the file no longer names the service; its last endpoints stand");
        }
        self.dropped_services.fetch_add(dropped.len() as u64, Ordering::Relaxed);
        for service in dropped {
            tracing::warn!(target: LOG, %file, %service, max = self.options.max_services, "too many services; this one is dropped");
        }
    }

    /// Notes that the file at `path` cannot be used, because of `cause`.
    pub(crate) fn file_broke(&self, path: &Arc<Path>, cause: &Arc<str>) {
        let origin = Origin::File(Arc::clone(path));
        let tell: Vec<_> = {
            let entries = self.read();
            let feeds = entries.values().filter(|entry| entry.origin == origin);
            feeds
                .filter_map(|entry| entry.feed.clone())
                .map(|feed| Tell::Distrust(feed, Arc::clone(cause)))
                .collect()
        };
        tell_all(tell);
    }

    fn install(
        &self,
        entries: &mut Entries,
        Declaration { name, source }: Declaration,
        origin: &Origin,
        runtime: &Handle,
    ) -> Option<Tell> {
        let options = &self.options;
        let known = entries.remove(&name).map(|entry| Arc::clone(&entry.service));
        let service = known.unwrap_or_else(|| {
            Service::new(Arc::clone(&name), options.thresholds, options.max_endpoints)
        });
        // Also for a known service: the runtime of its last task may be gone.
        let probe = prober::probe(Arc::clone(&service), options.probe, self.resolver.clone());
        let prober = Task(runtime.spawn(probe).abort_handle());
        let feed = service.feed();
        let (feed, tell, tasks) = match &source {
            Source::Static(endpoints) => {
                let feed = Arc::new(feed);
                let tell = Tell::Adopt(Arc::clone(&feed), endpoints.clone());
                (Some(feed), Some(tell), vec![prober])
            }
            #[cfg(feature = "kubernetes")]
            Source::Kubernetes(target) => {
                let resolver = self.resolver.clone();
                let follow =
                    crate::kubernetes::follow(feed, target.clone(), options.resolve, resolver);
                (None, None, vec![prober, Task(runtime.spawn(follow).abort_handle())])
            }
        };
        let origin = origin.clone();
        let entry = Entry { service, origin, source, feed, orphaned: false, _tasks: tasks };
        entries.insert(name, entry);
        tell
    }

    fn runtime(&self) -> Result<Handle, ConfigError> {
        if let Some(runtime) = &self.options.runtime {
            return Ok(runtime.clone());
        }
        Handle::try_current().map_err(|_| {
            one(Problem {
                name: "runtime".to_owned(),
                held: Held::Nothing,
                allowed:
                    "ServiceRegistry::builder().runtime(handle), or a call within a tokio runtime"
                        .to_owned(),
            })
        })
    }

    fn room_for<'a>(
        &self,
        entries: &Entries,
        declarations: impl IntoIterator<Item = &'a Declaration>,
    ) -> Result<(), ConfigError> {
        let new = declarations.into_iter().map(|new| &new.name);
        let services = entries.keys().chain(new).collect::<BTreeSet<_>>().len();
        let max = self.options.max_services;
        if services <= max {
            return Ok(());
        }
        Err(one(Problem {
            name: "services".to_owned(),
            held: Held::Text(format!("a list of {services}")),
            allowed: format!("{max} services at the most"),
        }))
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        // No section can panic half-way through a change, so a poisoned book is still whole.
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_all(tell: Vec<Tell>) {
    for tell in tell {
        match tell {
            Tell::Adopt(feed, endpoints) => feed.adopt(endpoints, None),
            Tell::Distrust(feed, cause) => feed.distrust(&cause, None),
        }
    }
}

fn one(problem: Problem) -> ConfigError {
    ConfigError::unless_empty(vec![problem]).expect_err("there is one")
}
