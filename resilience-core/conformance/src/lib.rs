//! What a connector promises, as behaviours to run on it and a real server. For tests alone: a `dev-dependency`.
//!
//! Whoever writes a connector implements two traits: [`Harness`], which makes managers and counts what the server has
//! executed, and [`Subject`], one such manager. [`run`] then tries it, behaviour by behaviour, each on a [`Wire`] of
//! its own that the suite cuts, silences and closes, and gives a [`Report`]: what holds, what does not and why, and
//! what the connector [lacks](Support::Lacks), each with its reason. What is lacking is tried too, so that the list
//! cannot outlive its reasons.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use resilience_conformance::{
//!     Capability, Harness, Setup, Subject, Support, Told, Way, Work, run, unsupported,
//! };
//! use resilience_core::{CallError, Credentials, Deadline, Drained, Health, HealthCheck};
//! # use resilience_core::Call;
//! # #[derive(Debug, thiserror::Error)]
//! # #[error("no")]
//! # struct QueueError;
//! # struct Conn;
//! # impl Conn {
//! #     async fn ask(&mut self, _: &str) -> Result<String, QueueError> { Err(QueueError) }
//! # }
//! # #[derive(Clone, Debug)]
//! # struct QueueConfig;
//! # impl QueueConfig {
//! #     fn of(_: &Setup) -> Result<Self, QueueError> { Err(QueueError) }
//! # }
//! # #[derive(Clone, Debug)]
//! # struct QueueManager;
//! # #[async_trait]
//! # impl HealthCheck for QueueManager {
//! #     async fn check(&self, _: Deadline) -> Health { self.health().await }
//! # }
//! # impl QueueManager {
//! #     fn connect(_: QueueConfig) -> Self { Self }
//! #     async fn call<F: Future<Output = Result<String, QueueError>>>(
//! #         &self, _: Call, _: impl Fn(Conn) -> F,
//! #     ) -> Result<String, CallError<QueueError>> { Ok(String::new()) }
//! #     async fn health(&self) -> Health { Health::healthy(std::time::Duration::ZERO) }
//! #     async fn warm_up(&self, _: Deadline) -> Result<(), QueueError> { Err(QueueError) }
//! #     async fn drain(&self, _: Deadline) -> Drained { Drained { abandoned: 0 } }
//! # }
//!
//! /// A queue at `localhost:5672`, and what the suite must know of it.
//! struct Queue;
//!
//! #[async_trait]
//! impl Harness for Queue {
//!     fn server(&self) -> String {
//!         "localhost:5672".to_owned()
//!     }
//!     fn credentials(&self) -> Credentials {
//!         Credentials::new("app", "a password that is not the name")
//!     }
//!     fn support(&self, capability: Capability) -> Support {
//!         match capability {
//!             Capability::Pool | Capability::PoolEvents => Support::Gives,
//!             Capability::Transactions => Support::Lacks("the protocol has none"),
//!             _ => Support::Lacks("nobody has built it yet"),
//!         }
//!     }
//!     fn connect(&self, setup: &Setup) -> Result<Arc<dyn Subject>, String> {
//!         // Each setting of `setup` that the connector knows.
//!         let config = QueueConfig::of(setup).map_err(|error| error.to_string())?;
//!         Ok(Arc::new(Client(QueueManager::connect(config))))
//!     }
//!     fn shown(&self, setup: &Setup) -> Vec<String> {
//!         vec![format!("{:?}", QueueConfig::of(setup))]
//!     }
//!     async fn executed(&self, key: &str) -> u64 {
//!         // Asked of the server itself, past the manager.
//!         # let _ = key;
//!         0
//!     }
//! }
//!
//! #[derive(Debug)]
//! struct Client(QueueManager);
//!
//! #[async_trait]
//! impl Subject for Client {
//!     fn watched(&self) -> &dyn HealthCheck {
//!         &self.0
//!     }
//!     async fn run(&self, way: Way, work: Work) -> Result<String, CallError<Told>> {
//!         let closure = |conn| perform(conn, work.clone());
//!         let answer = match way {
//!             // And so on: a method of the manager's for each way that it has.
//!             Way::Call(call) => self.0.call(call, closure).await,
//!             _ => return Err(unsupported(way)),
//!         };
//!         answer.map_err(|error| error.map_inner(|error| Told::of(&error)))
//!     }
//!     async fn health(&self) -> Health {
//!         self.0.health().await
//!     }
//!     async fn warm_up(&self, deadline: Deadline) -> Result<(), Told> {
//!         self.0.warm_up(deadline).await.map_err(|error| Told::of(&error))
//!     }
//!     async fn drain(&self, deadline: Deadline) -> Drained {
//!         self.0.drain(deadline).await
//!     }
//!     fn twin(&self) -> Arc<dyn Subject> {
//!         Arc::new(Self(self.0.clone()))
//!     }
//! }
//!
//! async fn perform(mut conn: Conn, work: Work) -> Result<String, QueueError> {
//!     match work {
//!         Work::Echo(text) => return conn.ask(&text).await,
//!         Work::Hold(gate) => gate.pass().await,
//!         // And so on: one thing at the server for each.
//!         _ => {}
//!     }
//!     Ok(String::new())
//! }
//!
//! // In `tests/live_conformance.rs`, with `#[tokio::test(flavor = "multi_thread")]`:
//! # #[tokio::main]
//! # async fn main() {
//! let report = run(Queue).await;
//! println!("{report}");
//! report.assert_conforms();
//! # }
//! ```
//!
//! `tests/fake` of this crate is a whole connector in little, and `tests/mutants.rs` shows that each of its flaws is
//! caught. While a connector is being written, [`run_only`] runs the behaviours that it has come to.
//!
//! Deliberately absent: behaviours that no wire and no server can be made to show on each backend, such as two primaries;
//! they are tests of the connector that has them.

mod behaviours;
mod capability;
mod events;
mod harness;
mod report;
mod stage;
mod suite;
mod wire;

pub use capability::{Capability, Support};
pub use harness::{Gate, Harness, Setup, Subject, Told, Way, Work, unsupported};
pub use report::{Entry, Outcome, Report};
pub use suite::{names, run, run_only};
pub use wire::{State, Wire};
