//! Connections: how many there are, which are used again, and which are closed.

use std::sync::Arc;

use resilience_core::{CircuitState, Deadline};

use crate::stage::{Checked, Held, Stage, eventually, failed, hold, ms, spawn};
use crate::suite::room;
use crate::{State, Subject, Way, Work};

room! { "pool":
    idle_connections_are_used_again [Pool],
    there_are_never_more_connections_than_places [Pool],
    a_connection_has_one_borrower_at_a_time [Pool],
    idle_connections_are_told_in_the_figures [Pool],
    idle_connections_that_died_cost_a_read_nothing [Pool],
    one_loss_clears_out_the_idle_connections_that_died_with_it [Pool],
    a_request_that_was_refused_costs_no_connection [Pool],
    who_queues_behind_connects_that_fail_is_not_told_that_the_pool_is_exhausted [Pool],
    an_exhausted_pool_says_who_has_its_connections [Holders],
    idle_connections_are_closed_though_nobody_comes_by [IdleTimeout],
    some_connections_stay_idle_if_they_shall [MinIdle],
    old_connections_are_replaced [MaxLifetime],
    a_connection_that_is_held_for_too_long_is_told_of [LeakDetection],
}

/// Places, and one connection more where a health check has its own.
const PLACES: usize = 3;

/// Leaves as many idle as may be.
async fn fill(stage: &Stage, subject: &Arc<dyn Subject>) -> Checked {
    let held = Held::take(subject, PLACES).await?;
    let open = stage.wire.open();
    hold!(open >= PLACES, "{PLACES} borrowers have {open} connections");
    held.release().await
}

async fn idle_connections_are_used_again(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    for _ in 0..20 {
        subject.serves().await?;
    }
    hold!(stage.wire.accepted() == 1, "20 calls opened {} connections", stage.wire.accepted());
    Held::take(&subject, PLACES).await?.release().await?;
    let opened = stage.wire.accepted();
    Held::take(&subject, PLACES).await?.release().await?;
    hold!(stage.wire.accepted() == opened, "idle connections were not used again");
    Ok(())
}

async fn there_are_never_more_connections_than_places(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let callers: Vec<_> = (0..24).map(|_| spawn(&subject, Way::Read, Work::Take(ms(20)))).collect();
    for caller in callers {
        let ended = caller.await;
        hold!(matches!(ended, Ok(Ok(_))), "a call failed: {ended:?}");
    }
    let (peak, max) = (stage.wire.peak(), subject.figures()?.max);
    hold!(peak <= max, "{peak} connections were open, and {max} may be");
    hold!(peak <= PLACES, "{peak} connections were open for {PLACES} places");
    Ok(())
}

async fn a_connection_has_one_borrower_at_a_time(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let held = Held::take(&subject, PLACES).await?;
    let open = stage.wire.open();
    hold!(open >= PLACES, "{PLACES} borrowers share {open} connections");
    held.release().await
}

async fn idle_connections_are_told_in_the_figures(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let held = Held::take(&subject, PLACES).await?;
    let idle = subject.figures()?.idle;
    hold!(idle == 0, "all are lent, and {idle} are idle");
    held.release().await?;
    let status = subject.figures()?;
    hold!(status.idle == PLACES, "{} of {PLACES} are idle", status.idle);
    hold!(status.idle <= status.idle_max, "more are idle than may: {status:?}");
    Ok(())
}

async fn idle_connections_that_died_cost_a_read_nothing(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.max_retries = 1)?;
    fill(stage, &subject).await?;
    stage.wire.tear();
    eventually("all are dead", async || Ok(stage.wire.open() == 0)).await?;
    subject.serves().await
}

