//! Services by name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resilience_core::settings::{ConfigError, Problem};
use resilience_core::{Endpoint, Outcome, WatchedEndpoints};

use crate::book::{Book, Origin};
use crate::declare::{self, Declaration, Source};
use crate::environment::{self, Told};
use crate::error::{PickError, UnknownService};
use crate::file::{self, Stamp};
#[cfg(feature = "kubernetes")]
use crate::kubernetes::KubernetesService;
use crate::options::{Options, ServiceRegistryBuilder};
use crate::service::Service;
use crate::tracker::Sight;

/// Services by name, each with the watched set of its endpoints. Cheap to clone; clones share all.
///
/// See the [crate's page](crate) for the sources and when to use which. Keep a clone for as long as
/// the endpoints are to be followed.
///
/// ```
/// use discovery::ServiceRegistry;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = ServiceRegistry::new();
/// registry.register_static("redis", ["10.0.0.1:6379"])?;
/// let mut watched = registry.endpoints("redis")?;
///
/// registry.register_static("redis", ["10.0.0.2:6379"])?; // it moved
/// watched.changed().await?;
/// assert_eq!(watched.borrow().endpoints[0].address.host(), "10.0.0.2");
///
/// let error = registry.pick("redsi").unwrap_err();
/// assert_eq!(error.to_string(), "no service \"redsi\"; known: redis");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ServiceRegistry {
    book: Arc<Book>,
}

/// What the bounds of a registry have cost so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Dropped {
    /// Endpoints that a resolver named beyond `max_endpoints`, counted anew with each answer.
    pub endpoints: u64,
    /// Services that a changed file named beyond `max_services`, counted anew with each reading.
    pub services: u64,
}

/// What is to be registered: what the environment declares, and each file with its stamp.
struct Reading {
    declarations: Vec<Declaration>,
    files: Vec<(PathBuf, Option<Stamp>, Vec<Declaration>)>,
}

