//! A Kubernetes service, found by its DNS name through the system resolver.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use resilience_core::settings::{ConfigError, Problem};
use resilience_core::{Address, Backoff, Endpoint};
use tokio::time::{Instant, sleep_until, timeout};

use crate::LOG;
use crate::declare::shown;
use crate::defaults::{CLUSTER_DOMAIN, RESOLVE_GAP};
use crate::prober::jittered;
use crate::resolver::Resolver;
use crate::service::Feed;

const FORM: &str = "k8s://service.namespace:port or k8s://service.namespace.svc.cluster.domain:port, \
                    a port from 1 to 65535";
const LABEL: &str = "1 to 63 small letters, digits and hyphens, with no hyphen at either end";

/// The longest name in DNS, in characters.
const LONGEST: usize = 253;

/// A service of a Kubernetes cluster, and one of its ports.
///
/// ```
/// use discovery::KubernetesService;
///
/// let redis = KubernetesService::new("redis", "default", 6379)?;
/// assert_eq!(redis.dns_name(), "redis.default.svc.cluster.local");
/// assert_eq!(redis, "k8s://redis.default:6379".parse()?);
///
/// let elsewhere = redis.with_cluster_domain("prod.example")?;
/// assert_eq!(elsewhere.to_string(), "redis.default.svc.prod.example:6379");
/// # Ok::<(), resilience_core::settings::ConfigError>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KubernetesService {
    service: String,
    namespace: String,
    cluster_domain: String,
    port: u16,
}

impl KubernetesService {
    /// The `service` in `namespace` of a cluster whose domain is `cluster.local`; each a DNS label:
    /// 1 to 63 small letters, digits and hyphens. The `port` is a number, 1 or more: a name would
    /// need SRV records.
    ///
    /// # Errors
    ///
    /// All parts that are wrong.
    pub fn new(
        service: impl Into<String>,
        namespace: impl Into<String>,
        port: u16,
    ) -> Result<Self, ConfigError> {
        Self {
            service: service.into(),
            namespace: namespace.into(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            port,
        }
        .validated("kubernetes")
    }

    /// The same service in a cluster of that domain; default `cluster.local`.
    ///
    /// # Errors
    ///
    /// A domain that is no DNS name, or too long a name: 253 characters at the most.
    pub fn with_cluster_domain(self, domain: impl Into<String>) -> Result<Self, ConfigError> {
        Self { cluster_domain: domain.into(), ..self }.validated("kubernetes")
    }

    /// The name that the resolver is asked for, and that a TLS certificate must carry.
    #[must_use]
    pub fn dns_name(&self) -> String {
        let Self { service, namespace, cluster_domain, .. } = self;
        format!("{service}.{namespace}.svc.{cluster_domain}")
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the `text` in `field` names, with or without `k8s://`.
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, ConfigError> {
        let wrong =
            || one(Problem { name: field.to_owned(), held: shown(text), allowed: FORM.to_owned() });
        let name = text.trim().strip_prefix("k8s://").unwrap_or(text.trim());
        if name.contains(['@', '/']) {
            return Err(wrong());
        }
        let (name, port) = name.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let mut labels = name.splitn(4, '.');
        let (Some(service), Some(namespace)) = (labels.next(), labels.next()) else {
            return Err(wrong());
        };
        if labels.next().is_some_and(|label| label != "svc") {
            return Err(wrong());
        }
        Self {
            service: service.to_owned(),
            namespace: namespace.to_owned(),
            cluster_domain: labels.next().unwrap_or(CLUSTER_DOMAIN).to_owned(),
            port,
        }
        .validated(field)
    }

    fn validated(self, field: &str) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut check = |part: &str, text: &str, good: bool, allowed: &str| {
            if !good {
                let name = format!("{field} ({part})");
                problems.push(Problem { name, held: shown(text), allowed: allowed.to_owned() });
            }
        };
        check("service", &self.service, is_label(&self.service), LABEL);
        check("namespace", &self.namespace, is_label(&self.namespace), LABEL);
        let domain = &self.cluster_domain;
        let labels = "labels separated by dots, each of 1 to 63 small letters, digits and hyphens";
        check("cluster domain", domain, domain.split('.').all(is_label), labels);
        check("port", &self.port.to_string(), self.port != 0, "1 to 65535");
        let length = self.dns_name().len();
        let long = format!("a name of {length} characters");
        check("length", &long, length <= LONGEST, "253 characters, with the dots");
        ConfigError::unless_empty(problems).map(|()| self)
    }
}

impl fmt::Display for KubernetesService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dns_name(), self.port)
    }
}

