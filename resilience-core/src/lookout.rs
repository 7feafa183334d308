//! A second look at an endpoint whose answer is late: is it slow, or is nobody there?
//!
//! ```text
//! a call waits ──PATIENCE──▶ a round of looks, shared by all calls that wait on the endpoint
//!     ▲                         │ ask ──STAGGER──▶ ask ──STAGGER──▶ ask ──STAGGER──▶ none was answered:
//!     └───────── PAUSE ─────────┘ any answer: the endpoint is alive                   all calls that wait end
//! ```
//!
//! No driver tells a slow statement from a network that swallows packets: both are silence on one socket.
//! What settles it is an ask on another. A lost SYN is sent again only after a second, so each ask is a
//! socket of its own. From the moment at which an endpoint falls silent to the end of the calls in flight
//! there pass at most `PATIENCE + ROUND`, or `PAUSE + ROUND` where it had been looked at before: 0.9 s.

mod vigil;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::heartbeat;

pub use vigil::Vigil;
use vigil::Watched;

/// How long a call waits before it takes a second look.
const PATIENCE: Duration = Duration::from_millis(400);

/// Asks of one round, and time from one to the next and from the last to the verdict.
const ASKS: u32 = 3;
const STAGGER: Duration = Duration::from_millis(150);
const ROUND: Duration = Duration::from_millis(450);

/// How long a sign of life lasts. A call that has been waiting for longer than half a minute looks as often as
/// it may miss a sixtieth of its time, so that long reports do not wear the server down.
const PAUSE: Duration = Duration::from_millis(450);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const PAUSES: u32 = 60;

/// How late a round may be before others do without it: the runtime that it runs on may stand still.
const GRACE: Duration = Duration::from_millis(100);

/// Tells an endpoint that is slow from one that is silent, for all calls in flight to it. Cheap to clone:
/// clones look together.
///
/// A call that ends soon costs a timer, and one that is ready at once nothing. One that waits for longer than
/// 400 ms takes a second look: up to three asks, 150 ms apart, each on a socket of its own. Any answer clears the
/// endpoint, and the call is left alone, however long it takes; looks then go on at a pace of about two a
/// second. Where none is answered, every call that waits on the endpoint ends, at most 0.9 s after it fell silent.
/// For a call that has been waiting for more than 30 s, it may be a sixtieth of that time more, up to 5 s.
///
/// However many calls wait, one round of looks runs at a time. An answer to any other call, told by
/// [`answered`](Self::answered), spares the look. What this process's own [`Standstill`](crate::Standstill)
/// kept from being heard condemns nobody.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::future::pending;
/// use resilience_core::Lookout;
///
/// // The ask of a real one opens a socket and says as much as makes the server answer.
/// let lookout = Lookout::new("db:5432", || async { pending().await });
/// let silent = lookout.watch(pending::<()>()).await.unwrap_err();
/// assert!(silent.to_string().starts_with("no answer, and none to a second look at db:5432 within "));
/// # }
/// ```
#[derive(Clone)]
pub struct Lookout {
    shared: Arc<Shared>,
}

type Ask = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

struct Shared {
    endpoint: Arc<str>,
    ask: Box<dyn Fn() -> Ask + Send + Sync>,
    born: Instant,
    /// Calls that have waited long enough to want to know.
    waiting: AtomicUsize,
    /// The last sign of life, in microseconds since `born`; none is 0.
    heard: AtomicU64,
    round: Mutex<Weak<Round>>,
    seen: watch::Sender<Seen>,
}

/// What the last round brought.
#[derive(Default)]
struct Seen {
    /// When it began.
    looked: Option<Instant>,
    /// When the last one that had no answer ended, and why it had none, if that is known.
    silence: Option<(Instant, Option<Arc<str>>)>,
    /// No look has been answered since then.
    is_silent: bool,
    /// When a look was last answered again.
    returned: Option<Instant>,
}

impl Seen {
    fn is_alive(&mut self, began: Instant) {
        self.looked = Some(began);
        if std::mem::take(&mut self.is_silent) {
            self.returned = Some(Instant::now());
        }
    }
}

