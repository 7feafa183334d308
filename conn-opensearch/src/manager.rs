//! The manager: every call to the cluster, through one pipeline, each attempt at one node.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use resilience_core::settings::{ConfigError, Held, Problem};
use resilience_core::{
    Attempt, Backend, Bulkhead, Call, CallError, CircuitBreaker, Deadline, Drained, Health,
    HealthCheck, InvalidSetting, Name, Pipeline, PoolStatus, Replay, RetryBudget, Standstill,
    WatchedEndpoints,
};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::classify::OpenSearchErrors;
use crate::config::OpenSearchConfig;
use crate::error::{Error, ErrorKind};
use crate::health;
use crate::node::{Node, Peer};
use crate::nodes::Nodes;
use crate::response::unless_failed;
use crate::sent::counted;
use crate::transport::Unusable;
use crate::tuning::Tuning;

/// An attempt that had less time than this says nothing about the node when it runs out of it.
const TOO_SHORT_TO_JUDGE: Duration = Duration::from_millis(10);

/// The way to an OpenSearch cluster. Cheap to clone: clones share everything.
///
/// Each attempt gets a [`Node`], by turns, and a repeated one gets another. A closure says which
/// errors it met by returning them: `?` on the client's own, and [`check`](crate::check) or
/// [`json`](crate::json) on what it answered. A `Response` that is returned unread is looked at all
/// the same: 408, 429 and 5xx become errors; 4xx is left to the caller.
///
/// ```no_run
/// # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
/// use conn_opensearch::opensearch::IndexParts;
/// use conn_opensearch::{OpenSearchConfig, OpenSearchManager};
/// use serde_json::json;
///
/// let search = OpenSearchManager::connect(OpenSearchConfig::from_env()?)?;
/// // With an id of its own the document may be sent twice.
/// search
///     .write_idempotent(|node| async move {
///         let request = node.index(IndexParts::IndexId("campaigns", "7")).body(json!({"title": "Wells"}));
///         conn_opensearch::check(request.send().await?).await
///     })
///     .await?;
/// println!("{}", search.health().await.status);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct OpenSearchManager {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pipeline: Pipeline,
    nodes: Nodes,
    in_use: Arc<AtomicUsize>,
    runtime: Option<Handle>,
    backend: Backend,
    health_timeout: Duration,
}

impl OpenSearchManager {
    /// A manager for the nodes of `config`. Makes no connection.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if no client can be made of what `config` holds, such as certificates that
    /// were readable when it was built and now are not.
    pub fn connect(config: OpenSearchConfig) -> Result<Self, ConfigError> {
        let nodes = Nodes::fixed(&config.nodes, &config.access).map_err(unusable)?;
        Ok(Self::new(config, nodes))
    }

    /// A manager for `endpoints`, as they change: the next call follows. Makes no connection.
    ///
    /// Of the URL of `config` the scheme and the path count, and the login; host and port are those
    /// of the endpoint. With `https` the host is [`Endpoint::server_name`](resilience_core::Endpoint::server_name),
    /// for the client can only verify the name that it connects to. A node that stays keeps its
    /// connections; one that is removed is given up when the last call to it has ended. Weights are
    /// not heeded; of several priorities the lowest number is used first.
    ///
    /// # Errors
    ///
    /// None at present; the same shape as [`connect`](Self::connect).
    pub fn connect_to(
        config: OpenSearchConfig,
        endpoints: WatchedEndpoints,
    ) -> Result<Self, ConfigError> {
        let nodes = Nodes::followed(endpoints, config.nodes[0].clone(), config.access.clone());
        Ok(Self::new(config, nodes))
    }

    fn new(config: OpenSearchConfig, nodes: Nodes) -> Self {
        let OpenSearchConfig { name, tuning, budget, runtime, nodes: urls, access } = config;
        let pipeline = pipeline(&name, &tuning, budget).expect("the configuration was validated");
        if urls[0].scheme() == "http" && access.login.is_some() {
            tracing::warn!(target: "shared_external::opensearch", %name, "the password is sent in clear text: the URL is http");
        }
        let backend = Backend {
            system: "opensearch",
            address: urls[0].host_str().map(|host| host.to_owned().into()),
            port: urls[0].port_or_known_default(),
        };
        let in_use = Arc::default();
        Self {
            shared: Arc::new(Shared {
                pipeline,
                nodes,
                in_use,
                runtime,
                backend,
                health_timeout: tuning.health_timeout,
            }),
        }
    }

