//! Stopping: what runs may end, nothing new begins, and nothing is left.

use resilience_core::{CallError, Deadline, HealthStatus};

use crate::stage::{Checked, Held, Stage, error, eventually, hold, ms, spawn, within};
use crate::suite::room;
use crate::{Way, Work};

room! { "drain":
    a_drain_of_an_idle_manager_ends_at_once,
    a_drain_refuses_what_is_new,
    a_drain_waits_for_what_runs,
    a_drain_ends_by_its_deadline_and_says_what_it_abandons,
    a_drain_of_a_manager_that_was_never_used_connects_to_nothing,
    a_second_drain_is_harmless,
    a_drain_closes_every_connection,
    a_drained_manager_is_not_called_healthy,
    a_drain_is_seen_by_every_clone,
}

async fn a_drain_of_an_idle_manager_ends_at_once(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.serves().await?;
    let drain = subject.drain(Deadline::within(ms(60_000)));
    let drained = within("a drain without calls", ms(500), drain).await?;
    hold!(drained.abandoned == 0, "{} were abandoned", drained.abandoned);
    Ok(())
}

async fn a_drain_refuses_what_is_new(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let key = stage.key();
    let _ = subject.drain(Deadline::within(ms(1000))).await;
    for way in [Way::Read, Way::Write, Way::WriteIdempotent] {
        let refused = error(subject.run(way, Work::Count(key.clone())).await)?;
        hold!(matches!(refused, CallError::Draining(_)), "{way:?} is not refused: {refused:?}");
    }
    let warm = subject.warm_up(Deadline::within(ms(1000))).await;
    hold!(warm.is_err(), "it can still be warmed up");
    hold!(stage.executed(&key).await == 0, "it was sent all the same");
    Ok(())
}

async fn a_drain_waits_for_what_runs(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let running = spawn(&subject, Way::Read, Work::Take(ms(300)));
    eventually("it runs", async || Ok(subject.figures()?.in_use == 1)).await?;
    let drained = subject.drain(Deadline::within(ms(10_000))).await;
    hold!(drained.abandoned == 0, "{} were abandoned", drained.abandoned);
    let ended = within("what ran", ms(100), running).await?;
    hold!(matches!(ended, Ok(Ok(_))), "what ran did not end well: {ended:?}");
    Ok(())
}

async fn a_drain_ends_by_its_deadline_and_says_what_it_abandons(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let held = Held::take(&subject, 2).await?;
    let drain = subject.drain(Deadline::within(ms(200)));
    let drained = within("a drain", ms(200), drain).await?;
    hold!(drained.abandoned == 2, "{} of 2 were abandoned", drained.abandoned);
    held.release().await
}

async fn a_drain_of_a_manager_that_was_never_used_connects_to_nothing(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let drain = subject.drain(Deadline::within(ms(5000)));
    let drained = within("a drain", ms(100), drain).await?;
    hold!(drained.abandoned == 0, "{} were abandoned", drained.abandoned);
    hold!(stage.wire.accepted() == 0, "it connected");
    Ok(())
}

async fn a_second_drain_is_harmless(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.serves().await?;
    for _ in 0..2 {
        let drain = subject.drain(Deadline::within(ms(1000)));
        let drained = within("a drain", ms(1000), drain).await?;
        hold!(drained.abandoned == 0, "{} were abandoned", drained.abandoned);
    }
    Ok(())
}

async fn a_drain_closes_every_connection(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.look(ms(2000)).await;
    Held::take(&subject, 2).await?.release().await?;
    subject.serves().await?;
    let _ = subject.drain(Deadline::within(ms(2000))).await;
    eventually("all are closed", async || Ok(stage.wire.open() == 0)).await
}

async fn a_drained_manager_is_not_called_healthy(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let _ = subject.drain(Deadline::within(ms(1000))).await;
    let health = subject.look(ms(1000)).await;
    hold!(health.status == HealthStatus::Unhealthy, "it is {}", health.status);
    Ok(())
}

async fn a_drain_is_seen_by_every_clone(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let twin = subject.twin();
    subject.serves().await?;
    let held = Held::take(&twin, 1).await?;
    let status = subject.figures()?.in_use;
    hold!(status == 1, "what its clone holds, it tells as {status}");
    held.release().await?;
    let _ = subject.drain(Deadline::within(ms(1000))).await;
    let refused = twin.echo("too late").await;
    hold!(matches!(refused, Err(CallError::Draining(_))), "a clone goes on: {refused:?}");
    Ok(())
}
