//! Finds the endpoints of a service and keeps track of their health.
//!
//! A [`ServiceRegistry`] knows services by name. For each it holds the watched set of its endpoints
//! ([`resilience_core::WatchedEndpoints`]), which a connector takes and looks at whenever it connects:
//! a service that moves is followed without a restart.
//!
//! ```
//! use discovery::ServiceRegistry;
//! use resilience_core::Outcome;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = ServiceRegistry::from_env()?; // DISCOVERY_REDIS=10.0.0.1:6379,10.0.0.2:6379
//! registry.register_static("search", ["10.0.0.3:9200", "10.0.0.4:9200"])?;
//!
//! let endpoint = registry.pick("search")?;
//! assert_eq!(endpoint.address.to_string(), "10.0.0.3:9200");
//! registry.report("search", &endpoint.id, Outcome::Success)?;
//!
//! let watched = registry.endpoints("search")?; // for a connector, or to wait for changes
//! assert_eq!(watched.borrow().candidates().len(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! # Which source to use when
//!
//! | the addresses | use | a change is seen |
//! |---|---|---|
//! | are known to the code, as in a test or from a lookup of your own | [`register_static`](ServiceRegistry::register_static), [`register_endpoints`](ServiceRegistry::register_endpoints) | when you register the name again |
//! | are fixed for the life of the process | `DISCOVERY_<NAME>=host:port,host:port` and [`from_env`](ServiceRegistry::from_env) | never |
//! | change now and then, by hand or by a deployment tool; or have weights, priorities, zones | a file and [`from_file`](ServiceRegistry::from_file), or `DISCOVERY_FILE` | within 1 s |
//! | belong to a Kubernetes service | `DISCOVERY_<NAME>=k8s://service.namespace:port`, or `register_kubernetes` (feature `kubernetes`) | within 33 s, about 1 s after a reported failure |
//!
//! Code and environment come before a file: a name that either has given is not taken from a file. Of
//! code and environment the later wins. To register a known name again gives it a new source; those
//! who watch its endpoints follow.
//!
//! Names are case-blind and take `-` and `_` for the same, since a variable's name can carry neither
//! small letters nor hyphens: `DISCOVERY_ORDER_SERVICE` is the service `order-service`.
//!
//! # The file
//!
//! TOML, YAML or JSON, by its extension. An endpoint is `"host:port"` or a table; in place of the list
//! may stand one text, as in the variable.
//!
//! ```toml
//! [services.redis]
//! endpoints = ["10.0.0.1:6379", "10.0.0.2:6379"]
//!
//! [[services.postgres.endpoints]]
//! address = "10.0.0.5:5432"
//! weight = 2                          # share of the traffic, 1 to 65535, default 1
//! priority = 0                        # the lowest is used first, 0 to 65535, default 0
//! zone = "a"                          # default: not known
//! host_name = "postgres.example"      # the name in its certificate, default: the address's host
//!
//! [services.search]
//! endpoints = "k8s://search.default:9200"
//! ```
//!
//! It is looked at every second. A new file that is broken changes nothing: the last good set stands,
//! [`Stale`](resilience_core::Freshness::Stale) with the cause, and one WARN says so. The same goes for a
//! service that the new file no longer names, and for a resolver that fails.
//!
//! # Health
//!
//! A background task connects to each endpoint every 5 s and hangs up. Callers add what they saw by
//! [`report`](ServiceRegistry::report). Two failures in a row of either kind make an endpoint unhealthy,
//! one success of either kind makes it healthy again. A TCP connect asks the kernel of the other machine,
//! not its server: a server that hangs is found by reports alone.
//!
//! Where all endpoints are unhealthy, all are candidates: a wrong tracker must not cut off a service.
//!
//! # Keep the registry
//!
//! Its tasks end when the last clone of it is dropped; watched sets then stay as they are and
//! `changed()` gives an error. The tasks run on the runtime that registers a service, and end with it,
//! unless [`runtime`](ServiceRegistryBuilder::runtime) names another.
//!
//! # What is absent
//!
//! No balancing: [`pick`](ServiceRegistry::pick) gives the first candidate. No removal of a name. No
//! application-level health check: that is `HealthCheck`'s.

mod book;
mod declare;
pub mod defaults;
mod environment;
mod error;
mod file;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod options;
mod prober;
mod registry;
mod resolver;
mod service;
mod tracker;

pub use error::{NoEndpoint, PickError, UnknownService};
#[cfg(feature = "kubernetes")]
pub use kubernetes::KubernetesService;
pub use options::ServiceRegistryBuilder;
pub use registry::{Dropped, ServiceRegistry};

/// The target of every log line of this crate.
const LOG: &str = "shared_external::discovery";
