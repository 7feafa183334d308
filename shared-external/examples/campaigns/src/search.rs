//! `GET /campaigns?q=`: from OpenSearch, and from PostgreSQL while OpenSearch cannot be had.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared_external::opensearch::opensearch::SearchParts;
use shared_external::opensearch::{Error, json};

use crate::App;
use crate::error::ApiError;

/// The index that holds the campaigns.
pub(crate) const INDEX: &str = "campaigns";
const MOST: i64 = 20;
/// Bytes of a search, so that its words are fewer than OpenSearch takes.
const LONGEST: usize = 500;

/// `?q=words`
#[derive(Debug, Deserialize)]
pub(crate) struct Words {
    q: String,
}

/// `{"campaigns": [{"id", "title", "category"}], "source": "opensearch", "degraded": false}`
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    campaigns: Vec<Hit>,
    source: &'static str,
    degraded: bool,
}

#[derive(Debug, Deserialize, Serialize, sqlx::FromRow)]
struct Hit {
    id: i64,
    title: String,
    category: String,
}

pub(crate) async fn search(
    State(app): State<App>,
    Query(Words { q }): Query<Words>,
) -> Result<Json<Found>, ApiError> {
    if q.len() > LONGEST || q.contains('\0') {
        let why = "q must hold at most 500 bytes, and no NUL";
        return Err(ApiError::Refused(StatusCode::BAD_REQUEST, why));
    }
    if !app.indexed.load(Ordering::Relaxed) {
        return Ok(Json(in_postgres(&app, &q).await?));
    }
    let found = app
        .opensearch
        .read_or(|node| in_opensearch(node, q.clone()), |_| in_postgres(&app, &q))
        .await?;
    Ok(Json(found))
}

async fn in_opensearch(
    node: shared_external::opensearch::Node,
    words: String,
) -> Result<Found, Error> {
    let query = json!({
        "query": { "multi_match": { "query": words, "fields": ["title^2", "story"], "operator": "and" } },
        "size": MOST,
    });
    let response = node.search(SearchParts::Index(&[INDEX])).body(query).send().await?;
    let answer: Answer = json(response).await?;
    let campaigns = answer.hits.hits.into_iter().map(|hit| hit.source).collect();
    Ok(Found { campaigns, source: "opensearch", degraded: false })
}

async fn in_postgres(app: &App, words: &str) -> Result<Found, ApiError> {
    let campaigns = app
        .database
        .read(|mut conn| async move {
            let query = "SELECT id, title, category FROM campaigns, websearch_to_tsquery('simple', $1) AS query
                         WHERE words @@ query ORDER BY ts_rank(words, query) DESC, id LIMIT $2";
            Ok(sqlx::query_as(query).bind(words).bind(MOST).fetch_all(&mut conn).await?)
        })
        .await?;
    Ok(Found { campaigns, source: "postgres", degraded: true })
}

#[derive(Deserialize)]
struct Answer {
    hits: Hits,
}

#[derive(Deserialize)]
struct Hits {
    hits: Vec<Document>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "_source")]
    source: Hit,
}
