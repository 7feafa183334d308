//! The health endpoints as an axum router. None of them does any I/O.
//!
//! | path | says | status |
//! |---|---|---|
//! | `/health` | the process lives | 200 |
//! | `/ready` | it should get traffic | 200; 503 with `Retry-After` while starting, draining, and as the policy says |
//! | `/health/detailed` | everything | 200 |
//! | `/health/circuit-breakers` | every breaker by name | 200 |
//! | `/metrics` | Prometheus' text format | 200; 404 where the application's own recorder has them |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use resilience_core::{HealthStatus, Name};
use serde::Serialize;

use crate::{Alert, HealthSummary, MonitoringManager, ServiceHealth, Timestamp, json};

/// `/health`, `/ready`, `/health/detailed`, `/health/circuit-breakers` and `/metrics`, answered by
/// `manager` from what it knows already.
///
/// ```
/// # async fn home() {}
/// use axum::{Router, routing::get};
/// use monitoring::{MonitoringManager, health_routes};
///
/// let manager = MonitoringManager::builder().build()?;
/// let app: Router = Router::new().route("/", get(home)).merge(health_routes(manager));
/// # Ok::<(), monitoring::InvalidMonitoring>(())
/// ```
///
/// # `/health`
///
/// Whether the process lives: 200 whatever its services do.
///
/// ```json
#[doc = include_str!("../bodies/health.json")]
/// ```
///
/// # `/ready`
///
/// Whether it should get traffic: 503 with `Retry-After` while `starting` and `draining`, and while
/// `not_ready` by the [`ReadinessPolicy`](crate::ReadinessPolicy). Degraded is 200.
///
/// ```json
#[doc = include_str!("../bodies/ready.json")]
/// ```
///
/// # `/health/detailed`
///
/// Everything, 200 whatever it says. `checked_at` is when the latest check ended. Unknown values
/// are `null`.
///
/// ```json
#[doc = include_str!("../bodies/detailed.json")]
/// ```
///
/// # `/health/circuit-breakers`
///
/// Every breaker of the process by name.
///
/// ```json
#[doc = include_str!("../bodies/circuit-breakers.json")]
/// ```
///
/// # `/metrics`
///
/// Prometheus' text format, with whatever else the application records through the `metrics` crate.
pub fn health_routes(manager: MonitoringManager) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/health/detailed", get(detailed))
        .route("/health/circuit-breakers", get(circuit_breakers))
        .route("/metrics", get(metrics))
        .with_state(manager)
}

async fn health(State(manager): State<MonitoringManager>) -> Response {
    #[derive(Serialize)]
    struct Body {
        status: HealthStatus,
        version: Option<Arc<str>>,
        #[serde(serialize_with = "json::seconds")]
        uptime_seconds: Duration,
    }
    let (version, uptime_seconds) = manager.version_and_uptime();
    answer(&Body { status: HealthStatus::Healthy, version, uptime_seconds })
}

async fn ready(State(manager): State<MonitoringManager>) -> Response {
    let readiness = manager.readiness();
    let Some(wait) = readiness.retry_after else { return answer(&readiness) };
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let headers = [(RETRY_AFTER, seconds.to_string())];
    (StatusCode::SERVICE_UNAVAILABLE, headers, answer(&readiness)).into_response()
}

async fn detailed(State(manager): State<MonitoringManager>) -> Response {
    #[derive(Serialize)]
    struct Body {
        status: HealthStatus,
        version: Option<Arc<str>>,
        #[serde(serialize_with = "json::seconds")]
        uptime_seconds: Duration,
        checked_at: Option<Timestamp>,
        services: BTreeMap<Name, ServiceHealth>,
        alerts: Vec<Alert>,
    }
    let summary = manager.get_health_summary();
    let HealthSummary { overall_health, version, uptime, checked_at, services, alerts, .. } =
        summary;
    let status = overall_health;
    answer(&Body { status, version, uptime_seconds: uptime, checked_at, services, alerts })
}

async fn circuit_breakers(State(manager): State<MonitoringManager>) -> Response {
    answer(&manager.get_health_summary().circuit_breakers)
}