impl Lookout {
    /// A lookout on `endpoint`, which is how errors and logs name it.
    ///
    /// `ask` opens a socket of its own, asks something that costs the server little and needs no login, and
    /// ends with `Ok` at any sign of life. A refusal is one: whoever drops packets refuses nothing. Where it
    /// cannot tell, for want of a descriptor or of a name service, it must say `Ok` too. An `Err` says why there can
    /// be no answer; one that does not end has had none. It is dropped after 450 ms at the latest.
    pub fn new<Fut>(
        endpoint: impl Into<Arc<str>>,
        ask: impl Fn() -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self {
            shared: Arc::new(Shared {
                endpoint: endpoint.into(),
                ask: Box::new(move || Box::pin(ask())),
                born: Instant::now(),
                waiting: AtomicUsize::new(0),
                heard: AtomicU64::new(0),
                round: Mutex::default(),
                seen: watch::Sender::default(),
            }),
        }
    }

    /// Runs `work` to its end, unless the endpoint is seen to be silent. What is not a future can hold a [`Vigil`].
    ///
    /// # Errors
    ///
    /// [`Silent`] if neither `work` nor a look had an answer.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`. With the last call that waits, the looks are dropped too.
    ///
    /// # Panics
    ///
    /// If `work` does; and outside a tokio runtime with timers, unless `work` is ready at once.
    pub fn watch<F: Future>(&self, work: F) -> impl Future<Output = Result<F::Output, Silent>> {
        Watched::new(self, work)
    }

    /// Ends when the endpoint, having been seen to be silent, answers a look again; looks are taken for calls
    /// that wait. What was sent in vain before then may be sent again only seconds later: a connect does better to
    /// begin anew.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind. A return before its first poll is none of its own.
    pub async fn returned(&self) {
        let since = Instant::now();
        let mut seen = self.shared.seen.subscribe();
        // The sender is ours, so there is no error.
        let _ = seen.wait_for(|seen| seen.returned > Some(since)).await;
    }

    /// Notes a sign of life: the endpoint has answered something. It costs nothing while no call is late.
    #[inline]
    pub fn answered(&self) {
        if self.shared.waiting.load(Ordering::Relaxed) > 0 {
            self.shared.hear(Instant::now());
        }
    }
}

impl fmt::Debug for Lookout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookout").field("endpoint", &self.shared.endpoint).finish_non_exhaustive()
    }
}

/// Neither a call nor a second look at its endpoint had an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Silent {
    /// The endpoint, as its [`Lookout`] names it.
    pub endpoint: Arc<str>,
    /// How long the call had been waiting.
    pub waited: Duration,
    /// Why nobody can answer, if the last ask that failed said so.
    pub cause: Option<Arc<str>>,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, waited, cause } = self;
        // Nobody wants to read its nanoseconds.
        let waited = Duration::from_millis(waited.as_millis() as u64);
        write!(f, "no answer, and none to a second look at {endpoint} within {waited:?}")?;
        cause.as_ref().map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for Silent {}

/// Of kind [`TimedOut`](io::ErrorKind::TimedOut), with the silence inside.
impl From<Silent> for io::Error {
    fn from(silent: Silent) -> Self {
        Self::new(io::ErrorKind::TimedOut, silent)
    }
}

impl Shared {
    fn hear(&self, at: Instant) {
        let since_born = at.saturating_duration_since(self.born).as_micros() as u64;
        self.heard.fetch_max(since_born + 1, Ordering::Relaxed);
    }

