//! What is sent again, and what must not be.

mod peer;

use std::time::Duration;

use conn_opensearch::opensearch::http::Method;
use conn_opensearch::opensearch::http::headers::HeaderMap;
use conn_opensearch::opensearch::http::response::Response;
use conn_opensearch::opensearch::{
    BulkOperation, BulkParts, CreateParts, GetParts, IndexParts, SearchParts,
};
use conn_opensearch::{BulkOutcome, Error, ErrorKind, Node, OpenSearchManager, check, json};
use peer::{Peer, Reply, nobody, quick, urls};
use resilience_core::{Blame, CallError, Replay};
use serde_json::{Value, json};

fn connect(url: String) -> OpenSearchManager {
    OpenSearchManager::connect(quick(url).build().unwrap()).unwrap()
}

async fn search(node: Node) -> Result<Value, Error> {
    json(node.search(SearchParts::Index(&["campaigns"])).send().await?).await
}

/// Without an id of its own: twice would be two documents.
async fn index(node: Node) -> Result<(), Error> {
    check(node.index(IndexParts::Index("campaigns")).body(json!({"a": 1})).send().await?).await?;
    Ok(())
}

fn inner<T: std::fmt::Debug>(result: Result<T, CallError<Error>>) -> (Error, Replay, Blame) {
    match result.unwrap_err() {
        CallError::Inner(failed) => (failed.error, failed.verdict.replay, failed.verdict.blame),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_not_sent_twice() {
    let peer =
        Peer::start(|_, number| if number == 0 { Reply::ok("{}") } else { Reply::Close }).await;
    let manager = connect(peer.url());
    manager.write(index).await.unwrap();
    // On the connection that is open already: the client, too, must not try another.
    let (error, replay, blame) = inner(manager.write(index).await);
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error}");
    assert_eq!((replay, blame), (Replay::IfIdempotent, Blame::Service));
    assert_eq!(error.node(), Some(&*peer.url()));
    assert_eq!((peer.count(), peer.accepted()), (2, 1));
    // And on a fresh one.
    inner(manager.write(index).await);
    assert_eq!((peer.count(), peer.accepted()), (3, 2));
}

#[tokio::test]
async fn a_read_whose_answer_was_lost_goes_to_another_node() {
    let (lossy, good) =
        (Peer::start(|_, _| Reply::Close).await, Peer::start(|_, _| Reply::ok(1)).await);
    let manager = connect(urls(&[&lossy, &good]));
    assert_eq!(manager.read(search).await.unwrap(), json!(1));
    assert_eq!((lossy.count(), good.count()), (1, 1));
    // It is passed over now.
    for _ in 0..3 {
        manager.read(search).await.unwrap();
    }
    assert_eq!((lossy.count(), good.count()), (1, 4));
}

#[tokio::test]
async fn a_503_is_repeated_elsewhere_for_a_read_and_not_at_all_for_a_write() {
    let peers = [
        Peer::start(|_, _| Reply::status(503)).await,
        Peer::start(|_, _| Reply::status(503)).await,
    ];
    let counts = || peers.each_ref().map(Peer::count);
    let config = quick(urls(&[&peers[0], &peers[1]])).max_retries(1).fail_max(100).build().unwrap();
    let manager = OpenSearchManager::connect(config).unwrap();
    let (error, ..) = inner(manager.write(index).await);
    assert_eq!(error.to_string(), format!("{} answered 503 scripted: as told", peers[0].url()));
    assert_eq!(counts(), [1, 0]);
    inner(manager.read(search).await);
    assert_eq!(counts(), [2, 1]);
    inner(manager.write_idempotent(index).await);
    assert_eq!(counts(), [3, 2]);
}

#[tokio::test]
async fn a_refused_connection_lets_even_a_write_go_elsewhere() {
    let good = Peer::start(|_, _| Reply::ok("{}")).await;
    let manager = connect(format!("http://{},{}", nobody(), good.url()));
    for _ in 0..2 {
        manager.write(index).await.unwrap();
    }
    assert_eq!(good.count(), 2);
}

#[tokio::test]
async fn a_write_that_was_refused_for_load_is_sent_again() {
    let peer =
        Peer::start(|_, number| if number == 0 { Reply::status(429) } else { Reply::ok("{}") })
            .await;
    connect(peer.url()).write(index).await.unwrap();
    assert_eq!(peer.count(), 2);
}

#[tokio::test]
async fn a_refusal_after_an_earlier_command_proves_nothing() {
    let peer =
        Peer::start(|_, number| if number % 2 == 0 { Reply::ok("{}") } else { Reply::status(429) })
            .await;
    let manager = connect(peer.url());
    let two = |node: Node| async move {
        check(node.index(IndexParts::Index("a")).body(json!({})).send().await?).await?;
        check(node.index(IndexParts::Index("b")).body(json!({})).send().await?).await?;
        Ok(())
    };
    let (error, replay, _) = inner(manager.write(two).await);
    assert_eq!((error.status(), replay), (Some(429), Replay::IfIdempotent));
    assert_eq!(peer.count(), 2);
    // The same where a task of the closure's own sends them.
    let spawned = move |node: Node| async move { tokio::spawn(two(node)).await.expect("no panic") };
    assert_eq!(inner(manager.write(spawned).await).1, Replay::IfIdempotent);
    assert_eq!(peer.count(), 4);
}

#[tokio::test]
async fn a_raw_response_that_speaks_against_the_service_is_no_success() {
    let peer = Peer::start(|asked, _| {
        Reply::status(if asked.path.starts_with("/gone/") { 404 } else { 503 })
    })
    .await;
    let manager =
        OpenSearchManager::connect(quick(peer.url()).max_retries(0).build().unwrap()).unwrap();
    let raw = |index: &'static str| {
        move |node: Node| async move { Ok(node.get(GetParts::IndexId(index, "7")).send().await?) }
    };
    let (error, ..) = inner(manager.read(raw("there")).await);
    assert_eq!(error.status(), Some(503));
    assert_eq!(manager.breaker().snapshot().calls.failure, 1);
    // What is the caller's fault is the caller's to read.
    let response: Response = manager.read(raw("gone")).await.unwrap();
    assert_eq!(response.status_code().as_u16(), 404);
    assert_eq!(manager.breaker().snapshot().calls.success, 1);
}