impl FromStr for KubernetesService {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::parse("kubernetes", text)
    }
}

/// When to look a name up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResolvePolicy {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

/// Looks the name of `target` up for ever, and tells `feed` its addresses: each interval, sooner after
/// failures of the endpoints, and with a growing wait while the resolver itself fails.
pub(crate) async fn follow(
    feed: Feed,
    target: KubernetesService,
    policy: ResolvePolicy,
    resolver: Resolver,
) {
    let name = target.dns_name();
    let host_name: Arc<str> = name.as_str().into();
    let patience =
        || Backoff::exponential(RESOLVE_GAP * 2, policy.interval.max(RESOLVE_GAP), 2.0).jittered();
    let (mut known, mut waits, mut failing) = (Vec::new(), patience(), false);
    loop {
        let began = Instant::now();
        let next = match look(&resolver, &name, target.port, policy.timeout).await {
            Ok(found) => {
                if failing {
                    tracing::info!(target: LOG, service = %feed.service(), %name, "the name resolves again");
                }
                (failing, waits) = (false, patience());
                let next = Instant::now() + jittered(policy.interval);
                known = in_known_order(&known, found);
                let endpoint = |ip: &IpAddr| {
                    Endpoint::new(Address::new(ip.to_string(), target.port))
                        .with_host_name(Arc::clone(&host_name))
                };
                feed.adopt(known.iter().map(endpoint).collect(), Some(next));
                next
            }
            Err(cause) => {
                let wait = waits.next().unwrap_or(policy.interval).max(RESOLVE_GAP);
                feed.distrust(&cause, Some(Instant::now() + wait));
                if failing {
                    tracing::debug!(target: LOG, service = %feed.service(), %cause, ?wait, "the name still does not resolve");
                } else {
                    tracing::warn!(target: LOG, service = %feed.service(), %cause, ?wait, "the name does not resolve; the last good endpoints stand");
                }
                failing = true;
                Instant::now() + wait
            }
        };
        tokio::select! {
            () = sleep_until(next) => {}
            () = async { feed.doubted().await; sleep_until(began + RESOLVE_GAP).await } => {
                tracing::debug!(target: LOG, service = %feed.service(), %name, "endpoints fail: looking the name up again");
            }
        }
    }
}

async fn look(
    resolver: &Resolver,
    name: &str,
    port: u16,
    limit: Duration,
) -> Result<Vec<SocketAddr>, String> {
    match timeout(limit, resolver.lookup(name, port)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(format!("{name} does not resolve: {error}")),
        Err(_) => Err(format!("{name} does not resolve: no answer in {limit:?}")),
    }
}

