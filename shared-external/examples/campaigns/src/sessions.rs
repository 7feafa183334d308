//! `POST`, `GET` and `DELETE /session`: in Redis alone, with expiry. Without Redis they say so.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use shared_external::redis::RedisConn;
use shared_external::redis::redis::AsyncCommands;
use uuid::Uuid;

use crate::App;
use crate::error::ApiError;

/// How long a session lasts if the request does not say.
const SESSION: Duration = Duration::from_secs(3600);

/// `{"user": "ada", "seconds": 60}`
#[derive(Debug, Deserialize)]
pub(crate) struct Begin {
    user: String,
    seconds: Option<u64>,
}

/// `{"token", "user", "expires_in_seconds"}`. No `Debug`: the token is a secret.
#[derive(Serialize)]
pub(crate) struct Session {
    token: String,
    user: String,
    expires_in_seconds: u64,
}

const UNAUTHORIZED: ApiError = ApiError::Refused(StatusCode::UNAUTHORIZED, "no such session");

pub(crate) async fn begin(
    State(app): State<App>,
    Json(Begin { user, seconds }): Json<Begin>,
) -> Result<(StatusCode, Json<Session>), ApiError> {
    let expires_in_seconds = seconds.unwrap_or(SESSION.as_secs()).clamp(1, SESSION.as_secs());
    let token = Uuid::new_v4().simple().to_string();
    let key = key(&token);
    // A new token each time: writing it twice is writing it once.
    app.redis
        .write_idempotent(|mut redis: RedisConn| {
            let (key, user) = (key.clone(), user.clone());
            async move { Ok(redis.set_ex::<_, _, ()>(key, user, expires_in_seconds).await?) }
        })
        .await?;
    Ok((StatusCode::CREATED, Json(Session { token, user, expires_in_seconds })))
}

pub(crate) async fn show(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Json<Session>, ApiError> {
    let token = bearer(&headers)?;
    let key = key(token);
    let (user, left): (Option<String>, i64) = app
        .redis
        .read(|mut redis: RedisConn| {
            let key = key.clone();
            async move { Ok((redis.get(&key).await?, redis.ttl(&key).await?)) }
        })
        .await?;
    let (Some(user), Ok(expires_in_seconds)) = (user, u64::try_from(left)) else {
        return Err(UNAUTHORIZED);
    };
    Ok(Json(Session { token: token.to_owned(), user, expires_in_seconds }))
}

pub(crate) async fn end(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let key = key(bearer(&headers)?);
    app.redis
        .write_idempotent(|mut redis: RedisConn| {
            let key = key.clone();
            async move { Ok(redis.del::<_, ()>(key).await?) }
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn key(token: &str) -> String {
    format!("session:{token}")
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    value
        .and_then(|value| value.strip_prefix("Bearer "))
        .filter(|token| !token.is_empty())
        .ok_or(UNAUTHORIZED)
}
