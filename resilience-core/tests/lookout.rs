//! Fear: a silent peer holds calls until their timeouts, or a slow one loses the calls that it would have answered.
//!
//! Where the clock is paused, a jump of it is a process that was stopped: no timer fires meanwhile.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use resilience_core::{Lookout, Silent, Vigil};
use tokio::task::JoinSet;
use tokio::time::{Instant, advance, sleep, timeout};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What becomes of an ask.
#[derive(Clone, Copy)]
enum Peer {
    Answers,
    Silent,
    Unreachable,
    /// The third ask of a round, and no other.
    AnswersLate,
}

/// An endpoint that counts what it is asked.
#[derive(Clone)]
struct Endpoint {
    peer: Arc<Mutex<Peer>>,
    asked: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
    lookout: Lookout,
}

impl Endpoint {
    fn new(peer: Peer) -> Self {
        let peer = Arc::new(Mutex::new(peer));
        let [asked, open, peak] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let lookout = Lookout::new("db:5432", {
            let (peer, asked, open, peak) =
                (Arc::clone(&peer), Arc::clone(&asked), Arc::clone(&open), Arc::clone(&peak));
            move || {
                let peer = *peer.lock().unwrap();
                let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
                let socket = Socket(Arc::clone(&open));
                peak.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                async move {
                    let _socket = socket;
                    sleep(2 * MS).await;
                    match peer {
                        Peer::Answers => Ok(()),
                        Peer::AnswersLate if number % 3 == 0 => Ok(()),
                        Peer::Unreachable => Err(io::ErrorKind::NetworkUnreachable.into()),
                        Peer::Silent | Peer::AnswersLate => pending().await,
                    }
                }
            }
        });
        Self { peer, asked, open, peak, lookout }
    }

