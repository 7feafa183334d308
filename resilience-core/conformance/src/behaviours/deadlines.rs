//! Every way in has an end, whatever the server does.

use resilience_core::{Call, CallError, Deadline, HealthStatus};
use tokio::time::Instant;

use crate::stage::{Checked, Held, Stage, error, hold, ms, within};
use crate::suite::room;
use crate::{State, Way, Work};

room! { "deadlines":
    a_silent_server_holds_no_call_past_its_deadline,
    a_server_that_falls_silent_in_mid_answer_holds_no_call,
    a_silent_server_holds_no_warm_up,
    a_silent_server_holds_no_health_check,
    a_health_check_without_a_deadline_has_one_of_its_own,
    a_silent_server_holds_no_drain,
    an_attempt_ends_at_its_timeout_and_not_later,
    an_attempt_that_is_slow_but_in_time_is_left_alone,
    a_callers_nearer_deadline_holds,
    the_deadline_of_what_surrounds_a_call_holds,
    a_call_whose_time_is_over_is_not_made,
}

async fn a_silent_server_holds_no_call_past_its_deadline(stage: &Stage) -> Checked {
    stage.wire.set(State::Silent);
    let subject = stage.with(|it| {
        it.deadline = ms(300);
        it.max_retries = 5;
    })?;
    for way in [Way::Read, Way::Write, Way::WriteIdempotent] {
        let call = subject.run(way, Work::Echo("anyone".into()));
        error(within(&format!("{way:?}"), ms(300), call).await?)?;
    }
    subject.at_rest().await
}

async fn a_server_that_falls_silent_in_mid_answer_holds_no_call(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.attempt_timeout = ms(400))?;
    subject.serves_again().await?;
    stage.wire.set(State::Silent);
    for way in [Way::Read, Way::Write, Way::WriteIdempotent] {
        let call = subject.run(way, Work::Echo("anyone".into()));
        error(within(&format!("{way:?}"), ms(400), call).await?)?;
    }
    subject.at_rest().await
}

async fn a_silent_server_holds_no_warm_up(stage: &Stage) -> Checked {
    stage.wire.set(State::Silent);
    let subject = stage.subject()?;
    let warm = subject.warm_up(Deadline::within(ms(300)));
    let warm = within("warm_up", ms(300), warm).await?;
    hold!(warm.is_err(), "a silent server was warmed up to");
    subject.at_rest().await
}

async fn a_silent_server_holds_no_health_check(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.serves().await?;
    stage.wire.set(State::Silent);
    let check = subject.look(ms(300));
    let health = within("a check", ms(300), check).await?;
    hold!(health.status == HealthStatus::Unhealthy, "a silent server is {}", health.status);
    subject.at_rest().await
}

async fn a_health_check_without_a_deadline_has_one_of_its_own(stage: &Stage) -> Checked {
    stage.wire.set(State::Silent);
    let subject = stage.subject()?;
    let health = within("health()", ms(5000), subject.health()).await?;
    hold!(health.status == HealthStatus::Unhealthy, "a silent server is {}", health.status);
    Ok(())
}

async fn a_silent_server_holds_no_drain(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let held = Held::take(&subject, 1).await?;
    stage.wire.set(State::Silent);
    let drain = subject.drain(Deadline::within(ms(300)));
    let drained = within("drain", ms(300), drain).await?;
    hold!(drained.abandoned == 1, "one call was abandoned, not {}", drained.abandoned);
    drop(held);
    Ok(())
}

async fn an_attempt_ends_at_its_timeout_and_not_later(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.attempt_timeout = ms(500))?;
    subject.serves_again().await?;
    stage.wire.set(State::Silent);
    let started = Instant::now();
    let call = subject.echo("anyone");
    let ended = within("an attempt", ms(500), call).await?;
    hold!(matches!(ended, Err(CallError::AttemptTimeout(_))), "it ends otherwise: {ended:?}");
    hold!(started.elapsed() >= ms(490), "it ends after {:?} already", started.elapsed());
    Ok(())
}

async fn an_attempt_that_is_slow_but_in_time_is_left_alone(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let started = Instant::now();
    let slow = subject.run(Way::Read, Work::Take(ms(400))).await;
    hold!(slow.is_ok(), "it was not left alone: {slow:?}");
    hold!(started.elapsed() >= ms(390), "the server did not take its time");
    Ok(())
}

async fn a_callers_nearer_deadline_holds(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.serves().await?;
    stage.wire.set(State::Silent);
    let call = Call::read().by(Deadline::within(ms(300)));
    let call = subject.run(Way::Call(call), Work::Echo("anyone".into()));
    error(within("a call with a deadline of its own", ms(300), call).await?).map(drop)
}

async fn the_deadline_of_what_surrounds_a_call_holds(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.serves().await?;
    stage.wire.set(State::Silent);
    for way in [Way::Read, Way::Write] {
        let call = subject.run(way, Work::Echo("anyone".into()));
        let call = Deadline::within(ms(300)).scope(call);
        error(within("a call within a deadline", ms(300), call).await?)?;
    }
    Ok(())
}

async fn a_call_whose_time_is_over_is_not_made(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let key = stage.key();
    let call = Call::write().by(Deadline::within(ms(0)));
    let late = error(subject.run(Way::Call(call), Work::Count(key.clone())).await)?;
    hold!(matches!(late, CallError::DeadlineExceeded(_)), "it ends otherwise: {late:?}");
    hold!(stage.executed(&key).await == 0, "it was sent all the same");
    Ok(())
}
