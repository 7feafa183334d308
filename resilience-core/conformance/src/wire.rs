//! A port that leads to the server, and can be cut, silenced, closed, or made to lose an answer.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;

use resilience_core::Address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// How a [`Wire`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// It carries.
    Up,
    /// It is torn: connections break, and new ones break at once.
    Down,
    /// It swallows: nothing arrives, nothing breaks. What fell silent stays so when the wire is up again.
    Silent,
    /// Connections break, and nobody listens: new ones are refused.
    Refusing,
}

/// A port of this machine that leads to a server. It closes, connections and all, when it is dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// use resilience_conformance::{State, Wire};
/// use tokio::net::{TcpListener, TcpStream};
///
/// let server = TcpListener::bind("127.0.0.1:0").await?;
/// let wire = Wire::to(server.local_addr()?.to_string()).await;
/// TcpStream::connect(("127.0.0.1", wire.port)).await?;
///
/// wire.set(State::Refusing);
/// assert!(TcpStream::connect(("127.0.0.1", wire.port)).await.is_err());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Wire {
    /// The port that leads there.
    pub port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// How a wire is, and how often that ended what it carried: who looks late sees it all the same.
#[derive(Clone, Copy, Debug)]
struct Phase {
    state: State,
    torn: usize,
    silenced: usize,
}

impl Phase {
    /// Whether what was carried at `begun` is carried still.
    fn carries_on(&self, begun: &Self) -> bool {
        (self.torn, self.silenced) == (begun.torn, begun.silenced)
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        match state {
            State::Up => {}
            State::Down | State::Refusing => self.torn += 1,
            State::Silent => self.silenced += 1,
        }
    }
}

#[derive(Debug)]
struct Shared {
    target: String,
    address: SocketAddr,
    /// None while nobody listens.
    listener: Mutex<Option<TcpListener>>,
    relisten: Notify,
    phase: watch::Sender<Phase>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    peak: AtomicUsize,
    answered: AtomicU64,
    reject: AtomicUsize,
    /// Answers still to be cut, and after how many bytes.
    cut: Mutex<(usize, usize)>,
    /// What a connection begins with that is not counted.
    uncounted: OnceLock<Vec<u8>>,
}

impl Wire {
    /// A wire from a port of 127.0.0.1 to `target`, a `host:port`.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn to(target: impl Into<String>) -> Self {
        Self::on("127.0.0.1", target).await
    }

    /// The same from another of the loopback's addresses.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn on(host: &str, target: impl Into<String>) -> Self {
        let listener = TcpListener::bind((host, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            target: target.into(),
            address,
            listener: Mutex::new(Some(listener)),
            relisten: Notify::new(),
            phase: watch::Sender::new(Phase { state: State::Up, torn: 0, silenced: 0 }),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            reject: AtomicUsize::new(0),
            cut: Mutex::default(),
            uncounted: OnceLock::new(),
        });
        let task = tokio::spawn(accept(Arc::clone(&shared)));
        Self { port: address.port(), shared, task }
    }

    /// The same, which does not count connections that begin with these bytes: those that only look whether
    /// the server is there. All others are counted once they have said something.
    ///
    /// # Panics
    ///
    /// If it was told before.
    #[must_use]
    pub fn not_counting(self, opening: impl Into<Vec<u8>>) -> Self {
        self.shared.uncounted.set(opening.into()).expect("it is told once");
        self
    }

    /// Its near end, by the name that certificates for this machine carry.
    #[must_use]
    pub fn address(&self) -> Address {
        Address::new("localhost", self.port)
    }

    /// Changes it, for the connections that there are and for those to come.
    ///
    /// # Panics
    ///
    /// If the port was taken by another while nobody listened.
    pub fn set(&self, state: State) {
        let mut listener = self.shared.listener();
        if state == State::Refusing {
            *listener = None;
        } else if listener.is_none() {
            *listener = Some(listen(self.shared.address).expect("the port is still free"));
            self.shared.relisten.notify_one();
        }
        self.shared.phase.send_modify(|phase| phase.enter(state));
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.phase.borrow().state
    }

    /// Breaks the connections that there are; new ones are carried.
    pub fn tear(&self) {
        self.set(State::Down);
        self.set(State::Up);
    }

    /// Breaks each of the next `times` connections before it carries anything.
    pub fn reject(&self, times: usize) {
        self.shared.reject.store(times, Ordering::Relaxed);
    }

    /// Breaks the connection at each of the server's next `times` answers, once `bytes` of it have been
    /// carried. What the server was asked, it was asked, and has done.
    pub fn cut_answers(&self, times: usize, bytes: usize) {
        *self.shared.cut.lock().unwrap_or_else(PoisonError::into_inner) = (times, bytes);
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// The most that were open at once.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.shared.peak.load(Ordering::Relaxed)
    }

    /// Bytes of the server that were carried so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
        *self.shared.listener() = None;
        self.shared.phase.send_modify(|phase| phase.enter(State::Refusing));
    }
}

