//! What each behaviour gets: a wire of its own, a name of its own, and the words to say what it saw.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use resilience_core::{
    Blame, CallError, CircuitBreaker, CircuitState, Credentials, Deadline, Endpoint, EndpointSet,
    Failed, Health, Name, PoolStatus,
};
use tokio::time::{Instant, sleep, timeout};

use crate::events::Watching;
use crate::{Gate, Harness, Setup, Subject, Told, Way, Wire, Work};

/// What a busy machine may add to any time.
pub(crate) const GRACE: Duration = Duration::from_millis(1500);

/// A password that no server takes.
const WRONG: &str = "wrong-hunter2";

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(6);

/// Why a behaviour does not hold.
#[derive(Debug)]
pub(crate) struct Breach(pub(crate) String);

pub(crate) type Checked<T = ()> = Result<T, Breach>;

/// Ends a behaviour that does not hold, with the reason why.
macro_rules! hold {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::stage::Breach(format!($($why)+)));
        }
    };
}
pub(crate) use hold;

/// A harness, and a wire to its server.
pub(crate) struct Stage {
    pub(crate) harness: Arc<dyn Harness>,
    pub(crate) wire: Wire,
    pub(crate) events: Watching,
    name: Name,
}

impl Stage {
    pub(crate) async fn new(harness: Arc<dyn Harness>) -> Self {
        static BEHAVIOURS: AtomicUsize = AtomicUsize::new(0);
        let number = BEHAVIOURS.fetch_add(1, Ordering::Relaxed);
        let name = Name::from(format!("conformance-{}-{number}", std::process::id()));
        let wire = Wire::to(harness.server()).await.not_counting(harness.looks());
        Self { harness, wire, events: Watching::begin(name.clone()), name }
    }

    /// Another way to the same server.
    pub(crate) async fn other_wire(&self) -> Wire {
        Wire::to(self.harness.server()).await.not_counting(self.harness.looks())
    }

    pub(crate) fn setup(&self) -> Setup {
        Setup::new(self.name.clone(), self.wire.address(), self.harness.credentials())
    }

    pub(crate) fn subject(&self) -> Checked<Arc<dyn Subject>> {
        self.with(|_| {})
    }

    pub(crate) fn with(&self, change: impl FnOnce(&mut Setup)) -> Checked<Arc<dyn Subject>> {
        let mut setup = self.setup();
        change(&mut setup);
        self.harness.connect(&setup).map_err(|error| Breach(format!("no manager: {error}")))
    }

    /// Credentials that the server refuses.
    pub(crate) fn wrong_credentials(&self) -> Credentials {
        let token = Credentials::token(WRONG);
        match self.harness.credentials().username() {
            Some(name) => token.with_username(name),
            None => token,
        }
    }

    /// A key under which nobody else counts.
    pub(crate) fn key(&self) -> String {
        format!("{}-{:x}", &*self.name, fastrand::u64(..))
    }

    pub(crate) async fn executed(&self, key: &str) -> u64 {
        self.harness.executed(key).await
    }

    /// Fails if `text` has a secret in it.
    pub(crate) fn no_secret_in(&self, what: &str, text: &str) -> Checked {
        let right = self.harness.credentials();
        // One that is also the name is bound to be shown, and says nothing.
        let password = right.expose_password().filter(|it| right.username() != Some(it));
        // The text itself is not for the report.
        hold!(!password.is_some_and(|it| text.contains(it)), "{what} shows a password");
        hold!(!text.contains(WRONG), "{what} shows the password that was wrong");
        Ok(())
    }

    /// Fails unless `text` says which port was meant: the host may go by several names.
    pub(crate) fn names_endpoint(&self, what: &str, text: &str) -> Checked {
        let port = self.wire.port.to_string();
        hold!(text.contains(&port), "{what} does not name the endpoint {port}: {text}");
        Ok(())
    }
}

/// What behaviours ask of a subject again and again.
impl dyn Subject {
    /// A look at the server, by `limit`.
    pub(crate) async fn look(&self, limit: Duration) -> Health {
        self.watched().check(Deadline::within(limit)).await
    }

    /// The breaker, which every manager has.
    pub(crate) fn circuit(&self) -> Checked<CircuitBreaker> {
        self.watched().breaker().ok_or_else(|| Breach("there is no breaker to be seen".into()))
    }

    pub(crate) fn figures(&self) -> Checked<PoolStatus> {
        self.watched().pool_status().ok_or_else(|| Breach("there are no figures to be seen".into()))
    }

    pub(crate) fn state(&self) -> Checked<CircuitState> {
        Ok(self.circuit()?.state())
    }

    /// Waits until all that was lent has come back.
    pub(crate) async fn at_rest(&self) -> Checked {
        eventually("nothing is lent or waited for", async || {
            let status = self.figures()?;
            Ok(status.in_use == 0 && status.waiting == 0)
        })
        .await
    }

