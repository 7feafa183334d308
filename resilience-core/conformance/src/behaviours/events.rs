//! What is told to whoever listens, and whether the counts are right.

use resilience_core::{Call, CallOutcome, CircuitState};

use crate::events::Happened::{self, AcquireTimedOut, Acquired, Circuit, Created, Released, Retry};
use crate::stage::{Checked, Held, PollN, Stage, eventually, hold, ms};
use crate::suite::room;
use crate::{State, Way, Work};

room! { "events":
    every_call_is_told_once_with_its_word_and_outcome,
    a_call_that_was_dropped_is_told_as_cancelled,
    every_turn_of_the_circuit_is_told,
    every_retry_is_told,
    connections_lent_and_given_back_are_told_and_match [PoolEvents],
    who_waited_in_vain_is_told [PoolEvents],
}

fn calls(stage: &Stage) -> Vec<(&'static str, CallOutcome)> {
    let call = |happened| match happened {
        Happened::Call { operation, outcome, .. } => Some((operation, outcome)),
        _ => None,
    };
    stage.events.all().into_iter().filter_map(call).collect()
}

async fn every_call_is_told_once_with_its_word_and_outcome(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.serves().await?;
    let _ = subject.run(Way::Write, Work::Refused).await;
    let named = Way::Call(Call::read().named("look_up"));
    let _ = subject.run(named, Work::Nothing).await;
    stage.wire.set(State::Refusing);
    let _ = subject.run(Way::WriteIdempotent, Work::Echo("anyone".into())).await;
    let told = calls(stage);
    let expected = [
        ("read", CallOutcome::Success),
        ("write", CallOutcome::CallerError),
        ("look_up", CallOutcome::Success),
        ("write", CallOutcome::ServiceError),
    ];
    hold!(told == expected, "told were {told:?}");
    Ok(())
}

async fn a_call_that_was_dropped_is_told_as_cancelled(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.serves().await?;
    stage.wire.set(State::Silent);
    PollN::new(1, subject.echo("never mind")).await;
    let told = calls(stage);
    hold!(told.last() == Some(&("read", CallOutcome::Cancelled)), "told were {told:?}");
    Ok(())
}

async fn every_turn_of_the_circuit_is_told(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.fail_max = 1;
        it.reset_timeout = ms(50);
    })?;
    stage.wire.set(State::Refusing);
    let _ = subject.echo("anyone").await;
    stage.wire.set(State::Up);
    subject.serves_again().await?;
    let turns = [CircuitState::Open, CircuitState::HalfOpen, CircuitState::Closed];
    for state in turns {
        let told = stage.events.count(Circuit(state));
        hold!(told == 1, "{state:?} was told {told} times");
    }
    Ok(())
}

async fn every_retry_is_told(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.max_retries = 2)?;
    stage.wire.reject(2);
    subject.serves().await?;
    let told = stage.events.count(Retry);
    hold!(told == 2, "2 retries were told {told} times");
    let attempts = stage.events.all().into_iter().find_map(|happened| match happened {
        Happened::Call { attempts, .. } => Some(attempts),
        _ => None,
    });
    hold!(attempts == Some(3), "3 attempts were told as {attempts:?}");
    Ok(())
}

async fn connections_lent_and_given_back_are_told_and_match(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    Held::take(&subject, 2).await?.release().await?;
    subject.serves().await?;
    for polls in 0..8 {
        PollN::new(polls, subject.echo("never mind")).await;
    }
    subject.serves().await?;
    let count = |happened| stage.events.count(happened);
    eventually("all that were lent came back", async || {
        Ok(count(Acquired) == count(Released) && count(Acquired) >= 4)
    })
    .await?;
    let (told, seen) = (count(Created), stage.wire.accepted());
    hold!(told >= 2 && told <= seen, "{seen} connections were made, {told} were told");
    Ok(())
}

async fn who_waited_in_vain_is_told(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.limit = 1;
        it.acquire_timeout = ms(50);
    })?;
    let held = Held::take(&subject, 1).await?;
    let _ = subject.echo("no place").await;
    let told = stage.events.count(AcquireTimedOut);
    hold!(told == 1, "it was told {told} times");
    held.release().await
}
