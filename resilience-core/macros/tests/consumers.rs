//! The expansion compiles in a package that knows the core or the facade alone, by any name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What each package depends on, and the name it has for it.
const CONSUMERS: [(&str, &str, &str); 4] = [
    (
        "only-core",
        r#"resilience-core = { path = "CORE", features = ["macros"] }"#,
        "resilience_core",
    ),
    (
        "renamed-core",
        r#"armour = { package = "resilience-core", path = "CORE", features = ["macros"] }"#,
        "armour",
    ),
    ("only-facade", r#"shared-external = { path = "../facade" }"#, "shared_external"),
    (
        "renamed-facade",
        r#"my-external = { package = "shared-external", path = "../facade" }"#,
        "my_external",
    ),
];

const LIBRARY: &str = "
#![deny(warnings)]
#![forbid(unsafe_code)]

use CRATE::{CallError, circuit_breaker, with_retry};

#[circuit_breaker(\"service\", fail_max = 2, reset_timeout = 0.5)]
#[with_retry(max_retries = 1, budget = \"service\")]
pub async fn call(word: String) -> Result<String, CallError<std::fmt::Error>> {
    Ok(word)
}

#[with_retry(max_retries = 1 + 1, base_delay = std::time::Duration::ZERO)]
#[circuit_breaker(\"service\")]
pub fn call_sync(word: &mut String) -> Result<usize, CallError<std::fmt::Error>> {
    Ok(word.len())
}
";

#[test]
fn a_package_needs_the_core_or_the_facade_and_may_rename_it() {
    let macros = Path::new(env!("CARGO_MANIFEST_DIR"));
    let core = macros.parent().expect("the macros live in the core's folder");
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("consumers");
    let members = CONSUMERS.map(|(package, ..)| format!("{package:?}")).join(", ");
    write(
        &root.join("Cargo.toml"),
        &format!("[workspace]\nresolver = '3'\nmembers = ['facade', {members}]\n"),
    );
    fs::copy(core.join("../Cargo.lock"), root.join("Cargo.lock")).unwrap();
    let depend_on_core = r#"resilience-core = { path = "CORE", features = ["macros"] }"#;
    package(
        &root,
        "facade",
        "shared-external",
        "2024",
        depend_on_core,
        core,
        "pub use resilience_core::*;",
    );
    for (index, (name, dependency, krate)) in CONSUMERS.into_iter().enumerate() {
        let edition = if index % 2 == 0 { "2021" } else { "2024" };
        let library = LIBRARY.replace("CRATE", krate);
        package(&root, name, name, edition, dependency, core, &library);
    }
    let output = Command::new(env::var_os("CARGO").expect("cargo runs its tests with it"))
        .args(["check", "--workspace", "--offline", "--quiet", "--manifest-path"])
        .arg(root.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(root.join("target"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn package(
    root: &Path,
    folder: &str,
    name: &str,
    edition: &str,
    dependency: &str,
    core: &Path,
    library: &str,
) {
    let folder: PathBuf = root.join(folder);
    let dependency = dependency.replace("CORE", &core.display().to_string());
    let manifest = format!(
        "[package]\nname = {name:?}\nversion = '0.0.0'\nedition = {edition:?}\n\n[dependencies]\n{dependency}\n"
    );
    write(&folder.join("Cargo.toml"), &manifest);
    write(&folder.join("src/lib.rs"), library);
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("below the root")).unwrap();
    fs::write(path, text).unwrap();
}