impl Shared {
    fn listener(&self) -> MutexGuard<'_, Option<TcpListener>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of this answer is carried, if it is one to cut.
    fn cut(&self) -> Option<usize> {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        cut.0 = cut.0.checked_sub(1)?;
        Some(cut.1)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept(shared: Arc<Shared>) {
    loop {
        let next = poll_fn(|context| match &*shared.listener() {
            Some(listener) => listener.poll_accept(context),
            None => Poll::Pending,
        });
        let near = tokio::select! {
            near = next => near,
            () = shared.relisten.notified() => continue,
        };
        if let Ok((near, _)) = near {
            tokio::spawn(connection(near, Arc::clone(&shared)));
        }
    }
}

/// One connection, while it is open.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn enter(shared: &'a Shared) -> Self {
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
        shared.peak.fetch_max(open, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(mut near: TcpStream, shared: Arc<Shared>) {
    let is_counted = !is_uncounted(&near, &shared).await;
    let _open = is_counted.then(|| Open::enter(&shared));
    let less = |left: usize| left.checked_sub(1);
    if shared.reject.try_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
        return;
    }
    let mut phase = shared.phase.subscribe();
    let begun = *phase.borrow_and_update();
    match begun.state {
        State::Up => {
            let Ok(mut far) = TcpStream::connect(&shared.target).await else { return };
            tokio::select! {
                () = carry(&mut near, &mut far, &shared, &begun) => return,
                _ = phase.wait_for(|now| !now.carries_on(&begun)) => {}
            }
            // What is on the way when the wire falls silent stays on the way, at both ends.
            let _ = phase.wait_for(|now| now.torn != begun.torn).await;
        }
        State::Silent => {
            let _ = phase.wait_for(|now| now.torn != begun.torn).await;
        }
        State::Down | State::Refusing => {}
    }
}

/// Whether a connection is none of those that are counted. Waits for what it says first, where that matters.
async fn is_uncounted(near: &TcpStream, shared: &Shared) -> bool {
    let Some(opening) = shared.uncounted.get().filter(|opening| !opening.is_empty()) else {
        return false;
    };
    let mut phase = shared.phase.subscribe();
    if !matches!(phase.borrow_and_update().state, State::Up | State::Silent) {
        return false;
    }
    let mut first = vec![0; opening.len()];
    tokio::select! {
        peeked = near.peek(&mut first) => peeked.is_ok() && first == *opening,
        _ = phase.changed() => false,
    }
}

/// Carries until either end is done.
async fn carry(near: &mut TcpStream, far: &mut TcpStream, shared: &Shared, begun: &Phase) {
    let (_, _) = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_end, far_end) = (near.split(), far.split());
    tokio::select! {
        _ = copy(near_end.0, far_end.1, shared, begun, false) => {}
        _ = copy(far_end.0, near_end.1, shared, begun, true) => {}
    }
}

/// Carries one way, and answers that shall be cut only so far.
async fn copy(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
    begun: &Phase,
    answers: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if !shared.phase.borrow().carries_on(begun) {
            // Who waits for the change ends this: not one byte passes after it.
            std::future::pending::<()>().await;
        }
        if answers {
            if let Some(bytes) = shared.cut() {
                return to.write_all(&buffer[..bytes.min(read)]).await;
            }
            shared.answered.fetch_add(read as u64, Ordering::Relaxed);
        }
        to.write_all(&buffer[..read]).await?;
    }
}
