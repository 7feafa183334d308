//! The answer to `_bulk`: 200 as a whole, with a verdict for each item.

use opensearch::http::response::Response;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, bounded};
use crate::response::json;

/// What became of the operations of one `_bulk` request. Every operation is in exactly one list.
///
/// `_bulk` answers 200 even where not one item was written. Send again what is in
/// [`repeat`](Self::repeat), and only that: the rest of the batch was executed.
///
/// ```no_run
/// # async fn doc(search: conn_opensearch::OpenSearchManager, batch: Vec<serde_json::Value>) -> Result<(), Box<dyn std::error::Error>> {
/// use conn_opensearch::BulkOutcome;
/// use conn_opensearch::opensearch::{BulkOperation, BulkParts};
///
/// // With ids of their own the documents may be sent twice: the batch is idempotent.
/// let outcome = search
///     .write_idempotent(|node| {
///         let operations: Vec<BulkOperation<_>> = batch
///             .iter()
///             .map(|document| BulkOperation::index(document.clone()).id(document["id"].to_string()).into())
///             .collect();
///         async move {
///             let response = node.bulk(BulkParts::Index("campaigns")).body(operations).send().await?;
///             BulkOutcome::read(response).await
///         }
///     })
///     .await?;
/// for item in &outcome.refused {
///     println!("document {} was refused: {}", item.position, item.reason.as_deref().unwrap_or("?"));
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct BulkOutcome {
    /// Executed. A `delete` of what was not there is among them: nothing is there now either.
    pub done: Vec<BulkItem>,
    /// Not executed, and worth sending again after a while: 429 and 503.
    pub repeat: Vec<BulkItem>,
    /// Refused for good: every 4xx but 429.
    pub refused: Vec<BulkItem>,
    /// Failed in a way that leaves open what was executed: every other 5xx. Send again only what
    /// may be executed twice.
    pub uncertain: Vec<BulkItem>,
}

/// What became of one operation of a `_bulk` request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct BulkItem {
    /// Its place in the request, from 0.
    pub position: usize,
    /// What was asked for: `index`, `create`, `update` or `delete`.
    pub action: String,
    /// The index that it went to.
    pub index: String,
    /// The document's id, if it came to have one.
    pub id: Option<String>,
    /// Its own status, such as 201 or 429.
    pub status: u16,
    /// The type of its error, such as `mapper_parsing_exception`.
    pub kind: Option<String>,
    /// The reason of its error; 300 characters at the most.
    pub reason: Option<String>,
}

impl BulkOutcome {
    /// Reads the answer to a `_bulk` request.
    ///
    /// # Errors
    ///
    /// As for [`json`], where the request failed as a whole.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the rest of the answer and its connection.
    pub async fn read(response: Response) -> Result<Self, Error> {
        json(response).await.map(Self::sort)
    }

    /// Whether every operation was executed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.repeat.is_empty() && self.refused.is_empty() && self.uncertain.is_empty()
    }

    fn sort(answer: Answer) -> Self {
        let mut outcome = Self::default();
        for (position, item) in answer.items.into_iter().enumerate() {
            let Some((action, result)) = item.into_iter().next() else { continue };
            let failed = result.error.is_some();
            let (kind, reason) = result.error.map(explanation).unwrap_or_default();
            let (index, id, status) = (result.index, result.id, result.status);
            let item = BulkItem { position, action, index, id, status, kind, reason };
            match status {
                _ if !failed => outcome.done.push(item),
                429 | 503 => outcome.repeat.push(item),
                500.. => outcome.uncertain.push(item),
                _ => outcome.refused.push(item),
            }
        }
        outcome
    }
}

#[derive(Deserialize)]
struct Answer {
    items: Vec<std::collections::BTreeMap<String, ItemResult>>,
}

#[derive(Deserialize)]
struct ItemResult {
    #[serde(rename = "_index", default)]
    index: String,
    #[serde(rename = "_id")]
    id: Option<String>,
    status: u16,
    error: Option<Value>,
}

fn explanation(error: Value) -> (Option<String>, Option<String>) {
    let text = |value: &Value| value.as_str().map(bounded);
    (text(&error["type"]), text(&error["reason"]).or_else(|| text(&error)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(action: &str, status: u16, failed: bool) -> Value {
        let error = failed.then(|| json!({"type": "some_exception", "reason": "because"}));
        json!({action: {"_index": "campaigns", "_id": "7", "status": status, "error": error}})
    }

    #[test]
    fn every_item_gets_its_own_verdict() {
        let answer = json!({"took": 3, "errors": true, "items": [
            item("index", 201, false),
            item("index", 429, true),
            item("create", 409, true),
            item("delete", 404, false),
            item("update", 404, true),
            item("index", 503, true),
            item("index", 400, true),
            item("index", 500, true),
        ]});
        let outcome = BulkOutcome::sort(serde_json::from_value(answer).unwrap());
        let places =
            |items: &[BulkItem]| items.iter().map(|item| item.position).collect::<Vec<_>>();
        assert_eq!(places(&outcome.done), [0, 3]);
        assert_eq!(places(&outcome.repeat), [1, 5]);
        assert_eq!(places(&outcome.refused), [2, 4, 6]);
        assert_eq!(places(&outcome.uncertain), [7]);
        assert!(!outcome.is_complete());
        assert_eq!(outcome.refused[0].action, "create");
        assert_eq!(outcome.refused[0].reason.as_deref(), Some("because"));
    }
}