/// What was `found`, once each. Resolvers rotate their answers; those known keep their places, so that
/// a rotation is no change.
fn in_known_order(known: &[IpAddr], found: Vec<SocketAddr>) -> Vec<IpAddr> {
    let found: Vec<_> = found.into_iter().map(|address| address.ip()).collect();
    let mut ordered: Vec<_> = known.iter().copied().filter(|ip| found.contains(ip)).collect();
    for ip in found {
        if !ordered.contains(&ip) {
            ordered.push(ip);
        }
    }
    ordered
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn one(problem: Problem) -> ConfigError {
    ConfigError::unless_empty(vec![problem]).expect_err("there is one")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use resilience_core::{Freshness, Outcome};
    use tokio::time::sleep;

    use super::*;
    use crate::service::Service;
    use crate::tracker::{Sight, Thresholds};

    const POLICY: ResolvePolicy =
        ResolvePolicy { interval: Duration::from_secs(30), timeout: Duration::from_secs(5) };

    /// A resolver whose answer the test changes, and which notes when it was asked.
    #[derive(Clone, Default)]
    struct Script {
        answer: Arc<Mutex<Vec<[u8; 4]>>>,
        asked: Arc<Mutex<Vec<Instant>>>,
    }

    impl Script {
        fn answer(&self, ips: &[u8]) {
            *self.answer.lock().unwrap() = ips.iter().map(|ip| [10, 0, 0, *ip]).collect();
        }

        fn asked(&self) -> usize {
            self.asked.lock().unwrap().len()
        }

        fn start(&self) -> Arc<Service> {
            let service = Service::new("redis".into(), Thresholds { fall: 2, rise: 1 }, 64);
            let script = self.clone();
            let resolver = Resolver::new(move |name, port| {
                assert_eq!(name, "redis.default.svc.cluster.local");
                script.asked.lock().unwrap().push(Instant::now());
                let answer = script.answer.lock().unwrap();
                match answer.len() {
                    0 => Err(io::Error::other("no such host")),
                    _ => Ok(answer.iter().map(|ip| (*ip, port).into()).collect()),
                }
            });
            let target = KubernetesService::new("redis", "default", 6379).unwrap();
            tokio::spawn(follow(service.feed(), target, POLICY, resolver));
            service
        }
    }

    fn ids(service: &Service) -> Vec<String> {
        service.endpoints().iter().map(|endpoint| endpoint.id.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_moves_is_followed_within_an_interval() {
        let script = Script::default();
        script.answer(&[1, 2]);
        let service = script.start();
        let mut watched = service.watch();
        watched.changed().await.unwrap();
        assert_eq!(ids(&service), ["10.0.0.1:6379", "10.0.0.2:6379"]);
        assert_eq!(
            watched.borrow_and_update().endpoints[0].server_name(),
            "redis.default.svc.cluster.local"
        );
        script.answer(&[3, 2]);
        let moved = Instant::now();
        watched.changed().await.unwrap();
        assert_eq!(ids(&service), ["10.0.0.2:6379", "10.0.0.3:6379"]);
        let took = moved.elapsed();
        assert!(
            took >= POLICY.interval.mul_f64(0.9) && took <= POLICY.interval.mul_f64(1.11),
            "{took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_only_rotates_wakes_nobody() {
        let script = Script::default();
        script.answer(&[1, 2, 3]);
        let service = script.start();
        let mut watched = service.watch();
        watched.changed().await.unwrap();
        watched.mark_unchanged();
        script.answer(&[3, 1, 2]);
        sleep(POLICY.interval * 3).await;
        assert!(script.asked() >= 3);
        assert!(!watched.has_changed().unwrap());
        let Freshness::Fresh { until: Some(until) } = watched.borrow().freshness else {
            panic!("it is fresh")
        };
        assert!(until > Instant::now(), "each answer is trusted until the next");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reported_failure_has_the_name_looked_up_soon_but_not_in_a_storm() {
        let script = Script::default();
        script.answer(&[1]);
        let service = script.start();
        let mut watched = service.watch();
        watched.changed().await.unwrap();
        watched.mark_unchanged();
        sleep(Duration::from_secs(5)).await;
        script.answer(&[2]);
        let failed = Instant::now();
        service.settle("10.0.0.1:6379", None, Sight::Report, Outcome::Failure);
        watched.changed().await.unwrap();
        assert!(failed.elapsed() < Duration::from_millis(100), "{:?}", failed.elapsed());

        let before = script.asked();
        for _ in 0..1000 {
            service.settle("10.0.0.2:6379", None, Sight::Report, Outcome::Failure);
            sleep(Duration::from_millis(10)).await;
        }
        let asked = script.asked() - before;
        assert!((5..=11).contains(&asked), "{asked} lookups in 10 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_fails_leaves_the_last_good_set_and_is_asked_again() {
        let script = Script::default();
        script.answer(&[1]);
        let service = script.start();
        let mut watched = service.watch();
        watched.changed().await.unwrap();
        script.answer(&[]);
        watched.mark_unchanged();
        watched.changed().await.unwrap();
        {
            let set = watched.borrow_and_update();
            let Freshness::Stale { cause, .. } = &set.freshness else { panic!("{set:?}") };
            assert_eq!(&**cause, "redis.default.svc.cluster.local does not resolve: no such host");
            assert_eq!(&*set.candidates()[0].id, "10.0.0.1:6379");
        }
        let before = script.asked();
        sleep(Duration::from_secs(600)).await;
        let asked = script.asked() - before;
        assert!((20..=120).contains(&asked), "{asked} lookups in 600 s");
        script.answer(&[7]);
        watched.changed().await.unwrap();
        assert_eq!(ids(&service), ["10.0.0.7:6379"]);
        assert!(matches!(watched.borrow().freshness, Freshness::Fresh { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_never_resolved_says_why_and_when_to_come_back() {
        let service = Script::default().start();
        sleep(Duration::from_millis(1)).await;
        let none = service.pick().unwrap_err();
        assert_eq!(
            none.to_string(),
            "no endpoint of \"redis\" is known: redis.default.svc.cluster.local does not resolve: no such host"
        );
        assert!(none.retry_after.unwrap() <= Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_hangs_is_not_waited_for() {
        let service = Service::new("redis".into(), Thresholds { fall: 2, rise: 1 }, 64);
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let hung = Mutex::new(hung);
        let resolver = Resolver::new(move |_, _| {
            let _ = hung.lock().unwrap().recv();
            Err(io::Error::other("released"))
        });
        let limit = Duration::from_secs(5);
        let looking = tokio::spawn(async move { look(&resolver, "a.b", 1, limit).await });
        // A blocking thread stops the paused clock from advancing by itself.
        tokio::task::yield_now().await;
        tokio::time::advance(limit).await;
        let answer = looking.await.unwrap();
        assert_eq!(answer.unwrap_err(), "a.b does not resolve: no answer in 5s");
        drop(release);
        assert_eq!(service.endpoints().len(), 0);
    }

    #[test]
    fn names_that_dns_cannot_hold_are_refused_part_by_part() {
        let told = |text: &str| {
            text.parse::<KubernetesService>().map(|s| s.to_string()).map_err(|e| e.to_string())
        };
        for (text, name) in [
            ("redis.default:6379", "redis.default.svc.cluster.local:6379"),
            ("k8s://redis.default.svc:1", "redis.default.svc.cluster.local:1"),
            ("k8s://r-1.0.svc.prod.example:65535", "r-1.0.svc.prod.example:65535"),
        ] {
            assert_eq!(told(text).as_deref(), Ok(name));
        }
        for text in [
            "",
            "redis:6379",
            "redis.default",
            "redis.default:",
            "redis.default:http",
            "redis.default:65536",
            "redis.default.pod:1",
            "a.b.c.d:1",
            "k8s://redis.default:1/0",
            "http://redis.default:1",
        ] {
            let error = told(text).unwrap_err();
            assert!(error.contains("allowed: k8s://service.namespace:port"), "{text}: {error}");
        }
        let long = "a".repeat(64);
        for (text, part) in [
            ("Redis.default:1", "kubernetes (service) is \"Redis\"; allowed: 1 to 63 small"),
            ("re_dis.default:1", "(service) is \"re_dis\""),
            ("redis-.default:1", "(service) is \"redis-\""),
            ("redis.-x:1", "(namespace) is \"-x\""),
            ("redis.:1", "(namespace) is \"\""),
            ("redis.default.svc.a..b:1", "(cluster domain) is \"a..b\""),
            ("redis.default:0", "(port) is \"0\""),
            (&format!("{long}.default:1"), "(service)"),
            (
                &format!("redis.default.svc.{}:1", ["a"; 150].join(".")),
                "(length) is \"a name of 317",
            ),
        ] {
            let error = told(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(told("A.B:0").unwrap_err().lines().count(), 4, "all parts at once");
        assert!(!told("k8s://u:hun.ter2@b.c:1").unwrap_err().contains("hun"));
    }
}