impl ServiceRegistry {
    /// An empty registry with every setting at its default.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build().expect("the defaults are in their ranges")
    }

    /// A builder, for other settings.
    pub fn builder() -> ServiceRegistryBuilder {
        ServiceRegistryBuilder::new()
    }

    /// A registry of the services that the environment names; see [`register_env`](Self::register_env).
    ///
    /// # Errors
    ///
    /// All that is wrong, of all variables and of the file.
    pub fn from_env() -> Result<Self, ConfigError> {
        let registry = Self::new();
        registry.register_env()?;
        Ok(registry)
    }

    /// A registry of the services that the file at `path` names, under those of the environment.
    ///
    /// # Errors
    ///
    /// All that is wrong, of the file and of all variables.
    pub fn from_file(path: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let registry = Self::new();
        let mut told = registry.environment();
        let files = [Some(path.into()), told.file.take()];
        registry.load(told, files.into_iter().flatten())?;
        Ok(registry)
    }

    /// Registers what the environment names: for each `DISCOVERY_<NAME>`, the service of that name at
    /// `host:port,host:port` or, with the feature `kubernetes`, at `k8s://service.namespace:port`;
    /// and what the file named by `DISCOVERY_FILE` names, as [`register_file`](Self::register_file)
    /// does, so that no service of the environment can be called `file`. An empty variable counts as not set.
    ///
    /// Beside a Kubernetes service that is itself called `discovery`, the cluster sets variables such as
    /// `DISCOVERY_PORT=tcp://…`, which are errors here: `enableServiceLinks: false` keeps them out.
    ///
    /// # Errors
    ///
    /// All that is wrong, of all variables and of the file; nothing is registered then.
    pub fn register_env(&self) -> Result<(), ConfigError> {
        let mut told = self.environment();
        let file = told.file.take();
        self.load(told, file)
    }

    /// Says whether [`register_env`](Self::register_env) would succeed, and registers nothing: to know all
    /// that is wrong before anything is started. Needs no runtime.
    ///
    /// # Errors
    ///
    /// All that is wrong, of all variables and of the file.
    pub fn check_env(&self) -> Result<(), ConfigError> {
        let mut told = self.environment();
        let file = told.file.take();
        self.read(told, file).map(drop)
    }

    /// Registers what the file at `path` (TOML, YAML or JSON, by its extension) names, and follows it:
    /// it is looked at each second, and read when it has changed. Names registered before keep the
    /// source they have. Reads the file at once, on this thread.
    ///
    /// # Errors
    ///
    /// All that is wrong with the file; nothing is registered then, nor is the file followed.
    pub fn register_file(&self, path: impl Into<PathBuf>) -> Result<(), ConfigError> {
        self.load(Told::default(), [path.into()])
    }

    /// Registers `service` at `addresses`, each `host:port`, best first. A name that is known gets
    /// these in place of its source, and those who watch it follow.
    ///
    /// # Errors
    ///
    /// A wrong name, wrong addresses, none, one twice, or more than `max_endpoints`; a registry that is
    /// full; no runtime to run on.
    pub fn register_static<A: AsRef<str>>(
        &self,
        service: &str,
        addresses: impl IntoIterator<Item = A>,
    ) -> Result<WatchedEndpoints, ConfigError> {
        let (mut endpoints, mut problems) = (Vec::new(), Vec::new());
        for (at, address) in addresses.into_iter().enumerate() {
            let field = format!("services.{service}.endpoints[{at}]");
            match declare::endpoint(&field, address.as_ref(), declare::ADDRESS) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(problem) => problems.push(problem),
            }
        }
        self.register_list(service, endpoints, problems)
    }

    /// As [`register_static`](Self::register_static), for endpoints with a weight, a priority, or an id
    /// other than their address. What they say of their health is not heeded: that is ours to find out.
    ///
    /// # Errors
    ///
    /// A wrong name, no endpoint, two of one id, or more than `max_endpoints`; a registry that is full;
    /// no runtime to run on.
    pub fn register_endpoints(
        &self,
        service: &str,
        endpoints: impl Into<Vec<Endpoint>>,
    ) -> Result<WatchedEndpoints, ConfigError> {
        self.register_list(service, endpoints.into(), Vec::new())
    }

    /// Registers `service` at the addresses that the system resolver knows of a Kubernetes service. The
    /// name is looked up in the background: each 30 s, and again soon after failures. Until it first
    /// resolves there are no endpoints:
    ///
    /// ```no_run
    /// # async fn example(registry: discovery::ServiceRegistry) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut redis = registry.register_kubernetes("redis", "redis.default:6379".parse()?)?;
    /// redis.wait_for(|set| !set.endpoints.is_empty()).await?; // bound it by a deadline of yours
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// A wrong name; a registry that is full; no runtime to run on.
    #[cfg(feature = "kubernetes")]
    pub fn register_kubernetes(
        &self,
        service: &str,
        target: KubernetesService,
    ) -> Result<WatchedEndpoints, ConfigError> {
        let name =
            declare::service_name("service", service).map_err(|problem| all(vec![problem]))?;
        self.register(Declaration { name, source: Source::Kubernetes(target) })
    }

    /// The endpoints of `service` as they change: for a connector, or to wait for changes.
    ///
    /// # Errors
    ///
    /// [`UnknownService`], which lists the known ones.
    pub fn endpoints(&self, service: &str) -> Result<WatchedEndpoints, UnknownService> {
        self.find(service).map(|service| service.watch())
    }

    /// The endpoint of `service` to use now: the first of [`EndpointSet::candidates`].
    ///
    /// [`EndpointSet::candidates`]: resilience_core::EndpointSet::candidates
    ///
    /// # Errors
    ///
    /// [`UnknownService`]; [`NoEndpoint`](crate::NoEndpoint) while no endpoint is known.
    pub fn pick(&self, service: &str) -> Result<Endpoint, PickError> {
        Ok(self.find(service)?.pick()?)
    }

    /// Tells what became of a call to an endpoint, by its `id`. Report successes too: they are what
    /// tells two failures in a row from two in a day. [`Outcome::Excluded`] and
    /// [`Outcome::Cancelled`] move nothing, nor does an endpoint that is no longer there.
    ///
    /// # Errors
    ///
    /// [`UnknownService`], which lists the known ones.
    pub fn report(
        &self,
        service: &str,
        endpoint: &str,
        outcome: Outcome,
    ) -> Result<(), UnknownService> {
        self.find(service)?.settle(endpoint, None, Sight::Report, outcome);
        Ok(())
    }

    /// The names of all services, in order: in small letters, with `_` for `-`.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<str>> {
        self.book.services().iter().map(|service| Arc::clone(service.name())).collect()
    }

    /// What the bounds have cost so far.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        let services = self.book.services();
        Dropped {
            endpoints: services.iter().map(|service| service.dropped()).sum(),
            services: self.book.dropped_services(),
        }
    }

    pub(crate) fn with(options: Options) -> Self {
        Self { book: Arc::new(Book::new(options)) }
    }

    fn environment(&self) -> Told {
        environment::read(std::env::vars_os(), self.book.options.max_endpoints)
    }

    fn load(
        &self,
        told: Told,
        files: impl IntoIterator<Item = PathBuf>,
    ) -> Result<(), ConfigError> {
        let Reading { declarations, files } = self.read(told, files)?;
        self.book.register(declarations, &Origin::Environment)?;
        for (path, stamp, declarations) in files {
            self.book.register_file(Path::new(&path), stamp, declarations)?;
        }
        Ok(())
    }

    /// What is to be registered, if all of it may be.
    fn read(
        &self,
        told: Told,
        files: impl IntoIterator<Item = PathBuf>,
    ) -> Result<Reading, ConfigError> {
        let Told { declarations, mut problems, .. } = told;
        let mut read = Vec::new();
        for path in files {
            // Before the reading: a change in between is then seen as one.
            let stamp = Stamp::of(&path);
            match file::read(&path, self.book.options.max_endpoints) {
                Ok(declarations) => read.push((path, stamp, declarations)),
                Err(error) => problems.extend_from_slice(error.problems()),
            }
        }
        ConfigError::unless_empty(problems)?;
        let in_files = read.iter().flat_map(|(_, _, declarations)| declarations);
        self.book.admits(declarations.iter().chain(in_files))?;
        Ok(Reading { declarations, files: read })
    }

    fn register_list(
        &self,
        service: &str,
        endpoints: Vec<Endpoint>,
        mut problems: Vec<Problem>,
    ) -> Result<WatchedEndpoints, ConfigError> {
        let name = declare::service_name("service", service);
        if problems.is_empty() {
            let field = format!("services.{service}.endpoints");
            let max = self.book.options.max_endpoints;
            problems = declare::list_problems(&field, &endpoints, max);
        }
        match name {
            Ok(name) if problems.is_empty() => {
                self.register(Declaration { name, source: Source::Static(endpoints) })
            }
            name => Err(all(name.err().into_iter().chain(problems).collect())),
        }
    }

    fn register(&self, declaration: Declaration) -> Result<WatchedEndpoints, ConfigError> {
        let name = Arc::clone(&declaration.name);
        self.book.register(vec![declaration], &Origin::Code)?;
        let service = self.book.find(&name).expect("it was registered, and no name is removed");
        Ok(service.watch())
    }

    fn find(&self, name: &str) -> Result<Arc<Service>, UnknownService> {
        self.book
            .find(name)
            .ok_or_else(|| UnknownService { name: name.to_owned(), known: self.services() })
    }
}

impl Default for ServiceRegistry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ServiceRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceRegistry").field("services", &self.services()).finish()
    }
}

fn all(problems: Vec<Problem>) -> ConfigError {
    ConfigError::unless_empty(problems).expect_err("there is at least one")
}
