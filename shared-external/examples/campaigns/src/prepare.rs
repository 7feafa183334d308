//! Brings tables and index into being, as soon as their servers can be had; until then, the
//! application serves what it can.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use shared_external::opensearch::opensearch::indices::{
    IndicesCreateParts, IndicesExistsParts, IndicesRefreshParts,
};
use shared_external::opensearch::opensearch::{BulkOperation, BulkParts, CountParts};
use shared_external::opensearch::{self, BulkOutcome, Node};
use shared_external::{Backoff, DatabaseManager, Deadline, OpenSearchManager};
use sqlx::migrate::Migrator;

use crate::App;
use crate::search::INDEX;
use crate::seed::{CAMPAIGNS, Seed, campaigns};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// How long the migrations may take.
const MIGRATION: Duration = Duration::from_secs(60);
/// Documents per bulk request.
const BATCH: usize = 1_000;

/// Prepares database and index, each on its own, again and again until it is done.
pub(crate) fn in_background(app: &App) {
    let App { database, opensearch, indexed, .. } = app.clone();
    tokio::spawn(until_done("database", move || tables(database.clone())));
    tokio::spawn(async move {
        until_done("index", || index(opensearch.clone())).await;
        indexed.store(true, Ordering::Relaxed);
    });
}

async fn until_done<Fut: Future<Output = anyhow::Result<()>>>(
    what: &str,
    prepare: impl Fn() -> Fut,
) {
    for wait in Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1), 2.0) {
        match prepare().await {
            Ok(()) => return tracing::info!("{what} is ready"),
            Err(error) => tracing::warn!(%error, "{what} is not ready; trying again"),
        }
        tokio::time::sleep(wait).await;
    }
}

async fn tables(database: DatabaseManager) -> anyhow::Result<()> {
    database.migrate(&MIGRATIONS, Deadline::within(MIGRATION)).await?;
    let all: Vec<Seed> = campaigns().collect();
    let ids: Vec<_> = all.iter().map(|seed| seed.id).collect();
    let titles: Vec<_> = all.iter().map(|seed| seed.title.as_str()).collect();
    let stories: Vec<_> = all.iter().map(|seed| seed.story.as_str()).collect();
    let categories: Vec<_> = all.iter().map(|seed| seed.category).collect();
    let goals: Vec<_> = all.iter().map(|seed| seed.goal_cents).collect();
    database
        .write_idempotent(|mut conn| {
            let insert = "INSERT INTO campaigns (id, title, story, category, goal_cents)
                          SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[])
                          ON CONFLICT DO NOTHING";
            let insert = sqlx::query(insert)
                .bind(ids.clone())
                .bind(titles.clone())
                .bind(stories.clone())
                .bind(categories.clone())
                .bind(goals.clone());
            async move { Ok(insert.execute(&mut conn).await.map(|_| ())?) }
        })
        .await?;
    Ok(())
}

async fn index(search: OpenSearchManager) -> anyhow::Result<()> {
    if search.write_idempotent(count).await? == CAMPAIGNS {
        return Ok(());
    }
    let all: Vec<Seed> = campaigns().collect();
    for batch in all.chunks(BATCH) {
        let outcome = search.write_idempotent(|node| put(node, batch)).await?;
        anyhow::ensure!(outcome.is_complete(), "not all documents were taken: {outcome:?}");
    }
    Ok(search.write_idempotent(refresh).await?)
}

/// How many documents the index holds; creates it where it is not there yet.
async fn count(node: Node) -> Result<i64, opensearch::Error> {
    let indices = node.indices();
    if indices.exists(IndicesExistsParts::Index(&[INDEX])).send().await?.status_code() == 404 {
        let mapping = json!({ "mappings": { "properties": {
            "id": { "type": "long" }, "title": { "type": "text" }, "story": { "type": "text" },
            "category": { "type": "keyword" },
        }}, "settings": { "number_of_shards": 1, "number_of_replicas": 0 }});
        let created = indices.create(IndicesCreateParts::Index(INDEX)).body(mapping).send().await?;
        opensearch::check(created).await?;
    }
    let counted: Value =
        opensearch::json(node.count(CountParts::Index(&[INDEX])).send().await?).await?;
    Ok(counted["count"].as_i64().unwrap_or(0))
}

async fn put(node: Node, batch: &[Seed]) -> Result<BulkOutcome, opensearch::Error> {
    let documents = batch.iter().map(|seed| {
        let Seed { id, title, story, category, .. } = seed;
        let document = json!({ "id": id, "title": title, "story": story, "category": category });
        BulkOperation::index(document).id(id.to_string()).into()
    });
    let body: Vec<BulkOperation<Value>> = documents.collect();
    BulkOutcome::read(node.bulk(BulkParts::Index(INDEX)).body(body).send().await?).await
}

async fn refresh(node: Node) -> Result<(), opensearch::Error> {
    let refreshed = node.indices().refresh(IndicesRefreshParts::Index(&[INDEX])).send().await?;
    opensearch::check(refreshed).await.map(|_| ())
}
