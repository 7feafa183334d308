//! Futures that are dropped at any await point: nobody sees another's answer, and nothing is lost.

use std::sync::Arc;

use resilience_core::{CallError, Deadline};

use crate::stage::{Checked, PollN, Stage, eventually, hold, ms, spawn};
use crate::suite::room;
use crate::{Subject, Way, Work};

/// More than the polls of any call to a server that is near.
const POLLS: usize = 14;

room! { "cancellation":
    a_call_that_is_dropped_at_any_point_gives_its_place_back_at_once,
    nobody_gets_the_answer_to_a_call_that_was_dropped,
    callers_that_give_up_all_the_time_leave_the_others_their_own_answers,
    a_dropped_write_is_executed_once_or_not_at_all,
    a_dropped_warm_up_leaves_nothing_behind,
    a_dropped_drain_can_be_called_again,
    connections_of_dropped_calls_do_not_pile_up,
    a_closure_that_panics_leaves_everything_whole,
}

fn is_free(subject: &Arc<dyn Subject>, polls: usize) -> Checked {
    let status = subject.figures()?;
    let busy = (status.in_use, status.waiting);
    hold!(busy == (0, 0), "in use and waiting after {polls} polls: {busy:?}");
    Ok(())
}

async fn a_call_that_is_dropped_at_any_point_gives_its_place_back_at_once(
    stage: &Stage,
) -> Checked {
    let subject = stage.with(|it| it.limit = 1)?;
    let mut cut = 0;
    for round in 0..2 {
        for polls in 0..POLLS {
            let way = if polls % 2 == round { Way::Read } else { Way::Write };
            let call = subject.run(way, Work::Echo("never mind".into()));
            cut += usize::from(PollN::new(polls, call).await.is_none());
            is_free(&subject, polls)?;
        }
        if round == 0 {
            // The second round begins with a connection that works.
            subject.serves().await?;
        }
    }
    hold!(cut > 4, "only {cut} were cut off");
    subject.serves().await
}

async fn nobody_gets_the_answer_to_a_call_that_was_dropped(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 1)?;
    subject.serves().await?;
    for polls in 0..POLLS {
        PollN::new(polls, subject.echo(&format!("dropped after {polls}"))).await;
        let own = format!("asked after {polls}");
        let answer = subject.echo(&own).await;
        hold!(matches!(&answer, Ok(text) if *text == own), "{own}: {answer:?}");
    }
    Ok(())
}

async fn callers_that_give_up_all_the_time_leave_the_others_their_own_answers(
    stage: &Stage,
) -> Checked {
    let subject = stage.with(|it| it.limit = 2)?;
    let callers: Vec<_> = (0..6)
        .map(|caller| {
            let subject = Arc::clone(&subject);
            tokio::spawn(async move {
                for round in 0..12 {
                    let own = format!("{caller}/{round}");
                    let answer = PollN::new((caller + round) % POLLS, subject.echo(&own)).await;
                    let foreign = matches!(&answer, Some(Ok(text)) if *text != own);
                    hold!(!foreign, "{own} got {answer:?}");
                    let answer = subject.echo(&own).await;
                    hold!(matches!(&answer, Ok(text) if *text == own), "{own} got {answer:?}");
                }
                Ok(())
            })
        })
        .collect();
    for caller in callers {
        caller.await.map_err(|error| crate::stage::Breach(error.to_string()))??;
    }
    is_free(&subject, 0)
}

async fn a_dropped_write_is_executed_once_or_not_at_all(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.limit = 1;
        it.max_retries = 3;
    })?;
    subject.serves().await?;
    let mut keys = Vec::new();
    for polls in 0..POLLS / 2 {
        let key = stage.key();
        PollN::new(polls, subject.run(Way::Write, Work::Count(key.clone()))).await;
        keys.push(key);
        subject.serves().await?;
    }
    for (polls, key) in keys.iter().enumerate() {
        let executed = stage.executed(key).await;
        hold!(executed <= 1, "cut after {polls} polls, it was executed {executed} times");
    }
    Ok(())
}

async fn a_dropped_warm_up_leaves_nothing_behind(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 1)?;
    for polls in 0..POLLS {
        PollN::new(polls, subject.warm_up(Deadline::within(ms(5000)))).await;
        is_free(&subject, polls)?;
    }
    subject.serves().await
}

async fn a_dropped_drain_can_be_called_again(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.serves().await?;
    PollN::new(1, subject.drain(Deadline::within(ms(5000)))).await;
    let refused = subject.echo("too late").await;
    hold!(matches!(refused, Err(CallError::Draining(_))), "it takes new calls: {refused:?}");
    let drained = subject.drain(Deadline::within(ms(5000))).await;
    hold!(drained.abandoned == 0, "{} were abandoned", drained.abandoned);
    Ok(())
}

async fn connections_of_dropped_calls_do_not_pile_up(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 2)?;
    subject.serves().await?;
    for polls in 0..POLLS {
        PollN::new(polls, subject.echo("never mind")).await;
    }
    // One more is a health check's, or on its way out.
    eventually("what was dropped is closed", async || Ok(stage.wire.open() <= 3)).await?;
    subject.serves().await
}

async fn a_closure_that_panics_leaves_everything_whole(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 1)?;
    subject.serves().await?;
    for _ in 0..3 {
        let ended = spawn(&subject, Way::Write, Work::Panic).await;
        hold!(ended.is_err(), "the panic was swallowed: {ended:?}");
        is_free(&subject, 0)?;
    }
    subject.serves().await
}
