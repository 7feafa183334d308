//! What a service's name and its endpoints may look like, wherever they are written.

use std::collections::BTreeSet;
use std::sync::Arc;

use resilience_core::settings::{Held, Problem, redact_url};
use resilience_core::{Address, Endpoint};

#[cfg(feature = "kubernetes")]
use crate::kubernetes::KubernetesService;

/// What an address must look like.
pub(crate) const ADDRESS: &str = "host:port, an IPv6 host in brackets, a port from 1 to 65535";

#[cfg(feature = "kubernetes")]
const SOURCE: &str = "host:port, several separated by commas, or k8s://service.namespace:port";
#[cfg(not(feature = "kubernetes"))]
const SOURCE: &str =
    "host:port, several separated by commas (k8s:// needs the feature \"kubernetes\")";

/// The longest name of a service, in characters.
const LONGEST_NAME: usize = 63;

/// A service and where its endpoints come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Declaration {
    pub(crate) name: Arc<str>,
    pub(crate) source: Source,
}

/// Where the endpoints of a service come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// They are known.
    Static(Vec<Endpoint>),
    /// The system resolver knows those of a Kubernetes service.
    #[cfg(feature = "kubernetes")]
    Kubernetes(KubernetesService),
}

#[cfg(test)]
impl Source {
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        match self {
            Self::Static(endpoints) => endpoints,
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(_) => &[],
        }
    }
}

/// The one form of a service's name: small letters, `_` for `-`.
pub(crate) fn canonical(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace('-', "_")
}

/// The canonical form of the `name` that `field` gives, if it is one.
pub(crate) fn service_name(field: &str, name: &str) -> Result<Arc<str>, Problem> {
    let canonical = canonical(name);
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if (1..=LONGEST_NAME).contains(&canonical.len()) && canonical.chars().all(allowed) {
        return Ok(canonical.into());
    }
    Err(Problem {
        name: field.to_owned(),
        held: shown(name),
        allowed: format!(
            "a service's name of 1 to {LONGEST_NAME} letters, digits, hyphens, underscores and dots"
        ),
    })
}

/// What one text in `field` tells: a list of addresses or a Kubernetes service.
pub(crate) fn source(field: &str, text: &str, max: usize) -> Result<Source, Vec<Problem>> {
    if text.trim().starts_with("k8s://") {
        return kubernetes(field, text.trim());
    }
    let mut problems = Vec::new();
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let parse = |part: &str| endpoint(field, part, SOURCE).map_err(|p| problems.push(p)).ok();
    let endpoints: Vec<_> = parts.filter_map(parse).collect();
    if problems.is_empty() {
        problems = list_problems(field, &endpoints, max);
    }
    if problems.is_empty() { Ok(Source::Static(endpoints)) } else { Err(problems) }
}

/// The endpoint at the address that `field` gives.
pub(crate) fn endpoint(field: &str, text: &str, allowed: &str) -> Result<Endpoint, Problem> {
    match text.parse::<Address>() {
        Ok(address) => Ok(Endpoint::new(address)),
        Err(_) => {
            Err(Problem { name: field.to_owned(), held: shown(text), allowed: allowed.to_owned() })
        }
    }
}

/// What is wrong with the list of endpoints in `field` as a whole.
pub(crate) fn list_problems(field: &str, endpoints: &[Endpoint], max: usize) -> Vec<Problem> {
    let problem = |held, allowed: String| Problem { name: field.to_owned(), held, allowed };
    if !(1..=max).contains(&endpoints.len()) {
        let held = Held::Text(format!("a list of {}", endpoints.len()));
        return vec![problem(held, format!("1 to {max} endpoints"))];
    }
    let mut ids = BTreeSet::new();
    endpoints
        .iter()
        .filter(|endpoint| !ids.insert(&endpoint.id))
        .map(|twice| {
            problem(Held::Text(format!("{} twice", twice.id)), "each endpoint once".to_owned())
        })
        .collect()
}

/// `text` as far as it may be shown: somebody may have put a URL with a password where none belongs.
pub(crate) fn shown(text: &str) -> Held {
    if text.contains("://") {
        Held::Text(redact_url(text))
    } else if text.contains('@') {
        Held::Secret
    } else {
        Held::Text(text.to_owned())
    }
}

#[cfg(feature = "kubernetes")]
fn kubernetes(field: &str, text: &str) -> Result<Source, Vec<Problem>> {
    let service = KubernetesService::parse(field, text);
    service.map(Source::Kubernetes).map_err(|error| error.problems().to_vec())
}

#[cfg(not(feature = "kubernetes"))]
fn kubernetes(field: &str, text: &str) -> Result<Source, Vec<Problem>> {
    let (name, allowed) = (field.to_owned(), SOURCE.to_owned());
    Err(vec![Problem { name, held: shown(text), allowed }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        let problems = source("DISCOVERY_REDIS", text, 3).unwrap_err();
        problems.iter().map(|problem| format!("{problem}\n")).collect()
    }

    #[test]
    fn a_list_is_taken_in_its_order() {
        let source = source("f", " b:2, a:1,,[::1]:3 ", 3).unwrap();
        let ids: Vec<_> = source.endpoints().iter().map(|endpoint| &*endpoint.id).collect();
        assert_eq!(ids, ["b:2", "a:1", "[::1]:3"]);
    }

    #[test]
    fn each_wrong_part_is_told_with_what_is_allowed() {
        let text = told("a:1,b,c:0");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.starts_with("DISCOVERY_REDIS is \"b\"; allowed: host:port, several"),
            "{text}"
        );
        assert!(text.contains("DISCOVERY_REDIS is \"c:0\"; allowed: "), "{text}");
    }

    #[test]
    fn lists_that_are_empty_too_long_or_repeat_themselves_are_refused() {
        assert!(told(",").contains("is \"a list of 0\"; allowed: 1 to 3 endpoints"));
        assert!(told("a:1,a:2,a:3,a:4").contains("is \"a list of 4\"; allowed: 1 to 3 endpoints"));
        assert!(told("a:1,a:2,a:1").contains("is \"a:1 twice\"; allowed: each endpoint once"));
    }

    #[test]
    fn a_password_put_in_the_wrong_place_is_not_shown() {
        for text in ["redis://:hunter2@host:1/0", "user:hunter2@host:1", "k8s://a:hunter2@b.c:1"] {
            let told = told(text);
            assert!(!told.contains("hunter2"), "{told}");
            assert!(told.starts_with("DISCOVERY_REDIS "), "{told}");
        }
    }

    #[test]
    fn names_are_the_same_in_the_environment_and_in_code() {
        for name in ["order-service", "ORDER_SERVICE", "Order_Service"] {
            assert_eq!(service_name("f", name).as_deref(), Ok("order_service"));
        }
        for name in ["", " ", "a b", "a/b", "é", &"a".repeat(64)] {
            assert!(service_name("f", name).is_err(), "{name:?}");
        }
    }

    #[cfg(not(feature = "kubernetes"))]
    #[test]
    fn a_kubernetes_name_without_the_feature_names_the_feature() {
        assert!(told("k8s://redis.default:6379").contains("needs the feature \"kubernetes\""));
    }
}