async fn one_loss_clears_out_the_idle_connections_that_died_with_it(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    fill(stage, &subject).await?;
    stage.wire.tear();
    eventually("all are dead", async || Ok(stage.wire.open() == 0)).await?;
    // The first may find out the hard way, and no other.
    let _ = subject.echo("is anyone there").await;
    subject.serves().await?;
    Held::take(&subject, PLACES).await?.release().await?;
    subject.serves().await?;
    let failures = subject.circuit()?.snapshot().calls.failure;
    hold!(failures <= 1, "{failures} calls found a dead connection");
    Ok(())
}

async fn a_request_that_was_refused_costs_no_connection(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    for _ in 0..5 {
        failed(subject.run(Way::Write, Work::Refused).await)?;
    }
    subject.serves().await?;
    hold!(stage.wire.accepted() == 1, "{} connections were opened", stage.wire.accepted());
    Ok(())
}

async fn who_queues_behind_connects_that_fail_is_not_told_that_the_pool_is_exhausted(
    stage: &Stage,
) -> Checked {
    let subject = stage.with(|it| {
        it.limit = 1;
        it.connect_timeout = ms(300);
        it.acquire_timeout = ms(300);
        it.attempt_timeout = ms(1000);
    })?;
    stage.wire.set(State::Silent);
    let callers: Vec<_> =
        (0..4).map(|_| spawn(&subject, Way::Read, Work::Echo("anyone".into()))).collect();
    for caller in callers {
        let ended = caller.await.map_err(|error| crate::stage::Breach(error.to_string()))?;
        let text = ended.unwrap_or_else(|error| error.to_string());
        hold!(!text.contains("in use") && !text.contains("exhausted"), "one was told: {text}");
    }
    hold!(subject.state()? == CircuitState::Closed, "the circuit is not closed");
    Ok(())
}

async fn an_exhausted_pool_says_who_has_its_connections(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.acquire_timeout = ms(100))?;
    let held = Held::take(&subject, PLACES).await?;
    let failed = failed(subject.echo("no place").await)?;
    // Where it was taken is a line of a source file: that of the harness, which calls the manager.
    let text = &failed.error.text;
    hold!(text.contains(".rs:"), "nobody is named: {text}");
    held.release().await
}

async fn idle_connections_are_closed_though_nobody_comes_by(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.idle_timeout = ms(150))?;
    fill(stage, &subject).await?;
    eventually("all are closed", async || Ok(stage.wire.open() == 0)).await?;
    hold!(subject.figures()?.idle == 0, "they are still told as idle");
    subject.serves().await
}

async fn some_connections_stay_idle_if_they_shall(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.idle_timeout = ms(150);
        it.min_idle = 2;
    })?;
    let warm = subject.warm_up(Deadline::within(ms(5000))).await;
    hold!(warm.is_ok(), "it cannot be warmed up to: {warm:?}");
    let status = subject.figures()?;
    hold!((status.idle, status.idle_min) == (2, 2), "after warming up: {status:?}");
    Held::take(&subject, PLACES).await?.release().await?;
    eventually("the third is closed", async || Ok(stage.wire.open() == 2)).await?;
    stage.wire.tear();
    eventually("those that were lost are replaced", async || {
        let _ = subject.echo("is anyone there").await;
        Ok(stage.wire.open() == 2 && subject.figures()?.idle == 2)
    })
    .await
}

async fn old_connections_are_replaced(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.max_lifetime = ms(200))?;
    subject.serves().await?;
    eventually("a new one is opened", async || {
        subject.serves().await?;
        Ok(stage.wire.accepted() > 1)
    })
    .await?;
    eventually("the old one is closed", async || Ok(stage.wire.open() <= 1)).await
}

async fn a_connection_that_is_held_for_too_long_is_told_of(stage: &Stage) -> Checked {
    use crate::events::Happened::Leaked;
    let subject = stage.with(|it| it.leak_threshold = Some(ms(100)))?;
    subject.serves().await?;
    let held = Held::take(&subject, 1).await?;
    eventually("it is told", async || Ok(stage.events.count(Leaked) == 1)).await?;
    held.release().await?;
    subject.serves().await
}
