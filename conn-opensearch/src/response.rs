//! Turns answers of 400 and above, which the client takes for successes, into errors.

use std::any::Any;
use std::time::Duration;

use opensearch::http::headers::{HeaderMap, RETRY_AFTER};
use opensearch::http::response::Response;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Status, bounded, node_name};

/// Error answers larger than this, in bytes, or that do not say how large they are, are not read: what
/// matters stands in the status, and the client reads all or nothing.
const LARGEST_ERROR: u64 = 64 * 1024;

/// The response itself, unless its status is 400 or above.
///
/// # Errors
///
/// [`ErrorKind::Status`] with the status, and the type and the reason that OpenSearch gives.
///
/// # Cancel safety
///
/// Dropping the future gives up the rest of the answer and its connection.
pub async fn check(response: Response) -> Result<Response, Error> {
    if response.status_code().as_u16() < 400 { Ok(response) } else { Err(refusal(response).await) }
}

/// The response's body as a `T`, unless its status is 400 or above.
///
/// ```
/// # async fn doc(node: conn_opensearch::Node) -> Result<u64, conn_opensearch::Error> {
/// use conn_opensearch::opensearch::CountParts;
///
/// #[derive(serde::Deserialize)]
/// struct Count {
///     count: u64,
/// }
///
/// let response = node.count(CountParts::Index(&["campaigns"])).send().await?;
/// let Count { count } = conn_opensearch::json(response).await?;
/// # Ok(count) }
/// ```
///
/// # Errors
///
/// As for [`check`]; [`ErrorKind::Lost`] if the body ends early, [`ErrorKind::Malformed`] if it is
/// not JSON, [`ErrorKind::Unexpected`] if it is no `T`.
///
/// # Cancel safety
///
/// Dropping the future gives up the rest of the answer and its connection.
pub async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Error> {
    let response = check(response).await?;
    let node = node_name(response.url());
    let body = response.bytes().await.map_err(|error| Error::from(error).at(&node))?;
    serde_json::from_slice(&body).map_err(|error| {
        let cause = bounded(&error.to_string());
        let kind = match error.is_data() {
            true => ErrorKind::Unexpected { cause },
            false => ErrorKind::Malformed { cause },
        };
        Error::new(kind).at(&node)
    })
}

/// `value`, unless it is a response that speaks against the service: what a closure hands back
/// unread must not pass for a success. Statuses that are the caller's fault are the caller's to read.
pub(crate) async fn unless_failed<T: 'static>(value: T) -> Result<T, Error> {
    let failed = |response: &Response| matches!(response.status_code().as_u16(), 408 | 429 | 500..);
    if !(&value as &dyn Any).downcast_ref::<Response>().is_some_and(failed) {
        return Ok(value);
    }
    let mut value = Some(value);
    let held = (&mut value as &mut dyn Any).downcast_mut::<Option<Response>>();
    let response = held.and_then(Option::take).expect("`value` was just seen to be a response");
    Err(refusal(response).await)
}

/// The error that a response of 400 or above is.
async fn refusal(response: Response) -> Error {
    let node = node_name(response.url());
    let mut status = Status {
        code: response.status_code().as_u16(),
        retry_after: retry_after(response.headers()),
        ..Status::default()
    };
    if response.content_length().is_some_and(|length| length <= LARGEST_ERROR) {
        // A body that breaks off takes nothing from what the status says.
        let body = response.bytes().await.map(|body| body.to_vec()).unwrap_or_default();
        (status.kind, status.reason) = explanation(&body);
    }
    Error::new(ErrorKind::Status(status)).at(&node)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Type and reason of the error that a body tells of.
fn explanation(body: &[u8]) -> (Option<String>, Option<String>) {
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(answer)) if answer.contains_key("error") => {
            let error = &answer["error"];
            let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(bounded);
            let kind = text(&error["type"]);
            let reason = text(&error["reason"]).or_else(|| text(error));
            let root = text(&error["root_cause"][0]["reason"]);
            let reason = match (reason, root) {
                // "all shards failed" alone helps nobody.
                (Some(reason), Some(root)) if reason != root => {
                    Some(bounded(&format!("{reason}: {root}")))
                }
                (reason, root) => reason.or(root),
            };
            (kind, reason)
        }
        Ok(_) => (None, None),
        Err(_) => {
            let text = bounded(&String::from_utf8_lossy(&body[..body.len().min(4096)]));
            (None, Some(text).filter(|text| !text.is_empty()))
        }
    }
}

#[cfg(test)]
mod tests {
    use opensearch::http::headers::HeaderValue;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_reason_is_found_in_every_form_of_answer() {
        let shards = json!({"error": {
            "type": "search_phase_execution_exception",
            "reason": "all shards failed",
            "root_cause": [{"type": "query_shard_exception", "reason": "no mapping found for [when]"}],
        }, "status": 400});
        let cases = [
            (
                shards.to_string(),
                Some("search_phase_execution_exception"),
                Some("all shards failed: no mapping found for [when]"),
            ),
            (r#"{"error":"no handler found","status":400}"#.into(), None, Some("no handler found")),
            (
                "OpenSearch Security not initialized.".into(),
                None,
                Some("OpenSearch Security not initialized."),
            ),
            (
                "<html>\n<h1>502 Bad Gateway</h1>".into(),
                None,
                Some("<html> <h1>502 Bad Gateway</h1>"),
            ),
            (r#"{"_id":"7","found":false}"#.into(), None, None),
            (String::new(), None, None),
        ];
        for (body, kind, reason) in cases {
            let found = explanation(body.as_bytes());
            assert_eq!((found.0.as_deref(), found.1.as_deref()), (kind, reason), "{body}");
        }
    }

    #[test]
    fn a_retry_after_that_is_no_number_is_not_there() {
        let read = |text: &'static str| {
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]))
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(read("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
