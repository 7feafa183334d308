//! How many at once, who is next, and what those are told for whom there is no place.

use resilience_core::{Blame, HealthStatus};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::stage::{Checked, Held, Stage, blame, error, eventually, hold, ms, spawn, within};
use crate::suite::room;
use crate::{Way, Work};

room! { "limits":
    who_finds_no_place_is_told_so_and_the_limit,
    who_waits_for_a_place_waits_no_longer_than_was_set,
    who_waits_first_is_served_first,
    a_place_that_comes_free_serves_the_next_at_once,
    who_gives_up_waiting_leaves_the_queue,
    more_callers_than_places_are_all_served,
    the_figures_add_up,
    an_exhausted_manager_is_not_called_unhealthy,
}

async fn who_finds_no_place_is_told_so_and_the_limit(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.acquire_timeout = ms(50))?;
    let held = Held::take(&subject, 3).await?;
    let refused = error(subject.echo("no place").await)?;
    hold!(refused.is_unavailable(), "it is taken for a request that is wrong: {refused}");
    hold!(blame(&refused) == Blame::Local, "the server is blamed: {refused:?}");
    hold!(refused.to_string().contains('3'), "the limit of 3 is not named: {refused}");
    held.release().await
}

async fn who_waits_for_a_place_waits_no_longer_than_was_set(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.limit = 1;
        it.acquire_timeout = ms(300);
    })?;
    let held = Held::take(&subject, 1).await?;
    let started = Instant::now();
    error(within("the wait", ms(300), subject.echo("no place")).await?)?;
    hold!(started.elapsed() >= ms(290), "it gave up after {:?}", started.elapsed());
    held.release().await
}

async fn who_waits_first_is_served_first(stage: &Stage) -> Checked {
    const WAITERS: usize = 6;
    let subject = stage.with(|it| it.limit = 1)?;
    let held = Held::take(&subject, 1).await?;
    let (sender, mut served) = mpsc::channel(WAITERS);
    for number in 0..WAITERS {
        let (waiter, sender) = (subject.twin(), sender.clone());
        tokio::spawn(async move {
            let _ = waiter.echo("next").await;
            let _ = sender.send(number).await;
        });
        let queued = async || Ok(subject.figures()?.waiting == number + 1);
        eventually("one more is waiting", queued).await?;
    }
    held.release().await?;
    let mut order = Vec::new();
    while order.len() < WAITERS {
        let next = within("the next", ms(3000), served.recv()).await?;
        order.extend(next);
    }
    hold!(order.is_sorted(), "they were served in the order {order:?}");
    Ok(())
}

async fn a_place_that_comes_free_serves_the_next_at_once(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.limit = 1;
        it.acquire_timeout = ms(5000);
        it.attempt_timeout = ms(6000);
    })?;
    let held = Held::take(&subject, 1).await?;
    let next = spawn(&subject, Way::Read, Work::Echo("next".into()));
    eventually("it is waiting", async || Ok(subject.figures()?.waiting == 1)).await?;
    held.release().await?;
    let served = within("the next", ms(500), next).await?;
    hold!(matches!(served, Ok(Ok(_))), "it is not served: {served:?}");
    Ok(())
}

async fn who_gives_up_waiting_leaves_the_queue(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 1)?;
    let held = Held::take(&subject, 1).await?;
    for patience in 0..8 {
        let given_up = timeout(ms(2 * patience), subject.echo("never mind")).await;
        hold!(given_up.is_err(), "there was no place, and it got one: {given_up:?}");
        let waiting = subject.figures()?.waiting;
        hold!(waiting == 0, "{waiting} are still waiting after they gave up");
    }
    held.release().await?;
    subject.serves().await
}

async fn more_callers_than_places_are_all_served(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 2)?;
    let callers: Vec<_> =
        (0..24).map(|it| spawn(&subject, Way::Read, Work::Echo(it.to_string()))).collect();
    for (number, caller) in callers.into_iter().enumerate() {
        let answer = within("a caller", ms(5000), caller).await?;
        let own = matches!(&answer, Ok(Ok(text)) if *text == number.to_string());
        hold!(own, "caller {number} got {answer:?}");
    }
    subject.at_rest().await
}

async fn the_figures_add_up(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let status = subject.figures()?;
    hold!((status.in_use, status.waiting) == (0, 0), "at first: {status:?}");
    hold!(status.max >= 3, "the limit of 3 is told as {}", status.max);
    let held = Held::take(&subject, 3).await?;
    let waiter = spawn(&subject, Way::Read, Work::Echo("next".into()));
    eventually("three are in use and one is waiting", async || {
        let status = subject.figures()?;
        Ok((status.in_use, status.waiting) == (3, 1))
    })
    .await?;
    held.release().await?;
    let served = waiter.await;
    hold!(matches!(served, Ok(Ok(_))), "the one that waited got {served:?}");
    subject.at_rest().await
}

async fn an_exhausted_manager_is_not_called_unhealthy(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 2)?;
    let held = Held::take(&subject, 2).await?;
    let health = subject.look(ms(2000)).await;
    hold!(health.status == HealthStatus::Healthy, "it is {}: {:?}", health.status, health.reason);
    held.release().await
}
