//! What is done again, and what never is: the server counts.

use resilience_core::{Blame, Replay};

use crate::stage::{Checked, Stage, error, failed, hold, ms, within};
use crate::suite::room;
use crate::{State, Way, Work};

room! { "retries":
    a_write_is_executed_once,
    a_read_whose_answer_was_lost_is_repeated,
    a_write_whose_answer_was_lost_is_not_repeated,
    an_idempotent_write_whose_answer_was_lost_is_repeated,
    a_write_whose_answer_was_cut_in_two_is_not_repeated,
    a_write_that_was_never_sent_is_repeated,
    a_write_into_a_silent_server_is_not_repeated,
    retries_end_at_their_limit,
    retries_end_by_the_deadline_with_the_last_real_error,
    a_callers_fault_is_not_repeated,
    an_error_of_the_applications_own_is_not_repeated,
    retries_are_bounded_by_a_budget_in_an_outage,
}

/// The counted work by way of `way`, with `answers` of the server lost; the outcome, and how often it was executed.
async fn losing(
    stage: &Stage,
    way: Way,
    answers: usize,
    bytes: usize,
) -> Checked<(Result<String, resilience_core::CallError<crate::Told>>, u64)> {
    let subject = stage.with(|it| it.max_retries = 3)?;
    let key = stage.key();
    // So that a connection is there, and the next answer is the work's own.
    subject.serves().await?;
    let warm = subject.run(way, Work::Count(stage.key())).await;
    hold!(warm.is_ok(), "it cannot count: {warm:?}");
    stage.wire.cut_answers(answers, bytes);
    let ended = within("the call", ms(5000), subject.run(way, Work::Count(key.clone()))).await?;
    stage.wire.cut_answers(0, 0);
    subject.at_rest().await?;
    Ok((ended, stage.executed(&key).await))
}

async fn a_write_is_executed_once(stage: &Stage) -> Checked {
    for way in [Way::Read, Way::Write, Way::WriteIdempotent] {
        let (ended, executed) = losing(stage, way, 0, 0).await?;
        hold!(ended.is_ok(), "{way:?} fails: {ended:?}");
        hold!(executed == 1, "{way:?} was executed {executed} times");
    }
    Ok(())
}

async fn a_read_whose_answer_was_lost_is_repeated(stage: &Stage) -> Checked {
    let (ended, executed) = losing(stage, Way::Read, 1, 0).await?;
    hold!(ended.is_ok(), "it fails: {ended:?}");
    hold!(executed == 2, "it was executed {executed} times");
    Ok(())
}

async fn a_write_whose_answer_was_lost_is_not_repeated(stage: &Stage) -> Checked {
    let (ended, executed) = losing(stage, Way::Write, 1, 0).await?;
    hold!(executed == 1, "it was executed {executed} times");
    let failed = failed(ended)?;
    let verdict = (failed.verdict.blame, failed.verdict.replay);
    hold!(verdict == (Blame::Service, Replay::IfIdempotent), "the verdict is {verdict:?}");
    hold!(failed.attempts == 1, "it took {} attempts", failed.attempts);
    Ok(())
}

async fn an_idempotent_write_whose_answer_was_lost_is_repeated(stage: &Stage) -> Checked {
    let (ended, executed) = losing(stage, Way::WriteIdempotent, 1, 0).await?;
    hold!(ended.is_ok(), "it fails: {ended:?}");
    hold!(executed == 2, "it was executed {executed} times");
    Ok(())
}

async fn a_write_whose_answer_was_cut_in_two_is_not_repeated(stage: &Stage) -> Checked {
    let (ended, executed) = losing(stage, Way::Write, 1, 3).await?;
    hold!(executed == 1, "it was executed {executed} times");
    failed(ended).map(drop)
}

async fn a_write_that_was_never_sent_is_repeated(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.max_retries = 3)?;
    let key = stage.key();
    stage.wire.reject(2);
    let ended = subject.run(Way::Write, Work::Count(key.clone())).await;
    hold!(ended.is_ok(), "nothing was sent, and it fails: {ended:?}");
    let executed = stage.executed(&key).await;
    hold!(executed == 1, "it was executed {executed} times");
    Ok(())
}

async fn a_write_into_a_silent_server_is_not_repeated(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.max_retries = 3;
        it.attempt_timeout = ms(400);
    })?;
    subject.serves_again().await?;
    let (key, opened) = (stage.key(), stage.wire.accepted());
    stage.wire.set(State::Silent);
    let call = subject.run(Way::Write, Work::Count(key.clone()));
    error(within("a write", ms(400), call).await?)?;
    hold!(stage.wire.accepted() == opened, "it was sent on another connection too");
    Ok(())
}

async fn retries_end_at_their_limit(stage: &Stage) -> Checked {
    stage.wire.set(State::Refusing);
    for retries in [0, 2] {
        let subject = stage.with(|it| it.max_retries = retries)?;
        let failed = failed(subject.echo("anyone").await)?;
        hold!(failed.attempts == retries + 1, "{} attempts, {retries} retries", failed.attempts);
    }
    Ok(())
}

async fn retries_end_by_the_deadline_with_the_last_real_error(stage: &Stage) -> Checked {
    stage.wire.set(State::Refusing);
    let subject = stage.with(|it| {
        it.max_retries = 100;
        it.base_delay = ms(150);
        it.max_delay = ms(300);
        it.deadline = ms(600);
    })?;
    let failed = failed(within("a call", ms(600), subject.echo("anyone")).await?)?;
    hold!(failed.attempts < 100, "it made all its attempts in no time");
    stage.names_endpoint("the last error", &failed.error.text)
}

async fn a_callers_fault_is_not_repeated(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.max_retries = 3)?;
    for way in [Way::Read, Way::Write, Way::WriteIdempotent] {
        let ended = subject.run(way, Work::Refused).await;
        hold!(ended.as_ref().is_err_and(|it| !it.is_unavailable()), "it is an outage: {ended:?}");
        let failed = failed(ended)?;
        hold!(failed.verdict.blame == Blame::Caller, "the blame is wrong: {failed:?}");
        hold!(failed.attempts == 1, "{way:?} was tried {} times", failed.attempts);
    }
    subject.serves().await
}

async fn an_error_of_the_applications_own_is_not_repeated(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.max_retries = 3;
        it.fail_max = 1;
    })?;
    let key = stage.key();
    let failed = failed(subject.run(Way::Read, Work::CountAndFail(key.clone())).await)?;
    hold!(failed.attempts == 1, "it was tried {} times", failed.attempts);
    hold!(stage.executed(&key).await == 1, "it was executed more than once");
    subject.serves().await
}

async fn retries_are_bounded_by_a_budget_in_an_outage(stage: &Stage) -> Checked {
    const CALLS: u32 = 100;
    stage.wire.set(State::Refusing);
    let subject = stage.with(|it| {
        it.max_retries = 5;
        it.base_delay = ms(1);
        it.max_delay = ms(1);
    })?;
    let mut attempts = 0;
    for _ in 0..CALLS {
        attempts += failed(subject.echo("anyone").await)?.attempts;
    }
    hold!(attempts > CALLS, "nothing was repeated at all");
    // A tenth of the calls and a burst of 10 is what every connector sets; a budget may be somewhat more generous.
    hold!(attempts <= CALLS + CALLS / 2, "{attempts} attempts for {CALLS} calls");
    Ok(())
}
