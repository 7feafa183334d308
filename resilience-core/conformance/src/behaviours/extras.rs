//! What not every backend has: transactions, streams, credentials that change.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resilience_core::{
    CircuitState, CredentialError, CredentialProvider, Credentials, Deadline, HealthStatus,
};

use crate::stage::{Checked, PollN, Stage, eventually, failed, hold, ms};
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
    asked: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl CredentialProvider for Changing {
    async fn credentials(&self, _: Deadline) -> Result<Credentials, CredentialError> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let now = if asked > 0 { &self.later } else { &self.first };
        now.clone().ok_or_else(|| "the vault is sealed".into())
    }

    fn period(&self) -> Option<Duration> {
        Some(ms(50))
    }
}

/// A subject, and how often its provider was asked.
fn provided(
    stage: &Stage,
    first: Option<Credentials>,
    later: Option<Credentials>,
) -> Checked<(Arc<dyn crate::Subject>, Arc<AtomicUsize>)> {
    let asked = Arc::<AtomicUsize>::default();
    let provider = Changing { first, later, asked: Arc::clone(&asked) };
    let subject = stage.with(|it| {
        it.provider = Some(Arc::new(provider));
        it.fail_max = 1;
    })?;
    Ok((subject, asked))
}

/// Serves, while its provider is asked again and again.
async fn serves_on(stage: &Stage, first: Credentials, later: Option<Credentials>) -> Checked {
    let (subject, asked) = provided(stage, Some(first), later)?;
    for _ in 0..3 {
        subject.serves().await?;
        let before = asked.load(Ordering::Relaxed);
        let anew = async || Ok(asked.load(Ordering::Relaxed) > before);
        eventually("the provider is asked anew", anew).await?;
        stage.wire.tear();
        eventually("all are dead", async || Ok(stage.wire.open() == 0)).await?;
        let health = subject.look(ms(2000)).await;
        hold!(health.status == HealthStatus::Healthy, "it is not healthy: {:?}", health.reason);
    }
    subject.serves().await
}

async fn a_refused_login_asks_the_provider_for_news_and_goes_on(stage: &Stage) -> Checked {
    let (wrong, right) = (stage.wrong_credentials(), stage.harness.credentials());
    let (subject, _) = provided(stage, Some(wrong), Some(right))?;
    subject.serves().await
}

async fn while_the_provider_fails_the_last_good_credentials_stay_in_use(stage: &Stage) -> Checked {
    serves_on(stage, stage.harness.credentials(), None).await
}

async fn new_credentials_that_the_server_refuses_are_not_used(stage: &Stage) -> Checked {
    serves_on(stage, stage.harness.credentials(), Some(stage.wrong_credentials())).await
}

async fn a_provider_that_fails_is_told_and_blames_no_server(stage: &Stage) -> Checked {
    let (subject, _) = provided(stage, None, None)?;
    let failed = failed(subject.echo("let me in").await)?;
    hold!(failed.error.text.contains("sealed"), "the reason is not told: {failed}");
    let state = subject.state()?;
    hold!(state == CircuitState::Closed, "the circuit is {state:?}");
    Ok(())
}
