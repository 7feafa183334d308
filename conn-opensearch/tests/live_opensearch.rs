//! The manager on the real server: TLS, both ways to log in, and what its errors mean.

mod peer;

use std::env;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use conn_opensearch::opensearch::http::Method;
use conn_opensearch::opensearch::http::headers::HeaderMap;
use conn_opensearch::opensearch::{
    BulkOperation, BulkParts, CountParts, CreateParts, GetParts, IndexParts, SearchParts,
};
use conn_opensearch::{
    BulkOutcome, Error, ErrorKind, Node, OpenSearchConfig, OpenSearchConfigBuilder,
    OpenSearchManager, check, json,
};
use peer::poll_n;
use resilience_core::{Blame, CallError, Deadline, HealthCheck, HealthStatus, Replay};
use serde_json::{Value, json};

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is set by `cargo xtask test`"))
}

fn settings() -> OpenSearchConfigBuilder {
    peer::quick(variable("OPENSEARCH_URL"))
        .login(variable("OPENSEARCH_USERNAME"), variable("OPENSEARCH_PASSWORD"))
        .ca_file(variable("OPENSEARCH_CA_FILE"))
}

fn connect(settings: OpenSearchConfigBuilder) -> OpenSearchManager {
    OpenSearchManager::connect(settings.build().unwrap()).unwrap()
}

async fn send(node: Node, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
    let body = body.map(|body| body.to_string());
    json(node.send(method, path, HeaderMap::new(), None::<&()>, body, None).await?).await
}

/// An index of the test's own, which is gone when the test has ended well.
struct Index {
    name: String,
    manager: OpenSearchManager,
}

impl Index {
    async fn create(purpose: &str) -> Self {
        let manager = connect(settings());
        let index =
            Self { name: format!("conn-opensearch-{purpose}-{}", std::process::id()), manager };
        let body = json!({
            "settings": {"number_of_shards": 1, "number_of_replicas": 0},
            "mappings": {"properties": {"amount": {"type": "integer"}}},
        });
        index.ask(Method::Put, "", Some(body)).await.unwrap();
        index
    }

    /// One request about the index, by hand and as its administrator.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, CallError<Error>> {
        let (path, body) = (&*format!("{}{path}", self.name), &body);
        self.manager.write(|node| send(node, method, path, body.clone())).await
    }

    async fn count(&self) -> u64 {
        self.ask(Method::Post, "/_refresh", None).await.unwrap();
        let name = &*self.name;
        let count = |node: Node| async move {
            json::<Value>(node.count(CountParts::Index(&[name])).send().await?).await
        };
        self.manager.read(count).await.unwrap()["count"].as_u64().unwrap()
    }

    async fn delete(self) {
        self.ask(Method::Delete, "", None).await.unwrap();
    }
}

