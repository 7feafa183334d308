//! What a pipeline must know of a call, and what an operation may know of the attempt that it is.

use crate::{Deadline, Rank};

/// What a pipeline must know of a call before it makes it: above all, whether it may be made twice.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Call, Deadline, Priority};
///
/// const LOOK_UP: Call = Call::read().named("look_up");
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let call = LOOK_UP.by(Deadline::within(Duration::from_secs(2))).rank(Priority::High);
/// # let _ = call;
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Call {
    pub(super) operation: &'static str,
    pub(crate) idempotent: bool,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) rank: Option<Rank>,
}

impl Call {
    /// A call that changes nothing: it may be repeated.
    pub const fn read() -> Self {
        Self { operation: "read", idempotent: true, deadline: None, rank: None }
    }

    /// A call that changes something: repeated only if it is proven not to have been executed.
    pub const fn write() -> Self {
        Self { operation: "write", idempotent: false, ..Self::read() }
    }

    /// A call that changes something, but no more when made twice: it may be repeated.
    pub const fn write_idempotent() -> Self {
        Self { operation: "write", ..Self::read() }
    }

    /// Whether it may be repeated though it may have been executed.
    #[must_use]
    pub const fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    /// The same call under another name: a fixed word, for it becomes a label.
    pub const fn named(self, operation: &'static str) -> Self {
        Self { operation, ..self }
    }

    /// The same call with a deadline of its own, in place of the pipeline's
    /// ([`PipelineBuilder::deadline`](crate::PipelineBuilder::deadline)), be it nearer or farther. The
    /// surrounding one still holds where it is nearer: a call never outlives the request that it is made for.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use resilience_core::{AnyError, Call, Deadline, Pipeline, RetryPolicy};
    /// use tokio::time::Instant;
    ///
    /// let reports = Pipeline::builder("reports")
    ///     .deadline(Duration::from_secs(40))
    ///     .attempt_timeout(Duration::from_secs(30))
    ///     .retry(RetryPolicy::default())
    ///     .build()?;
    /// // The service hangs: a call takes all the time there is.
    /// let reports = &reports;
    /// let seconds = async |call| {
    ///     let started = Instant::now();
    ///     let hang = |_| std::future::pending::<Result<(), std::io::Error>>();
    ///     reports.run(call, &AnyError, hang).await.unwrap_err();
    ///     started.elapsed().as_secs()
    /// };
    /// let within = |seconds| Deadline::within(Duration::from_secs(seconds));
    /// assert_eq!(seconds(Call::read()).await, 40); // the pipeline's
    /// assert_eq!(seconds(Call::read().by(within(20))).await, 20); // its own, nearer
    /// assert_eq!(seconds(Call::read().by(within(90))).await, 90); // its own, farther
    /// let nearest = within(10);
    /// assert_eq!(nearest.scope(seconds(Call::read().by(within(90)))).await, 10); // the surrounding one
    /// # Ok(()) }
    /// ```
    pub const fn by(self, deadline: Deadline) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// The same call with a rank of its own, in place of the surrounding one
    /// ([`Rank::current`]): what is shed first.
    pub fn rank(self, rank: impl Into<Rank>) -> Self {
        Self { rank: Some(rank.into()), ..self }
    }
}

/// What an operation may know of the attempt that it is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// Its number, from 1, among all attempts of the call in the order in which they began. A hedge and its retries
    /// count on with the others: of a call with a hedge, number 2 may be the first attempt's retry or the hedge.
    /// Refusals, such as by an open circuit, have no number.
    pub number: u32,
    /// When it will be cut off: after the attempt timeout, or by the call's deadline where that is nearer.
    pub deadline: Deadline,
}