async fn metrics(State(manager): State<MonitoringManager>) -> Response {
    match manager.render_metrics() {
        Some(text) => {
            ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        None => (StatusCode::NOT_FOUND, "the application's own recorder has the metrics\n")
            .into_response(),
    }
}

/// JSON that nobody may keep.
fn answer(body: &impl Serialize) -> Response {
    ([(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::{HeaderMap, Request};
    use metrics_exporter_prometheus::PrometheusBuilder;
    use resilience_core::{
        CallOutcome, CircuitBreaker, Deadline, Event, Health, HealthCheck, PoolStatus, emit,
    };
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;
    use crate::wall_clock::Clock;
    use crate::{Metrics, ReadinessPolicy, names};

    struct Database(CircuitBreaker);

    #[async_trait::async_trait]
    impl HealthCheck for Database {
        async fn check(&self, _: Deadline) -> Health {
            Health::healthy(Duration::from_micros(420))
        }

        fn pool_status(&self) -> Option<PoolStatus> {
            Some(PoolStatus { in_use: 3, idle: 17, max: 70, waiting: 0, idle_max: 20, idle_min: 0 })
        }

        fn breaker(&self) -> Option<CircuitBreaker> {
            Some(self.0.clone())
        }
    }

    struct Redis;

    #[async_trait::async_trait]
    impl HealthCheck for Redis {
        async fn check(&self, _: Deadline) -> Health {
            Health::unhealthy(Duration::from_millis(1), "connection refused")
        }
    }

    /// An application whose database works, with a breaker that has seen some calls, and whose
    /// Redis does not.
    async fn application(policy: ReadinessPolicy) -> MonitoringManager {
        let breaker = CircuitBreaker::builder("database").fail_max(30).build().unwrap();
        let manager = MonitoringManager::builder()
            .critical("database", Arc::new(Database(breaker.clone())))
            .optional("redis", Arc::new(Redis))
            .version("1.4.0")
            .readiness(policy)
            .clock(Clock::FIXED)
            .build()
            .unwrap();
        manager.start();
        tokio::time::sleep(Duration::from_secs(6)).await;
        for call in 0..40 {
            let failed = call % 20 == 7;
            let permit = breaker.try_acquire().unwrap();
            if failed {
                permit.failure();
            } else {
                permit.success();
            }
            let outcome = if failed { CallOutcome::ServiceError } else { CallOutcome::Success };
            let elapsed = Duration::from_micros(500 + 40 * call);
            let name = breaker.name();
            emit(&Event::CallEnded { name, operation: "read", outcome, attempts: 1, elapsed });
        }
        tokio::time::sleep(Duration::from_millis(1500)).await;
        manager
    }

    async fn get(manager: &MonitoringManager, path: &str) -> (StatusCode, HeaderMap, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = health_routes(manager.clone()).oneshot(request).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (head.status, head.headers, String::from_utf8(body.into()).unwrap())
    }

    async fn json(manager: &MonitoringManager, path: &str) -> (StatusCode, HeaderMap, Value) {
        let (status, headers, body) = get(manager, path).await;
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        assert_eq!(headers[CACHE_CONTROL], "no-store");
        (status, headers, serde_json::from_str(&body).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_are_what_the_docs_show() {
        let manager = application(ReadinessPolicy::Critical).await;
        for (path, documented) in [
            ("/health", include_str!("../bodies/health.json")),
            ("/ready", include_str!("../bodies/ready.json")),
            ("/health/detailed", include_str!("../bodies/detailed.json")),
            ("/health/circuit-breakers", include_str!("../bodies/circuit-breakers.json")),
        ] {
            let (status, _, body) = json(&manager, path).await;
            let documented: Value = serde_json::from_str(documented).unwrap();
            assert_eq!(status, StatusCode::OK, "{path}");
            assert!(body == documented, "{path} answers\n{}", get(&manager, path).await.2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ready_says_why_not_and_when_to_ask_again() {
        let manager = application(ReadinessPolicy::All).await;
        let (status, headers, body) = json(&manager, "/ready").await;
        assert_eq!(
            (status, &headers[RETRY_AFTER]),
            (StatusCode::SERVICE_UNAVAILABLE, &"30".parse().unwrap())
        );
        assert_eq!((&body["status"], &body["policy"]), (&"not_ready".into(), &"all".into()));
        assert_eq!(body["services"]["redis"]["reason"], "connection refused");

        manager.set_draining();
        let (status, headers, body) = json(&manager, "/ready").await;
        assert_eq!(
            (status, &headers[RETRY_AFTER]),
            (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
        );
        assert_eq!(body["status"], "draining");
        assert_eq!(get(&manager, "/health").await.0, StatusCode::OK, "the process still lives");

        let idle = MonitoringManager::builder().build().unwrap();
        let (status, headers, body) = json(&idle, "/ready").await;
        assert_eq!(
            (status, headers.contains_key(RETRY_AFTER)),
            (StatusCode::SERVICE_UNAVAILABLE, true)
        );
        assert_eq!(body["status"], "starting");
    }

    /// What the text of `/metrics` promises, line by line: every family is explained before its
    /// samples, and no sample is without a family.
    fn families(text: &str) -> Vec<String> {
        let (mut helped, mut typed) = (Vec::new(), Vec::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(!help.is_empty());
                helped.push(name.to_owned());
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                typed.push(name.to_owned());
            } else {
                let family = typed.last().unwrap();
                let name = line.split(['{', ' ']).next().unwrap();
                let suffix = name
                    .strip_prefix(family.as_str())
                    .unwrap_or_else(|| panic!("{line} is not of {family}"));
                assert!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{line}");
                assert!(
                    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap().is_finite(),
                    "{line}"
                );
            }
        }
        assert_eq!(helped, typed);
        typed
    }

    #[tokio::test(start_paused = true)]
    async fn metrics_have_help_type_and_the_values_of_now() {
        let recorder =
            PrometheusBuilder::new().set_buckets(&names::BUCKETS).unwrap().build_recorder();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let metrics = Metrics::of(recorder.handle());
        let breaker = CircuitBreaker::builder("ledger").fail_max(21).build().unwrap();
        let manager = MonitoringManager::builder()
            .critical("ledger", Arc::new(Database(breaker.clone())))
            .optional("redis", Arc::new(Redis))
            .alert_handler(crate::LogAlertHandler)
            .metrics(metrics)
            .clock(Clock::FIXED)
            .build()
            .unwrap();
        manager.start();
        tokio::time::sleep(Duration::from_secs(3)).await;
        for call in 0..25 {
            if let Ok(permit) = breaker.try_acquire() {
                if call < 4 { permit.success() } else { permit.failure() }
            }
        }
        metrics::counter!("donations_total").increment(7);
        metrics::describe_counter!("donations_total", "Donations booked.");
        let (status, headers, text) = get(&manager, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
        let families = families(&text);
        assert!(families.iter().all(|name| name == "donations_total"
            || names::FAMILIES.iter().any(|family| family.name == name)));
        for line in [
            r#"resilience_circuit_breaker_state{name="ledger",state="open"} 1"#,
            r#"resilience_circuit_breaker_state{name="ledger",state="closed"} 0"#,
            r#"resilience_circuit_breaker_calls_total{name="ledger",kind="failure"} 21"#,
            r#"resilience_circuit_breaker_calls_total{name="ledger",kind="success"} 4"#,
            r#"resilience_circuit_breaker_failure_ratio{name="ledger"} 0.84"#,
            r#"external_service_health_status{external_service="ledger",status="degraded"} 1"#,
            r#"external_service_health_status{external_service="redis",status="unhealthy"} 1"#,
            r#"external_service_health_check_duration_seconds_count{external_service="redis"} 1"#,
            r#"external_service_last_check_timestamp_seconds{external_service="redis"} 1763964000"#,
            r#"external_service_transitions_total{external_service="redis"} 1"#,
            r#"external_service_uptime_ratio{external_service="redis"} 0"#,
            r#"external_service_uptime_ratio{external_service="ledger"} 1"#,
            r#"external_service_alerts_active{severity="error"} 1"#,
            r#"external_service_alert_notifications_total{handler="LogAlertHandler",outcome="delivered"} 1"#,
            r#"external_service_notifications_dropped_total{handler="LogAlertHandler"} 0"#,
            r#"db_client_connection_count{db_client_connection_pool_name="ledger",db_client_connection_state="used"} 3"#,
            r#"db_client_connection_count{db_client_connection_pool_name="ledger",db_client_connection_state="idle"} 17"#,
            r#"db_client_connection_max{db_client_connection_pool_name="ledger"} 70"#,
            r#"db_client_connection_idle_max{db_client_connection_pool_name="ledger"} 20"#,
            r#"db_client_connection_idle_min{db_client_connection_pool_name="ledger"} 0"#,
            r#"db_client_connection_pending_requests{db_client_connection_pool_name="ledger"} 0"#,
            "donations_total 7",
        ] {
            assert!(text.lines().any(|held| held == line), "{line} is missing in\n{text}");
        }
        // A minute without attempts: there is no ratio any more.
        tokio::time::sleep(Duration::from_secs(70)).await;
        let text = get(&manager, "/metrics").await.2;
        assert!(!text.contains("resilience_circuit_breaker_failure_ratio{"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn metrics_that_another_recorder_has_are_not_found_here() {
        let manager = MonitoringManager::builder().build().unwrap();
        assert_eq!(get(&manager, "/metrics").await.0, StatusCode::NOT_FOUND);
    }
}
