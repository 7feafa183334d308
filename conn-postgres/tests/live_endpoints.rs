//! Addresses that change while the manager lives: the next call follows.

mod support;

use std::time::Duration;

use conn_postgres::{DatabaseManager, TargetSessionAttrs};
use resilience_core::{Address, Deadline, Endpoint, EndpointSet};
use support::{State, Wire, admin, backends, config, eventually, server};

fn endpoint(wire: &Wire) -> Endpoint {
    Endpoint::new(Address::new("localhost", wire.port))
}

#[tokio::test]
async fn the_next_call_follows_an_endpoint_that_moved() {
    let (old, new) = (Wire::to(server()).await, Wire::to(server()).await);
    let (sender, endpoints) = tokio::sync::watch::channel(EndpointSet::fixed([endpoint(&old)]));
    let (builder, name) = config();
    let db = DatabaseManager::connect_to(builder.build().unwrap(), endpoints).unwrap();
    let ask = async || sqlx::query_scalar::<_, i32>("SELECT 42").fetch_one(&db).await.unwrap();
    ask().await;
    let mut lent = db.acquire().await.unwrap();
    assert_eq!((old.accepted(), new.accepted()), (1, 0));

    sender.send_modify(|set| {
        set.endpoints = [endpoint(&new)].into();
        set.generation += 1;
    });
    ask().await;
    assert_eq!((old.accepted(), new.accepted()), (1, 1));
    // What was lent before works on, and is closed when it comes back.
    let still: i32 = sqlx::query_scalar("SELECT 42").fetch_one(&mut lent).await.unwrap();
    assert_eq!(still, 42);
    drop(lent);
    let mut admin = admin().await;
    eventually("the old one is closed", async || backends(&mut admin, &name).await == 1).await;
    ask().await;
    assert_eq!((old.accepted(), new.accepted()), (1, 1));
}

#[tokio::test]
async fn the_next_healthy_endpoint_is_used_and_an_empty_set_is_an_error_that_passes() {
    let (first, second) = (Wire::to(server()).await, Wire::to(server()).await);
    let both = EndpointSet::fixed([endpoint(&first), endpoint(&second)]);
    let (sender, endpoints) = tokio::sync::watch::channel(both.clone());
    let (builder, _) = config();
    // Whichever: nobody looks at both beside the pool.
    let builder = builder.target_session_attrs(TargetSessionAttrs::Any);
    let builder = builder.base_delay(Duration::from_millis(10)).fail_max(1000);
    let config = builder.build().unwrap();
    let db = DatabaseManager::connect_to(config, endpoints).unwrap();
    first.set(State::Down);
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();
    assert_eq!(second.accepted(), 1);

    sender.send_modify(|set| {
        set.endpoints = [].into();
        set.generation += 1;
    });
    let error = db.acquire().await.unwrap_err();
    assert!(error.to_string().contains("there are no endpoints"), "{error}");
    sender.send_modify(|set| {
        set.endpoints = both.endpoints;
        set.generation += 1;
    });
    db.warm_up(Deadline::within(Duration::from_secs(5))).await.unwrap();
}