    /// Runs `f`, which changes nothing: it may be repeated.
    ///
    /// # Errors
    ///
    /// The last [`Error`] of `f` where it came to that; otherwise why it did not.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the request in flight and its connection; the node may go on
    /// executing it.
    pub async fn read<T, F, Fut>(&self, f: F) -> Result<T, CallError<Error>>
    where
        T: 'static,
        F: Fn(Node) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.call(Call::read(), f).await
    }

    /// Runs `f`, which changes something: it is repeated only where it is proven that nothing was
    /// executed, such as where the connection was refused.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn write<T, F, Fut>(&self, f: F) -> Result<T, CallError<Error>>
    where
        T: 'static,
        F: Fn(Node) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.call(Call::write(), f).await
    }

    /// Runs `f`, which changes something, but no more when done twice: it may be repeated. To
    /// `index` a document with an id of its own is such a thing; without an id it is not.
    ///
    /// A `create` that is repeated may meet its own first write:
    /// [`Error::is_probably_own_write`].
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn write_idempotent<T, F, Fut>(&self, f: F) -> Result<T, CallError<Error>>
    where
        T: 'static,
        F: Fn(Node) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.call(Call::write_idempotent(), f).await
    }

    /// Runs `f` as `call` says: with a name or a deadline of its own.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn call<T, F, Fut>(&self, call: Call, f: F) -> Result<T, CallError<Error>>
    where
        T: 'static,
        F: Fn(Node) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        let (shared, trail) = (&*self.shared, &Trail::default());
        let operation = move |attempt| shared.attempt(attempt, trail, &f);
        shared.pipeline.run(call, &OpenSearchErrors, operation).await
    }

    /// [`read`](Self::read), and when the cluster cannot be had, `fallback`. The cluster gets half of
    /// the time there is, so that both end by the deadline. A request that was refused is no case
    /// for a fallback.
    ///
    /// # Errors
    ///
    /// What `fallback` returns, or the refusal.
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read), and that of the fallback.
    pub async fn read_or<T, F, Fut, Alt, AltErr>(
        &self,
        f: F,
        fallback: impl FnOnce(CallError<Error>) -> Alt,
    ) -> Result<T, AltErr>
    where
        T: 'static,
        F: Fn(Node) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
        Alt: Future<Output = Result<T, AltErr>>,
        AltErr: From<CallError<Error>>,
    {
        let (shared, trail) = (&*self.shared, &Trail::default());
        let operation = move |attempt| shared.attempt(attempt, trail, &f);
        shared.pipeline.run_or(Call::read(), &OpenSearchErrors, operation, fallback).await
    }

    /// Connects to every node, so that the first calls need not. One that answers is enough.
    ///
    /// # Errors
    ///
    /// Why the first node did not answer, where none did by `deadline`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the connections that were made.
    pub async fn warm_up(&self, deadline: Deadline) -> Result<(), CallError<Error>> {
        let shared = &*self.shared;
        let call = Call::read().named("warm_up").by(deadline);
        let operation = |attempt: Attempt| async move {
            let nodes = shared.nodes.all();
            let looks = nodes.iter().map(|peer| health::look(peer, attempt.deadline));
            let seen = within(shared.runtime.as_ref(), join_all(looks)).await;
            let answered = seen.iter().any(Result::is_ok);
            match seen.into_iter().find_map(Result::err) {
                Some(error) if !answered => Err(error),
                None if !answered => Err(Error::new(ErrorKind::NoNode)),
                Some(_) | None => Ok(()),
            }
        };
        shared.pipeline.run(call, &OpenSearchErrors, operation).await
    }

    /// Asks every node how the cluster is; 5 s at the most, unless the settings say otherwise. Goes past breaker and bulkhead.
    ///
    /// Green and yellow are healthy; a cluster of which some nodes do not answer is degraded; red,
    /// or no answer, is unhealthy.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the requests in flight.
    pub async fn health(&self) -> Health {
        self.check(Deadline::within(self.shared.health_timeout)).await
    }

    /// Nodes lent out, as connections in use, the limit on them, and the attempts that wait for a place.
    /// The client does not tell how many idle connections it keeps, nor does it limit them: 0.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let (max, waiting) = match self.shared.pipeline.bulkhead() {
            Some(bulkhead) => (bulkhead.limit(), bulkhead.waiting()),
            None => (0, 0),
        };
        let in_use = self.shared.in_use.load(Ordering::Relaxed);
        PoolStatus { in_use, max, waiting, ..PoolStatus::default() }
    }

    /// Refuses new calls, waits for those that run until `deadline`, and closes the idle connections.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the manager refusing; call it again to wait on.
    pub async fn drain(&self, deadline: Deadline) -> Drained {
        let drained = self.shared.pipeline.drain(deadline).await;
        self.shared.nodes.close();
        drained
    }

    /// The breaker that every attempt asks.
    ///
    /// # Panics
    ///
    /// Never: every manager has one.
    #[must_use]
    pub fn breaker(&self) -> &CircuitBreaker {
        self.shared.pipeline.breaker().expect("it was built with one")
    }

    /// The name of breaker and bulkhead, in logs and metrics.
    #[must_use]
    pub fn name(&self) -> &Name {
        self.shared.pipeline.name()
    }
}

#[async_trait]
impl HealthCheck for OpenSearchManager {
    async fn check(&self, deadline: Deadline) -> Health {
        let nodes = self.shared.nodes.all();
        within(self.shared.runtime.as_ref(), health::check(&nodes, deadline)).await
    }

