//! Where a service can be reached: one address, or the watched set of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// The set of a service's endpoints as it changes. Hold it, and look whenever you connect.
pub type WatchedEndpoints = watch::Receiver<EndpointSet>;

/// A host (name, IPv4 or IPv6 address) and a port.
///
/// ```
/// use resilience_core::Address;
///
/// let address: Address = "[::1]:6379".parse()?;
/// assert_eq!((address.host(), address.port()), ("::1", 6379));
/// assert_eq!(address.to_string(), "[::1]:6379");
/// # Ok::<(), resilience_core::AddressError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Address {
    host: Arc<str>,
    port: u16,
}

impl Address {
    /// The address of `port` on `host`; an IPv6 `host` stands without brackets.
    pub fn new(host: impl Into<Arc<str>>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// The host, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        // Somebody may have put a URL with a password where an address belongs.
        let shown = if text.contains('@') { "***" } else { text };
        let wrong = || AddressError { text: shown.to_owned() };
        let (host, port) = text.trim().rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            None if !host.is_empty() && !host.contains([':', '/', '@', '[', ']', ' ', ',']) => host,
            _ => return Err(wrong()),
        };
        Ok(Self::new(host, port))
    }
}

/// Text that is no address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{text:?} is no address; allowed: host:port, with an IPv6 host in brackets and a port from 1 to 65535"
)]
pub struct AddressError {
    text: String,
}

/// One address of a service, and what is known of it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Endpoint {
    /// Stays the same while other fields change; the address, unless the source names it otherwise.
    pub id: Arc<str>,
    /// Where to connect.
    pub address: Address,
    /// The name a TLS certificate must carry, where it is not the address's host.
    pub host_name: Option<Arc<str>>,
    /// Share of the traffic among those of the same priority; default 1.
    pub weight: u32,
    /// The lowest number is used first; default 0.
    pub priority: u32,
    /// Where it stands, if known.
    pub zone: Option<Arc<str>>,
    /// What it may be used for.
    pub role: Role,
    /// Whether it may be used now.
    pub conditions: Conditions,
    /// Whatever else the source tells.
    pub metadata: BTreeMap<String, String>,
}

impl Endpoint {
    /// The endpoint at `address`, serving, with every other field at its default.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            id: address.to_string().into(),
            address,
            host_name: None,
            weight: 1,
            priority: 0,
            zone: None,
            role: Role::default(),
            conditions: Conditions::default(),
            metadata: BTreeMap::new(),
        }
    }

    /// The same endpoint with `host_name` as the name that its certificate must carry.
    #[must_use]
    pub fn with_host_name(self, host_name: impl Into<Arc<str>>) -> Self {
        Self { host_name: Some(host_name.into()), ..self }
    }

    /// The same endpoint with that priority.
    #[must_use]
    pub fn with_priority(self, priority: u32) -> Self {
        Self { priority, ..self }
    }

    /// The name that a TLS certificate must carry.
    #[must_use]
    pub fn server_name(&self) -> &str {
        self.host_name.as_deref().unwrap_or(self.address.host())
    }
}

/// What an endpoint may be used for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Role {
    /// The source does not say.
    #[default]
    Unknown,
    /// Takes writes.
    Primary,
    /// Reads only.
    Replica,
}

/// Whether an endpoint may be used, by the terms of Kubernetes' EndpointSlice and by what was seen of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Conditions {
    /// The source says that it serves.
    pub ready: bool,
    /// The source says that it is going away.
    pub terminating: bool,
    /// It answered when last tried.
    pub healthy: bool,
}

impl Conditions {
    /// Whether traffic may go there.
    #[must_use]
    pub fn usable(self) -> bool {
        self.ready && self.healthy && !self.terminating
    }
}

impl Default for Conditions {
    fn default() -> Self {
        Self { ready: true, terminating: false, healthy: true }
    }
}

/// All endpoints of a service at one time.
#[derive(Clone, Debug)]
pub struct EndpointSet {
    /// The endpoints, in the source's order.
    pub endpoints: Arc<[Endpoint]>,
    /// Rises with each change.
    pub generation: u64,
    /// How far to trust it.
    pub freshness: Freshness,
}

impl EndpointSet {
    /// A first set of `endpoints` that does not age.
    pub fn fixed(endpoints: impl Into<Arc<[Endpoint]>>) -> Self {
        Self {
            endpoints: endpoints.into(),
            generation: 0,
            freshness: Freshness::Fresh { until: None },
        }
    }

    /// Those to use, best first: the usable of the lowest priority, then of the next. Where none is
    /// usable, all of them in the same order: a wrong health tracker must not cut off a service.
    #[must_use]
    pub fn candidates(&self) -> Vec<&Endpoint> {
        let usable = self.endpoints.iter().filter(|endpoint| endpoint.conditions.usable());
        let mut candidates: Vec<_> = usable.collect();
        if candidates.is_empty() {
            candidates = self.endpoints.iter().collect();
        }
        candidates.sort_by_key(|endpoint| endpoint.priority);
        candidates
    }
}

/// How far to trust an [`EndpointSet`].
#[derive(Clone, Debug)]
pub enum Freshness {
    /// As its source has it.
    Fresh {
        /// When its source must be asked again; `None` if it does not age.
        until: Option<Instant>,
    },
    /// The source could not be asked: the last good set stands.
    Stale {
        /// When that began.
        since: Instant,
        /// Why.
        cause: Arc<str>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16, priority: u32, healthy: bool) -> Endpoint {
        let mut endpoint = Endpoint::new(Address::new("10.0.0.1", port)).with_priority(priority);
        endpoint.conditions.healthy = healthy;
        endpoint
    }

    #[test]
    fn an_address_without_a_port_is_refused() {
        for text in [
            "",
            "redis",
            "redis:",
            "redis:0",
            "redis:65536",
            ":6379",
            "::1:6379",
            "user@redis:1",
            "[redis]:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?} was taken");
        }
        assert_eq!(" redis:6379 ".parse(), Ok(Address::new("redis", 6379)));
    }

    #[test]
    fn the_next_healthy_endpoint_is_chosen() {
        let set =
            EndpointSet::fixed([endpoint(1, 0, false), endpoint(2, 1, true), endpoint(3, 0, true)]);
        let ports: Vec<_> =
            set.candidates().iter().map(|endpoint| endpoint.address.port()).collect();
        assert_eq!(ports, [3, 2]);
    }

    #[test]
    fn a_tracker_that_condemns_all_cuts_off_nothing() {
        let set = EndpointSet::fixed([endpoint(1, 1, false), endpoint(2, 0, false)]);
        assert_eq!(set.candidates()[0].address.port(), 2);
    }

    #[test]
    fn a_password_put_into_an_address_is_not_shown() {
        for text in ["user:hunter2@redis:6379", "redis://:hunter2@redis:6379/0"] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        assert!("redis".parse::<Address>().unwrap_err().to_string().starts_with("\"redis\" is no"));
    }
}