fn inner<T: std::fmt::Debug>(result: Result<T, CallError<Error>>) -> (Error, Replay, Blame, u32) {
    match result.unwrap_err() {
        CallError::Inner(failed) => {
            (failed.error, failed.verdict.replay, failed.verdict.blame, failed.attempts)
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_is_indexed_is_found() {
    let index = Index::create("found").await;
    let name = &*index.name;
    index
        .manager
        .write_idempotent(|node| async move {
            let document = json!({"title": "wells for the village", "amount": 7});
            let request = node.index(IndexParts::IndexId(name, "7")).body(document);
            check(request.send().await?).await
        })
        .await
        .unwrap();
    assert_eq!(index.count().await, 1);
    let found: Value = index
        .manager
        .read(|node| async move {
            let query = json!({"query": {"match": {"title": "wells"}}});
            json(node.search(SearchParts::Index(&[name])).body(query).send().await?).await
        })
        .await
        .unwrap();
    assert_eq!(found["hits"]["hits"][0]["_id"], "7");
    index.delete().await;
}

#[tokio::test]
async fn the_server_is_healthy_and_warm_after_warming_up() {
    let manager = connect(settings());
    manager.warm_up(Deadline::within(Duration::from_secs(10))).await.unwrap();
    let health = manager.health().await;
    assert_eq!(health.status, HealthStatus::Healthy, "{health:?}");
    assert_eq!(
        manager.breaker().snapshot().calls.success,
        1,
        "warming up is a call, a check is none"
    );
    assert_eq!(manager.backend().unwrap().system, "opensearch");
}

#[tokio::test]
async fn the_environment_is_all_it_takes() {
    let manager = OpenSearchManager::connect(OpenSearchConfig::from_env().unwrap()).unwrap();
    assert_eq!(manager.health().await.status, HealthStatus::Healthy);
}

/// Whom the server takes for the caller, who also shows the certificate of `app`.
async fn who_with_certificate(config: OpenSearchConfigBuilder) -> Value {
    let config = config
        .client_cert_file(variable("TEST_CLIENT_CERT_FILE"))
        .client_key_file(variable("TEST_CLIENT_KEY_FILE"));
    let who = connect(config)
        .read(|node| send(node, Method::Get, "_plugins/_security/authinfo", None))
        .await
        .unwrap();
    who["user_name"].clone()
}

#[tokio::test]
async fn a_client_certificate_logs_in_by_itself() {
    let config = peer::quick(variable("OPENSEARCH_URL")).ca_file(variable("OPENSEARCH_CA_FILE"));
    assert_eq!(who_with_certificate(config).await, "app");
}

#[tokio::test]
async fn a_client_certificate_and_a_login_go_together() {
    // The server, which is shown both, prefers the certificate.
    assert_eq!(who_with_certificate(settings()).await, "app");
}

#[tokio::test]
async fn a_wrong_password_is_told_once_and_without_it() {
    let manager = connect(settings().login("app", "hunter2-hunter2"));
    let (error, replay, blame, attempts) =
        inner(manager.read(|node| send(node, Method::Get, "_cat/indices?format=json", None)).await);
    assert_eq!(
        (error.status(), replay, blame, attempts),
        (Some(401), Replay::Never, Blame::Caller, 1)
    );
    let health = manager.health().await;
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reason.as_deref().unwrap().contains("answered 401: Unauthorized"), "{health:?}");
    let shown = format!("{error} {error:?} {health:?} {manager:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    assert_eq!(manager.breaker().snapshot().calls.failure, 0);
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_is_sent_nothing() {
    let config = peer::quick(variable("OPENSEARCH_URL")).login("app", "hunter2").max_retries(0);
    let (error, replay, ..) =
        inner(connect(config).write(|node| send(node, Method::Post, "a/_doc", None)).await);
    assert!(matches!(error.kind(), ErrorKind::Connect { .. }), "{error:?}");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    assert_eq!(replay, Replay::Safe);
}

#[tokio::test]
async fn requests_that_are_wrong_are_told_in_the_servers_words() {
    let index = Index::create("wrong").await;
    let name = &*index.name;
    let document = json!({"amount": "much"});
    let nested = json!({"query": {"nonsense": {}}});
    let cases = [
        (Method::Get, "/_doc/none", None, 404, None),
        (Method::Post, "/_search", Some(nested), 400, Some("parsing_exception")),
        (Method::Post, "/_doc", Some(document), 400, Some("mapper_parsing_exception")),
        (Method::Put, "", None, 400, Some("resource_already_exists_exception")),
        (Method::Post, "/_no_such_thing", None, 400, None),
    ];
    for (method, path, body, code, kind) in cases {
        let (error, replay, blame, attempts) = inner(index.ask(method, path, body).await);
        let ErrorKind::Status(status) = error.kind() else { panic!("{error:?}") };
        assert_eq!((status.code, status.kind.as_deref()), (code, kind), "{error}");
        assert_eq!((replay, blame, attempts), (Replay::Never, Blame::Caller, 1), "{error}");
    }
    let (error, ..) = inner(
        index
            .manager
            .read(|node| async move {
                let missing = format!("{name}-missing");
                check(node.get(GetParts::IndexId(&missing, "1")).send().await?).await
            })
            .await,
    );
    let text = error.to_string();
    let node = variable("OPENSEARCH_URL");
    assert!(
        text.starts_with(&format!(
            "{node} answered 404 index_not_found_exception: no such index ["
        )),
        "{text}"
    );
    index.delete().await;
}

#[tokio::test]
async fn a_document_that_is_there_conflicts() {
    let index = Index::create("conflict").await;
    let name = &*index.name;
    let create = |node: Node| async move {
        let request = node.create(CreateParts::IndexId(name, "1")).body(json!({}));
        check(request.send().await?).await
    };
    index.manager.write(create).await.unwrap();
    let (error, replay, blame, _) = inner(index.manager.write(create).await);
    assert_eq!((error.status(), replay, blame), (Some(409), Replay::Never, Blame::Caller));
    assert!(!error.is_probably_own_write(), "no attempt of this call was uncertain");
    index.delete().await;
}

#[tokio::test]
async fn each_item_of_a_bulk_has_its_own_fate() {
    let index = Index::create("bulk").await;
    let name = &*index.name;
    let bulk = |node: Node| async move {
        let operations: Vec<BulkOperation<Value>> = vec![
            BulkOperation::index(json!({"amount": 1})).id("1").into(),
            BulkOperation::index(json!({"amount": "much"})).id("2").into(),
            BulkOperation::create("1", json!({"amount": 3})).into(),
            BulkOperation::delete("none").into(),
        ];
        BulkOutcome::read(node.bulk(BulkParts::Index(name)).body(operations).send().await?).await
    };
    let outcome = index.manager.write(bulk).await.unwrap();
    let places = |items: &[conn_opensearch::BulkItem]| {
        items.iter().map(|item| item.position).collect::<Vec<_>>()
    };
    assert_eq!(places(&outcome.done), [0, 3], "{outcome:?}");
    assert_eq!(places(&outcome.refused), [1, 2], "{outcome:?}");
    assert_eq!(outcome.refused[0].kind.as_deref(), Some("mapper_parsing_exception"));
    assert_eq!(outcome.refused[1].status, 409);
    assert!(outcome.repeat.is_empty() && outcome.uncertain.is_empty(), "{outcome:?}");
    assert_eq!(index.count().await, 1);
    index.delete().await;
}

/// A full disk is the one reason for a 429 that can be had at will.
#[tokio::test]
async fn what_the_server_refuses_for_load_was_not_executed() {
    let index = Index::create("full").await;
    let name = &*index.name;
    let block = |on: Value| json!({"index.blocks.read_only_allow_delete": on});
    index.ask(Method::Put, "/_settings", Some(block(true.into()))).await.unwrap();
    let add = |node: Node| async move {
        check(node.index(IndexParts::Index(name)).body(json!({})).send().await?).await
    };
    let (error, replay, blame, attempts) = inner(index.manager.write(add).await);
    assert_eq!(
        (error.status(), replay, blame),
        (Some(429), Replay::Safe, Blame::Service),
        "{error}"
    );
    assert_eq!(attempts, 4, "even a write is repeated");
    let bulk = |node: Node| async move {
        let operations: Vec<BulkOperation<Value>> = vec![BulkOperation::index(json!({})).into()];
        BulkOutcome::read(node.bulk(BulkParts::Index(name)).body(operations).send().await?).await
    };
    let outcome = index.manager.write(bulk).await.unwrap();
    assert_eq!(outcome.repeat[0].status, 429, "{outcome:?}");
    index.ask(Method::Put, "/_settings", Some(block(Value::Null))).await.unwrap();
    assert_eq!(index.count().await, 0);
    index.delete().await;
}

#[tokio::test]
async fn a_search_that_takes_too_long_ends_with_its_attempt() {
    let manager = connect(settings().timeout(Duration::from_millis(1)).max_retries(0));
    // More than a millisecond by any measure: the handshake alone.
    let result = manager.read(|node| send(node, Method::Get, "_nodes/stats", None)).await;
    assert!(matches!(result, Err(CallError::AttemptTimeout(_))), "{result:?}");
    assert_eq!(manager.status().in_use, 0);
}

#[tokio::test]
async fn a_cancelled_call_leaves_its_place_and_nobody_elses_answer() {
    let index = Index::create("cancelled").await;
    let config = settings().bulkhead(1);
    let manager = connect(config);
    let finished = AtomicUsize::new(0);
    for polls in 0..40 {
        let name = format!("{}-{polls}-missing", index.name);
        let path = &*format!("{name}/_search");
        let ask = || manager.read(|node| send(node, Method::Get, path, None));
        if poll_n(ask(), polls).await.is_some() {
            finished.fetch_add(1, Ordering::Relaxed);
        }
        let (error, ..) = inner(ask().await);
        assert!(error.to_string().contains(&format!("no such index [{name}]")), "{error}");
        assert_eq!(manager.bulkhead().unwrap().available(), 1);
    }
    assert!(finished.into_inner() < 40, "not one was cancelled");
    index.delete().await;
}
