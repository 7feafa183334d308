//! What opens a circuit, what does not, and what it does while it is open.

use resilience_core::{CallError, CircuitState, Deadline};
use tokio::time::{Instant, timeout};

use crate::stage::{Checked, Held, Stage, error, eventually, failed, hold, ms};
use crate::suite::room;
use crate::{State, Way, Work};

room! { "circuit":
    the_breaker_bears_the_managers_name,
    refused_connections_open_the_circuit_after_as_many_as_were_set,
    a_silent_server_opens_the_circuit,
    an_open_circuit_refuses_at_once_and_spares_the_server,
    an_open_circuit_says_when_to_come_back,
    the_circuit_closes_by_itself_when_the_server_is_back,
    one_success_closes_no_circuit_that_wants_two,
    a_callers_fault_opens_no_circuit,
    calls_that_the_caller_gave_up_open_no_circuit,
    our_own_exhaustion_opens_no_circuit,
    a_short_deadline_of_the_callers_opens_no_circuit,
    a_health_check_moves_no_circuit,
}

async fn the_breaker_bears_the_managers_name(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let name = stage.setup().name;
    hold!(*subject.circuit()?.name() == name, "it is called {:?}", subject.circuit()?.name());
    let pipeline = subject.watched().pipeline().map(|it| it.name().clone());
    hold!(pipeline.as_ref() == Some(&name), "the pipeline is called {pipeline:?}");
    Ok(())
}

/// Lets `subject` fail until its circuit is open.
async fn open(stage: &Stage, reset: u64) -> Checked<std::sync::Arc<dyn crate::Subject>> {
    let subject = stage.with(|it| {
        it.fail_max = 2;
        it.reset_timeout = ms(reset);
    })?;
    stage.wire.set(State::Refusing);
    eventually("the circuit is open", async || {
        let _ = subject.echo("anyone").await;
        Ok(subject.state()? == CircuitState::Open)
    })
    .await?;
    Ok(subject)
}

async fn refused_connections_open_the_circuit_after_as_many_as_were_set(stage: &Stage) -> Checked {
    stage.wire.set(State::Refusing);
    let subject = stage.with(|it| it.fail_max = 3)?;
    for number in 1..=3 {
        let state = subject.state()?;
        hold!(state == CircuitState::Closed, "it is {state:?} after {} failures", number - 1);
        failed(subject.echo("anyone").await)?;
    }
    hold!(subject.state()? == CircuitState::Open, "three failures do not open it");
    Ok(())
}

async fn a_silent_server_opens_the_circuit(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.fail_max = 2;
        it.connect_timeout = ms(200);
        it.attempt_timeout = ms(400);
    })?;
    stage.wire.set(State::Silent);
    eventually("the circuit is open", async || {
        let _ = subject.echo("anyone").await;
        Ok(subject.state()? == CircuitState::Open)
    })
    .await
}

async fn an_open_circuit_refuses_at_once_and_spares_the_server(stage: &Stage) -> Checked {
    let subject = open(stage, 60_000).await?;
    stage.wire.set(State::Up);
    let (opened, key) = (stage.wire.accepted(), stage.key());
    let started = Instant::now();
    for way in [Way::Read, Way::Write, Way::WriteIdempotent] {
        let refused = error(subject.run(way, Work::Count(key.clone())).await)?;
        hold!(matches!(refused, CallError::CircuitOpen(_)), "{way:?} is not refused: {refused:?}");
    }
    hold!(started.elapsed() < ms(500), "to refuse takes {:?}", started.elapsed());
    hold!(stage.wire.accepted() == opened, "it connected all the same");
    hold!(stage.executed(&key).await == 0, "it was sent all the same");
    Ok(())
}

async fn an_open_circuit_says_when_to_come_back(stage: &Stage) -> Checked {
    let subject = open(stage, 60_000).await?;
    let refused = error(subject.echo("anyone").await)?;
    let after = refused.retry_after().unwrap_or_default();
    hold!(after > ms(30_000) && after <= ms(66_000), "it says {after:?}");
    hold!(refused.is_unavailable(), "it is taken for a request that is wrong");
    Ok(())
}

async fn the_circuit_closes_by_itself_when_the_server_is_back(stage: &Stage) -> Checked {
    let subject = open(stage, 100).await?;
    stage.wire.set(State::Up);
    subject.serves_again().await?;
    hold!(subject.state()? == CircuitState::Closed, "it serves, and the circuit is not closed");
    subject.serves().await
}

async fn one_success_closes_no_circuit_that_wants_two(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.fail_max = 1;
        it.reset_timeout = ms(100);
        it.success_threshold = 2;
    })?;
    stage.wire.set(State::Refusing);
    failed(subject.echo("anyone").await)?;
    stage.wire.set(State::Up);
    subject.serves_again().await?;
    let state = subject.state()?;
    hold!(state == CircuitState::HalfOpen, "it is {state:?} after the first");
    subject.serves().await?;
    hold!(subject.state()? == CircuitState::Closed, "it is not closed after the second");
    Ok(())
}

async fn a_callers_fault_opens_no_circuit(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.fail_max = 1)?;
    for _ in 0..5 {
        failed(subject.run(Way::Write, Work::Refused).await)?;
    }
    let seen = subject.circuit()?.snapshot();
    hold!(seen.state == CircuitState::Closed, "it is open");
    hold!(seen.calls.failure == 0, "{} failures were counted", seen.calls.failure);
    subject.serves().await
}

async fn calls_that_the_caller_gave_up_open_no_circuit(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.fail_max = 1)?;
    subject.serves().await?;
    stage.wire.set(State::Silent);
    for patience in 0..10 {
        let given_up = timeout(ms(2 * patience), subject.echo("never mind")).await;
        hold!(given_up.is_err(), "a silent server answers: {given_up:?}");
    }
    let seen = subject.circuit()?.snapshot();
    hold!(seen.state == CircuitState::Closed, "it is {:?}", seen.state);
    hold!(seen.calls.failure == 0, "{} failures were counted", seen.calls.failure);
    Ok(())
}

async fn our_own_exhaustion_opens_no_circuit(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.limit = 1;
        it.fail_max = 1;
        it.acquire_timeout = ms(50);
    })?;
    let held = Held::take(&subject, 1).await?;
    for _ in 0..3 {
        let refused = error(subject.echo("no place").await)?;
        hold!(!matches!(refused, CallError::CircuitOpen(_)), "the circuit is open");
    }
    hold!(subject.state()? == CircuitState::Closed, "the circuit is not closed");
    held.release().await?;
    subject.serves().await
}

async fn a_short_deadline_of_the_callers_opens_no_circuit(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.fail_max = 1)?;
    subject.serves().await?;
    for _ in 0..5 {
        let call = resilience_core::Call::read().by(Deadline::within(ms(1)));
        let _ = subject.run(Way::Call(call), Work::Take(ms(100))).await;
    }
    let state = subject.state()?;
    hold!(
        state == CircuitState::Closed,
        "the server was given no time, and the circuit is {state:?}"
    );
    subject.serves_again().await.map(drop)
}

async fn a_health_check_moves_no_circuit(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.fail_max = 1)?;
    subject.look(ms(2000)).await;
    stage.wire.set(State::Refusing);
    for _ in 0..3 {
        subject.look(ms(500)).await;
    }
    let seen = subject.circuit()?.snapshot();
    hold!(seen.state == CircuitState::Closed, "it is {:?}", seen.state);
    let counted = (seen.calls.success, seen.calls.failure);
    hold!(counted == (0, 0), "successes and failures counted: {counted:?}");
    Ok(())
}
