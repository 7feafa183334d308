//! `backon` at work.

use backon::{ExponentialBuilder, Retryable};

use super::Refused;
use crate::case::Subject;

/// Retry around a ready future.
pub fn retry_ready() -> Subject {
    let policy = ExponentialBuilder::default().with_jitter();
    Subject::polls("backon", async move |i| {
        (|| async move { Ok::<_, Refused>(i) }).retry(policy).await
    })
}
