//! Why no endpoint can be given.

use std::sync::Arc;
use std::time::Duration;

/// Known names that an error lists at the most.
const LISTED: usize = 20;

/// No service of that name was registered.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no service {name:?}; known: {}", list(.known))]
#[non_exhaustive]
pub struct UnknownService {
    /// The name that was asked for.
    pub name: String,
    /// The names that are registered, in order.
    pub known: Vec<Arc<str>>,
}

/// The service is known, but none of its endpoints.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no endpoint of {service:?} is known: {cause}")]
#[non_exhaustive]
pub struct NoEndpoint {
    /// The service's name.
    pub service: Arc<str>,
    /// What its source has to say.
    pub cause: Arc<str>,
    /// When its source will be asked again, if that is known.
    pub retry_after: Option<Duration>,
}

/// Why [`pick`](crate::ServiceRegistry::pick) gave no endpoint.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PickError {
    /// No service of that name was registered.
    #[error(transparent)]
    UnknownService(#[from] UnknownService),
    /// The service is known, but none of its endpoints.
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
}

impl PickError {
    /// The soonest another try is worth making, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::UnknownService(_) => None,
            Self::NoEndpoint(none) => none.retry_after,
        }
    }
}

fn list(known: &[Arc<str>]) -> String {
    match known.len() {
        0 => "none".to_owned(),
        len if len > LISTED => format!("{} and {} more", known[..LISTED].join(", "), len - LISTED),
        _ => known.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        let error = |known| UnknownService { name: "redsi".to_owned(), known }.to_string();
        assert_eq!(
            error(vec!["postgres".into(), "redis".into()]),
            "no service \"redsi\"; known: postgres, redis"
        );
        assert_eq!(error(vec![]), "no service \"redsi\"; known: none");
        let many = error((0..25).map(|n| n.to_string().into()).collect());
        assert!(many.ends_with("18, 19 and 5 more"), "{many}");
    }
}
