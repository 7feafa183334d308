//! Fear: callers that share one execution also share one another's fate.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resilience_core::{
    AnyError, Call, CallError, CircuitBreaker, Deadline, Pipeline, RetryPolicy, SingleFlight,
};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

type Flights = SingleFlight<&'static str, usize, Refused>;
type Answer = Result<usize, Arc<CallError<Refused>>>;

fn flights() -> Flights {
    SingleFlight::new("svc", 8).unwrap()
}

/// Counts the executions; each takes a second and brings its own number.
#[derive(Clone, Default)]
struct Service(Arc<AtomicUsize>);

impl Service {
    async fn ask(&self) -> Result<usize, CallError<Refused>> {
        let number = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(SECOND).await;
        Ok(number)
    }

    fn asked(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

async fn refuse() -> Result<usize, CallError<Refused>> {
    let refused = CircuitBreaker::new("svc").call(|| async { Err::<Infallible, _>(Refused) }).await;
    sleep(SECOND).await;
    Err(refused.unwrap_err())
}

/// Starts a caller and lets it take its place.
async fn caller<Fut>(
    flights: &Flights,
    key: &'static str,
    operation: impl FnOnce() -> Fut + Send + 'static,
) -> JoinHandle<Answer>
where
    Fut: Future<Output = Result<usize, CallError<Refused>>> + Send,
{
    let flights = flights.clone();
    let caller = tokio::spawn(async move { flights.run(key, operation).await });
    yield_now().await;
    caller
}

async fn asking(flights: &Flights, service: &Service) -> JoinHandle<Answer> {
    let service = service.clone();
    caller(flights, "key", move || async move { service.ask().await }).await
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_of_one_key_make_one_call() {
    let (flights, service) = (flights(), Service::default());
    let mut callers = Vec::new();
    for _ in 0..1000 {
        callers.push(asking(&flights, &service).await);
    }
    assert_eq!(flights.in_flight(), 1);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), 1);
    }
    assert_eq!((service.asked(), flights.in_flight(), flights.uncoalesced()), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_the_end_gets_no_old_answer() {
    let (flights, service) = (flights(), Service::default());
    assert_eq!(flights.run("key", || service.ask()).await.unwrap(), 1);
    assert_eq!(flights.run("key", || service.ask()).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn other_keys_do_not_wait() {
    let (flights, service) = (flights(), Service::default());
    let started = Instant::now();
    let (a, b) =
        tokio::join!(flights.run("a", || service.ask()), flights.run("b", || service.ask()));
    assert_eq!(a.unwrap() + b.unwrap(), 3);
    assert_eq!(started.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_leader_fails_nobody_and_one_follower_leads() {
    let (flights, service) = (flights(), Service::default());
    let leader = asking(&flights, &service).await;
    let followers = [asking(&flights, &service).await, asking(&flights, &service).await];
    sleep(SECOND / 2).await;
    leader.abort();
    for follower in followers {
        assert_eq!(follower.await.unwrap().unwrap(), 2);
    }
    assert_eq!((service.asked(), flights.in_flight()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_follower_leaves_no_trace() {
    let (flights, service) = (flights(), Service::default());
    let leader = asking(&flights, &service).await;
    let gone = asking(&flights, &service).await;
    let stays = asking(&flights, &service).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    assert_eq!(leader.await.unwrap().unwrap(), 1);
    assert_eq!(stays.await.unwrap().unwrap(), 1);
    assert_eq!((service.asked(), flights.in_flight()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_everybody_leaves_keeps_no_key() {
    let flights = flights();
    let hang = || caller(&flights, "key", pending);
    let callers = [hang().await, hang().await, hang().await];
    assert_eq!(flights.in_flight(), 1);
    for caller in callers {
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
    }
    assert_eq!(flights.in_flight(), 0);
    let service = Service::default();
    assert_eq!(flights.run("key", || service.ask()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_leader_hangs_nobody() {
    let (flights, service) = (flights(), Service::default());
    let leader = caller(&flights, "key", || async {
        sleep(SECOND).await;
        panic!("of the operation")
    })
    .await;
    let follower = asking(&flights, &service).await;
    assert!(leader.await.unwrap_err().is_panic());
    assert_eq!(follower.await.unwrap().unwrap(), 1);
    assert_eq!(flights.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_panics_before_its_first_await_gives_its_turn_back() {
    let flights = flights();
    let caught = caller(&flights, "key", || -> std::future::Ready<_> { panic!("of the closure") });
    let caught = caught.await.await;
    assert!(caught.unwrap_err().is_panic());
    assert_eq!(flights.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_refusal_is_the_answer_of_all_who_waited() {
    let flights = flights();
    let leader = caller(&flights, "key", refuse).await;
    let service = Service::default();
    let follower = asking(&flights, &service).await;
    let (one, other) = (leader.await.unwrap().unwrap_err(), follower.await.unwrap().unwrap_err());
    assert!(Arc::ptr_eq(&one, &other) && one.inner().is_some());
    assert_eq!((service.asked(), flights.in_flight()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_leader_out_of_its_own_time_does_not_fail_those_with_more() {
    let flights = flights();
    let pipeline = Pipeline::builder("svc").build().unwrap();
    let started = Instant::now();
    let call = |time, answers_after| {
        let pipeline = pipeline.clone();
        let answer = move |_| async move {
            sleep(answers_after).await;
            Ok::<_, Refused>(7)
        };
        let run = flights.clone();
        let call =
            async move { run.run("key", || pipeline.run(Call::read(), &AnyError, answer)).await };
        tokio::spawn(Deadline::within(time).scope(call))
    };
    let leader = call(SECOND, 3 * SECOND);
    yield_now().await;
    let follower = call(9 * SECOND, 3 * SECOND);
    let error = leader.await.unwrap().unwrap_err();
    assert!(matches!(*error, CallError::DeadlineExceeded(_)), "{error}");
    assert_eq!(follower.await.unwrap().unwrap(), 7);
    assert_eq!(started.elapsed(), 4 * SECOND);
    assert_eq!(flights.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_follower_waits_no_longer_than_its_own_deadline() {
    let flights = flights();
    let _leader = caller(&flights, "key", pending).await;
    let service = Service::default();
    let started = Instant::now();
    let follower = flights.run("key", || service.ask());
    let error = Deadline::within(2 * SECOND).scope(follower).await.unwrap_err();
    assert!(matches!(*error, CallError::DeadlineExceeded(_)), "{error}");
    assert_eq!((started.elapsed(), service.asked()), (2 * SECOND, 0));
}

#[tokio::test(start_paused = true)]
async fn keys_beyond_the_bound_run_by_themselves_and_are_counted() {
    let flights: Flights = SingleFlight::new("svc", 1).unwrap();
    let service = Service::default();
    let first = asking(&flights, &service).await;
    let (one, other) =
        tokio::join!(flights.run("b", || service.ask()), flights.run("b", || service.ask()));
    assert_eq!(one.unwrap() + other.unwrap(), 2 + 3);
    assert_eq!(first.await.unwrap().unwrap(), 1);
    assert_eq!((flights.in_flight(), flights.uncoalesced()), (0, 2));
    assert_eq!(SingleFlight::<u8, u8, Refused>::new("svc", 0).unwrap_err().field, "max_keys");
}

#[tokio::test(start_paused = true)]
async fn what_a_shared_pipeline_gave_up_is_repeated_by_nobody_around() {
    let flights = flights();
    let retry = || RetryPolicy::builder().max_retries(2).jitter(false).build().unwrap();
    let pipeline = |name| Pipeline::builder(name).retry(retry()).build().unwrap();
    let (inner, asked) = (pipeline("inner"), Service::default());
    let fail = |_| async {
        asked.0.fetch_add(1, Ordering::SeqCst);
        Err(Refused)
    };
    let outer = pipeline("outer");
    let around = || {
        outer.run(Call::read(), &AnyError, |_| {
            flights.run("key", || inner.run(Call::read(), &AnyError, fail))
        })
    };
    let (one, other) = tokio::join!(around(), around());
    assert!(one.is_err() && other.is_err());
    assert_eq!(asked.asked(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_interleaving_loses_a_caller_or_keeps_a_key() {
    let flights: SingleFlight<usize, usize, Refused> = SingleFlight::new("svc", 4).unwrap();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut callers = Vec::new();
    for _ in 0..4_000 {
        let (flights, key, yields) = (flights.clone(), rng.usize(..3), rng.usize(..4));
        let caller = tokio::spawn(async move {
            let operation = || async {
                for _ in 0..yields {
                    yield_now().await;
                }
                Ok(key)
            };
            flights.run(key, operation).await.map(|answer| answer == key)
        });
        if rng.u8(..4) == 0 {
            caller.abort();
        }
        callers.push(caller);
    }
    for caller in callers {
        match caller.await {
            Ok(answer) => assert!(answer.unwrap(), "an answer for another key"),
            Err(gone) => assert!(gone.is_cancelled()),
        }
    }
    assert_eq!((flights.in_flight(), flights.uncoalesced()), (0, 0));
}
