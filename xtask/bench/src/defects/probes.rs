//! Half-open circuits: too many probes, probes that never end, and answers of a state that is gone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use failsafe::CircuitBreaker as _;
use futures::channel::oneshot;
use futures::executor::block_on;
use futures::poll;
use layered::{Execute, Service as _, Stack};
use resilience_core::{CircuitBreaker, CircuitBreakerBuilder, CircuitState, Permit};
use seatbelt::breaker::{Breaker, HalfOpenMode};
use seatbelt::{RecoveryInfo, ResilienceContext};
use tick::ClockControl;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_resilience_circuitbreaker::{CircuitBreakerLayer, CircuitState as TowerState};

use super::{Scenario, Seen};
use crate::subjects::{HOUR, Refused, pass};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "tower-resilience-circuitbreaker 0.14: a failure admitted while closed re-opens a half-open circuit",
        right: "it stays half-open",
        ours: late_failure,
        peer: Some(("tower-resilience", late_failure_of_tower_resilience)),
    },
    Scenario {
        name: "seatbelt 0.11: a probe of an earlier half-open cycle closes the circuit",
        right: "the late success decides nothing",
        ours: late_probe,
        peer: Some(("seatbelt", late_probe_of_seatbelt)),
    },
    Scenario {
        name: "recloser 1.4: half_open_len = 1 admits every concurrent call",
        right: "1 of 50 is admitted",
        ours: probes_at_once,
        peer: Some(("recloser", probes_at_once_of_recloser)),
    },
    Scenario {
        name: "recloser 1.4: holds an epoch pin across the user's call",
        right: "garbage of others is freed while a call runs",
        ours: pinned,
        peer: Some(("recloser", pinned_by_recloser)),
    },
    Scenario {
        name: "failsafe 1.3: 100 of 100 permits while half-open",
        right: "1 of 100 is granted",
        ours: permits_at_once,
        peer: Some(("failsafe", permits_at_once_of_failsafe)),
    },
    Scenario {
        name: "circuitbreaker-rs 0.1.1: three panicking probes brick it for good",
        right: "it recovers with the service",
        ours: panicking_probes,
        peer: Some(("circuitbreaker-rs", panicking_probes_of_circuitbreaker_rs)),
    },
    Scenario {
        name: "resilience4j (Java, not run here): a release while half-open mints an extra permit",
        right: "1 of 100 is granted after each kind of release",
        ours: released_probes,
        peer: None,
    },
];

const SHORT: Duration = Duration::from_millis(5);

/// What opens with one failure and may be probed soon after.
fn builder() -> CircuitBreakerBuilder {
    CircuitBreaker::builder("probes").fail_max(1).reset_timeout(SHORT).probe_lease(HOUR)
}

fn built(builder: CircuitBreakerBuilder) -> CircuitBreaker {
    builder.build().expect("the settings are valid")
}

/// Opens it, and waits until it may be probed.
fn open(breaker: &CircuitBreaker) {
    let _ = breaker.call_blocking(|| Err::<(), _>(Refused));
    pass(SHORT);
}

fn granted(breaker: &CircuitBreaker, of: usize) -> Vec<Permit> {
    (0..of).filter_map(|_| breaker.try_acquire().ok()).collect()
}

fn late_failure() -> Seen {
    let breaker = built(builder().success_threshold(5));
    let slow = breaker.try_acquire().expect("it is closed");
    open(&breaker);
    let _ = breaker.call_blocking(|| Ok::<_, Refused>(()));
    let before = breaker.state();
    slow.failure();
    let after = breaker.state();
    let stays = (before, after) == (CircuitState::HalfOpen, CircuitState::HalfOpen);
    Seen::new(format!("{before:?}, then {after:?}"), stays)
}