    /// A read of the server's own word.
    pub(crate) async fn echo(&self, text: &str) -> Result<String, CallError<Told>> {
        self.run(Way::Read, Work::Echo(text.to_owned())).await
    }

    /// The same, which must succeed.
    pub(crate) async fn serves(&self) -> Checked {
        let answer = self.echo("served").await;
        hold!(matches!(&answer, Ok(text) if text == "served"), "it does not serve: {answer:?}");
        Ok(())
    }

    /// The same, which must succeed sooner or later.
    pub(crate) async fn serves_again(&self) -> Checked<Duration> {
        let since = Instant::now();
        let mut last = String::new();
        while since.elapsed() < PATIENCE {
            match self.echo("again").await {
                Ok(text) if text == "again" => return Ok(since.elapsed()),
                other => last = format!("{other:?}"),
            }
            sleep(Duration::from_millis(10)).await;
        }
        Err(Breach(format!("it never serves again: {last}")))
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(
    what: &str,
    mut condition: impl AsyncFnMut() -> Checked<bool>,
) -> Checked {
    let since = Instant::now();
    while !condition().await? {
        hold!(since.elapsed() < PATIENCE, "it never came true that {what}");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Fails if `future` takes longer than `limit`, give or take what a busy machine may add.
pub(crate) async fn within<T>(
    what: &str,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Checked<T> {
    let generous = timeout(limit + GRACE, future).await;
    generous.map_err(|_| Breach(format!("{what} takes longer than {limit:?}")))
}

/// Starts `work` on a task of its own.
pub(crate) fn spawn(
    subject: &Arc<dyn Subject>,
    way: Way,
    work: Work,
) -> tokio::task::JoinHandle<Result<String, CallError<Told>>> {
    let subject = Arc::clone(subject);
    tokio::spawn(async move { subject.run(way, work).await })
}

/// A call that holds what it was lent until the gate opens; or until it is dropped, for it is aborted then.
pub(crate) struct Held {
    pub(crate) gate: Gate,
    tasks: Vec<tokio::task::JoinHandle<Result<String, CallError<Told>>>>,
}

impl Held {
    /// `count` calls that hold one each.
    pub(crate) async fn take(subject: &Arc<dyn Subject>, count: usize) -> Checked<Self> {
        let gate = Gate::default();
        let tasks =
            (0..count).map(|_| spawn(subject, Way::Read, Work::Hold(gate.clone()))).collect();
        let held = Self { gate, tasks };
        eventually("the calls have what they asked for", async || Ok(held.gate.arrived() >= count))
            .await?;
        Ok(held)
    }

    /// Lets go of all, which must succeed.
    pub(crate) async fn release(mut self) -> Checked {
        self.gate.open();
        for task in std::mem::take(&mut self.tasks) {
            let ended = task.await.map_err(|error| Breach(error.to_string()))?;
            hold!(ended.is_ok(), "a call that was let finish failed: {ended:?}");
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The operation's own error.
pub(crate) fn failed<T: fmt::Debug>(result: Result<T, CallError<Told>>) -> Checked<Failed<Told>> {
    match result {
        Err(CallError::Inner(failed)) => Ok(failed),
        other => Err(Breach(format!("this is no error of an attempt: {other:?}"))),
    }
}

/// The error, whichever it is.
pub(crate) fn error<T: fmt::Debug>(result: Result<T, CallError<Told>>) -> Checked<CallError<Told>> {
    result.err().ok_or_else(|| Breach("it succeeds where it cannot".into()))
}

/// Whose fault an error is.
pub(crate) fn blame(error: &CallError<Told>) -> Blame {
    match error {
        CallError::Inner(failed) => failed.verdict.blame,
        CallError::AttemptTimeout(timeout) => timeout.blame,
        CallError::DeadlineExceeded(over) => over.blame,
        CallError::CircuitOpen(_) => Blame::Service,
        _ => Blame::Local,
    }
}

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The whole of a service at `wires`, in that order.
pub(crate) fn endpoints(generation: u64, wires: &[&Wire]) -> EndpointSet {
    let all: Vec<_> = wires.iter().map(|wire| Endpoint::new(wire.address())).collect();
    EndpointSet { generation, ..EndpointSet::fixed(all) }
}

/// Polls a future `polls` times at the most, then drops it.
pub(crate) struct PollN<F> {
    future: Pin<Box<F>>,
    polls: usize,
}

impl<F: Future> PollN<F> {
    pub(crate) fn new(polls: usize, future: F) -> Self {
        Self { future: Box::pin(future), polls }
    }
}

impl<F: Future> Future for PollN<F> {
    /// `None` if it was dropped.
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        match self.future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if self.polls == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}
