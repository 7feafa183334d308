//! What not every backend has: transactions, streams, credentials that change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use resilience_core::{CircuitState, CredentialError, CredentialProvider, Credentials, Deadline};

use crate::stage::{Checked, PollN, Stage, failed, hold, ms};
use crate::suite::room;
use crate::{Way, Work};

room! { "extras":
    a_transaction_that_ends_well_is_committed [Transactions],
    a_transaction_that_fails_leaves_nothing [Transactions],
    a_transaction_that_is_dropped_leaves_nothing_to_the_next [Transactions],
    a_stream_that_is_not_read_to_its_end_leaves_nothing_to_the_next [Streams],
    a_refused_login_asks_the_provider_for_news_and_goes_on [CredentialRotation],
    while_the_provider_fails_the_last_good_credentials_stay_in_use [CredentialRotation],
    new_credentials_that_the_server_refuses_are_not_used [CredentialRotation],
    a_provider_that_fails_is_told_and_blames_no_server [CredentialRotation],
}

async fn commits(stage: &Stage, subject: &Arc<dyn crate::Subject>) -> Checked {
    let key = stage.key();
    let ended = subject.run(Way::Transaction, Work::Count(key.clone())).await;
    hold!(ended.is_ok(), "it fails: {ended:?}");
    let executed = stage.executed(&key).await;
    hold!(executed == 1, "{executed} are there afterwards");
    Ok(())
}

async fn a_transaction_that_ends_well_is_committed(stage: &Stage) -> Checked {
    let subject = stage.subject()?;
    commits(stage, &subject).await
}

async fn a_transaction_that_fails_leaves_nothing(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 1)?;
    commits(stage, &subject).await?;
    let key = stage.key();
    failed(subject.run(Way::Transaction, Work::CountAndFail(key.clone())).await)?;
    let executed = stage.executed(&key).await;
    hold!(executed == 0, "{executed} are there afterwards");
    commits(stage, &subject).await
}

async fn a_transaction_that_is_dropped_leaves_nothing_to_the_next(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 1)?;
    commits(stage, &subject).await?;
    for polls in 0..14 {
        let key = stage.key();
        let call = subject.run(Way::Transaction, Work::Count(key.clone()));
        PollN::new(polls, call).await;
        // Were it still open, this would be a part of it, and never be seen.
        let next = stage.key();
        let ended = subject.run(Way::Write, Work::Count(next.clone())).await;
        hold!(ended.is_ok(), "the next after {polls} polls fails: {ended:?}");
        let executed = stage.executed(&next).await;
        hold!(executed == 1, "after {polls} polls the next is within it");
        hold!(stage.executed(&key).await <= 1, "it was executed more than once");
    }
    Ok(())
}

async fn a_stream_that_is_not_read_to_its_end_leaves_nothing_to_the_next(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.limit = 1)?;
    for _ in 0..5 {
        let glance = subject.run(Way::Read, Work::Glance).await;
        hold!(glance.is_ok(), "its first row cannot be had: {glance:?}");
        subject.serves().await?;
    }
    subject.at_rest().await
}

/// A provider that says one thing when it is first asked, and another ever after; `None` is a failure.
struct Changing {
    first: Option<Credentials>,
    later: Option<Credentials>,
    asked: AtomicBool,
}

#[async_trait::async_trait]
impl CredentialProvider for Changing {
    async fn credentials(&self, _: Deadline) -> Result<Credentials, CredentialError> {
        let now = if self.asked.swap(true, Ordering::Relaxed) { &self.later } else { &self.first };
        now.clone().ok_or_else(|| "the vault is sealed".into())
    }

    fn period(&self) -> Option<Duration> {
        Some(ms(50))
    }
}

fn provided(
    stage: &Stage,
    first: Option<Credentials>,
    later: Option<Credentials>,
) -> Checked<Arc<dyn crate::Subject>> {
    let provider = Changing { first, later, asked: AtomicBool::new(false) };
    stage.with(|it| {
        it.provider = Some(Arc::new(provider));
        it.fail_max = 1;
    })
}

async fn a_refused_login_asks_the_provider_for_news_and_goes_on(stage: &Stage) -> Checked {
    let (wrong, right) = (stage.wrong_credentials(), stage.harness.credentials());
    let subject = provided(stage, Some(wrong), Some(right))?;
    subject.serves().await
}

async fn while_the_provider_fails_the_last_good_credentials_stay_in_use(stage: &Stage) -> Checked {
    let subject = provided(stage, Some(stage.harness.credentials()), None)?;
    subject.serves().await?;
    for _ in 0..3 {
        stage.wire.tear();
        tokio::time::sleep(ms(70)).await;
        let _ = subject.look(ms(2000)).await;
        subject.serves().await?;
    }
    Ok(())
}

async fn new_credentials_that_the_server_refuses_are_not_used(stage: &Stage) -> Checked {
    let right = stage.harness.credentials();
    let subject = provided(stage, Some(right), Some(stage.wrong_credentials()))?;
    subject.serves().await?;
    for _ in 0..3 {
        stage.wire.tear();
        tokio::time::sleep(ms(70)).await;
        let _ = subject.look(ms(2000)).await;
        subject.serves().await?;
    }
    Ok(())
}

async fn a_provider_that_fails_is_told_and_blames_no_server(stage: &Stage) -> Checked {
    let subject = provided(stage, None, None)?;
    let failed = failed(subject.echo("let me in").await)?;
    hold!(failed.error.text.contains("sealed"), "the reason is not told: {failed}");
    let state = subject.state()?;
    hold!(state == CircuitState::Closed, "the circuit is {state:?}");
    Ok(())
}
