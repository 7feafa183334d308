//! Fear: a process that ends in order wakes the people on call.
#![cfg(feature = "full")]

mod support;

use std::time::Duration;

use axum::Router;
use shared_external::monitoring::{Alert, AlertError};
use shared_external::{AlertHandler, get_database, get_monitoring_manager};
use support::{Server, again, is_child_of, runtime};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

struct Printer;

#[async_trait::async_trait]
impl AlertHandler for Printer {
    async fn handle(&self, alert: &Alert) -> Result<(), AlertError> {
        println!("alert: {alert:?}");
        Ok(())
    }
}

#[test]
fn a_manager_that_was_drained_is_not_taken_for_an_outage() {
    let name = "a_manager_that_was_drained_is_not_taken_for_an_outage";
    if is_child_of(name) {
        runtime().block_on(async {
            get_monitoring_manager().add_alert_handler(Printer);
            shared_external::setup_default_monitoring().await.unwrap();
            let (started, running) = oneshot::channel();
            // Redis and OpenSearch drain at once, PostgreSQL in two seconds.
            tokio::spawn(async move {
                let started = &std::sync::Mutex::new(Some(started));
                let database = get_database().unwrap();
                let sleeps = database.read(|mut conn| async move {
                    if let Some(started) = started.lock().unwrap().take() {
                        started.send(()).unwrap();
                    }
                    sqlx::query("SELECT pg_sleep(2)").execute(&mut conn).await?;
                    Ok(())
                });
                sleeps.await.unwrap();
            });
            running.await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let grace = Duration::from_secs(20);
            let serving =
                tokio::spawn(shared_external::axum::serve(listener, Router::new(), grace));
            // It must listen to signals before the first one is sent.
            tokio::task::yield_now().await;
            println!("listening on {address}");
            serving.await.unwrap().unwrap();
        });
        return;
    }
    let server = Server::start(again(name, &[("MONITORING_INTERVAL", "0.05")]));
    runtime().block_on(async {
        server.terminate();
        let (status, printed) = server.ended_within(Duration::from_secs(20)).await;
        assert!(status.success(), "{printed}");
        assert!(!printed.contains("alert:"), "{printed}");
    });
}
