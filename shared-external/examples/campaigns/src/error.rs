//! How a handler fails.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use shared_external::CallError;
use shared_external::axum::ServiceError;

/// A request that gets no answer of its own.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The request is wrong.
    Refused(StatusCode, &'static str),
    /// A service failed us.
    Service(ServiceError),
}

/// There is no such thing.
pub(crate) const NOT_FOUND: ApiError = ApiError::Refused(StatusCode::NOT_FOUND, "not found");

impl<E: std::fmt::Display> From<CallError<E>> for ApiError {
    fn from(error: CallError<E>) -> Self {
        Self::Service(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(status, why) => {
                (status, Json(serde_json::json!({ "error": why }))).into_response()
            }
            Self::Service(error) => error.into_response(),
        }
    }
}
