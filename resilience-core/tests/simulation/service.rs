//! A service as its callers see it, played from a script: what the weather is, and what each attempt meets in it.

use std::hash::{Hash, Hasher};
use std::panic::resume_unwind;
use std::time::Duration;

use fastrand::Rng;
use resilience_core::{Blame, Replay, Verdict};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use crate::trace::{Fact, Planned, record};
use crate::world::{Role, spawn};

/// How an attempt was answered; `None` is a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Answer(pub(crate) Option<Fault>);

/// The service's error.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{verdict:?}")]
pub(crate) struct Fault {
    pub(crate) verdict: Verdict,
    /// Whoever asks what it means, panics.
    pub(crate) poisoned: bool,
}

impl Fault {
    /// The classifier of this service.
    pub(crate) fn read(&self) -> Verdict {
        if self.poisoned {
            resume_unwind(Box::new(Planned));
        }
        self.verdict
    }
}

impl From<Verdict> for Fault {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, poisoned: false }
    }
}

impl Hash for Answer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Some(Fault { verdict, poisoned }) = self.0 else { return };
        std::mem::discriminant(&verdict.blame).hash(state);
        std::mem::discriminant(&verdict.replay).hash(state);
        (verdict.retry_after, poisoned).hash(state);
    }
}

/// What an attempt meets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behaviour {
    Reply {
        after: Duration,
        fault: Option<Fault>,
        executes: bool,
    },
    /// No answer, ever.
    Silence {
        executes: bool,
    },
    /// The operation panics when it has its answer.
    Panic {
        after: Duration,
    },
    /// The operation panics before there is a future.
    PanicAtOnce,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Weather {
    Fine,
    Flaky,
    Refusing,
    Silent,
    Slow,
    Throttling,
    /// The application's own code is broken.
    Buggy,
    /// This process cannot make its attempts.
    OwnTrouble,
}

/// The weather over time.
#[derive(Debug)]
pub(crate) struct Script {
    /// Until when, and which.
    phases: Vec<(Duration, Weather)>,
    latency: Duration,
}

impl Script {
    /// A service that answers every call well and within `latency`, but for some trouble of this process.
    pub(crate) fn innocent(rng: &mut Rng, latency: Duration) -> Self {
        let end = Duration::from_secs(rng.u64(1..4));
        Self { phases: vec![(end, Weather::Fine), (end * 2, Weather::OwnTrouble)], latency }
    }

    /// Fine and foul by turns for `time`; fine for ever after.
    pub(crate) fn draw(rng: &mut Rng, time: Duration, latency: Duration) -> Self {
        const FOUL: [Weather; 7] = [
            Weather::Flaky,
            Weather::Refusing,
            Weather::Silent,
            Weather::Slow,
            Weather::Throttling,
            Weather::Buggy,
            Weather::OwnTrouble,
        ];
        let mut until = Duration::ZERO;
        let mut phases = Vec::new();
        while until < time {
            until += Duration::from_millis(rng.u64(100..1_500));
            let weather = if rng.u8(..3) == 0 { Weather::Fine } else { FOUL[rng.usize(..7)] };
            phases.push((until, weather));
        }
        Self { phases, latency }
    }

    /// What an attempt at `now` meets.
    pub(crate) fn behaviour(&self, rng: &mut Rng, now: Duration) -> Behaviour {
        let weather = self.phases.iter().find(|(until, _)| now < *until);
        let after = self.latency.mul_f64(rng.f64());
        let after = if rng.u8(..4) == 0 { Duration::ZERO } else { after };
        let fine = Behaviour::Reply { after, fault: None, executes: true };
        match weather.map_or(Weather::Fine, |(_, weather)| *weather) {
            Weather::Fine => fine,
            Weather::Flaky if rng.bool() => fine,
            Weather::Flaky | Weather::Refusing => fails(rng, after),
            Weather::Silent => Behaviour::Silence { executes: rng.bool() },
            Weather::Slow => {
                let after = self.latency * rng.u32(1..20);
                Behaviour::Reply { after, fault: None, executes: true }
            }
            Weather::Throttling => {
                let soonest = Duration::from_millis(rng.u64(1..1_500));
                let verdict = Verdict::service(Replay::Safe).after(soonest);
                refuses(after, verdict)
            }
            Weather::Buggy => match rng.u8(..6) {
                0 => Behaviour::Panic { after },
                1 => Behaviour::PanicAtOnce,
                2 => {
                    let verdict = Verdict::service(Replay::Never);
                    let fault = Some(Fault { verdict, poisoned: true });
                    Behaviour::Reply { after, fault, executes: rng.bool() }
                }
                _ => fine,
            },
            Weather::OwnTrouble if rng.bool() => fine,
            Weather::OwnTrouble => refuses(after, Verdict::local(Replay::Safe)),
        }
    }
}

fn refuses(after: Duration, verdict: Verdict) -> Behaviour {
    Behaviour::Reply { after, fault: Some(verdict.into()), executes: false }
}

fn fails(rng: &mut Rng, after: Duration) -> Behaviour {
    let blame = if rng.u8(..5) == 0 { Blame::Caller } else { Blame::Service };
    let (replay, executes) = match rng.u8(..8) {
        0..3 => (Replay::Safe, false),
        3 => (Replay::Transaction, false),
        4..7 => (Replay::IfIdempotent, rng.bool()),
        _ => (Replay::Never, rng.bool()),
    };
    let verdict = Verdict { blame, replay, retry_after: None };
    Behaviour::Reply { after, fault: Some(verdict.into()), executes }
}

/// Plays one attempt of `call`. The service goes on even if nobody waits for its answer.
pub(crate) async fn serve(call: usize, behaviour: Behaviour) -> Result<(), Fault> {
    match behaviour {
        Behaviour::Reply { after, fault, executes } => {
            let execute = move || {
                if executes {
                    record(Fact::Executed { call });
                }
                fault.map_or(Ok(()), Err)
            };
            if after.is_zero() {
                return execute();
            }
            let (reply, answer) = oneshot::channel();
            let at = Instant::now() + after;
            spawn(Role::Remote, async move {
                sleep_until(at).await;
                let _ = reply.send(execute());
            });
            answer.await.expect("the service sends before it ends")
        }
        Behaviour::Silence { executes } => {
            if executes {
                record(Fact::Executed { call });
            }
            std::future::pending().await
        }
        Behaviour::Panic { after } => {
            sleep(after).await;
            resume_unwind(Box::new(Planned))
        }
        Behaviour::PanicAtOnce => unreachable!("it leaves no future to await"),
    }
}
