//! The attributes [`#[circuit_breaker]`](macro@circuit_breaker) and [`#[with_retry]`](macro@with_retry),
//! with the argument names and units of the Python module.
//!
//! Take them from `resilience_core` or `shared_external`, with the feature `macros`; the expansion
//! needs one of the two among the dependencies, under whatever name.
//!
//! ```
//! use std::io;
//! use resilience_core::{CircuitOpen, circuit_breaker, with_retry};
//!
//! #[derive(Debug, thiserror::Error)]
//! enum MyError {
//!     #[error("not a campaign: {0}")]
//!     Validation(String),
//!     #[error(transparent)]
//!     Io(#[from] io::Error),
//!     #[error(transparent)]
//!     CircuitOpen(#[from] CircuitOpen),
//! }
//!
//! #[circuit_breaker("my_service", fail_max = 5, reset_timeout = 60, success_threshold = 3, excluded(MyError::Validation(_)))]
//! #[with_retry(max_retries = 3, base_delay = 1.0, max_delay = 60.0, exponential_base = 2.0, jitter = true, retryable(MyError::Io(_)))]
//! async fn my_external_call(campaign: &str) -> Result<String, MyError> {
//!     if campaign.is_empty() {
//!         return Err(MyError::Validation("no name".into()));
//!     }
//!     Ok(format!("found {campaign}"))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), MyError> {
//! assert_eq!(my_external_call("wells").await?, "found wells");
//! # Ok(()) }
//! ```
//!
//! # Order
//!
//! Attributes nest as written, the first outermost, as decorators do in Python.
//!
//! | | `circuit_breaker` above `with_retry` | `with_retry` above `circuit_breaker` | a `Pipeline` |
//! |---|---|---|---|
//! | order | breaker around retry | retry around breaker | retry around breaker, always |
//! | a call that fails with its 3 retries | 1 failure | 4 failures, or as many as open the circuit | 4 failures, or as many as open the circuit |
//! | while the circuit is open | no attempt | no attempt, no retry | no attempt, no retry |
//! | the circuit opens between attempts | they go on | the last real error comes back | the last real error comes back |
//! | may it be repeated | always: the attribute is the mark of idempotency | the same | as the operation is marked, and as its `Verdict` says |
//! | deadline | the surrounding one, if there is one | the same | its own, or a nearer surrounding one |
//! | budget | none, unless named | the same | as it is built |
//! | bulkhead, attempt timeout | none | none | as it is built |
//!
//! With the breaker outside, `fail_max` counts calls that failed for good, so a circuit opens
//! later; with the breaker inside, it counts attempts. Both attributes expand together wherever
//! they stand on one function, so only there can the retry see a refusal. Where the guarded
//! function is another that the repeated one calls, the refusal is by then an error like any
//! other: restrict what is repeated by `retryable`.
//!
//! # Functions
//!
//! Free functions, methods and trait methods with a body, sync and async, with generics, lifetimes
//! and `impl Trait` arguments. They must return a `Result`, or an alias of it. A future stays
//! `Send` where the body is, and is not boxed.
//!
//! Not: a function that returns a future without being an `async fn`. That is what `#[async_trait]`
//! makes of its methods: put the attribute on a function that such a method calls.
//!
//! Of other attributes on the function, those above see it as written, those below see it wrapped.

mod arguments;
mod attempt;
mod expand;
mod function;
mod paths;

use proc_macro::TokenStream;

use crate::expand::{First, expand};

