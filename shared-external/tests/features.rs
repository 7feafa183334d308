//! Fear: someone forgets a feature, and the compiler only says that there is no such function.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What is used, and the feature that its error must name.
const USED: [(&str, &str); 9] = [
    ("get_database", "postgres"),
    ("get_database_health", "postgres"),
    ("get_redis_client", "redis"),
    ("get_redis_health", "redis"),
    ("get_opensearch_client", "opensearch"),
    ("get_opensearch_health", "opensearch"),
    ("get_monitoring_manager", "monitoring"),
    ("setup_default_monitoring", "monitoring"),
    ("axum", "axum"),
];

#[test]
fn an_accessor_without_its_feature_is_an_error_that_names_the_feature() {
    let facade = Path::new(env!("CARGO_MANIFEST_DIR"));
    let consumer = Path::new(env!("CARGO_TARGET_TMPDIR")).join("featureless");
    fs::create_dir_all(consumer.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = \"featureless\"\nedition = \"2024\"\n[workspace]\n[dependencies]\nshared-external.path = {facade:?}\n"
    );
    fs::write(consumer.join("Cargo.toml"), manifest).unwrap();
    fs::copy(facade.join("../Cargo.lock"), consumer.join("Cargo.lock")).unwrap();
    let uses = USED.map(|(item, _)| format!("pub use shared_external::{item};\n"));
    fs::write(consumer.join("src/lib.rs"), uses.concat()).unwrap();

    let check = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--quiet", "--color", "never"])
        .env("CARGO_TARGET_DIR", consumer.join("target"))
        .current_dir(&consumer)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&check.stderr);
    let errors: Vec<_> = told.split("\nerror").collect();
    for (item, feature) in USED {
        let named = |error: &&&str| {
            error.contains(&format!("`shared_external::{item}`"))
                || error.contains(&format!("no `{item}` in"))
        };
        let error = errors.iter().find(named).unwrap_or_else(|| panic!("{item}: {told}"));
        assert!(error.contains(&format!("feature = \"{feature}\"")), "{item}: {error}");
    }
}
