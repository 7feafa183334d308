//! What every connector promises, on OpenSearch: and what it does not give yet, with the reasons.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use conn_opensearch::opensearch::http::Method;
use conn_opensearch::opensearch::http::headers::HeaderMap;
use conn_opensearch::{
    Error, Node, OpenSearchConfig, OpenSearchConfigBuilder, OpenSearchManager, check, json,
    opensearch,
};
use resilience_conformance::{
    Capability, Harness, Setup, Subject, Support, Told, Way, Work, unsupported,
};
use resilience_core::{CallError, Credentials, Deadline, Drained, Health, HealthCheck};
use serde_json::{Value, json};

/// Past the suite's managers and wires, and with an index of its own in which work is counted.
struct Search {
    direct: OpenSearchManager,
    index: &'static str,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by `cargo xtask test`"))
}

impl Search {
    async fn start() -> Self {
        let config = OpenSearchConfig::from_env().unwrap();
        let index = format!("conformance-{}", std::process::id()).leak();
        let search = Self { direct: OpenSearchManager::connect(config).unwrap(), index };
        let body = json!({
            "settings": {"number_of_shards": 1, "number_of_replicas": 0},
            "mappings": {"properties": {"key": {"type": "keyword"}}},
        });
        search.ask(Method::Put, "", Some(body)).await;
        search
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (path, body) = (&*format!("{}{path}", self.index), &body);
        self.direct.read(|node| send(node, method, path, body.clone())).await.unwrap()
    }
}

async fn send(node: Node, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
    let body = body.map(|body| body.to_string());
    json(node.send(method, path, HeaderMap::new(), None::<&()>, body, None).await?).await
}

fn settings(setup: &Setup) -> OpenSearchConfigBuilder {
    let name = setup.credentials.username().unwrap();
    let builder = OpenSearchConfig::builder(format!("https://{}", setup.address))
        .login(name, setup.credentials.expose_password().unwrap())
        .name(setup.name.clone())
        .ca_file(variable("OPENSEARCH_CA_FILE"))
        .bulkhead(setup.limit)
        .acquire_timeout(setup.acquire_timeout)
        .timeout(setup.attempt_timeout)
        .deadline(setup.deadline)
        .max_retries(setup.max_retries)
        .base_delay(setup.base_delay)
        .max_delay(setup.max_delay)
        .fail_max(setup.fail_max)
        .reset_timeout(setup.reset_timeout)
        .success_threshold(setup.success_threshold);
    match &setup.runtime {
        Some(runtime) => builder.runtime(runtime.clone()),
        None => builder,
    }
}

#[async_trait::async_trait]
impl Harness for Search {
    fn server(&self) -> String {
        variable("OPENSEARCH_URL").split_once("://").unwrap().1.trim_end_matches('/').to_owned()
    }

    fn credentials(&self) -> Credentials {
        Credentials::new(variable("OPENSEARCH_USERNAME"), variable("OPENSEARCH_PASSWORD"))
    }

    fn support(&self, capability: Capability) -> Support {
        use Support::{Gives, Lacks};
        match capability {
            Capability::SeveralEndpoints => Gives,
            Capability::Pool => Lacks(
                "the client opens sockets as it likes and tells nothing of them: the bulkhead bounds calls",
            ),
            Capability::PoolEvents => {
                Lacks("the client does not tell when it opens or closes a socket")
            }
            Capability::Holders => Lacks("a bulkhead counts calls, and does not know them"),
            Capability::IdleTimeout => {
                Lacks("the client has no such setting: it keeps idle sockets for 90 s")
            }
            Capability::MaxLifetime => Lacks("the client has no such setting"),
            Capability::MinIdle => Lacks("the client has no such setting"),
            Capability::LeakDetection => {
                Lacks("a node is lent for one attempt, which has a timeout")
            }
            Capability::CredentialRotation => {
                Lacks("the password is that of the settings, for ever")
            }
            Capability::Transactions => Lacks("the server has none"),
            Capability::Streams => {
                Lacks("answers are read whole: what is longer is asked for by the page")
            }
            _ => Lacks("it is not known here"),
        }
    }

