//! Runtimes that come and go, and one that stands still.

use std::sync::Arc;
use std::time::Duration;

use resilience_core::CircuitState;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::stage::{Breach, Checked, Stage, hold, ms};
use crate::suite::room;
use crate::{Way, Work};

room! { "runtimes":
    a_manager_works_from_one_runtime_after_another,
    connections_on_a_runtime_of_their_own_outlive_who_asked_for_them,
    a_runtime_that_stood_still_blames_no_server,
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("this machine has a runtime to spare")
}

/// Does `work` on a thread whose runtime ends with it.
async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce(&Runtime) -> T + Send + 'static,
) -> Checked<T> {
    let elsewhere = tokio::task::spawn_blocking(|| {
        std::thread::spawn(move || work(&runtime())).join().map_err(|_| "a thread panicked")
    });
    match elsewhere.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Breach(error.to_owned())),
        Err(error) => Err(Breach(error.to_string())),
    }
}

async fn a_manager_works_from_one_runtime_after_another(stage: &Stage) -> Checked {
    let subject = stage.with(|it| it.max_retries = 2)?;
    for _ in 0..3 {
        let subject = Arc::clone(&subject);
        elsewhere(move |runtime| runtime.block_on(subject.serves())).await??;
    }
    subject.serves().await
}

async fn connections_on_a_runtime_of_their_own_outlive_who_asked_for_them(
    stage: &Stage,
) -> Checked {
    let own = tokio::runtime::Handle::current();
    let subject = stage.with(|it| it.runtime = Some(own))?;
    for _ in 0..3 {
        let subject = Arc::clone(&subject);
        elsewhere(move |runtime| runtime.block_on(subject.serves())).await??;
    }
    subject.serves().await?;
    let opened = stage.wire.accepted();
    hold!(opened == 1, "4 calls from as many runtimes opened {opened} connections");
    Ok(())
}

async fn a_runtime_that_stood_still_blames_no_server(stage: &Stage) -> Checked {
    let setup = |it: &mut crate::Setup| {
        it.fail_max = 1;
        it.attempt_timeout = ms(1200);
    };
    let subject = stage.with(setup)?;
    elsewhere(move |runtime| {
        runtime.block_on(async {
            subject.serves().await?;
            let slow = subject.run(Way::Read, Work::Take(ms(200)));
            let _ = tokio::join!(slow, async {
                tokio::task::yield_now().await;
                block(ms(2000));
            });
            let state = subject.state()?;
            hold!(state == CircuitState::Closed, "we stood still, and the circuit is {state:?}");
            subject.serves_again().await.map(drop)
        })
    })
    .await?
}

/// Blocks this thread, and with it the runtime that it drives.
fn block(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::park_timeout(ms(10));
    }
}
