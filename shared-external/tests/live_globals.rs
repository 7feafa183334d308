//! Fear: the managers of the process are not what the Python module's were, or die with the runtime
//! that happened to use them first.
#![cfg(feature = "full")]

use std::time::Duration;

use shared_external::redis::redis::AsyncCommands;
use shared_external::{
    Config, HealthStatus, SetupError, get_database, get_opensearch_client, get_redis_client, init,
};

fn on_a_runtime_of_its_own<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let value =
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), work).await });
    drop(runtime);
    value.expect("an answer within 30 s")
}

#[test]
fn what_one_runtime_started_serves_the_next() {
    for round in 0..3_i64 {
        on_a_runtime_of_its_own(async {
            let database = get_database().unwrap();
            let answer: i64 = database
                .read(|mut conn| async move {
                    Ok(sqlx::query_scalar("SELECT $1::bigint")
                        .bind(round)
                        .fetch_one(&mut conn)
                        .await?)
                })
                .await
                .unwrap();
            assert_eq!(answer, round);

            let mut redis = get_redis_client().unwrap();
            let _: () = redis.set("live-globals", round).await.unwrap();
            assert_eq!(redis.get::<_, i64>("live-globals").await.unwrap(), round);

            let opensearch = get_opensearch_client().unwrap();
            let status = opensearch
                .read(|node| async move { Ok(node.ping().send().await?.status_code().as_u16()) })
                .await
                .unwrap();
            assert_eq!(status, 200);
        });
    }
}

#[test]
fn health_has_the_status_of_the_python_module() {
    on_a_runtime_of_its_own(async {
        for health in [
            shared_external::get_database_health().await,
            shared_external::get_redis_health().await,
            shared_external::get_opensearch_health().await,
        ] {
            assert_eq!(health.status, HealthStatus::Healthy, "{health:?}");
            assert_eq!(serde_json::to_value(&health).unwrap()["status"], "healthy");
        }
    });
}

#[test]
fn init_after_first_use_is_an_error_and_not_a_surprise() {
    get_redis_client().unwrap();
    let error = init(Config::from_env().unwrap()).unwrap_err();
    assert!(matches!(error, SetupError::AlreadyInUse));
    assert!(error.to_string().contains("before any get_"));
}

#[test]
fn monitoring_outlives_the_runtime_that_set_it_up() {
    on_a_runtime_of_its_own(async {
        shared_external::setup_default_monitoring().await.unwrap();
    });
    on_a_runtime_of_its_own(async {
        // A second call changes nothing.
        shared_external::setup_default_monitoring().await.unwrap();
        let manager = shared_external::get_monitoring_manager();
        let summary = manager.get_health_summary();
        assert_eq!(summary.overall_health, HealthStatus::Healthy, "{summary:?}");
        assert_eq!(serde_json::to_value(&summary).unwrap()["overall_health"], "healthy");
        let names: Vec<_> = summary.services.keys().map(AsRef::as_ref).collect();
        assert_eq!(names, ["database", "opensearch", "redis"]);
    });
}