    fn becomes(&self, peer: Peer) {
        *self.peer.lock().unwrap() = peer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// A call in flight, which ends with how it ended and when.
    fn call(&self) -> impl Future<Output = Ended> + use<> {
        let lookout = self.lookout.clone();
        async move { (lookout.watch(pending()).await, Instant::now()) }
    }

    fn calls(&self, count: usize) -> JoinSet<Ended> {
        (0..count).map(|_| self.call()).collect()
    }
}

type Ended = (Result<(), Silent>, Instant);

struct Socket(Arc<AtomicUsize>);

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_noticed_within_a_second_whatever_the_timeout() {
    let endpoint = Endpoint::new(Peer::Silent);
    for limit in [30 * SECOND, 3600 * SECOND] {
        let began = Instant::now();
        let silent = timeout(limit, endpoint.lookout.watch(pending::<()>())).await.unwrap();
        assert!(began.elapsed() <= 900 * MS, "{:?}", began.elapsed());
        assert_eq!(
            silent.unwrap_err().to_string(),
            "no answer, and none to a second look at db:5432 within 850ms"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_run_well_for_long_learns_of_silence_as_soon() {
    let endpoint = Endpoint::new(Peer::Answers);
    for age in 1..60 {
        endpoint.becomes(Peer::Answers);
        let mut calls = endpoint.calls(2);
        sleep(age * 511 * MS).await;
        endpoint.becomes(Peer::Silent);
        let fell_silent = Instant::now();
        for (result, ended) in calls.join_all().await {
            result.unwrap_err();
            assert!(ended - fell_silent <= 950 * MS, "at {age}: {:?}", ended - fell_silent);
        }
        calls = endpoint.calls(1);
        calls.join_next().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_on_a_live_peer_is_left_alone_for_an_hour() {
    let endpoint = Endpoint::new(Peer::Answers);
    // Real instants are no whole milliseconds apart.
    advance(Duration::from_nanos(333_333)).await;
    let slow = sleep(3600 * SECOND);
    endpoint.lookout.watch(slow).await.unwrap();
    // 66 in the first half minute, fewer and fewer in the next minutes, then one each 5 s.
    assert!((700..1000).contains(&endpoint.asked()), "{}", endpoint.asked());
    assert_eq!(endpoint.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_calls_share_one_round_of_three_sockets_and_end_together() {
    let endpoint = Endpoint::new(Peer::Silent);
    let began = Instant::now();
    let mut calls = endpoint.calls(60);
    sleep(40 * MS).await;
    for _ in 0..40 {
        calls.spawn(endpoint.call());
    }
    let mut last = began;
    while let Some(ended) = calls.join_next().await {
        let (result, ended) = ended.unwrap();
        result.unwrap_err();
        last = last.max(ended);
    }
    assert!(last - began <= 900 * MS, "{:?}", last - began);
    assert_eq!(
        (endpoint.asked(), endpoint.peak.load(Ordering::SeqCst), endpoint.open()),
        (3, 3, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_the_last_ask_clears() {
    let endpoint = Endpoint::new(Peer::AnswersLate);
    let slow = sleep(60 * SECOND);
    endpoint.lookout.watch(slow).await.unwrap();
    assert!(endpoint.asked() > 100 && endpoint.asked().is_multiple_of(3), "{}", endpoint.asked());
}

#[tokio::test(start_paused = true)]
async fn a_return_is_told_once_and_only_after_a_silence() {
    let endpoint = Endpoint::new(Peer::Answers);
    let returned = || timeout(5 * SECOND, endpoint.lookout.returned());
    let slow = timeout(5 * SECOND, endpoint.lookout.watch(pending::<()>()));
    let (returned_, slow) = tokio::join!(returned(), slow);
    assert!(returned_.is_err() && slow.is_err(), "it was never away");

    endpoint.becomes(Peer::Silent);
    endpoint.call().await.0.unwrap_err();
    let mut calls = endpoint.calls(3);
    endpoint.becomes(Peer::Answers);
    let began = Instant::now();
    returned().await.unwrap();
    assert!(began.elapsed() <= 410 * MS, "{:?}", began.elapsed());
    assert!(returned().await.is_err(), "it was told twice");
    assert!(calls.try_join_next().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_reached_says_why() {
    let endpoint = Endpoint::new(Peer::Unreachable);
    let silent = endpoint.lookout.watch(pending::<()>()).await.unwrap_err();
    assert!(silent.to_string().ends_with("within 850ms: network unreachable"), "{silent}");
    let error = io::Error::from(silent.clone());
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(error.downcast::<Silent>().unwrap(), silent);
}

#[tokio::test(start_paused = true)]
async fn answers_to_other_calls_spare_the_look_and_clear_one_that_nobody_answers() {
    let endpoint = Endpoint::new(Peer::Silent);
    let mut slow = pin!(endpoint.lookout.watch(sleep(600 * SECOND)));
    let traffic = async {
        loop {
            sleep(100 * MS).await;
            endpoint.lookout.answered();
        }
    };
    let ended = tokio::select! {
        ended = &mut slow => ended,
        () = traffic => unreachable!("it has no end"),
    };
    ended.unwrap();
    // The first came before anybody listened.
    assert!(endpoint.asked() <= 1, "{}", endpoint.asked());
}

#[tokio::test(start_paused = true)]
async fn a_standstill_of_this_process_condemns_nobody() {
    for at in [0, 399, 410, 500, 700, 840] {
        let endpoint = Endpoint::new(Peer::Silent);
        let mut calls = endpoint.calls(5);
        sleep(at * MS).await;
        let stopped = Instant::now();
        advance(5 * SECOND).await;
        endpoint.becomes(Peer::Answers);
        assert!(timeout(30 * SECOND, calls.join_next()).await.is_err(), "stopped at {at} ms");
        // It was no amnesty: whoever is silent afterwards is noticed.
        endpoint.becomes(Peer::Silent);
        calls.join_next().await.unwrap().unwrap().0.unwrap_err();
        assert!(stopped.elapsed() < 37 * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn a_round_whose_leader_gives_up_goes_on_for_the_others() {
    let endpoint = Endpoint::new(Peer::Silent);
    let began = Instant::now();
    let mut others = endpoint.calls(0);
    for wait in 1..9 {
        let lookout = endpoint.lookout.clone();
        others.spawn(async move {
            let given_up = timeout((400 + wait * 50) * MS, lookout.watch(pending())).await;
            (given_up.unwrap_or(Ok(())), Instant::now())
        });
    }
    others.spawn(endpoint.call());
    while let Some(ended) = others.join_next().await {
        assert!(ended.unwrap().1 - began <= 900 * MS);
    }
    assert_eq!(endpoint.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_last_to_leave_takes_the_sockets_along_at_whatever_moment() {
    for leave in 1..120 {
        let endpoint = Endpoint::new(Peer::Silent);
        let watched = async {
            tokio::join!(
                endpoint.lookout.watch(pending::<()>()),
                timeout(600 * MS, endpoint.lookout.watch(pending::<()>()))
            )
        };
        assert!(timeout(leave * 7 * MS, watched).await.is_err());
        // The round's task needs a turn to hear of it.
        tokio::task::yield_now().await;
        assert_eq!(endpoint.open(), 0, "left after {} ms", leave * 7);
        let asked = endpoint.asked();
        sleep(10 * SECOND).await;
        assert_eq!(endpoint.asked(), asked, "it looks for nobody");
    }
}

#[test]
fn a_round_on_a_runtime_that_ends_or_stands_still_is_done_without() {
    let build = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for ends in [false, true] {
        let endpoint = Endpoint::new(Peer::Silent);
        let leaders = build();
        leaders.spawn(endpoint.call());
        // Until the round has begun; then it is driven no more.
        leaders.block_on(async { sleep(420 * MS).await });
        assert_eq!(endpoint.asked(), 1);
        let _stands_still = (!ends).then_some(leaders);
        let other = build();
        let call = async { timeout(3 * SECOND, endpoint.call()).await };
        other.block_on(call).unwrap().0.unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn an_ask_that_panics_condemns_nobody() {
    let lookout = Lookout::new("db:5432", || async { panic!("a bug of the connector") });
    assert!(timeout(5 * SECOND, lookout.watch(pending::<()>())).await.is_err());
}

#[test]
fn what_is_ready_at_once_needs_no_runtime() {
    let endpoint = Endpoint::new(Peer::Silent);
    let mut watched = pin!(endpoint.lookout.watch(std::future::ready(1)));
    let mut context = Context::from_waker(Waker::noop());
    assert_eq!(watched.as_mut().poll(&mut context), Poll::Ready(Ok(1)));
}

#[tokio::test(start_paused = true)]
async fn each_wait_of_a_vigil_has_its_own_time() {
    let endpoint = Endpoint::new(Peer::Silent);
    let mut vigil = Box::pin(Vigil::new());
    for _ in 0..50 {
        let waited = poll_fn(|cx| vigil.as_mut().poll_silent(&endpoint.lookout, cx));
        assert!(timeout(300 * MS, waited).await.is_err());
        vigil.as_mut().end_wait();
        sleep(150 * MS).await;
    }
    assert_eq!(endpoint.asked(), 0);
    let began = Instant::now();
    poll_fn(|cx| vigil.as_mut().poll_silent(&endpoint.lookout, cx)).await;
    assert!(began.elapsed() >= 850 * MS && began.elapsed() <= 900 * MS, "{:?}", began.elapsed());
}