/// Guards a function by the circuit breaker of a name.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{CallError, CircuitOpen, circuit_breaker};
///
/// #[derive(Debug)]
/// enum MailError {
///     Rejected(u16),
///     Unreachable,
///     CircuitOpen(CircuitOpen),
/// }
///
/// impl From<CircuitOpen> for MailError {
///     fn from(open: CircuitOpen) -> Self {
///         Self::CircuitOpen(open)
///     }
/// }
///
/// #[circuit_breaker("mail", fail_max = 3, reset_timeout = 0.5, excluded(MailError::Rejected(code) if *code < 500))]
/// async fn send(to: &str) -> Result<(), MailError> {
///     Err(MailError::Unreachable)
/// }
///
/// // One breaker for the name: when `send` has opened the circuit, `verify` is refused too.
/// #[circuit_breaker("mail", fail_max = 3, reset_timeout = Duration::from_millis(500))]
/// fn verify(address: &str) -> Result<bool, MailError> {
///     Ok(address.contains('@'))
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// for _ in 0..3 {
///     assert!(matches!(send("ada@example.org").await, Err(MailError::Unreachable)));
/// }
/// match verify("ada@example.org") {
///     Err(MailError::CircuitOpen(open)) => assert!(open.retry_after <= Duration::from_millis(500)),
///     other => panic!("{other:?}"),
/// }
/// # }
/// ```
///
/// # Arguments
///
/// | argument | default | |
/// |---|---|---|
/// | `"name"`, or `name = "name"` | required | what is guarded; one breaker per name and process |
/// | `fail_max` | 5 | failures in a row that open the circuit; 1 or more |
/// | `reset_timeout` | 60 | seconds it stays open before a probe; above 0 |
/// | `success_threshold` | 3 | probes that must succeed to close it; 1 or more |
/// | `excluded(PATTERN, …)` | nothing | errors that move no count; `PATTERN if GUARD` works too |
///
/// Seconds are an integer or a decimal, or any expression of type `Duration`, `f64`, `u32`, `u64` or
/// `i32`. Every value may be an expression; it is evaluated once, on the first call, and knows
/// neither the function's arguments nor its generics.
///
/// # What counts
///
/// `Ok` is a success and `Err` a failure, unless `excluded`. A panic is a failure. A call that is
/// dropped before its end counts as nothing, and frees its probe. A probe that takes longer than
/// `reset_timeout` is a failure.
///
/// A refused call gives `E::from(CircuitOpen)`, for the function's error type `E`. `CallError`,
/// `anyhow::Error` and `Box<dyn Error>` have that already. As to the name:
///
/// - The breaker is in `CircuitRegistry::global()` from the first call on, and there it is looked up
///   once per function, not per call. A generic function has one breaker for all its types.
/// - Where two functions give one name other settings, those of the first call win, and one WARN
///   names both places.
///
/// # Panics
///
/// On its first call, if a value that was not a literal turns out to be invalid. Literals are
/// checked while compiling.
///
/// # Cancel safety
///
/// As cancel safe as the function's body.
///
/// See the [crate] for the order of attributes, and for the functions they can stand on.
#[proc_macro_attribute]
pub fn circuit_breaker(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(First::CircuitBreaker, arguments.into(), item.into()).into()
}

/// Repeats a function while it fails, a bounded number of times, later each time.
///
/// It is your word that the function is idempotent: what it did may be done again.
///
/// ```
/// use std::io::{self, ErrorKind};
/// use std::time::Duration;
/// use resilience_core::with_retry;
///
/// struct Cache;
///
/// impl Cache {
///     #[with_retry(max_retries = 2, base_delay = 0.5, max_delay = 5, retryable(error if error.kind() == ErrorKind::TimedOut), budget = "cache")]
///     async fn get(&mut self, key: String) -> io::Result<String> {
///         Ok(key)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> io::Result<()> {
/// assert_eq!(Cache.get("7".into()).await?, "7");
/// # Ok(()) }
/// ```
///
/// # Arguments
///
/// All may be left out.
///
/// | argument | default | |
/// |---|---|---|
/// | `max_retries` | 3 | attempts after the first; 0 or more |
/// | `base_delay` | 1 | seconds before the first retry; up to `max_delay` |
/// | `max_delay` | 60 | the most seconds before any retry; above 0 |
/// | `exponential_base` | 2.0 | growth from one delay to the next; 1 or more |
/// | `jitter` | true | spreads each delay evenly over zero to its length |
/// | `retryable(PATTERN, …)` | every error | errors worth another attempt; `PATTERN if GUARD` works too |
/// | `budget = "name"` | none | the `RetryBudget::named` that pays for each retry |
///
/// Seconds are an integer or a decimal, or any expression of type `Duration`, `f64`, `u32`, `u64` or
/// `i32`. Every value may be an expression; it is evaluated once, on the first call, and knows
/// neither the function's arguments nor its generics.
///
/// # Attempts
///
/// The last attempt's error is the call's. The first is always made; no other is waited for past the
/// surrounding `Deadline`, if there is one, nor for a circuit that is known to be open.
///
/// Each attempt has arguments of its own: what is taken by value, `self` included, is cloned and
/// must be `Clone`; references are lent. So a result cannot borrow from what is lent as `&mut`.
///
/// An async function waits on tokio's clock. A sync one blocks its thread: never call it on a
/// runtime's worker.
///
/// Events and logs call it by the name of the function, or of the breaker that stands on it too.
///
/// # Panics
///
/// On its first call, if a value that was not a literal turns out to be invalid. Literals are
/// checked while compiling.
///
/// # Cancel safety
///
/// As cancel safe as the function's body; dropped between attempts, nothing is left to do.
///
/// See the [crate] for the order of attributes, and for the functions they can stand on.
#[proc_macro_attribute]
pub fn with_retry(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(First::WithRetry, arguments.into(), item.into()).into()
}