fn late_failure_of_tower_resilience() -> Seen {
    let builder = CircuitBreakerLayer::builder().consecutive_failures(1);
    let layer = builder.wait_duration_in_open(SHORT).permitted_calls_in_half_open(5).build();
    let (end, ended) = oneshot::channel::<()>();
    let ended = Arc::new(Mutex::new(Some(ended)));
    let mut service =
        layer.expect("the settings are valid").layer(service_fn(move |ask: &'static str| {
            let ended = Arc::clone(&ended);
            async move {
                match ask {
                    "succeed" => return Ok(()),
                    "hang" => {
                        let ended = ended.lock().expect("nobody panics").take();
                        let _ = ended.expect("only one hangs").await;
                    }
                    _ => {}
                }
                Err(Refused)
            }
        }));
    block_on(async {
        let mut slow = pin!(service.ready().await.expect("it is closed").call("hang"));
        let _ = poll!(&mut slow);
        let _ = service.ready().await.expect("it is closed").call("fail").await;
        pass(SHORT);
        let _ = service.ready().await.expect("it may be probed").call("succeed").await;
        let before = service.state_sync();
        let _ = end.send(());
        let _ = slow.await;
        let after = service.state_sync();
        let stays = (before, after) == (TowerState::HalfOpen, TowerState::HalfOpen);
        Seen::new(format!("{before:?}, then {after:?}"), stays)
    })
}

fn late_probe() -> Seen {
    // A lease that runs out ends the first cycle; the second begins with the next call.
    let breaker = built(builder().probe_lease(SHORT).success_threshold(1));
    open(&breaker);
    let old = breaker.try_acquire().expect("it may be probed");
    pass(SHORT * 2);
    let current = breaker.try_acquire().expect("the first probe's lease is over");
    let apart = old.generation() != current.generation();
    old.success();
    let state = breaker.state();
    Seen::new(
        format!("the circuit is {state:?} after it"),
        apart && state == CircuitState::HalfOpen,
    )
}

fn late_probe_of_seatbelt() -> Seen {
    let control = ClockControl::new();
    let context = ResilienceContext::new(control.to_clock());
    let (end, ended) = oneshot::channel::<()>();
    let ended = Arc::new(Mutex::new(Some(ended)));
    let service = (
        Breaker::layer("probes", &context)
            .recovery_with(|answer: &Result<(), Refused>, _| match answer {
                Ok(()) => RecoveryInfo::never(),
                Err(_) => RecoveryInfo::retry(),
            })
            .rejected_input_error(|_, _| Refused)
            .min_throughput(1)
            .failure_threshold(0.1)
            .break_duration(Duration::from_secs(5))
            .half_open_mode(HalfOpenMode::quick()),
        Execute::new(move |ask: &'static str| {
            let ended = Arc::clone(&ended);
            async move {
                match ask {
                    "fail" => return Err(Refused),
                    "hang" => std::future::pending().await,
                    "hang, then succeed" => {
                        let ended = ended.lock().expect("nobody panics").take();
                        let _ = ended.expect("only one does").await;
                    }
                    _ => {}
                }
                Ok(())
            }
        }),
    );
    let service = service.into_service();
    let next_cycle = || control.advance(Duration::from_secs(6));
    block_on(async {
        for _ in 0..5 {
            let _ = service.execute("fail").await;
        }
        next_cycle();
        let mut old = pin!(service.execute("hang, then succeed"));
        let _ = poll!(&mut old);
        next_cycle();
        let _ = service.execute("fail").await;
        next_cycle();
        let mut current = pin!(service.execute("hang"));
        let _ = poll!(&mut current);
        let _ = end.send(());
        let _ = old.await;
        let closed = service.execute("succeed").await.is_ok();
        let state = if closed { "Closed" } else { "HalfOpen" };
        Seen::new(format!("the circuit is {state} after it"), !closed)
    })
}

fn probes_at_once() -> Seen {
    let breaker = built(builder().half_open_max_calls(1));
    open(&breaker);
    let admitted = granted(&breaker, 50).len();
    Seen::new(format!("{admitted} of 50"), admitted == 1)
}

fn probes_at_once_of_recloser() -> Seen {
    let breaker = open_recloser();
    pass(SHORT);
    let asked = AtomicBool::new(false);
    let mut context = Context::from_waker(Waker::noop());
    let mut calls: Vec<_> = (0..50)
        .map(|_| {
            Box::pin(breaker.call(async {
                asked.store(true, Ordering::Relaxed);
                std::future::pending::<Result<(), Refused>>().await
            }))
        })
        .collect();
    let mut admitted = 0;
    for call in &mut calls {
        asked.store(false, Ordering::Relaxed);
        let pending = call.as_mut().poll(&mut context).is_pending();
        admitted += usize::from(pending && asked.load(Ordering::Relaxed));
    }
    Seen::new(format!("{admitted} of 50"), admitted == 1)
}

