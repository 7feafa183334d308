//! A small executor whose every choice a seed makes: who runs next, who is dropped, when the process stands still.
//!
//! It runs inside one task of a tokio runtime with a paused clock. While something is ready no time
//! passes but what the seed says; when nothing is, tokio moves the clock to the next timer.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::{Instant, advance, timeout};

use crate::trace::{self, Fact, Planned, record};

/// A runtime that is busy looks at its timers all the same, and never as late as this: whoever does not
/// stands still.
const LATEST_TURN: Duration = Duration::from_millis(20);

/// Longer than anything in a run waits for.
const FOR_EVER: Duration = Duration::from_secs(3600);

type Work = Pin<Box<dyn Future<Output = ()>>>;

/// What the scheduler may do to a task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// The application's: it may be dropped at any await, after so many polls or at a whim.
    Client { drop_after: Option<u32> },
    /// Runs to its end.
    Steady,
    /// Runs to its end; what it does is another machine's doing, and known here as soon as this process looks.
    Remote,
}

thread_local! {
    static SPAWNED: RefCell<Vec<(Role, Work)>> = const { RefCell::new(Vec::new()) };
}

/// Gives the scheduler one more task.
pub(crate) fn spawn(role: Role, work: impl Future<Output = ()> + 'static) {
    SPAWNED.with_borrow_mut(|spawned| spawned.push((role, Box::pin(work))));
}

/// How rough a run is. Each is a share of the steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) stalls: f64,
    pub(crate) drops: f64,
    /// Steps that take time, up to a millisecond.
    pub(crate) slow_steps: f64,
    /// Steps before which timers that are due fire.
    pub(crate) timer_turns: f64,
    /// Whether answers that came during a stall are read before anything else goes on.
    pub(crate) reads_first: bool,
}

/// The tasks of one run.
pub(crate) struct World {
    tasks: Vec<Option<Task>>,
    alive: usize,
    ready: Arc<Ready>,
    rng: Rng,
    pace: Pace,
    /// When timers were last let fire.
    turned: Instant,
}

struct Task {
    work: Work,
    waker: Waker,
    role: Role,
    polls: u32,
}

#[derive(Default)]
struct Ready {
    inner: Mutex<(Vec<usize>, Option<Waker>)>,
}

struct TaskWaker {
    id: usize,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut inner = self.ready.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.0.contains(&self.id) {
            inner.0.push(self.id);
        }
        if let Some(scheduler) = inner.1.take() {
            scheduler.wake();
        }
    }
}

impl World {
    pub(crate) fn new(rng: Rng, pace: Pace) -> Self {
        Self {
            tasks: Vec::new(),
            alive: 0,
            ready: Arc::default(),
            rng,
            pace,
            turned: Instant::now(),
        }
    }

    /// Runs until every task has ended. `look` is called after each step.
    pub(crate) async fn run(&mut self, mut look: impl FnMut()) {
        loop {
            self.adopt();
            if self.alive == 0 {
                return;
            }
            self.disturb().await;
            match self.choose() {
                Some(id) => self.step(id),
                None if self.alive > 0 => self.idle().await,
                None => {}
            }
            look();
        }
    }

    fn adopt(&mut self) {
        for (role, work) in SPAWNED.take() {
            let id = self.tasks.len();
            let waker = Waker::from(Arc::new(TaskWaker { id, ready: Arc::clone(&self.ready) }));
            waker.wake_by_ref();
            self.tasks.push(Some(Task { work, waker, role, polls: 0 }));
            self.alive += 1;
        }
    }

    /// What happens between two steps that nobody asked for.
    async fn disturb(&mut self) {
        if self.chance(self.pace.stalls) {
            let by = match self.rng.u8(..8) {
                0 => 30_000,
                1..3 => self.rng.u64(1_000..4_000),
                _ => self.rng.u64(50..1_000),
            };
            let by = Duration::from_millis(by);
            record(Fact::Stalled { by });
            jump(by);
            self.turn().await;
            if self.pace.reads_first {
                self.read_first();
            }
        }
        if self.chance(self.pace.slow_steps) {
            jump(Duration::from_micros(self.rng.u64(1..1_000)));
        }
        if self.chance(self.pace.timer_turns) || self.turned.elapsed() >= LATEST_TURN {
            self.turn().await;
        }
        if self.chance(self.pace.drops) {
            let pick = self.rng.usize(..self.tasks.len());
            let client = |task: &Option<Task>| {
                task.as_ref().is_some_and(|t| matches!(t.role, Role::Client { .. }) && t.polls > 0)
            };
            if let Some(id) = (pick..self.tasks.len()).find(|id| client(&self.tasks[*id])) {
                self.drop_task(id);
            }
        }
    }

    /// Lets due timers fire, and what is outside this world hear of it: the process's heartbeat.
    async fn turn(&mut self) {
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        self.turned = Instant::now();
    }

    /// Runs what timers, and other machines, have ready.
    fn read_first(&mut self) {
        while let Some(id) = self.take_ready(|task| task.role == Role::Remote) {
            self.step(id);
        }
    }

    fn choose(&mut self) -> Option<usize> {
        let mut inner = self.ready.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = &mut inner.0;
        (!ready.is_empty()).then(|| ready.swap_remove(self.rng.usize(..ready.len())))
    }

    fn take_ready(&self, which: impl Fn(&Task) -> bool) -> Option<usize> {
        let mut inner = self.ready.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |id: &usize| self.tasks[*id].as_ref().is_some_and(&which);
        let at = inner.0.iter().position(found)?;
        Some(inner.0.swap_remove(at))
    }

    fn step(&mut self, id: usize) {
        let Some(task) = self.tasks[id].as_mut() else { return };
        if matches!(task.role, Role::Client { drop_after: Some(polls) } if task.polls >= polls) {
            return self.drop_task(id);
        }
        task.polls += 1;
        trace::enter_task(id);
        let Task { work, waker, .. } = task;
        let polled =
            catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut Context::from_waker(waker))));
        match polled {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(())) => {}
            Err(panic) if panic.is::<Planned>() => record(Fact::Crashed { task: id }),
            Err(panic) => resume_unwind(panic),
        }
        self.tasks[id] = None;
        self.alive -= 1;
    }

    fn drop_task(&mut self, id: usize) {
        trace::enter_task(id);
        record(Fact::Dropped { task: id });
        self.tasks[id] = None;
        self.alive -= 1;
    }

    /// Moves on to whatever comes next.
    async fn idle(&mut self) {
        self.turn().await;
        if self.anything_ready() {
            return;
        }
        trace::enter_task(trace::NOBODY);
        record(Fact::Idle);
        let woken = poll_fn(|cx| {
            let mut inner = self.ready.inner.lock().unwrap_or_else(PoisonError::into_inner);
            if inner.0.is_empty() {
                inner.1 = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        });
        if timeout(FOR_EVER, woken).await.is_err() {
            record(Fact::Stuck);
            for id in 0..self.tasks.len() {
                if self.tasks[id].is_some() {
                    self.drop_task(id);
                }
            }
        }
    }

    fn anything_ready(&self) -> bool {
        !self.ready.inner.lock().unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }

    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.f64() < share
    }
}

/// Moves the clock without letting any timer fire: nothing of this process runs meanwhile.
pub(crate) fn jump(by: Duration) {
    // The first poll moves the clock, the second would only have yielded.
    let _ = pin!(advance(by)).poll(&mut Context::from_waker(Waker::noop()));
}
