//! Before the first call, and at servers that do not let one in.

use resilience_core::{Blame, CircuitState, Deadline};

use crate::State;
use crate::stage::{Checked, Stage, error, eventually, failed, hold, ms, within};
use crate::suite::room;

room! { "connecting":
    a_server_that_is_down_keeps_nobody_from_starting,
    a_manager_that_nobody_uses_connects_to_nothing,
    a_warm_connection_is_the_one_that_the_first_call_uses,
    warming_up_at_a_server_that_is_down_is_an_error_that_names_it,
    a_connection_that_breaks_in_its_handshake_is_told_with_its_endpoint,
    a_wrong_password_is_told_once_and_not_tried_again,
    a_wrong_password_opens_no_circuit,
    settings_that_cannot_work_are_all_told_at_once,
}

async fn a_server_that_is_down_keeps_nobody_from_starting(stage: &Stage) -> Checked {
    stage.wire.set(State::Refusing);
    let subject = stage.subject()?;
    let refused = error(subject.echo("too early").await)?;
    hold!(refused.is_unavailable(), "it is taken for a request that is wrong: {refused}");
    stage.wire.set(State::Up);
    subject.serves_again().await.map(drop)
}

async fn a_manager_that_nobody_uses_connects_to_nothing(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let twin = subject.twin();
    drop((format!("{subject:?}"), subject.figures()?));
    tokio::time::sleep(ms(50)).await;
    hold!(stage.wire.accepted() == 0, "it connected unasked");
    twin.serves().await?;
    hold!(stage.wire.accepted() > 0, "it does not use the address that it was given");
    Ok(())
}

async fn a_warm_connection_is_the_one_that_the_first_call_uses(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let warm = subject.warm_up(Deadline::within(ms(5000))).await;
    hold!(warm.is_ok(), "a server that is well cannot be warmed up to: {warm:?}");
    let opened = stage.wire.accepted();
    hold!(opened > 0, "warming up opens no connection");
    subject.serves().await?;
    hold!(stage.wire.accepted() == opened, "the first call opens another connection");
    Ok(())
}

async fn warming_up_at_a_server_that_is_down_is_an_error_that_names_it(stage: &Stage) -> Checked {
    stage.wire.set(State::Refusing);
    let subject = stage.subject()?;
    let warm = subject.warm_up(Deadline::within(ms(1000)));
    let Err(told) = within("warming up", ms(1000), warm).await? else {
        hold!(false, "a server that is down was warmed up to");
        return Ok(());
    };
    stage.names_endpoint("the error of warm_up", &told.text)
}

async fn a_connection_that_breaks_in_its_handshake_is_told_with_its_endpoint(
    stage: &Stage,
) -> Checked {
    stage.wire.set(State::Down);
    let subject = stage.subject()?;
    let failed = failed(subject.echo("torn").await)?;
    hold!(failed.verdict.blame == Blame::Service, "the blame is wrong: {failed:?}");
    stage.names_endpoint("the error", &failed.error.text)
}

async fn a_wrong_password_is_told_once_and_not_tried_again(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.credentials = stage.wrong_credentials();
        it.max_retries = 3;
    })?;
    let failed = failed(subject.echo("let me in").await)?;
    hold!(failed.verdict.blame == Blame::Caller, "the server is blamed for it: {failed:?}");
    hold!(failed.attempts == 1, "it was tried {} times", failed.attempts);
    Ok(())
}

async fn a_wrong_password_opens_no_circuit(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.credentials = stage.wrong_credentials();
        it.fail_max = 1;
    })?;
    for _ in 0..3 {
        failed(subject.echo("let me in").await)?;
    }
    eventually("the circuit is closed", async || Ok(subject.state()? == CircuitState::Closed)).await
}

async fn settings_that_cannot_work_are_all_told_at_once(stage: &Stage) -> Checked {
    let mut setup = stage.setup();
    setup.fail_max = 0;
    setup.reset_timeout = ms(0);
    setup.limit = 0;
    let Err(told) = stage.harness.connect(&setup) else {
        hold!(false, "settings that cannot work are taken");
        return Ok(());
    };
    for field in ["fail_max", "reset_timeout"] {
        hold!(told.contains(field), "{field} is wrong and not told of: {told}");
    }
    hold!(stage.wire.accepted() == 0, "it connected before it looked at its settings");
    stage.no_secret_in("the error of the settings", &told)
}
