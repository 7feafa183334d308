//! `GET /campaigns/{id}`: cached in Redis; without Redis, straight from PostgreSQL.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use shared_external::Deadline;
use shared_external::redis::RedisConn;
use shared_external::redis::redis::{AsyncCommands, ExistenceCheck, SetExpiry, SetOptions};

use crate::error::{ApiError, NOT_FOUND};
use crate::{App, REQUEST};

/// How long a campaign stays in the cache.
const CACHED: Duration = Duration::from_secs(60);
/// How long the cache may take: past that, the database is quicker.
const CACHE_TIME: Duration = Duration::from_millis(250);

/// `{"id", "title", "story", "category", "goal_cents", "raised_cents"}`
#[derive(Clone, Debug, Deserialize, Serialize, sqlx::FromRow)]
pub(crate) struct Campaign {
    id: i64,
    title: String,
    story: String,
    category: String,
    goal_cents: i64,
    raised_cents: i64,
}

pub(crate) async fn show(
    State(app): State<App>,
    Path(id): Path<i64>,
) -> Result<Json<Campaign>, ApiError> {
    let cached = look_up(&app, id).await;
    if let Cache::Holds(campaign) = cached {
        return Ok(Json(*campaign));
    }
    let campaign = app
        .database
        .read(|mut conn| async move {
            let query = "SELECT id, title, story, category, goal_cents, raised_cents FROM campaigns WHERE id = $1";
            Ok(sqlx::query_as(query).bind(id).fetch_optional(&mut conn).await?)
        })
        .await?
        .ok_or(NOT_FOUND)?;
    if let Cache::Lacks = cached {
        keep(&app, &campaign).await;
    }
    Ok(Json(campaign))
}

/// What the cache said.
enum Cache {
    Holds(Box<Campaign>),
    Lacks,
    /// It could not be asked, and will not be told either.
    Away,
}

async fn look_up(app: &App, id: i64) -> Cache {
    let get =
        |mut redis: RedisConn| async move { Ok(redis.get::<_, Option<String>>(key(id)).await?) };
    match Deadline::within(CACHE_TIME).scope(app.redis.read(get)).await {
        Ok(json) => match json.and_then(|json| serde_json::from_str(&json).ok()) {
            Some(campaign) => Cache::Holds(campaign),
            None => Cache::Lacks,
        },
        Err(error) => {
            tracing::debug!(%error, "the cache is away");
            Cache::Away
        }
    }
}

async fn keep(app: &App, campaign: &Campaign) {
    let Ok(json) = serde_json::to_string(campaign) else { return };
    let (id, json) = (campaign.id, &json);
    // Not over what `forget` has left.
    let set = |mut redis: RedisConn| async move {
        let if_absent = SetOptions::default()
            .conditional_set(ExistenceCheck::NX)
            .with_expiration(SetExpiry::EX(CACHED.as_secs()));
        Ok(redis.set_options::<_, _, ()>(key(id), json, if_absent).await?)
    };
    if let Err(error) = Deadline::within(CACHE_TIME).scope(app.redis.write_idempotent(set)).await {
        tracing::debug!(%error, "not cached");
    }
}

/// Takes a campaign out of the cache, and bars it until those who may have read the old sum are done.
/// A Redis that cannot be had may show the old sum until it expires.
pub(crate) async fn forget(app: &App, id: i64) {
    let bar = |mut redis: RedisConn| async move {
        Ok(redis.set_ex::<_, _, ()>(key(id), "", 2 * REQUEST.as_secs()).await?)
    };
    if let Err(error) = Deadline::within(CACHE_TIME).scope(app.redis.write_idempotent(bar)).await {
        tracing::debug!(%error, "the cached campaign is old until it expires");
    }
}

fn key(id: i64) -> String {
    format!("campaign:{id}")
}
