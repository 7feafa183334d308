//! What a look at the server says, and that it costs nothing.

use resilience_core::{CircuitState, HealthStatus};

use crate::State;
use crate::stage::{Checked, PollN, Stage, eventually, failed, hold, ms};
use crate::suite::room;

room! { "health":
    a_server_that_is_well_is_healthy,
    a_server_that_is_down_is_unhealthy_with_the_reason_and_the_endpoint,
    a_server_that_is_back_is_healthy_at_once,
    health_looks_past_an_open_circuit,
    a_login_that_is_refused_is_unhealthy,
    health_is_not_misled_by_a_connection_that_died_meanwhile,
    a_dropped_health_check_leaves_nothing_behind,
    what_stands_behind_it_is_told_without_secrets,
}

async fn is(subject: &std::sync::Arc<dyn crate::Subject>, wanted: HealthStatus) -> Checked {
    let health = subject.look(ms(2000)).await;
    let (status, reason) = (health.status, &health.reason);
    hold!(status == wanted, "it is {status} and not {wanted}: {reason:?}");
    Ok(())
}

async fn a_server_that_is_well_is_healthy(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    is(&subject, HealthStatus::Healthy).await?;
    subject.serves().await?;
    is(&subject, HealthStatus::Healthy).await?;
    subject.at_rest().await
}

async fn a_server_that_is_down_is_unhealthy_with_the_reason_and_the_endpoint(
    stage: &Stage,
) -> Checked {
    stage.wire.set(State::Refusing);
    let subject = stage.subject()?;
    is(&subject, HealthStatus::Unhealthy).await?;
    let reason = subject.look(ms(2000)).await.reason;
    stage.names_endpoint("the reason", &reason.unwrap_or_default())
}

async fn a_server_that_is_back_is_healthy_at_once(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    is(&subject, HealthStatus::Healthy).await?;
    stage.wire.set(State::Refusing);
    is(&subject, HealthStatus::Unhealthy).await?;
    stage.wire.set(State::Up);
    is(&subject, HealthStatus::Healthy).await
}

async fn health_looks_past_an_open_circuit(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.fail_max = 1)?;
    stage.wire.set(State::Refusing);
    failed(subject.echo("anyone").await)?;
    hold!(subject.state()? == CircuitState::Open, "the circuit is not open");
    is(&subject, HealthStatus::Unhealthy).await?;
    stage.wire.set(State::Up);
    is(&subject, HealthStatus::Healthy).await?;
    hold!(subject.state()? == CircuitState::Open, "the look closed the circuit");
    Ok(())
}

async fn a_login_that_is_refused_is_unhealthy(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.credentials = stage.wrong_credentials())?;
    is(&subject, HealthStatus::Unhealthy).await
}

async fn health_is_not_misled_by_a_connection_that_died_meanwhile(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    subject.serves().await?;
    is(&subject, HealthStatus::Healthy).await?;
    stage.wire.tear();
    eventually("all are dead", async || Ok(stage.wire.open() == 0)).await?;
    is(&subject, HealthStatus::Healthy).await
}

async fn a_dropped_health_check_leaves_nothing_behind(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 1)?;
    for polls in 0..20 {
        PollN::new(polls, subject.look(ms(2000))).await;
        let status = subject.figures()?;
        let busy = (status.in_use, status.waiting);
        hold!(busy == (0, 0), "in use and waiting after {polls} polls: {busy:?}");
    }
    subject.serves().await?;
    is(&subject, HealthStatus::Healthy).await
}

async fn what_stands_behind_it_is_told_without_secrets(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let backend = subject.watched().backend();
    hold!(backend.as_ref().is_some_and(|it| !it.system.is_empty()), "it is not told");
    let port = backend.as_ref().and_then(|it| it.port);
    hold!(port == Some(stage.wire.port), "the port is told as {port:?}");
    stage.no_secret_in("the backend", &format!("{backend:?}"))
}