    fn pool_status(&self) -> Option<PoolStatus> {
        Some(self.status())
    }

    fn pipeline(&self) -> Option<Pipeline> {
        Some(self.shared.pipeline.clone())
    }

    fn backend(&self) -> Option<Backend> {
        Some(self.shared.backend.clone())
    }
}

impl Shared {
    /// One attempt of a call, at one node.
    fn attempt<'a, T, F, Fut>(
        &'a self,
        attempt: Attempt,
        trail: &'a Trail,
        f: &F,
    ) -> Pin<Box<impl Future<Output = Result<T, Error>> + use<'a, T, F, Fut>>>
    where
        T: 'static,
        F: Fn(Node) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        let started = Instant::now();
        let peer = trail.next(&self.nodes, started);
        let work = peer.as_ref().map(|peer| {
            tracing::debug!(target: "shared_external::opensearch", node = %peer.name, attempt = attempt.number, "node chosen");
            let _inside = self.runtime.as_ref().map(Handle::enter);
            f(Node::lend(Arc::clone(peer), &self.in_use))
        });
        // A request is a large future, and each layer around it would hold it by value.
        Box::pin(async move {
            let (Some(peer), Some(work)) = (peer, work) else {
                return Err(Error::new(ErrorKind::NoNode));
            };
            let mut fate =
                Fate { peer: &peer, trail, started, deadline: attempt.deadline, known: false };
            let stray = peer.stray();
            let counted = counted(async { unless_failed(work.await?).await });
            let (result, sent) = within(self.runtime.as_ref(), counted).await;
            fate.known = true;
            result
                .map_err(|error| Error {
                    // Exactly one request: the one that failed.
                    after_others: sent != 1 || stray != peer.stray(),
                    after_uncertain: trail.uncertain.load(Ordering::Relaxed),
                    ..error.at(&peer.name)
                })
                .inspect(|_| peer.succeeded(started))
                .inspect_err(|error| fate.failed(error))
        })
    }
}

/// Where the attempts of one call have been, and what they may have left behind.
#[derive(Debug, Default)]
struct Trail {
    tried: Mutex<Vec<Arc<Peer>>>,
    /// An attempt ended in a way after which nobody knows what was executed.
    uncertain: AtomicBool,
}

impl Trail {
    fn next(&self, nodes: &Nodes, now: Instant) -> Option<Arc<Peer>> {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = nodes.pick(&tried, now)?;
        tried.push(Arc::clone(&peer));
        Some(peer)
    }
}

/// What becomes of an attempt. One that is dropped past its deadline was cut off: the node had its
/// time. One that is dropped before, the caller gave up, which says nothing.
struct Fate<'a> {
    peer: &'a Peer,
    trail: &'a Trail,
    started: Instant,
    deadline: Deadline,
    known: bool,
}

impl Fate<'_> {
    fn failed(&self, error: &Error) {
        tracing::debug!(target: "shared_external::opensearch", %error, "attempt failed");
        if error.verdict().replay == Replay::IfIdempotent {
            self.trail.uncertain.store(true, Ordering::Relaxed);
        }
        match error.speaks_against_the_node() {
            true if Standstill::since(self.started).excuses() => {}
            true => self.peer.failed(self.started, Instant::now()),
            false => self.peer.succeeded(self.started),
        }
    }
}

impl Drop for Fate<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        if self.known || !self.deadline.has_passed(now) {
            return;
        }
        self.trail.uncertain.store(true, Ordering::Relaxed);
        let had_its_time = self.deadline.remaining_at(self.started) >= TOO_SHORT_TO_JUDGE
            && !Standstill::since(self.started).excuses();
        if had_its_time {
            self.peer.failed(self.started, now);
        }
    }
}

/// Polls `future` within `runtime`, so that what it opens and spawns lives there. It is dropped
/// with its caller all the same.
async fn within<F: Future>(runtime: Option<&Handle>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let _inside = runtime.map(Handle::enter);
        future.as_mut().poll(context)
    })
    .await
}

fn unusable(unusable: Unusable) -> ConfigError {
    let name = match unusable {
        Unusable::Authority => "ca_file",
        Unusable::Identity => "client_key_file",
    };
    let allowed = "certificates and keys that parse and belong together".to_owned();
    let problem = Problem { name: name.to_owned(), held: Held::Secret, allowed };
    ConfigError::unless_empty(vec![problem]).expect_err("there is a problem")
}

fn pipeline(name: &Name, tuning: &Tuning, budget: RetryBudget) -> Result<Pipeline, InvalidSetting> {
    let Tuning { resilience, bulkhead, acquire_timeout, .. } = tuning;
    resilience
        .pipeline(name, *acquire_timeout, budget)?
        .bulkhead(Bulkhead::new(name.clone(), *bulkhead, *acquire_timeout)?)
        .build()
}
