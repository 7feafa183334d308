//! What a thing is called: a breaker, a pipeline, a pool. Whatever is refused carries the name of what refused it.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// The name of a breaker, a pipeline, a pool or another thing, cheap to clone.
///
/// A clone of a literal is a copy: no allocation, no atomic, nothing that threads share, so that in an
/// outage those that are refused do not wait for each other's cache lines. A clone of a name that is
/// made at run time, from a `String` or an `Arc<str>`, is one reference count. Either compares,
/// orders, hashes and prints as its text.
///
/// ```
/// use resilience_core::{CircuitBreaker, Name};
///
/// let breaker = CircuitBreaker::new("payments");
/// assert_eq!(breaker.name(), "payments");
///
/// let tenant = 7;
/// let of_tenant = Name::from(format!("payments/{tenant}"));
/// assert_eq!(of_tenant.clone(), "payments/7");
/// ```
#[derive(Clone)]
pub struct Name(Repr);

/// Two words, as an `Arc<str>` is: an error that carries a name is moved at every step of a call's way out.
#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<Arc<str>>),
}

impl Name {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Static(name) => name,
            Repr::Shared(name) => name,
        }
    }
}

impl From<&'static str> for Name {
    fn from(name: &'static str) -> Self {
        Self(Repr::Static(name))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Arc::<str>::from(name).into()
    }
}

impl From<Arc<str>> for Name {
    fn from(name: Arc<str>) -> Self {
        Self(Repr::Shared(Arc::new(name)))
    }
}

/// For whoever needs an `Arc`: a literal is copied into one, a name made at run time shared.
impl From<Name> for Arc<str> {
    fn from(name: Name) -> Self {
        match name.0 {
            Repr::Static(name) => name.into(),
            Repr::Shared(name) => Arc::clone(&name),
        }
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Name {}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other)
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;

    fn both() -> [Name; 2] {
        [Name::from("payments"), Name::from("payments".to_owned())]
    }

    #[test]
    fn a_clone_of_a_literal_shares_no_count_and_one_of_another_name_one() {
        let [literal, made] = both();
        assert!(matches!(literal.clone().0, Repr::Static(_)));
        let clone = made.clone();
        let (Repr::Shared(one), Repr::Shared(other)) = (&made.0, &clone.0) else {
            panic!("a name made at run time is shared");
        };
        assert!(Arc::ptr_eq(one, other));
        assert_eq!((Arc::strong_count(one), Arc::strong_count(&**one)), (2, 1));
    }

    #[test]
    fn there_and_back_copies_a_literal_and_nothing_else() {
        let shared: Arc<str> = "payments".into();
        assert!(Arc::ptr_eq(&shared, &Name::from(Arc::clone(&shared)).into()));
        assert_eq!(&*Arc::<str>::from(Name::from("payments")), "payments");
    }

    #[test]
    fn a_name_is_no_larger_than_an_arc() {
        assert_eq!(size_of::<Name>(), size_of::<Arc<str>>());
    }

    #[test]
    fn where_a_name_comes_from_makes_no_difference_to_maps() {
        let [literal, made] = both();
        assert_eq!(literal, made);
        assert_eq!(literal.cmp(&made), Ordering::Equal);
        assert_eq!(Name::from("a").cmp(&made), Ordering::Less);
        for (key, other) in [(&literal, &made), (&made, &literal)] {
            let hashed = HashMap::from([(key.clone(), 1)]);
            let ordered = BTreeMap::from([(key.clone(), 1)]);
            assert_eq!((hashed.get(other), hashed.get("payments")), (Some(&1), Some(&1)));
            assert_eq!((ordered.get(other), ordered.get("payments")), (Some(&1), Some(&1)));
            assert_eq!((hashed.get("other"), ordered.get("other")), (None, None));
        }
    }

    #[test]
    fn where_a_name_comes_from_cannot_be_seen() {
        for name in both() {
            assert_eq!(format!("{name} {name:>10} {name:?}"), r#"payments   payments "payments""#);
            assert_eq!(serde_json::to_string(&name).unwrap(), r#""payments""#);
            assert!(name == "payments" && name == *"payments" && name != "other");
        }
    }
}
