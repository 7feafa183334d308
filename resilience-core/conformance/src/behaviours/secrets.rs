//! Nothing that a connector shows has a password in it.

use std::fmt::Write;

use resilience_core::Deadline;

use crate::stage::{Checked, Stage, error, failed, hold, ms};
use crate::suite::room;
use crate::{State, Way, Work};

room! { "secrets":
    settings_that_are_printed_show_no_password,
    a_manager_that_is_printed_shows_no_password,
    an_error_of_the_network_shows_no_password,
    a_refused_login_shows_no_password,
    an_answer_of_the_server_shows_no_password,
    the_reason_of_bad_health_shows_no_password,
}

async fn settings_that_are_printed_show_no_password(stage: &Stage) -> Checked {
    let mut setup = stage.setup();
    for credentials in [setup.credentials.clone(), stage.wrong_credentials()] {
        setup.credentials = credentials;
        let shown = stage.harness.shown(&setup);
        hold!(!shown.is_empty(), "no settings were shown");
        stage.no_secret_in("the settings", &shown.join("\n"))?;
    }
    Ok(())
}

async fn a_manager_that_is_printed_shows_no_password(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    stage.no_secret_in("a new manager", &format!("{subject:?} {subject:#?}"))?;
    subject.serves().await?;
    stage
        .no_secret_in("a manager in use", &format!("{subject:?} {:?}", subject.watched().backend()))
}

async fn an_error_of_the_network_shows_no_password(stage: &Stage) -> Checked {
    let subject = stage.with(|it| {
        it.connect_timeout = ms(150);
        it.attempt_timeout = ms(300);
    })?;
    let mut shown = String::new();
    for state in [State::Refusing, State::Down, State::Silent] {
        stage.wire.set(state);
        let error = error(subject.echo("hello").await)?;
        let _ = writeln!(shown, "{error} {error:?}");
        let warm = subject.warm_up(Deadline::within(ms(300))).await;
        let _ = writeln!(shown, "{warm:?}");
    }
    stage.no_secret_in("an error", &shown)
}

async fn a_refused_login_shows_no_password(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.credentials = stage.wrong_credentials())?;
    let failed = failed(subject.echo("let me in").await)?;
    let warm = subject.warm_up(Deadline::within(ms(2000))).await;
    stage.no_secret_in("a refused login", &format!("{failed} {failed:?} {warm:?} {subject:?}"))
}

async fn an_answer_of_the_server_shows_no_password(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    let failed = failed(subject.run(Way::Read, Work::Refused).await)?;
    stage.no_secret_in("a refused request", &format!("{failed} {failed:?}"))
}

async fn the_reason_of_bad_health_shows_no_password(stage: &Stage) -> Checked {
    let wrong = stage.with(|it| it.credentials = stage.wrong_credentials())?;
    let subject = stage.subject()?;
    stage.no_secret_in("health", &format!("{:?}", wrong.look(ms(2000)).await))?;
    stage.wire.set(State::Refusing);
    stage.no_secret_in("health", &format!("{:?}", subject.look(ms(2000)).await))
}