#[tokio::test]
async fn an_error_whose_text_does_not_end_is_told_by_its_status() {
    // The peer keeps the connection as if it had said how long its answer is.
    let endless = "HTTP/1.1 400 scripted\r\ntransfer-encoding: chunked\r\nx-note: no content-length:\r\n\r\n5\r\nwrong\r\n";
    let peer = Peer::start(move |_, _| Reply::Raw(endless.into())).await;
    let manager = connect(peer.url());
    let (error, replay, blame) = inner(manager.read(search).await);
    assert_eq!((error.status(), replay, blame), (Some(400), Replay::Never, Blame::Caller));
}

#[tokio::test]
async fn a_request_that_was_wrong_is_neither_repeated_nor_blamed_on_the_service() {
    for code in [400, 401, 403, 404, 409, 413] {
        let peer = Peer::start(move |_, _| Reply::status(code)).await;
        let manager = connect(peer.url());
        let (error, replay, blame) = inner(manager.read(search).await);
        assert_eq!((error.status(), replay, blame), (Some(code), Replay::Never, Blame::Caller));
        assert!(!error.is_probably_own_write());
        assert_eq!((peer.count(), manager.breaker().snapshot().calls.success), (1, 1));
    }
}

#[tokio::test]
async fn a_conflict_with_a_lost_first_attempt_is_probably_our_own_write() {
    let taken = Peer::start(|_, _| Reply::status(409)).await;
    let create = |node: Node| async move {
        let request = node.create(CreateParts::IndexId("campaigns", "7")).body(json!({}));
        check(request.send().await?).await?;
        Ok(())
    };
    for lost in [Reply::Close, Reply::Silence] {
        let lossy = Peer::start(move |_, _| lost.clone()).await;
        let config = quick(urls(&[&lossy, &taken])).timeout(Duration::from_millis(500));
        let manager = OpenSearchManager::connect(config.build().unwrap()).unwrap();
        let (error, ..) = inner(manager.write_idempotent(create).await);
        assert!(error.is_probably_own_write(), "{error:?}");
    }
}