fn open_recloser() -> recloser::AsyncRecloser {
    let builder = recloser::Recloser::custom().error_rate(0.5).closed_len(1).half_open_len(1);
    let breaker = recloser::AsyncRecloser::from(builder.open_wait(SHORT).build());
    for _ in 0..3 {
        let _ = block_on(breaker.call(async { Err::<(), _>(Refused) }));
    }
    breaker
}

/// Whether garbage that another thread leaves to `crossbeam-epoch` is freed before this call ends.
fn garbage_is_freed() -> bool {
    let freed = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mark = Arc::clone(&freed);
            let guard = crossbeam_epoch::pin();
            guard.defer(move || mark.store(true, Ordering::Relaxed));
            guard.flush();
            drop(guard);
            for _ in 0..1000 {
                crossbeam_epoch::pin().flush();
            }
        });
    });
    freed.load(Ordering::Relaxed)
}

fn pinned() -> Seen {
    let freed =
        CircuitBreaker::new("pinned").call_blocking(|| Ok::<_, Refused>(garbage_is_freed()));
    freed_or_not(freed.expect("it is closed"))
}

fn pinned_by_recloser() -> Seen {
    let freed = recloser::Recloser::default().call(|| Ok::<_, Refused>(garbage_is_freed()));
    freed_or_not(freed.expect("it is closed"))
}

fn freed_or_not(freed: bool) -> Seen {
    Seen::new(if freed { "freed" } else { "not freed in 1,000 collections" }, freed)
}

fn permits_at_once() -> Seen {
    let breaker = built(builder().half_open_max_calls(1));
    open(&breaker);
    let granted = granted(&breaker, 100).len();
    Seen::new(format!("{granted} of 100"), granted == 1)
}

fn permits_at_once_of_failsafe() -> Seen {
    let policy =
        failsafe::failure_policy::consecutive_failures(1, failsafe::backoff::constant(SHORT));
    let breaker = failsafe::Config::new().failure_policy(policy).build();
    let _ = breaker.call(|| Err::<(), _>(Refused));
    pass(SHORT);
    let granted = (0..100).filter(|_| breaker.is_call_permitted()).count();
    Seen::new(format!("{granted} of 100"), granted == 1)
}

/// What becomes of a breaker after three panicking probes, `call` being one that succeeds, panics or fails.
fn after_three_panics(call: impl Fn(&'static str) -> bool) -> Seen {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    call("fail");
    for _ in 0..3 {
        pass(SHORT);
        let _ = catch_unwind(AssertUnwindSafe(|| call("panic")));
    }
    std::panic::set_hook(loud);
    let mut admitted = 0;
    for _ in 0..20 {
        pass(SHORT);
        admitted += usize::from(call("succeed"));
    }
    Seen::new(format!("{admitted} of the next 20 calls succeed"), admitted == 20)
}

fn do_as_told(told: &str) -> Result<(), Refused> {
    match told {
        "succeed" => Ok(()),
        "panic" => panic!("as told"),
        _ => Err(Refused),
    }
}

fn panicking_probes() -> Seen {
    let breaker = built(builder());
    after_three_panics(|told| breaker.call_blocking(|| do_as_told(told)).is_ok())
}

fn panicking_probes_of_circuitbreaker_rs() -> Seen {
    use circuitbreaker_rs::DefaultPolicy;
    let builder = circuitbreaker_rs::CircuitBreaker::<DefaultPolicy, Refused>::builder();
    let builder = builder.failure_threshold(0.1).min_throughput(1).cooldown(SHORT);
    let breaker =
        builder.probe_interval(1).consecutive_failures(1).consecutive_successes(5).build();
    after_three_panics(|told| breaker.call(|| do_as_told(told)).is_ok())
}

fn released_probes() -> Seen {
    let breaker = built(builder());
    let closed_era = breaker.try_acquire().expect("it is closed");
    open(&breaker);
    let mut most = 0;
    for release in [drop, Permit::exclude, Permit::success] {
        granted(&breaker, 1).into_iter().for_each(release);
        most = most.max(granted(&breaker, 100).len());
    }
    let probe = granted(&breaker, 1);
    drop(closed_era);
    let beside = granted(&breaker, 100).len();
    Seen::new(
        format!("{most} of 100; {beside} beside a probe after a late release"),
        (most, beside, probe.len()) == (1, 0, 1),
    )
}