    fn connect(&self, setup: &Setup) -> Result<Arc<dyn Subject>, String> {
        let config = settings(setup).build().map_err(|error| error.to_string())?;
        let search = match &setup.endpoints {
            Some(endpoints) => OpenSearchManager::connect_to(config, endpoints.clone()),
            None => OpenSearchManager::connect(config),
        };
        let manager = search.map_err(|error| error.to_string())?;
        Ok(Arc::new(Cluster { manager, index: self.index }))
    }

    fn shown(&self, setup: &Setup) -> Vec<String> {
        let builder = settings(setup);
        vec![format!("{builder:?}"), format!("{:?}", builder.build().unwrap())]
    }

    async fn executed(&self, key: &str) -> u64 {
        self.ask(Method::Post, "/_refresh", None).await;
        let query = json!({"query": {"term": {"key": key}}});
        self.ask(Method::Post, "/_count", Some(query)).await["count"].as_u64().unwrap()
    }
}

#[derive(Debug)]
struct Cluster {
    manager: OpenSearchManager,
    index: &'static str,
}

#[async_trait::async_trait]
impl Subject for Cluster {
    fn watched(&self) -> &dyn HealthCheck {
        &self.manager
    }

    async fn run(&self, way: Way, work: Work) -> Result<String, CallError<Told>> {
        let closure = |node| perform(node, self.index, work.clone());
        let answer = match way {
            Way::Read => self.manager.read(closure).await,
            Way::Write => self.manager.write(closure).await,
            Way::WriteIdempotent => self.manager.write_idempotent(closure).await,
            Way::Call(call) => self.manager.call(call, closure).await,
            _ => return Err(unsupported(way)),
        };
        answer.map_err(|error| error.map_inner(|error| Told::of(&error)))
    }

    async fn health(&self) -> Health {
        self.manager.health().await
    }

    async fn warm_up(&self, deadline: Deadline) -> Result<(), Told> {
        self.manager.warm_up(deadline).await.map_err(|error| Told::of(&error))
    }

    async fn drain(&self, deadline: Deadline) -> Drained {
        self.manager.drain(deadline).await
    }

    fn twin(&self) -> Arc<dyn Subject> {
        Arc::new(Self { manager: self.manager.clone(), index: self.index })
    }
}

async fn perform(node: Node, index: &str, work: Work) -> Result<String, Error> {
    match work {
        Work::Nothing => {}
        Work::Echo(text) => {
            let body = json!({"tokenizer": "keyword", "text": text});
            let analyzed = send(node, Method::Post, "_analyze", Some(body)).await?;
            return Ok(analyzed["tokens"][0]["token"].as_str().unwrap_or_default().to_owned());
        }
        Work::Count(key) => count(node, index, &key).await?,
        Work::CountAndFail(key) => {
            count(node, index, &key).await?;
            // A closure has no error of its own here: one that the client would find in a request of its.
            let own = serde_json::from_str::<Value>("as it was told").unwrap_err();
            return Err(opensearch::Error::from(own).into());
        }
        Work::Take(time) => wait(node, time).await?,
        Work::Refused => {
            send(node, Method::Get, "no-such-index/_doc/1", None).await?;
        }
        Work::Hold(gate) => gate.pass().await,
        Work::Panic => panic!("as it was told"),
        _ => {
            send(node, Method::Get, "no-such-index/_doc/1", None).await?;
        }
    }
    Ok(String::new())
}

async fn count(node: Node, index: &str, key: &str) -> Result<(), Error> {
    send(node, Method::Post, &format!("{index}/_doc"), Some(json!({"key": key}))).await.map(drop)
}

/// Waits for more nodes than there are, which the server gives up after `time`, and answers 408.
async fn wait(node: Node, time: Duration) -> Result<(), Error> {
    let path = format!("_cluster/health?wait_for_nodes=99&timeout={}ms", time.as_millis());
    let none = HeaderMap::new();
    let answer = node.send(Method::Get, &path, none, None::<&()>, None::<String>, None).await?;
    match answer.status_code().as_u16() {
        408 => Ok(()),
        _ => check(answer).await.map(drop),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opensearch_gives_what_it_says_it_gives() {
    let search = Search::start().await;
    let cleaner = Search { direct: search.direct.clone(), index: search.index };
    let report = resilience_conformance::run(search).await;
    // Past what the test runner captures: the list is what one looks for.
    writeln!(std::io::stderr(), "{report}").unwrap();
    cleaner.ask(Method::Delete, "", None).await;
    report.assert_conforms();
}