#[tokio::test]
async fn the_server_says_when_to_come_back() {
    let busy = "HTTP/1.1 429 busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n";
    let peer = Peer::start(move |_, _| Reply::Raw(busy.to_owned())).await;
    let manager =
        OpenSearchManager::connect(quick(peer.url()).max_retries(0).build().unwrap()).unwrap();
    let error = manager.read(search).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn an_answer_that_breaks_off_or_is_no_json_is_asked_for_again() {
    let early =
        "HTTP/1.1 200 ok\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"a\"";
    let html = "HTTP/1.1 200 ok\r\ncontent-length: 12\r\n\r\n<html></html";
    let replies = [
        (Reply::Raw(early.replace("content-length", "Content-Length")), "Lost"),
        (Reply::Raw(html.to_owned()), "Malformed"),
        (Reply::Raw("not http\r\n\r\n".to_owned()), "Lost"),
    ];
    for (reply, kind) in replies {
        let peer =
            Peer::start(move |_, number| if number < 2 { reply.clone() } else { Reply::ok(1) })
                .await;
        let manager = connect(peer.url());
        // By the client's own reading, too.
        let by_client = |node: Node| async move {
            Ok(node.search(SearchParts::None).send().await?.json::<Value>().await?)
        };
        let (error, ..) = inner(manager.write(by_client).await);
        assert!(format!("{:?}", error.kind()).starts_with(kind), "{kind}: {error:?}");
        assert_eq!(manager.read(search).await.unwrap(), json!(1), "{kind}");
        assert_eq!(peer.count(), 3, "{kind}");
    }
}

#[tokio::test]
async fn json_of_another_shape_is_the_readers_fault() {
    let peer = Peer::start(|_, _| Reply::ok(r#"{"count":"many"}"#)).await;
    let manager = connect(peer.url());
    let ours = |node: Node| async move {
        json::<Vec<u8>>(node.search(SearchParts::None).send().await?).await
    };
    let by_client = |node: Node| async move {
        Ok(node.search(SearchParts::None).send().await?.json::<Vec<u8>>().await?)
    };
    for result in [manager.read(ours).await, manager.read(by_client).await] {
        let (error, replay, blame) = inner(result);
        assert!(matches!(error.kind(), ErrorKind::Unexpected { .. }), "{error:?}");
        assert_eq!((replay, blame), (Replay::Never, Blame::Caller));
    }
    assert_eq!(peer.count(), 2);
}

#[tokio::test]
async fn the_requests_own_timeout_is_an_uncertain_end() {
    let peer = Peer::start(|_, _| Reply::Silence).await;
    let manager = connect(peer.url());
    let hasty = |node: Node| async move {
        let request = node.index(IndexParts::Index("a")).body(json!({}));
        check(request.request_timeout(Duration::from_millis(50)).send().await?).await?;
        Ok(())
    };
    let (error, replay, blame) = inner(manager.write(hasty).await);
    assert!(matches!(error.kind(), ErrorKind::Timeout), "{error:?}");
    assert_eq!((replay, blame, peer.count()), (Replay::IfIdempotent, Blame::Service, 1));
}

#[tokio::test]
async fn a_bulk_answer_is_sorted_by_item() {
    let item = |status: u16, error: Value| json!({"index": {"_index": "a", "_id": "1", "status": status, "error": error}});
    let exception = json!({"type": "rejected_execution_exception", "reason": "queue full"});
    let answer = json!({"took": 1, "errors": true, "items": [
        item(201, Value::Null), item(429, exception.clone()), item(400, exception),
    ]});
    let peer = Peer::start(move |_, _| Reply::ok(&answer)).await;
    let manager = connect(peer.url());
    let bulk = |node: Node| async move {
        let operations: Vec<BulkOperation<Value>> =
            (0..3).map(|_| BulkOperation::index(json!({})).into()).collect();
        BulkOutcome::read(node.bulk(BulkParts::Index("a")).body(operations).send().await?).await
    };
    let outcome = manager.write(bulk).await.unwrap();
    assert_eq!(
        (outcome.done.len(), outcome.repeat[0].position, outcome.refused[0].status),
        (1, 1, 400)
    );
    assert_eq!(peer.count(), 1);
}

#[tokio::test]
async fn the_login_goes_with_every_request_and_into_no_error() {
    let peer = Peer::start(|_, _| Reply::status(401)).await;
    let url = peer.url().replace("http://", "http://app:hunter2@");
    let manager = connect(format!("{url},http://app:hunter2@{}", nobody()));
    for _ in 0..2 {
        let error = manager.read(search).await.unwrap_err();
        let shown = format!("{error} {error:?} {manager:?} {:?}", manager.health().await);
        assert!(!shown.contains("hunter2") && !shown.contains("YXBw"), "{shown}");
    }
    assert!(peer.count() > 0);
    for asked in peer.asked() {
        assert_eq!(asked.authorization.as_deref(), Some("Basic YXBwOmh1bnRlcjI="));
    }
}

#[tokio::test]
async fn a_query_that_cannot_be_made_is_the_callers_fault_and_not_sent() {
    let peer = Peer::start(|_, _| Reply::ok("{}")).await;
    let manager = connect(peer.url());
    let unwritable = |node: Node| async move {
        let map = std::collections::HashMap::from([(vec![1], 2)]);
        check(node.index(IndexParts::Index("a")).body(map).send().await?).await?;
        Ok(())
    };
    let (error, replay, blame) = inner(manager.write(unwritable).await);
    assert!(matches!(error.kind(), ErrorKind::Request { .. }), "{error:?}");
    assert_eq!((replay, blame, peer.count()), (Replay::Never, Blame::Caller, 0));
}

#[tokio::test]
async fn any_request_can_be_sent_by_hand() {
    let peer = Peer::start(|_, _| Reply::ok(r#"{"a":1}"#)).await;
    let manager = connect(format!("{}/prefix", peer.url()));
    let by_hand = |node: Node| async move {
        let request = node.send(
            Method::Get,
            "_plugins/_x",
            HeaderMap::new(),
            Some(&[("q", "1")]),
            None::<String>,
            None,
        );
        json::<Value>(request.await?).await
    };
    assert_eq!(manager.read(by_hand).await.unwrap(), json!({"a": 1}));
    assert_eq!(peer.asked()[0].path, "/prefix/_plugins/_x?q=1");
}
