//! What is measured: a case, the subjects that do its work, and what is claimed of ours.

use std::hint::black_box;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use tokio::runtime::Runtime;

/// One thing that several crates can do.
pub struct Case {
    /// What it is, for the table and as `bench` in JSON.
    pub name: String,
    /// How many threads share one subject.
    pub threads: usize,
    /// Who does it; the first is ours, or what stands in for it.
    pub subjects: Vec<Subject>,
    /// What is claimed of the first subject.
    pub claims: Vec<Claim>,
    /// Whether the first subject may not allocate.
    pub allocates_nothing: bool,
}

impl Case {
    /// A case on one thread, with nothing claimed.
    #[must_use]
    pub fn new(name: impl Into<String>, subjects: Vec<Subject>) -> Self {
        let name = name.into();
        Self { name, threads: 1, subjects, claims: Vec::new(), allocates_nothing: false }
    }

    /// The same on `threads` threads that share each subject.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { name: format!("{}, {threads} threads", self.name), threads, ..self }
    }

    /// Claims it of the first subject.
    #[must_use]
    pub fn claim(mut self, claim: Claim) -> Self {
        self.claims.push(claim);
        self
    }

    /// Claims that the first subject allocates nothing.
    #[must_use]
    pub fn allocates_nothing(self) -> Self {
        Self { allocates_nothing: true, ..self }
    }
}

/// What is claimed of the first subject of a case.
#[derive(Clone, Copy, Debug)]
pub enum Claim {
    /// At most so many nanoseconds.
    AtMost(f64),
    /// At most so many times another subject's.
    Times(f64, &'static str),
    /// At most so many nanoseconds more than another subject's.
    Above(f64, &'static str),
    /// Nothing; the ratio to another subject is shown.
    Compared(&'static str),
}

/// One crate at work.
pub struct Subject {
    /// The crate.
    pub name: &'static str,
    run: Box<dyn Fn(u64) + Send + Sync>,
}

impl Subject {
    /// Something that is not a future.
    pub fn calls<T>(
        name: &'static str,
        operation: impl Fn(u64) -> T + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, move |times| {
            for i in 0..times {
                black_box(&operation(black_box(i)));
            }
        })
    }

    /// A future, polled until it is ready.
    pub fn polls<T>(
        name: &'static str,
        operation: impl AsyncFn(u64) -> T + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, move |times| {
            for i in 0..times {
                black_box(&drive(operation(black_box(i))));
            }
        })
    }

    /// A future of a service that must be borrowed mutably: each thread works on a clone.
    pub fn serves<S: Clone + Send + 'static, T>(
        name: &'static str,
        service: S,
        operation: impl AsyncFn(&mut S, u64) -> T + Send + Sync + 'static,
    ) -> Self {
        let service = Mutex::new(service);
        Self::new(name, move |times| {
            let mut service = service.lock().expect("cloning does not panic").clone();
            for i in 0..times {
                black_box(&drive(operation(&mut service, black_box(i))));
            }
        })
    }

    /// A future that needs others of its runtime to go on, and so a runtime that is driven.
    pub fn runs<T>(
        name: &'static str,
        runtime: Runtime,
        operation: impl AsyncFn(u64) -> T + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, move |times| {
            runtime.block_on(async {
                for i in 0..times {
                    black_box(&operation(black_box(i)).await);
                }
            });
        })
    }

    fn new(name: &'static str, run: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self { name, run: Box::new(run) }
    }

    /// Does the work so many times.
    pub fn run(&self, times: u64) {
        (self.run)(times);
    }
}

/// Polls until it is ready, and parks this thread in between: no executor's cost is in the figures.
fn drive<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    THIS_THREAD.with(|waker| {
        let mut context = Context::from_waker(waker);
        loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(output) => return output,
                Poll::Pending => std::thread::park(),
            }
        }
    })
}

thread_local! {
    static THIS_THREAD: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Is pending once, then ready with `value`: enough for the layers around it to register their timers.
pub async fn after_one_poll<T>(value: T) -> T {
    let mut polled = false;
    std::future::poll_fn(|context| match std::mem::replace(&mut polled, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
    value
}
