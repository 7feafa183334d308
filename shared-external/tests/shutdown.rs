//! Fear: a process that is told to stop does not, or takes its last requests with it.
#![cfg(feature = "full")]

mod support;

use std::future::pending;
use std::io::Read;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use support::{Server, again, head, is_child_of, runtime};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::sleep;

const GRACE: Duration = Duration::from_secs(60);
/// Far less than the grace, and enough for a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Serves, in the process that the test has started for that, until it is told to stop.
fn serve() {
    static ARRIVED: Notify = Notify::const_new();
    runtime().block_on(async {
        let routes = Router::new()
            .route("/quick", get(async || "quick"))
            .route(
                "/slow",
                get(async || {
                    ARRIVED.notify_one();
                    sleep(Duration::from_secs(1)).await;
                    "slow"
                }),
            )
            .route(
                "/stuck",
                get(async || {
                    ARRIVED.notify_one();
                    pending::<()>().await;
                }),
            )
            .route("/arrived", get(async || ARRIVED.notified().await))
            .route(
                "/panics",
                get(async || {
                    if true {
                        panic!("as told");
                    }
                }),
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("listening on {}", listener.local_addr().unwrap());
        shared_external::axum::serve(listener, routes, GRACE).await.unwrap();
    });
}

#[test]
fn a_request_in_flight_is_answered_and_idle_connections_hold_up_nothing() {
    let name = "a_request_in_flight_is_answered_and_idle_connections_hold_up_nothing";
    if is_child_of(name) {
        return serve();
    }
    let server = Server::start(again(name, &[]));
    runtime().block_on(async {
        let mut idle = server.ask("/quick");
        assert!(head(&mut idle).starts_with("HTTP/1.1 200"));
        let mut slow = server.ask("/slow");
        head(&mut server.ask("/arrived"));
        server.terminate();
        server.refuses().await;
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("slow"), "{answer}");
        assert!(server.ended_within(SOON).await.0.success());
        drop(idle);
    });
}

#[test]
fn a_second_signal_ends_the_wait_for_a_request_that_hangs() {
    let name = "a_second_signal_ends_the_wait_for_a_request_that_hangs";
    if is_child_of(name) {
        return serve();
    }
    let server = Server::start(again(name, &[]));
    runtime().block_on(async {
        let _stuck = server.ask("/stuck");
        head(&mut server.ask("/arrived"));
        server.terminate();
        server.refuses().await;
        server.terminate();
        assert!(server.ended_within(SOON).await.0.success());
    });
}

#[test]
fn a_handler_that_panics_takes_nobody_else_with_it() {
    let name = "a_handler_that_panics_takes_nobody_else_with_it";
    if is_child_of(name) {
        return serve();
    }
    let server = Server::start(again(name, &[]));
    runtime().block_on(async {
        let mut answer = String::new();
        let _ = server.ask("/panics").read_to_string(&mut answer);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(head(&mut server.ask("/quick")).starts_with("HTTP/1.1 200"));
        server.terminate();
        assert!(server.ended_within(SOON).await.0.success());
    });
}
