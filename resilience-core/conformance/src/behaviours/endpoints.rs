//! Addresses that change while the manager lives.

use std::sync::Arc;

use resilience_core::{EndpointSet, HealthStatus};
use tokio::sync::watch;

use crate::stage::{Checked, Held, Stage, endpoints, error, eventually, hold, ms, within};
use crate::suite::room;
use crate::{State, Subject};

room! { "endpoints":
    the_next_call_follows_an_endpoint_that_moved,
    a_call_at_an_endpoint_that_went_away_is_let_finish,
    connections_to_an_endpoint_that_went_away_are_closed,
    health_follows_an_endpoint_that_moved,
    no_endpoint_at_all_is_told_at_once_and_passes,
    the_same_endpoints_once_more_cost_no_connection,
    one_endpoint_of_two_that_is_down_costs_no_call [SeveralEndpoints],
}

fn following(
    stage: &Stage,
    first: EndpointSet,
) -> Checked<(Arc<dyn Subject>, watch::Sender<EndpointSet>)> {
    let (sender, watched) = watch::channel(first);
    Ok((stage.with(|it| it.endpoints = Some(watched))?, sender))
}

async fn the_next_call_follows_an_endpoint_that_moved(stage: &Stage) -> Checked {
    let (old, new) = (&stage.wire, stage.other_wire().await);
    let (subject, sender) = following(stage, endpoints(0, &[old]))?;
    subject.serves().await?;
    hold!(old.accepted() > 0 && new.accepted() == 0, "it did not begin at the first");
    sender.send_replace(endpoints(1, &[&new]));
    old.set(State::Refusing);
    subject.serves().await?;
    hold!(new.accepted() > 0, "it did not go to the second");
    Ok(())
}

async fn a_call_at_an_endpoint_that_went_away_is_let_finish(stage: &Stage) -> Checked {
    let new = stage.other_wire().await;
    let (subject, sender) = following(stage, endpoints(0, &[&stage.wire]))?;
    let held = Held::take(&subject, 1).await?;
    sender.send_replace(endpoints(1, &[&new]));
    subject.serves().await?;
    held.release().await?;
    subject.serves().await
}

async fn connections_to_an_endpoint_that_went_away_are_closed(stage: &Stage) -> Checked {
    let new = stage.other_wire().await;
    let (subject, sender) = following(stage, endpoints(0, &[&stage.wire]))?;
    let held = Held::take(&subject, 2).await?;
    held.release().await?;
    subject.serves().await?;
    sender.send_replace(endpoints(1, &[&new]));
    subject.serves().await?;
    eventually("they are closed", async || Ok(stage.wire.open() == 0)).await?;
    subject.serves().await
}

async fn health_follows_an_endpoint_that_moved(stage: &Stage) -> Checked {
    let new = stage.other_wire().await;
    let (subject, sender) = following(stage, endpoints(0, &[&stage.wire]))?;
    hold!(subject.health().await.status == HealthStatus::Healthy, "it is not healthy at first");
    sender.send_replace(endpoints(1, &[&new]));
    stage.wire.set(State::Refusing);
    let health = subject.health().await;
    hold!(health.status == HealthStatus::Healthy, "it is {}: {:?}", health.status, health.reason);
    Ok(())
}

async fn no_endpoint_at_all_is_told_at_once_and_passes(stage: &Stage) -> Checked {
    let (subject, sender) = following(stage, endpoints(0, &[]))?;
    let none = error(within("a call", ms(500), subject.echo("anyone")).await?)?;
    hold!(none.is_unavailable(), "it is taken for a request that is wrong: {none}");
    let health = subject.health().await;
    hold!(health.status == HealthStatus::Unhealthy, "it is {} without endpoints", health.status);
    sender.send_replace(endpoints(1, &[&stage.wire]));
    subject.serves().await
}

async fn the_same_endpoints_once_more_cost_no_connection(stage: &Stage) -> Checked {
    let (subject, sender) = following(stage, endpoints(0, &[&stage.wire]))?;
    subject.serves().await?;
    let opened = stage.wire.accepted();
    for generation in 1..5 {
        sender.send_replace(endpoints(generation, &[&stage.wire]));
        subject.serves().await?;
    }
    hold!(stage.wire.accepted() == opened, "it connected anew");
    Ok(())
}

async fn one_endpoint_of_two_that_is_down_costs_no_call(stage: &Stage) -> Checked {
    let second = stage.other_wire().await;
    let (sender, watched) = watch::channel(endpoints(0, &[&stage.wire, &second]));
    let subject = stage.with(|it| {
        it.endpoints = Some(watched);
        it.max_retries = 1;
    })?;
    stage.wire.set(State::Refusing);
    for _ in 0..5 {
        subject.serves().await?;
    }
    drop(sender);
    Ok(())
}