    fn heard(&self) -> Option<Instant> {
        let since_born = self.heard.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.born + Duration::from_micros(since_born))
    }

    /// When a call that has been waiting since then should look next, by what is known `now`.
    fn due(&self, since: Instant, now: Instant) -> Instant {
        let pause = (now.saturating_duration_since(since) / PAUSES).clamp(PAUSE, LONGEST_PAUSE);
        let known = self.heard().max(self.seen.borrow().looked);
        let first = since + PATIENCE;
        known.map_or(first, |known| first.max(known + pause))
    }

    /// Looks again and again for a call that has been waiting since then, and ends if there is nobody.
    async fn keep_looking(self: Arc<Self>, since: Instant) -> Silent {
        let _waiting = Waiting::count(&self);
        let mut seen = self.seen.subscribe();
        loop {
            let due = self.due(since, Instant::now());
            if let Some(silent) = self.learn(&mut seen, since, due, |_| false).await {
                return silent;
            }
            if self.due(since, Instant::now()) > due {
                // Somebody else had an answer meanwhile.
                continue;
            }
            let round = self.round();
            let is_over = |seen: &Seen| seen.looked >= Some(round.began);
            if let Some(silent) = self.learn(&mut seen, since, round.overdue(), is_over).await {
                return silent;
            }
        }
    }

    /// Waits for a silence that ends a call waiting since then, for `enough`, or until then.
    async fn learn(
        &self,
        seen: &mut watch::Receiver<Seen>,
        since: Instant,
        until: Instant,
        enough: impl Fn(&Seen) -> bool,
    ) -> Option<Silent> {
        let silence = |seen: &Seen| {
            let silence = seen.silence.clone();
            silence.filter(|(ended, _)| *ended >= since + PATIENCE)
        };
        let news = seen.wait_for(|seen| enough(seen) || silence(seen).is_some());
        // The sender is ours, so there is no other error than that of the time.
        let (ended, cause) = silence(&*timeout_at(until, news).await.ok()?.ok()?)?;
        Some(Silent { endpoint: Arc::clone(&self.endpoint), waited: ended - since, cause })
    }

    /// The round that runs, or a new one where none does.
    fn round(self: &Arc<Self>) -> Arc<Round> {
        let now = Instant::now();
        let mut running = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(round) = running.upgrade().filter(|round| round.runs(now)) {
            return round;
        }
        let task = tokio::spawn(Arc::clone(self).look(now));
        let round = Arc::new(Round { began: now, task });
        *running = Arc::downgrade(&round);
        round
    }

    /// One round of looks.
    async fn look(self: Arc<Self>, began: Instant) {
        heartbeat::start();
        let (mut asks, mut cause) = (Vec::with_capacity(ASKS as usize), None);
        let mut until = began;
        for _ in 0..ASKS {
            asks.push((self.ask)());
            until += STAGGER;
            let answer = poll_fn(|cx| any_answer(&mut asks, &mut cause, cx));
            // Any other call's answer is as good.
            if timeout_at(until, answer).await.is_ok() || self.heard() >= Some(began) {
                self.seen.send_modify(|seen| seen.is_alive(began));
                return;
            }
        }
        let now = Instant::now();
        let fair = heartbeat::was_fair(began, now, ROUND);
        tracing::debug!(target: "shared_external::lookout", endpoint = %self.endpoint, fair, cause = cause.as_deref(), "no answer to a second look");
        self.seen.send_modify(|seen| {
            seen.looked = Some(began);
            if fair {
                (seen.silence, seen.is_silent) = (Some((now, cause)), true);
            }
        });
    }
}

/// Ready with the first answer. Asks that fail are taken out, and the last tells why.
fn any_answer(asks: &mut Vec<Ask>, cause: &mut Option<Arc<str>>, cx: &mut Context<'_>) -> Poll<()> {
    let mut answered = false;
    asks.retain_mut(|ask| match ask.as_mut().poll(cx) {
        Poll::Pending => true,
        Poll::Ready(Ok(())) => {
            answered = true;
            false
        }
        Poll::Ready(Err(error)) => {
            *cause = Some(error.to_string().into());
            false
        }
    });
    if answered { Poll::Ready(()) } else { Poll::Pending }
}

/// A call that wants to know, counted while it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn count(shared: &'a Shared) -> Self {
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        Self(&shared.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A round of looks, held by the calls that wait for it. It ends with the last of them.
struct Round {
    began: Instant,
    task: JoinHandle<()>,
}

impl Round {
    fn overdue(&self) -> Instant {
        self.began + ROUND + GRACE
    }

    fn runs(&self, now: Instant) -> bool {
        !self.task.is_finished() && now < self.overdue()
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        self.task.abort();
    }
}
